//! Kubelet's probes: they reach the application, and nobody else does by them.
use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use aya::maps::{Map, MapData};
use undermesh_abi::Ends;
use undermesh_capture::{Capture, Probes};

use crate::{
    Test,
    agent::accept,
    bed::{Bed, Namespace, PATIENCE, Served, enroll, eventually, ip, remove_cgroup},
};

pub const TESTS: &[Test] = &[
    (
        "probes::kubelet_reaches_the_application_and_nobody_else",
        kubelet_and_nobody_else,
    ),
    (
        "probes::they_pass_while_the_agent_is_away",
        while_the_agent_is_away,
    ),
    (
        "probes::a_kubelet_that_was_restarted_is_known_again",
        restarted_kubelet,
    ),
    ("probes::a_closed_probe_leaves_no_note", no_note),
    ("probes::addresses_of_the_node_pass", addresses),
];

const TARGETS: [&str; 2] = ["10.88.0.2:8080", "[fd88::2]:8080"];

/// A probe by a process of its own, which enters the cgroup before it connects. It ends with its input.
fn probe(peer: &Namespace, cgroup: &Path, target: SocketAddr) -> Child {
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec 3<>/dev/tcp/{}/{} && cat",
        cgroup.display(),
        target.ip(),
        target.port()
    );
    peer.run(|| {
        Command::new("bash")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    })
}

fn finish(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// The pod's application.
fn application(pod: &Namespace) -> Vec<TcpListener> {
    pod.run(|| {
        TARGETS
            .iter()
            .map(|target| TcpListener::bind(target).unwrap())
            .collect()
    })
}

fn passes(application: &[TcpListener], peer: &Namespace, cgroup: &Path) {
    for target in TARGETS {
        let target: SocketAddr = target.parse().unwrap();
        let child = probe(peer, cgroup, target);
        let (accepted, source) = accept(application);
        assert_eq!(accepted.local_addr().unwrap(), target);
        assert!(source.ip() == ip("10.88.0.1") || source.ip() == ip("fd88::1"));
        finish(child);
    }
}

fn is_judged(served: &Served, peer: &Namespace, cgroup: &Path) {
    for target in TARGETS {
        let child = probe(peer, cgroup, target.parse().unwrap());
        served.accept_plaintext();
        finish(child);
    }
}

struct Kubelet<'a> {
    bed: &'a Bed,
    cgroup: std::path::PathBuf,
}

impl<'a> Kubelet<'a> {
    fn new(bed: &'a Bed) -> Self {
        let cgroup = bed.other_cgroup();
        Self { bed, cgroup }
    }

    fn known(&self) -> Probes {
        Probes::Kubelet(self.cgroup.clone())
    }

    /// Its cgroup is removed and made again, as systemd does.
    fn restart(&self) {
        remove_cgroup(&self.cgroup);
        assert_eq!(self.bed.other_cgroup(), self.cgroup);
    }
}

fn kubelet_and_nobody_else() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let kubelet = Kubelet::new(&bed);
    let served = enroll(&capture, &pod, "web");
    let application = application(&pod);
    is_judged(&served, &peer, &kubelet.cgroup);
    capture.pass_probes(&kubelet.known()).unwrap();
    passes(&application, &peer, &kubelet.cgroup);
    assert_eq!(capture.counters().unwrap().probes, 2);
    // Another process of the same node, from the same address.
    for target in TARGETS {
        let target: SocketAddr = target.parse().unwrap();
        let _client = peer.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        served.accept_plaintext();
    }
    capture.pass_probes(&Probes::Judged).unwrap();
    is_judged(&served, &peer, &kubelet.cgroup);
}

fn while_the_agent_is_away() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let kubelet = Kubelet::new(&bed);
    capture.pass_probes(&kubelet.known()).unwrap();
    let served = enroll(&capture, &pod, "web");
    let application = application(&pod);
    drop((capture, served));
    passes(&application, &peer, &kubelet.cgroup);
    let capture = bed.capture();
    capture.pass_probes(&kubelet.known()).unwrap();
    passes(&application, &peer, &kubelet.cgroup);
}

fn restarted_kubelet() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let kubelet = Kubelet::new(&bed);
    capture.pass_probes(&kubelet.known()).unwrap();
    let served = enroll(&capture, &pod, "web");
    let application = application(&pod);
    kubelet.restart();
    is_judged(&served, &peer, &kubelet.cgroup);
    capture.pass_probes(&kubelet.known()).unwrap();
    passes(&application, &peer, &kubelet.cgroup);
}

fn no_note() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let kubelet = Kubelet::new(&bed);
    capture.pass_probes(&kubelet.known()).unwrap();
    let _served = enroll(&capture, &pod, "web");
    let application = application(&pod);
    let child = probe(&peer, &kubelet.cgroup, TARGETS[0].parse().unwrap());
    let (mut accepted, _) = accept(&application);
    assert_eq!(notes(&bed, &capture), 1);
    // Data that is never read: the probe's end resets its connection, and no socket lingers.
    accepted.write_all(b"ok").unwrap();
    finish(child);
    eventually(|| notes(&bed, &capture) == 0);
}

fn notes(bed: &Bed, _alive: &Capture) -> usize {
    let pin = bed.settings().bpffs.join("undermesh/maps/PROBES");
    let map = Map::LruHashMap(MapData::from_pin(pin).unwrap());
    let map = aya::maps::HashMap::<_, Ends, u8>::try_from(map).unwrap();
    map.keys().map(Result::unwrap).count()
}

fn addresses() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let application = application(&pod);
    let connect = |target: &str| {
        let target: SocketAddr = target.parse().unwrap();
        peer.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap())
    };
    let own = BTreeSet::from([ip("10.88.0.1"), ip("fd88::1")]);
    capture.pass_probes(&Probes::From(own)).unwrap();
    for target in TARGETS {
        let client = connect(target);
        let (mut accepted, _) = accept(&application);
        drop(client);
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    }
    let other = BTreeSet::from([ip("10.88.0.77")]);
    capture.pass_probes(&Probes::From(other)).unwrap();
    for target in TARGETS {
        let _client = connect(target);
        served.accept_plaintext();
    }
}

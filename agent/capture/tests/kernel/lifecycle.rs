//! Enrolling, releasing, restarting, vanishing.
use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
};

use undermesh_capture::{Capture, CaptureError, Enrollment, NetnsError, Phase, Problem, Watch};

use crate::{
    Test,
    agent::accept,
    bed::{Bed, Namespace, PATIENCE, Served, activate, enroll, eventually, ip},
};

pub const TESTS: &[Test] = &[
    (
        "lifecycle::enrolling_twice_gives_the_same_pod",
        enrolling_twice_gives_the_same_pod,
    ),
    ("lifecycle::conflicts_are_refused", conflicts_are_refused),
    (
        "lifecycle::the_nodes_own_namespace_is_refused",
        the_nodes_own_namespace_is_refused,
    ),
    (
        "lifecycle::what_is_no_namespace_is_refused",
        what_is_no_namespace_is_refused,
    ),
    (
        "lifecycle::a_pod_without_address_is_refused",
        a_pod_without_address_is_refused,
    ),
    (
        "lifecycle::a_failed_enrollment_leaves_nothing",
        a_failed_enrollment_leaves_nothing,
    ),
    (
        "lifecycle::release_gives_everything_back",
        release_gives_everything_back,
    ),
    (
        "lifecycle::running_connections_go_on",
        running_connections_go_on,
    ),
    (
        "lifecycle::a_restarted_agent_adopts",
        a_restarted_agent_adopts,
    ),
    (
        "lifecycle::a_crash_at_any_step_of_enrolling_is_finished",
        a_crash_while_enrolling,
    ),
    (
        "lifecycle::a_crash_at_any_step_of_releasing_is_undone",
        a_crash_while_releasing,
    ),
    (
        "lifecycle::a_pod_gone_during_a_restart_is_cleaned_up",
        a_pod_gone_during_a_restart,
    ),
    (
        "lifecycle::a_pod_without_state_stays_captured",
        a_pod_without_state_stays_captured,
    ),
    (
        "lifecycle::another_layout_is_refused",
        another_layout_is_refused,
    ),
    (
        "lifecycle::capture_moves_to_another_cgroup",
        capture_moves_to_another_cgroup,
    ),
    (
        "lifecycle::a_vanished_namespace_is_noticed",
        a_vanished_namespace_is_noticed,
    ),
    (
        "lifecycle::an_ended_process_is_noticed",
        an_ended_process_is_noticed,
    ),
];

const OUTSIDE: &str = "203.0.113.7:8080";

/// Whether the pod's connections are captured and served, or what the application sees instead.
fn try_outbound(capture: &Capture, pod: &Namespace, served: &Served) -> io::Result<()> {
    let asked: SocketAddr = OUTSIDE.parse().unwrap();
    let _client = pod.run(|| TcpStream::connect_timeout(&asked, PATIENCE))?;
    let (_accepted, source) = served.accept_outbound();
    assert_eq!(
        capture.destinations().take(served.cookie, source),
        Some(asked)
    );
    Ok(())
}

fn try_inbound(peer: &Namespace, served: &Served) {
    let target = SocketAddr::new(ip("10.88.0.2"), 8080);
    let _client = peer.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
    served.accept_plaintext();
}

fn is_refused(pod: &Namespace) {
    let asked: SocketAddr = OUTSIDE.parse().unwrap();
    let error = pod.run(|| TcpStream::connect_timeout(&asked, PATIENCE).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

/// Whether connections go past the agent in both directions.
fn is_free(pod: &Namespace, peer: &Namespace) {
    for (server, client, address) in [(peer, pod, "10.88.0.1:0"), (pod, peer, "10.88.0.2:0")] {
        let listener = server.run(|| TcpListener::bind(address).unwrap());
        let target = listener.local_addr().unwrap();
        let _client = client.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        accept([&listener]);
    }
}

fn enrolling_twice_gives_the_same_pod() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let error = capture.prepare(&pod.enrollment("web")).unwrap_err();
    let CaptureError::AlreadyEnrolled(enrolled) = error else {
        panic!("{error}")
    };
    assert_eq!(enrolled.cookie(), served.cookie);
    assert_eq!(enrolled.addresses().all(), [ip("10.88.0.2"), ip("fd88::2")]);
    try_outbound(&capture, &pod, &served).unwrap();
}

fn conflicts_are_refused() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let (other, _other_peer) = bed.pair("other");
    let capture = bed.capture();
    let _served = enroll(&capture, &pod, "web");
    let other_account = Enrollment::new(&pod.path, "shop", "web", "admin").unwrap();
    for wanted in [pod.enrollment("db"), other.enrollment("web"), other_account] {
        let error = capture.prepare(&wanted).unwrap_err();
        assert!(matches!(error, CaptureError::Conflict { .. }), "{error}");
    }
    assert_eq!(capture.pods().len(), 1);
}

fn the_nodes_own_namespace_is_refused() {
    let bed = Bed::new();
    let capture = bed.capture();
    for path in ["/proc/self/ns/net", "/proc/thread-self/ns/net"] {
        let wanted = Enrollment::new(path, "shop", "web", "default").unwrap();
        let error = capture.prepare(&wanted).unwrap_err();
        assert!(
            matches!(error, CaptureError::Netns(NetnsError::Host(_))),
            "{error}"
        );
    }
}

fn what_is_no_namespace_is_refused() {
    let bed = Bed::new();
    let capture = bed.capture();
    for path in ["/etc/passwd", "/proc/self/ns/mnt", "/does/not/exist", "/"] {
        let wanted = Enrollment::new(path, "shop", "web", "default").unwrap();
        let error = capture.prepare(&wanted).unwrap_err();
        assert!(matches!(error, CaptureError::Netns(_)), "{path}: {error}");
    }
}

fn a_pod_without_address_is_refused() {
    let bed = Bed::new();
    let pod = bed.namespace("empty");
    let capture = bed.capture();
    let error = capture.prepare(&pod.enrollment("web")).unwrap_err();
    assert!(matches!(error, CaptureError::NoAddress(_)), "{error}");
    assert_eq!(bed.states_left(), 0);
}

fn a_failed_enrollment_leaves_nothing() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let holder = pod.run(|| TcpListener::bind("127.0.0.1:15006").unwrap());
    let error = capture.prepare(&pod.enrollment("web")).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:15006"), "{error}");
    assert_eq!((bed.states_left(), capture.pods().len()), (0, 0));
    is_free(&pod, &peer);
    drop(holder);
    let served = enroll(&capture, &pod, "web");
    try_outbound(&capture, &pod, &served).unwrap();
}

fn release_gives_everything_back() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let before = pod.network();
    let served = enroll(&capture, &pod, "web");
    assert_ne!(pod.network(), before);
    assert_eq!(pod.sysctl("net/ipv4/tcp_fwmark_accept"), "1");
    try_inbound(&peer, &served);
    capture.deactivate(served.cookie).unwrap();
    assert_eq!(capture.pods()[0].1, Phase::Draining);
    is_free(&pod, &peer);
    capture.forget(served.cookie).unwrap();
    assert_eq!(pod.network(), before);
    assert_eq!(
        (bed.states_left(), bed.pins_left(), capture.pods().len()),
        (0, 0, 0)
    );
    assert_eq!(
        capture.counters().unwrap().inbound_assigned,
        1,
        "counts outlive the pod"
    );
    drop(served);
    let served = enroll(&capture, &pod, "web");
    try_outbound(&capture, &pod, &served).unwrap();
}

fn running_connections_go_on() {
    use std::io::{Read as _, Write as _};
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let listener = peer.run(|| TcpListener::bind("10.88.0.1:0").unwrap());
    let target = listener.local_addr().unwrap();
    let mut client = pod.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
    let (mut server, _) = accept([&listener]);
    let mut exchange = || {
        let mut buffer = [0; 4];
        client.write_all(b"ping").unwrap();
        server.read_exact(&mut buffer).unwrap();
        server.write_all(b"pong").unwrap();
        client.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"pong");
        assert_eq!(client.peer_addr().unwrap(), target);
    };
    exchange();
    let served = enroll(&capture, &pod, "web");
    exchange();
    capture.forget(served.cookie).unwrap();
    exchange();
}

fn a_restarted_agent_adopts() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let prepared = capture.prepare(&pod.enrollment("web")).unwrap();
    let mark = prepared.pod().outbound_mark();
    let served = activate(&capture, prepared);
    try_outbound(&capture, &pod, &served).unwrap();
    drop((capture, served));
    is_refused(&pod);
    let capture = bed.capture();
    is_refused(&pod);
    let mut recovery = capture.recover().unwrap();
    assert!(recovery.problems.is_empty(), "{:?}", recovery.problems);
    let prepared = recovery.prepared.pop().unwrap();
    assert_eq!(prepared.pod().outbound_mark(), mark);
    assert_eq!(prepared.pod().enrollment(), &pod.enrollment("web"));
    let served = activate(&capture, prepared);
    try_outbound(&capture, &pod, &served).unwrap();
    try_inbound(&peer, &served);
    assert_eq!(capture.counters().unwrap().inbound_assigned, 1);
    assert_eq!(pod.sysctl("net/ipv4/tcp_fwmark_accept"), "1");
    capture.forget(served.cookie).unwrap();
    assert_eq!(
        pod.sysctl("net/ipv4/tcp_fwmark_accept"),
        "0",
        "the value from before is kept"
    );
}

/// The file of the only pod's pins or state.
fn only(folder: &Path) -> std::path::PathBuf {
    fs::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
}

fn a_crash_while_enrolling() {
    // What an agent has done when it stops: prepared; attached the program; written everything.
    let steps: [fn(&Bed, &Namespace); 4] = [
        |bed, pod| drop(bed.capture().prepare(&pod.enrollment("web")).unwrap()),
        |bed, pod| {
            drop(enroll(&bed.capture(), pod, "web"));
            fs::remove_file(only(&bed.pins()).join("link")).unwrap();
        },
        |bed, pod| {
            drop(enroll(&bed.capture(), pod, "web"));
            pod.ip("rule del pref 32764");
            pod.ip("route flush table 100");
        },
        |bed, pod| drop(enroll(&bed.capture(), pod, "web")),
    ];
    for step in steps {
        let bed = Bed::new();
        let (pod, peer) = bed.pair("pod");
        step(&bed, &pod);
        let capture = bed.capture();
        let mut recovery = capture.recover().unwrap();
        assert!(recovery.problems.is_empty(), "{:?}", recovery.problems);
        let served = activate(&capture, recovery.prepared.pop().unwrap());
        try_outbound(&capture, &pod, &served).unwrap();
        try_inbound(&peer, &served);
        assert!(pod.network().contains("32764"), "the rule is there again");
    }
}

fn a_crash_while_releasing() {
    let steps: [fn(&Bed, &Capture, &Namespace, u64); 3] = [
        |_, capture, _, cookie| capture.deactivate(cookie).unwrap(),
        |bed, capture, _, cookie| {
            capture.deactivate(cookie).unwrap();
            fs::remove_file(only(&bed.pins()).join("LISTENERS")).unwrap();
        },
        |_, capture, pod, cookie| {
            capture.deactivate(cookie).unwrap();
            pod.ip("rule del pref 32764");
        },
    ];
    for step in steps {
        let bed = Bed::new();
        let (pod, peer) = bed.pair("pod");
        let before = pod.network();
        let capture = bed.capture();
        let served = enroll(&capture, &pod, "web");
        step(&bed, &capture, &pod, served.cookie);
        drop((capture, served));
        let recovery = bed.capture().recover().unwrap();
        assert!(
            recovery.prepared.is_empty() && recovery.problems.is_empty(),
            "{recovery:?}"
        );
        is_free(&pod, &peer);
        assert_eq!(pod.network(), before);
        assert_eq!((bed.states_left(), bed.pins_left()), (0, 0));
    }
}

fn a_pod_gone_during_a_restart() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    drop(enroll(&bed.capture(), &pod, "web"));
    // Something in the namespace lives on without its path: it stays captured.
    let last = pod.open();
    pod.unmount();
    let recovery = bed.capture().recover().unwrap();
    assert!(
        matches!(recovery.problems[..], [Problem::Stray(_)]),
        "{recovery:?}"
    );
    assert_eq!((bed.states_left(), bed.pins_left()), (0, 1));
    drop(last);
    // The kernel takes a namespace down some time after its last user is gone.
    eventually(|| bed.capture().recover().unwrap().problems.is_empty());
    assert_eq!(bed.pins_left(), 0);
}

fn a_pod_without_state_stays_captured() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    drop(enroll(&bed.capture(), &pod, "web"));
    fs::remove_file(only(&bed.states())).unwrap();
    let capture = bed.capture();
    let recovery = capture.recover().unwrap();
    assert!(
        matches!(recovery.problems[..], [Problem::Stray(_)]),
        "{recovery:?}"
    );
    is_refused(&pod);
    let served = enroll(&capture, &pod, "web");
    try_outbound(&capture, &pod, &served).unwrap();
}

fn another_layout_is_refused() {
    use aya::maps::{Array, Map, MapData};
    use undermesh_abi::Settings;
    let bed = Bed::new();
    drop(bed.capture());
    let pin = bed.settings().bpffs.join("undermesh/maps/SETTINGS");
    let map = Map::Array(MapData::from_pin(pin).unwrap());
    let mut map = Array::<_, Settings>::try_from(map).unwrap();
    map.set(
        0,
        Settings {
            outbound_mark: 1,
            layout: 999,
        },
        0,
    )
    .unwrap();
    let error = Capture::open(bed.settings()).err().unwrap();
    assert!(error.to_string().contains("layout 999"), "{error}");
}

fn capture_moves_to_another_cgroup() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let elsewhere = bed.other_cgroup();
    let mut settings = bed.settings();
    settings.cgroup = elsewhere.clone();
    drop(Capture::open(settings).unwrap());
    // The first cgroup is gone before the restart, and its links with it.
    fs::remove_dir(elsewhere).unwrap();
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    try_outbound(&capture, &pod, &served).unwrap();
}

fn a_vanished_namespace_is_noticed() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let (stays, _stays_peer) = bed.pair("stays");
    let capture = bed.capture();
    let first = enroll(&capture, &pod, "web");
    let _second = enroll(&capture, &stays, "db");
    let noticed = notice(&capture, || pod.unmount());
    assert_eq!(noticed, first.cookie);
    capture.vanished(first.cookie).unwrap();
    assert_eq!((bed.states_left(), capture.pods().len()), (1, 1));
}

fn an_ended_process_is_noticed() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let mut process = pod.run(|| {
        Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    });
    let path = format!("/proc/{}/ns/net", process.id());
    let wanted = Enrollment::new(path, "shop", "web", "default").unwrap();
    let served = activate(&capture, capture.prepare(&wanted).unwrap());
    let noticed = notice(&capture, || {
        drop(process.stdin.take());
        process.wait().unwrap();
    });
    assert_eq!(noticed, served.cookie);
}

/// Watches all pods and gives the first that vanishes after `event`.
fn notice(capture: &Capture, event: impl FnOnce()) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (watch, mut vanished) = Watch::start().unwrap();
        for (pod, _) in capture.pods() {
            watch.add(&pod).await;
        }
        // The watch takes one pod a turn; after this, the event alone can wake it.
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
        event();
        tokio::time::timeout(PATIENCE, vanished.recv())
            .await
            .expect("nothing was noticed")
            .unwrap()
    })
}

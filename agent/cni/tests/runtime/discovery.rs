//! Finding namespaces: real ones, under the numbers of processes in a `/proc` made by the test.
use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::symlink},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use undermesh_cni::{
    discovery::{Discovery, DiscoveryError},
    netns::{self, NetnsId},
};

use crate::Test;

pub const TESTS: &[Test] = &[
    (
        "discovery::the_oldest_process_outside_the_nodes_namespace_tells",
        oldest_process,
    ),
    (
        "discovery::a_mount_of_the_namespace_is_the_better_path",
        better_path,
    ),
    (
        "discovery::a_namespace_without_the_pods_address_is_not_taken",
        other_addresses,
    ),
];

const UID: &str = "0b5c8e2f-4d67-4c1b-9a3e-2f1d0c9b8a76";

/// A folder like `/proc`, whose first process has this test's namespace.
struct Proc(TempDir);

impl Proc {
    fn new() -> Self {
        let proc = Self(tempfile::tempdir().unwrap());
        proc.process(1, "0::/init.scope", 1, Path::new("/proc/self/ns/net"));
        proc
    }

    fn process(&self, pid: u32, cgroup: &str, started: u64, netns: &Path) {
        let folder = self.0.path().join(pid.to_string());
        fs::create_dir_all(folder.join("ns")).unwrap();
        fs::write(folder.join("cgroup"), cgroup).unwrap();
        // The start is the twenty-second field (proc_pid_stat(5)).
        let stat = format!("{pid} (a) b) c) S {}{started} 0 0\n", "0 ".repeat(18));
        fs::write(folder.join("stat"), stat).unwrap();
        symlink(netns, folder.join("ns/net")).unwrap();
    }

    fn discovery(&self) -> Discovery {
        Discovery::new(self.0.path(), [])
    }
}

/// A thread in a namespace of its own, by whose path the namespace can be opened.
struct Namespace {
    path: PathBuf,
    _end: mpsc::Sender<()>,
}

impl Namespace {
    fn new() -> Self {
        let (end, ended) = mpsc::channel::<()>();
        let (told, tell) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let thread = fs::read_link("/proc/thread-self").unwrap();
            told.send(Path::new("/proc").join(thread).join("ns/net"))
                .unwrap();
            // The test has ended when its side is gone.
            let _ = ended.recv();
        });
        Self {
            path: tell.recv().unwrap(),
            _end: end,
        }
    }

    fn id(&self) -> NetnsId {
        NetnsId::of(netns::open(&self.path).unwrap()).unwrap()
    }
}

fn cgroup_of(uid: &str) -> String {
    format!("0::/kubepods/burstable/pod{uid}/c0ffee\n")
}

fn oldest_process() {
    let (first, second) = (Namespace::new(), Namespace::new());
    let proc = Proc::new();
    let cgroup = cgroup_of(UID);
    proc.process(30, &cgroup, 300, &second.path);
    proc.process(40, &cgroup, 200, &first.path);
    proc.process(50, &cgroup, 100, Path::new("/proc/self/ns/net"));
    proc.process(60, &cgroup_of("another"), 50, &second.path);
    let found = proc.discovery().find(UID, &[]).unwrap();
    assert_eq!(found.id, first.id());
    assert_eq!(found.path, proc.0.path().join("40/ns/net"));
}

fn better_path() {
    let namespace = Namespace::new();
    let proc = Proc::new();
    proc.process(30, &cgroup_of(UID), 300, &namespace.path);
    let mounts = tempfile::tempdir().unwrap();
    fs::write(mounts.path().join("a"), "").unwrap();
    symlink("/proc/self/ns/net", mounts.path().join("b")).unwrap();
    symlink(&namespace.path, mounts.path().join("c")).unwrap();
    let discovery = Discovery::new(proc.0.path(), [mounts.path().to_owned()]);
    assert_eq!(
        discovery.find(UID, &[]).unwrap().path,
        mounts.path().join("c")
    );
}

fn other_addresses() {
    let namespace = Namespace::new();
    let proc = Proc::new();
    proc.process(30, &cgroup_of(UID), 300, &namespace.path);
    let open = netns::open(&namespace.path).unwrap();
    assert!(netns::addresses(open.as_fd()).unwrap().is_empty());
    let address = "10.88.0.2".parse().unwrap();
    let found = proc.discovery().find(UID, &[address]);
    let error = found.unwrap_err();
    assert!(
        matches!(error, DiscoveryError::OtherAddresses { .. }),
        "{error}"
    );
    let opened = proc.discovery().open(&namespace.path, UID, &[address]);
    assert!(matches!(opened, Err(DiscoveryError::OtherAddresses { .. })));
    let host = proc
        .discovery()
        .open(Path::new("/proc/self/ns/net"), UID, &[]);
    assert!(matches!(host, Err(DiscoveryError::Host(_))));
}

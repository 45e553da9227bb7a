//! Discovery in a `/proc` made by the test: real namespaces under the numbers of processes that it chooses.
use std::{os::unix::fs::symlink, sync::mpsc, thread};

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::*;

const UID: &str = "0b5c8e2f-4d67-4c1b-9a3e-2f1d0c9b8a76";
const LOOPBACK: &str = "127.0.0.1";

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
        let zeroes = "0 ".repeat(START_TIME - 1);
        let stat = format!("{pid} (a) b) c) S {zeroes}{started} 0 0\n");
        fs::write(folder.join("stat"), stat).unwrap();
        symlink(netns, folder.join("ns/net")).unwrap();
    }

    fn find(&self, addresses: &[&str]) -> Result<Found, DiscoveryError> {
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        Discovery::new(self.0.path(), []).find(UID, &addresses)
    }
}

/// A thread in a namespace of its own, by whose path the namespace can be opened; `None` without the right to.
struct Namespace {
    path: PathBuf,
    _end: mpsc::Sender<()>,
}

impl Namespace {
    fn new() -> Option<Self> {
        let (end, ended) = mpsc::channel::<()>();
        let (told, tell) = mpsc::channel();
        thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).is_ok();
            let path = fs::read_link("/proc/thread-self").unwrap();
            let _ = told.send(made.then(|| Path::new("/proc").join(path).join("ns/net")));
            let _ = ended.recv();
        });
        let path = tell.recv().unwrap()?;
        Some(Self { path, _end: end })
    }

    fn id(&self) -> NetnsId {
        NetnsId::of(netns::open(&self.path).unwrap()).unwrap()
    }
}

fn cgroup_of(uid: &str) -> String {
    format!("0::/kubepods/burstable/pod{uid}/c0ffee\n")
}

#[test]
fn the_oldest_process_outside_the_node_s_namespace_tells() {
    let (Some(first), Some(second)) = (Namespace::new(), Namespace::new()) else {
        eprintln!("skipped: needs the right to make network namespaces");
        return;
    };
    let proc = Proc::new();
    let cgroup = cgroup_of(UID);
    proc.process(30, &cgroup, 300, &second.path);
    proc.process(40, &cgroup, 200, &first.path);
    proc.process(50, &cgroup, 100, Path::new("/proc/self/ns/net"));
    proc.process(60, &cgroup_of("another"), 50, &second.path);
    let found = proc.find(&[]).unwrap();
    assert_eq!(found.id, first.id());
    assert_eq!(found.path, proc.0.path().join("40/ns/net"));
}

#[test]
fn a_mount_of_the_namespace_is_the_better_path() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs the right to make network namespaces");
        return;
    };
    let proc = Proc::new();
    proc.process(30, &cgroup_of(UID), 300, &namespace.path);
    let mounts = tempfile::tempdir().unwrap();
    fs::write(mounts.path().join("a"), "").unwrap();
    symlink("/proc/self/ns/net", mounts.path().join("b")).unwrap();
    symlink(&namespace.path, mounts.path().join("c")).unwrap();
    let discovery = Discovery::new(proc.0.path(), [mounts.path().to_owned()]);
    let found = discovery.find(UID, &[]).unwrap();
    assert_eq!(found.path, mounts.path().join("c"));
}

#[test]
fn a_namespace_without_the_pod_s_address_is_not_taken() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs the right to make network namespaces");
        return;
    };
    let proc = Proc::new();
    proc.process(30, &cgroup_of(UID), 300, &namespace.path);
    // Loopback is down in a new namespace, so that it has no address at all.
    let error = proc.find(&[LOOPBACK]).unwrap_err();
    assert!(
        matches!(error, DiscoveryError::OtherAddresses { .. }),
        "{error}"
    );
}

#[test]
fn addresses_are_those_inside() {
    let own = netns::open(Path::new("/proc/self/ns/net")).unwrap();
    let addresses = netns::addresses(own.as_fd());
    match addresses {
        Ok(addresses) => assert!(addresses.contains(&LOOPBACK.parse().unwrap())),
        Err(error) => eprintln!("skipped: needs the right to enter network namespaces: {error}"),
    }
}

#[test]
fn a_pod_on_the_node_s_network_or_without_processes_is_told_so() {
    let proc = Proc::new();
    let error = proc.find(&[]).unwrap_err();
    assert!(matches!(error, DiscoveryError::NoProcess { .. }), "{error}");
    proc.process(30, &cgroup_of(UID), 300, Path::new("/proc/self/ns/net"));
    let error = proc.find(&[]).unwrap_err();
    assert!(matches!(error, DiscoveryError::Host(_)), "{error}");
}

#[test]
fn processes_that_end_meanwhile_are_passed_over() {
    let proc = Proc::new();
    fs::create_dir(proc.0.path().join("77")).unwrap();
    proc.process(78, &cgroup_of(UID), 300, Path::new("/proc/0/ns/net"));
    let error = proc.find(&[]).unwrap_err();
    assert!(matches!(error, DiscoveryError::NoProcess { .. }), "{error}");
}

#[test]
fn a_folder_of_a_process_that_ended_reads_no_other_process() {
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let folder = File::open(format!("/proc/{}", child.id())).unwrap();
    assert!(read(&folder, "stat", MAX_STAT).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(read(&folder, "stat", MAX_STAT).is_err());
}

//! Discovery in a `/proc` made by the test. What needs namespaces is in `tests/runtime`.
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

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
        let zeroes = "0 ".repeat(START_TIME - 1);
        let stat = format!("{pid} (a) b) c) S {zeroes}{started} 0 0\n");
        fs::write(folder.join("stat"), stat).unwrap();
        symlink(netns, folder.join("ns/net")).unwrap();
    }

    fn find(&self) -> Result<Found, DiscoveryError> {
        Discovery::new(self.0.path(), []).find(UID, &[])
    }
}

fn cgroup_of(uid: &str) -> String {
    format!("0::/kubepods/burstable/pod{uid}/c0ffee\n")
}

#[test]
fn a_pod_on_the_node_s_network_or_without_processes_is_told_so() {
    let proc = Proc::new();
    let error = proc.find().unwrap_err();
    assert!(matches!(error, DiscoveryError::NoProcess { .. }), "{error}");
    proc.process(30, &cgroup_of(UID), 300, Path::new("/proc/self/ns/net"));
    let error = proc.find().unwrap_err();
    assert!(matches!(error, DiscoveryError::Host(_)), "{error}");
}

#[test]
fn processes_that_end_meanwhile_are_passed_over() {
    let proc = Proc::new();
    fs::create_dir(proc.0.path().join("77")).unwrap();
    proc.process(78, &cgroup_of(UID), 300, Path::new("/proc/0/ns/net"));
    let error = proc.find().unwrap_err();
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

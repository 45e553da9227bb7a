//! Installation, repair and removal in folders of the test.
use std::{os::unix::fs::PermissionsExt as _, sync::mpsc};

use serde_json::Value;
use tempfile::TempDir;

use super::*;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"pods","type":"bridge"}"#;
/// How long a repair may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    folder: TempDir,
}

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("net.d")).unwrap();
        fs::write(folder.path().join("program"), "the program").unwrap();
        let node = Self { folder };
        for (name, text) in files {
            fs::write(node.conf(name), text).unwrap();
        }
        node
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.folder.path().join("net.d").join(name)
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("bin/undermesh-cni")
    }

    fn installer(&self) -> Installer {
        let mut settings = Settings::new(
            self.folder.path().join("program"),
            "/run/undermesh/cni.sock",
            "undermesh-system",
        );
        settings.bin_dir = self.folder.path().join("bin");
        settings.conf_dir = self.folder.path().join("net.d");
        Installer::new(settings)
    }

    fn kinds(&self, name: &str) -> Vec<String> {
        let list: Value = serde_json::from_slice(&fs::read(self.conf(name)).unwrap()).unwrap();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = entries(&self.folder.path().join("net.d")).unwrap();
        entries
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect()
    }
}

#[test]
fn the_first_configuration_is_chained_and_no_other() {
    let node = Node::new(&[
        ("20-other.conflist", LIST),
        ("10-pods.conflist", LIST),
        ("05-readme.txt", "not one"),
        ("00-old.conflist.bak", LIST),
    ]);
    let state = node.installer().ensure().unwrap();
    assert_eq!(state, State::Chained(node.conf("10-pods.conflist")));
    assert_eq!(node.kinds("10-pods.conflist"), ["bridge", "undermesh-cni"]);
    assert_eq!(node.kinds("20-other.conflist"), ["bridge"]);
    let text = fs::read_to_string(node.conf("10-pods.conflist")).unwrap();
    assert!(text.contains("kube-system") && text.contains("undermesh-system"));
    assert_eq!(fs::read(node.program()).unwrap(), b"the program");
    let mode = fs::metadata(node.program()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn what_is_as_it_should_be_is_not_written_again() {
    let node = Node::new(&[("10-pods.conflist", LIST)]);
    node.installer().ensure().unwrap();
    let inode = |path: &Path| {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(path).unwrap().ino()
    };
    let list = node.conf("10-pods.conflist");
    let before = (inode(&list), inode(&node.program()));
    node.installer().ensure().unwrap();
    assert_eq!((inode(&list), inode(&node.program())), before);
}

#[test]
fn a_single_configuration_is_replaced_and_comes_back_at_the_end() {
    let node = Node::new(&[("10-pods.conf", SINGLE)]);
    fs::set_permissions(node.conf("10-pods.conf"), fs::Permissions::from_mode(0o600)).unwrap();
    let state = node.installer().ensure().unwrap();
    assert_eq!(state, State::Chained(node.conf("10-pods.conflist")));
    assert_eq!(
        node.names(),
        ["10-pods.conf.undermesh-replaced", "10-pods.conflist"]
    );
    let mode = fs::metadata(node.conf("10-pods.conflist")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    node.installer().ensure().unwrap();
    assert_eq!(node.kinds("10-pods.conflist"), ["bridge", "undermesh-cni"]);
    node.installer().remove().unwrap();
    assert_eq!(node.names(), ["10-pods.conf"]);
    assert_eq!(
        fs::read_to_string(node.conf("10-pods.conf")).unwrap(),
        SINGLE
    );
}

#[test]
fn a_single_configuration_written_anew_is_replaced_anew() {
    let node = Node::new(&[("10-pods.conf", SINGLE)]);
    node.installer().ensure().unwrap();
    let newer = SINGLE.replace("bridge", "ptp");
    fs::write(node.conf("10-pods.conf"), &newer).unwrap();
    node.installer().ensure().unwrap();
    assert_eq!(node.kinds("10-pods.conflist"), ["ptp", "undermesh-cni"]);
    fs::write(node.conf("10-pods.conf"), SINGLE).unwrap();
    node.installer().remove().unwrap();
    assert_eq!(
        fs::read_to_string(node.conf("10-pods.conf")).unwrap(),
        SINGLE
    );
}

#[test]
fn removal_leaves_no_trace_in_any_list() {
    let node = Node::new(&[("20-pods.conflist", LIST), ("30-broken.conflist", "{")]);
    node.installer().ensure().unwrap();
    fs::write(node.conf("10-new.conflist"), LIST).unwrap();
    node.installer().ensure().unwrap();
    node.installer().remove().unwrap();
    assert_eq!(node.kinds("10-new.conflist"), ["bridge"]);
    assert_eq!(node.kinds("20-pods.conflist"), ["bridge"]);
    assert_eq!(
        fs::read_to_string(node.conf("30-broken.conflist")).unwrap(),
        "{"
    );
    assert!(!node.program().exists());
    node.installer().remove().unwrap();
}

#[test]
fn a_configuration_that_is_none_is_told_and_left() {
    let node = Node::new(&[("10-pods.conflist", "{\"plugins\":")]);
    let error = node.installer().ensure().unwrap_err();
    assert!(error.to_string().contains("10-pods.conflist"), "{error}");
    let text = fs::read_to_string(node.conf("10-pods.conflist")).unwrap();
    assert_eq!(text, "{\"plugins\":");
}

#[test]
fn a_node_without_a_network_waits() {
    let node = Node::new(&[]);
    assert_eq!(node.installer().ensure().unwrap(), State::NoNetwork);
    fs::remove_dir(node.folder.path().join("net.d")).unwrap();
    assert_eq!(node.installer().ensure().unwrap(), State::NoNetwork);
}

/// Waits until `holds`, on inotify events of our own.
fn until(node: &Node, what: &str, holds: impl Fn() -> bool) {
    use nix::{
        poll::{PollFd, PollFlags, poll},
        sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    };
    use std::os::fd::AsFd as _;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    for name in ["net.d", "bin"] {
        let folder = node.folder.path().join(name);
        inotify
            .add_watch(&folder, AddWatchFlags::IN_MOVED_TO)
            .unwrap();
    }
    while !holds() {
        let timeout = u16::try_from(PATIENCE.as_millis()).unwrap();
        let mut polled = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        assert_ne!(poll(&mut polled, timeout).unwrap(), 0, "{what}");
        let _ = inotify.read_events();
    }
}

#[test]
fn a_keeper_repairs_what_others_do() {
    let node = Node::new(&[]);
    let (sender, states) = mpsc::channel();
    let keeper = Keeper::start(node.installer(), move |state| {
        sender.send(state.unwrap()).unwrap();
    })
    .unwrap();
    let next = || states.recv_timeout(PATIENCE).unwrap();
    assert_eq!(next(), State::NoNetwork);

    fs::write(node.conf("10-pods.conflist"), LIST).unwrap();
    assert_eq!(next(), State::Chained(node.conf("10-pods.conflist")));
    let chained = |name: &str| node.kinds(name).last().unwrap() == "undermesh-cni";

    // The network's owner writes its configuration again.
    file::write(&node.conf("10-pods.conflist"), LIST.as_bytes(), 0o644).unwrap();
    until(&node, "rewritten", || chained("10-pods.conflist"));

    fs::remove_file(node.program()).unwrap();
    until(&node, "removed", || node.program().exists());

    // A new network takes precedence.
    file::write(&node.conf("05-new.conflist"), LIST.as_bytes(), 0o644).unwrap();
    assert_eq!(next(), State::Chained(node.conf("05-new.conflist")));
    assert!(chained("05-new.conflist"));

    drop(keeper);
    file::write(&node.conf("05-new.conflist"), LIST.as_bytes(), 0o644).unwrap();
    assert!(!chained("05-new.conflist"));
}

//! A place to test in: a cgroup, a BPF file system, and namespaces joined by a cable, all made for one test.
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};
use undermesh_capture::{Capture, Devices, Enrollment, Prepared, Settings, WorkerListeners};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Workers of the agent under test: more than one, so that listeners share their ports.
pub const WORKERS: usize = 2;

/// Gives this process a mount namespace of its own, so that nothing of a test is seen outside.
pub fn isolate() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

/// One node: this process is in its cgroup.
pub struct Bed {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    home: PathBuf,
    devices: Devices,
}

impl Bed {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bpf", "state", "netns"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let bpffs = folder.path().join("bpf");
        mount(
            Some("bpffs"),
            &bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let hierarchy = hierarchy();
        let home = hierarchy.join(own_cgroup());
        let name = folder
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_start_matches('.');
        let cgroup = hierarchy.join(format!("undermesh-{name}"));
        fs::create_dir(&cgroup).unwrap();
        let bed = Self {
            folder,
            cgroup,
            home,
            devices: Devices::of_kernel(),
        };
        bed.enter(&bed.cgroup);
        bed
    }

    /// A node whose kernel is taken for one before 5.17.
    pub fn blind() -> Self {
        let mut bed = Self::new();
        bed.devices = Devices::Unseen;
        bed
    }

    /// Runs `work` while this process is in another cgroup.
    pub fn within<T>(&self, cgroup: &Path, work: impl FnOnce() -> T) -> T {
        self.enter(cgroup);
        let result = work();
        self.enter(&self.cgroup);
        result
    }

    fn enter(&self, cgroup: &Path) {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    }

    pub fn settings(&self) -> Settings {
        Settings {
            bpffs: self.folder.path().join("bpf"),
            cgroup: self.cgroup.clone(),
            state_dir: self.folder.path().join("state"),
            proc: "/proc".into(),
            workers: WORKERS,
            devices: self.devices,
        }
    }

    /// The folder of the pods' state files.
    pub fn states(&self) -> PathBuf {
        self.settings().state_dir.join("pods")
    }

    /// The folder of the pods' pins.
    pub fn pins(&self) -> PathBuf {
        self.settings().bpffs.join("undermesh/pods")
    }

    /// How many state files there are.
    pub fn states_left(&self) -> usize {
        fs::read_dir(self.states()).unwrap().count()
    }

    /// How many pods have pins.
    pub fn pins_left(&self) -> usize {
        fs::read_dir(self.pins()).unwrap().count()
    }

    /// A cgroup that this process is not in; it goes with the bed.
    pub fn other_cgroup(&self) -> PathBuf {
        let path = self.cgroup.join("other");
        fs::create_dir(&path).unwrap();
        path
    }

    pub fn capture(&self) -> Capture {
        Capture::open(self.settings()).unwrap()
    }

    /// A namespace with `lo` up and nothing else.
    pub fn namespace(&self, name: &str) -> Namespace {
        let path = self.folder.path().join("netns").join(name);
        fs::write(&path, "").unwrap();
        let target = path.clone();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let none = None::<&str>;
            mount(
                Some("/proc/thread-self/ns/net"),
                &target,
                none,
                MsFlags::MS_BIND,
                none,
            )
            .unwrap();
        })
        .join()
        .unwrap();
        let namespace = Namespace { path };
        namespace.ip("link set lo up");
        namespace
    }

    /// A pod (10.88.0.2, fd88::2) and a peer (10.88.0.1, fd88::1), joined by a cable.
    pub fn pair(&self, name: &str) -> (Namespace, Namespace) {
        let pod = self.namespace(name);
        let peer = self.namespace(&format!("{name}-peer"));
        let there = peer.path.display();
        pod.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {there}"
        ));
        for (namespace, number) in [(&pod, 2), (&peer, 1)] {
            namespace.ip(&format!("addr add 10.88.0.{number}/24 dev eth0"));
            namespace.ip(&format!("addr add fd88::{number}/64 dev eth0 nodad"));
            // A link-local address would appear some time later, in the midst of a test.
            namespace.ip("link set eth0 addrgenmode none");
            namespace.ip("link set eth0 up");
        }
        pod.ip("route add default via 10.88.0.1");
        pod.ip("-6 route add default via fd88::1");
        (pod, peer)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.enter(&self.home);
        for entry in fs::read_dir(self.folder.path().join("netns")).unwrap() {
            // A namespace that a test took away is not mounted any more.
            let _ = umount2(&entry.unwrap().path(), MntFlags::MNT_DETACH);
        }
        umount2(&self.folder.path().join("bpf"), MntFlags::MNT_DETACH).unwrap();
        let other = self.cgroup.join("other");
        if other.exists() {
            remove_cgroup(&other);
        }
        fs::remove_dir(&self.cgroup).unwrap();
    }
}

/// Removes a cgroup whose last process has been waited for: the kernel takes it out a moment later.
pub fn remove_cgroup(cgroup: &Path) {
    eventually(|| fs::remove_dir(cgroup).is_ok());
}

/// Waits for what the kernel does on its own, and tells nobody.
pub fn eventually(holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "it never came to hold");
        thread::yield_now();
    }
}

fn hierarchy() -> PathBuf {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| {
            statfs(path).is_ok_and(|system| system.filesystem_type() == CGROUP2_SUPER_MAGIC)
        })
        .expect("cgroup v2 is mounted")
}

fn own_cgroup() -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap();
    PathBuf::from(line)
}

/// A network namespace that a test made.
pub struct Namespace {
    pub path: PathBuf,
}

impl Namespace {
    pub fn open(&self) -> fs::File {
        fs::File::open(&self.path).unwrap()
    }

    /// Runs `work` inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = self.open();
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            worker.join().unwrap()
        })
    }

    /// Runs `ip` with these words inside.
    pub fn ip(&self, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        let output = self.run(|| Command::new("ip").args(&words).output().unwrap());
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ip {words:?}: {message}");
    }

    /// Reads a kernel setting inside.
    pub fn sysctl(&self, name: &str) -> String {
        let path = Path::new("/proc/sys").join(name);
        self.run(|| fs::read_to_string(path).unwrap().trim().to_owned())
    }

    /// Writes a kernel setting inside.
    pub fn set_sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        self.run(|| fs::write(path, value).unwrap());
    }

    /// The rules, routes and settings that enrollment changes.
    pub fn network(&self) -> String {
        let commands = [
            "rule",
            "-6 rule",
            "route show table all",
            "-6 route show table all",
        ];
        let mut text = String::new();
        for words in commands {
            let output = self.run(|| Command::new("ip").args(words.split(' ')).output().unwrap());
            text += &String::from_utf8(output.stdout).unwrap();
        }
        for name in ["net/ipv4/tcp_fwmark_accept", "net/mptcp/enabled"] {
            if Path::new("/proc/sys").join(name).exists() {
                text += &format!("{name} = {}\n", self.sysctl(name));
            }
        }
        text
    }

    pub fn enrollment(&self, name: &str) -> Enrollment {
        Enrollment::new(&self.path, "shop", name, "default").unwrap()
    }

    /// Takes the namespace away from its path.
    pub fn unmount(&self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(&self.path).unwrap();
    }
}

/// A pod that is captured, with the agent's side of it.
pub struct Served {
    pub cookie: u64,
    pub listeners: Vec<WorkerListeners>,
}

/// Enrolls a pod in full.
pub fn enroll(capture: &Capture, namespace: &Namespace, name: &str) -> Served {
    activate(
        capture,
        capture.prepare(&namespace.enrollment(name)).unwrap(),
    )
}

pub fn activate(capture: &Capture, mut prepared: Prepared) -> Served {
    let listeners = prepared.take_listeners();
    assert_eq!(listeners.len(), WORKERS);
    let pod = capture.activate(prepared).unwrap();
    Served {
        cookie: pod.cookie(),
        listeners,
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

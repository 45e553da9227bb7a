//! A containerd of a test's own, with an image, a bridge network, and our plugin behind it.
use std::{
    env, fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tempfile::TempDir;
use undermesh_cni::chain::{Installer, Settings, State};

use crate::cri::{Config, Linux, Metadata, Runtime};

/// Where Debian puts the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The plugins that the network needs.
const NETWORK: [&str; 3] = ["bridge", "host-local", "loopback"];
/// The programs that the trials need.
const PROGRAMS: [&str; 5] = ["containerd", "ctr", "runc", "tar", "sha256sum"];
const IMAGE: &str = "localhost/undermesh/pause:test";
/// How long the runtime may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The mesh's own namespace, in which pods start without an agent.
pub const OWN_NAMESPACE: &str = "undermesh-system";

/// What the machine lacks for the trials with containers.
pub fn missing() -> Option<String> {
    let installed = |name: &&str| {
        let folders = env::var_os("PATH").unwrap_or_default();
        let all = env::split_paths(&folders).chain(["/usr/sbin".into(), "/sbin".into()]);
        all.into_iter().any(|folder| folder.join(name).exists())
    };
    if let Some(program) = PROGRAMS.iter().find(|program| !installed(program)) {
        return Some(format!("needs {program}: apt-get install containerd runc"));
    }
    let plugin = NETWORK
        .iter()
        .find(|name| !Path::new(PLUGINS).join(name).exists())?;
    Some(format!(
        "needs the CNI plugin {plugin}: apt-get install containernetworking-plugins"
    ))
}

/// A node with a container runtime.
pub struct Node {
    folder: TempDir,
    containerd: Child,
    /// The name of the cgroup above the pods.
    cgroup: String,
}

impl Node {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        let cgroup = format!("undermesh-{}", name.trim_start_matches('.'));
        configure(folder.path());
        let mut containerd = start(folder.path());
        import(folder.path());
        // The runtime learns of the images that are there when it starts.
        stop(&mut containerd);
        let containerd = start(folder.path());
        let node = Self {
            folder,
            containerd,
            cgroup,
        };
        let list = node.path("net.d/10-pods.conflist");
        assert_eq!(node.installer().ensure().unwrap(), State::Chained(list));
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("agent/cni.sock")
    }

    fn installer(&self) -> Installer {
        let program = env::current_exe().unwrap();
        let mut settings = Settings::new(program, self.socket(), OWN_NAMESPACE);
        settings.bin_dir = self.path("bin");
        settings.conf_dir = self.path("net.d");
        Installer::new(settings)
    }

    pub async fn runtime(&self) -> Runtime {
        Runtime::connect(&self.path("containerd.sock")).await
    }

    /// Ends what a trial that failed has left: pods, and the shims that containerd started for them.
    fn kill_remains(&self) {
        let (folder, cgroup) = (
            self.folder.path().as_os_str().as_bytes(),
            self.cgroup.as_bytes(),
        );
        let holds = |path: PathBuf, word: &[u8]| {
            let text = fs::read(path).unwrap_or_default();
            text.windows(word.len()).any(|part| part == word)
        };
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let Ok(pid) = name.parse() else {
                continue;
            };
            let process = entry.path();
            if holds(process.join("cmdline"), folder) || holds(process.join("cgroup"), cgroup) {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// A pod as kubelet asks for it, with its cgroup where kubelet puts it.
    pub fn pod(&self, namespace: &str, name: &str, uid: &str) -> Config {
        Config {
            metadata: Some(Metadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: namespace.to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            linux: Some(Linux {
                cgroup_parent: format!("/{}/kubepods/besteffort/pod{uid}", self.cgroup),
            }),
            ..Config::default()
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        stop(&mut self.containerd);
        self.kill_remains();
        unmount(self.folder.path());
        remove_cgroups(&self.cgroup);
    }
}

fn configure(folder: &Path) {
    for name in ["bin", "net.d", "agent"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    for name in NETWORK {
        symlink(Path::new(PLUGINS).join(name), folder.join("bin").join(name)).unwrap();
    }
    let list = json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "pods0", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": folder.join("leases"),
                "ranges": [[{"subnet": "10.99.0.0/24"}]],
            },
        }],
    });
    fs::write(folder.join("net.d/10-pods.conflist"), list.to_string()).unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        r#"version = 2
root = "{}"
state = "{}"
[grpc]
  address = "{}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{}"
    conf_dir = "{}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"#,
        at("root"),
        at("state"),
        at("containerd.sock"),
        at("bin"),
        at("net.d"),
    );
    fs::write(folder.join("config.toml"), config).unwrap();
}

/// Starts containerd, and waits for its word that it is ready (`sd_notify(3)`).
fn start(folder: &Path) -> Child {
    let notices = folder.join("notify.sock");
    let _ = fs::remove_file(&notices);
    let socket = UnixDatagram::bind(&notices).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("containerd.log"))
        .unwrap();
    let child = Command::new("containerd")
        .arg("--config")
        .arg(folder.join("config.toml"))
        .env("NOTIFY_SOCKET", &notices)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    await_ready(&socket);
    child
}

fn await_ready(socket: &UnixDatagram) {
    let mut notice = [0; 256];
    loop {
        let length = socket.recv(&mut notice).expect("containerd starts in time");
        if String::from_utf8_lossy(&notice[..length]).contains("READY=1") {
            return;
        }
    }
}

fn stop(containerd: &mut Child) {
    let pid = Pid::from_raw(i32::try_from(containerd.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    containerd.wait().unwrap();
}

/// Makes an image of one program that sleeps, with the libraries that it is linked with, and imports it.
fn import(folder: &Path) {
    let image = folder.join("image");
    fs::create_dir(&image).unwrap();
    let script = format!(
        r#"set -e
        mkdir root
        program=$(readlink -f "$(command -v sleep)")
        cp --parents "$program" $(ldd "$program" | grep -o '/[^ ]*') root
        mkdir -p root/bin && [ -e root/bin/sleep ] || cp "$program" root/bin/sleep
        tar -C root -cf layer.tar .
        sum=$(sha256sum layer.tar | cut -d' ' -f1)
        cat > config.json <<END
{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":["/bin/sleep","100000"]}},
"rootfs":{{"type":"layers","diff_ids":["sha256:$sum"]}}}}
END
        cat > manifest.json <<END
[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]
END
        tar -cf image.tar manifest.json config.json layer.tar
        ctr --address {} --namespace k8s.io images import --snapshotter native image.tar"#,
        folder.join("containerd.sock").display()
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(&image)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let log = || fs::read_to_string(folder.join("containerd.log")).unwrap_or_default();
    assert!(output.status.success(), "{message}\n{}", log());
}

/// Unmounts what the runtime has mounted in its folders.
fn unmount(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(folder)) {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}

/// Removes the cgroups of the pods, in every hierarchy.
fn remove_cgroups(name: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let roots = hierarchies.map(|entry| entry.path().join(name));
    for root in roots.chain([Path::new("/sys/fs/cgroup").join(name)]) {
        remove_cgroup(&root);
    }
}

fn remove_cgroup(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

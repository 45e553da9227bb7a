//! containerd on a node of the testbed, with a bridge network, as kubelet uses it: pods run in its sandboxes, and what
//! a pod does is the program of its sandbox's own container.
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use undermesh_tests::process::{Output, Running, enter_on_exec, run_to_end};
use undermesh_tests::{Context, Error, Node, PodSpec, Result};

use super::cri::{Config, Linux, Metadata};

/// The programs that are needed.
pub const PROGRAMS: &[&str] = &[
    "containerd",
    "ctr",
    "runc",
    "bash",
    "tar",
    "sha256sum",
    "curl",
    "nginx",
];

/// Where Debian puts the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The plugins that the network needs.
const NETWORK: [&str; 3] = ["bridge", "host-local", "loopback"];
/// The container image of the pods.
const IMAGE: &str = "localhost/undermesh/caller:test";
/// How long containerd may take to start, to end, or to run a pod.
const PATIENCE: Duration = Duration::from_secs(60);
/// The host part of the address of the one pod that runs at a time.
const POD: u8 = 100;

/// Whether the CNI plugins are there.
///
/// # Errors
/// What is missing, as the reason to skip a test.
pub fn plugins() -> std::result::Result<PathBuf, String> {
    let folder = PathBuf::from(PLUGINS);
    match NETWORK.iter().find(|name| !folder.join(name).is_file()) {
        Some(name) => Err(format!(
            "there is no CNI plugin {name}; install containernetworking-plugins"
        )),
        None => Ok(folder),
    }
}

/// A container runtime on a node. It ends with this value.
pub struct Containerd {
    node: Arc<Node>,
    folder: PathBuf,
    process: Option<Running>,
    runtime: Runtime,
}

impl Containerd {
    /// The folders and the configuration of a runtime that does not run yet.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn new(node: &Arc<Node>) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context(|| "make a runtime for the calls to containerd")?;
        let containerd = Self {
            node: Arc::clone(node),
            folder: node.folder().join("cr"),
            process: None,
            runtime,
        };
        containerd.configure()?;
        Ok(containerd)
    }

    /// Starts it with an image of which every container runs `script`, in bash with `sleep` beside it. What its
    /// folders hold now is in force; of later changes it learns at a time of its own.
    ///
    /// # Errors
    /// When it does not start, or does not take the image.
    pub fn start(&mut self, script: &str) -> Result<()> {
        self.launch()?;
        self.import(script)?;
        // It learns of the images that are there when it starts.
        self.end()?;
        self.launch()
    }

    /// The folder of its CNI plugins.
    pub fn plugins(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// The folder of its CNI configuration.
    pub fn networks(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    /// The address that a pod gets.
    pub fn pod_address(&self) -> IpAddr {
        self.address(POD)
    }

    /// An address of the node's pods by its host part.
    fn address(&self, host: u8) -> IpAddr {
        let [a, b, c, _] = self.node.pod_gateway().v4.octets();
        [a, b, c, host].into()
    }

    /// Runs a pod as kubelet asks for it, and returns the id of its sandbox.
    ///
    /// # Errors
    /// The runtime's words when it does not run.
    pub fn run(&self, spec: &PodSpec, uid: &str) -> Result<String> {
        let config = Config {
            metadata: Some(Metadata {
                name: spec.name.clone(),
                uid: uid.to_owned(),
                namespace: spec.namespace.clone(),
                attempt: 0,
            }),
            hostname: spec.name.clone(),
            linux: Some(Linux {
                cgroup_parent: format!("{}/pod{uid}", self.cgroup()?),
            }),
            ..Config::default()
        };
        self.call(
            "run a pod",
            |runtime| async move { runtime.run(config).await },
        )
    }

    /// Ends a pod and removes it.
    ///
    /// # Errors
    /// When the runtime does not.
    pub fn remove(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.call("end a pod", |runtime| async move {
            runtime.stop(&id).await?;
            runtime.remove(&id).await
        })
    }

    fn call<T, F>(&self, what: &str, ask: impl FnOnce(super::cri::Runtime) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, tonic::Status>>,
    {
        let socket = self.folder.join("cd.sock");
        let answer = self.runtime.block_on(async {
            let called = async { ask(super::cri::Runtime::connect(&socket).await).await };
            tokio::time::timeout(PATIENCE, called).await
        });
        answer.context(|| what)?.context(|| what)
    }

    /// A process of a pod, if one runs.
    pub fn process_of(&self, uid: &str) -> Option<u32> {
        let name = format!("pod{uid}");
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut ids = processes.filter_map(|it| it.file_name().to_str()?.parse().ok());
        ids.find(|id: &u32| {
            let groups = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
            groups.contains(&name)
        })
    }

    /// Fetches a page from within a pod, as a program of it would.
    ///
    /// # Errors
    /// When no process of the pod runs; a failed fetch is in the output.
    pub fn curl(&self, uid: &str, url: &str) -> Result<Output> {
        let arguments = [
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "20",
            url,
        ];
        self.run_within(uid, "curl", &arguments)
    }

    /// The TCP sockets of a pod's namespace, as `ss` shows them.
    ///
    /// # Errors
    /// When no process of the pod runs, or `ss` fails.
    pub fn sockets(&self, uid: &str) -> Result<String> {
        let arguments = ["--tcp", "--all", "--numeric", "--processes"];
        self.run_within(uid, "ss", &arguments)?.success()
    }

    /// Runs a program to its end in a pod's namespace, among the node's pods.
    fn run_within(&self, uid: &str, program: &str, arguments: &[&str]) -> Result<Output> {
        let process = self.process_of(uid).context(|| "find the pod's process")?;
        let netns = fs::File::open(format!("/proc/{process}/ns/net"))
            .context(|| "open the pod's namespace")?;
        let mut command = self.node.command(program, arguments)?;
        enter_on_exec(&mut command, netns, Some(self.node.pods().processes()?));
        let label = format!("{program} in a container's namespace");
        run_to_end(&label, &mut command, PATIENCE)
    }

    fn configure(&self) -> Result<()> {
        for name in ["", "bin", "net.d", "image/root/bin"] {
            fs::create_dir_all(self.folder.join(name)).context(|| "make the runtime's folders")?;
        }
        for name in NETWORK {
            symlink(Path::new(PLUGINS).join(name), self.plugins().join(name))
                .context(|| format!("install the plugin {name}"))?;
        }
        let pod = self.pod_address();
        let range = json!({
            "subnet": format!("{}/24", self.address(0)),
            "gateway": self.node.pod_gateway().v4,
            "rangeStart": pod,
            "rangeEnd": pod,
        });
        let list = json!({
            "cniVersion": "1.0.0", "name": "pods",
            "plugins": [{
                "type": "bridge", "bridge": "pods",
                "ipam": {
                    "type": "host-local", "dataDir": self.folder.join("leases"),
                    "ranges": [[range]], "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        });
        self.write("net.d/10-pods.conflist", &list.to_string())?;
        let at = |name: &str| self.folder.join(name).display().to_string();
        self.write(
            "config.toml",
            &format!(
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
                at("cd.sock"),
                at("bin"),
                at("net.d"),
            ),
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(name), text).context(|| format!("write {name} of containerd"))
    }

    /// Starts containerd in the node's network, in the cgroup of its pods, and waits for its word that it is ready
    /// (`sd_notify(3)`). Where the runtime knows cgroups of version 1 alone, its pods stay in that one of version 2.
    fn launch(&mut self) -> Result<()> {
        let notices = self.folder.join("notify.sock");
        // There is none before the first start.
        let _ = fs::remove_file(&notices);
        let socket = UnixDatagram::bind(&notices).context(|| "make containerd's notify socket")?;
        let wait = socket.set_read_timeout(Some(PATIENCE));
        wait.context(|| "bound the wait for containerd")?;
        let config = self.folder.join("config.toml");
        let mut command = self
            .node
            .command("containerd", [Path::new("--config"), config.as_path()])?;
        command.env("NOTIFY_SOCKET", &notices);
        let netns = self.node.netns().open()?;
        enter_on_exec(&mut command, netns, Some(self.node.pods().processes()?));
        let lines = self.node.journal().open("containerd");
        self.process = Some(Running::start("containerd", &mut command, lines)?);
        let mut notice = [0; 256];
        loop {
            let length = socket
                .recv(&mut notice)
                .context(|| "wait until containerd is ready")?;
            if String::from_utf8_lossy(&notice[..length]).contains("READY=1") {
                return Ok(());
            }
        }
    }

    fn end(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.signal(Signal::SIGTERM)?;
        process.wait(PATIENCE).map(drop)
    }

    /// Makes an image of bash and sleep with the libraries that they are linked with, and imports it.
    fn import(&self, script: &str) -> Result<()> {
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Entrypoint": ["/bin/bash", "-c", script], "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": ["sha256:SUM"] },
        });
        let manifest =
            json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
        self.write("image/config.json", &config.to_string())?;
        self.write("image/manifest.json", &manifest.to_string())?;
        let build = format!(
            r#"set -e
            for name in bash sleep; do
                program=$(readlink -f "$(command -v $name)")
                cp --parents $(ldd "$program" | grep -o '/[^ ]*') root
                cp "$program" root/bin/$name
            done
            tar -C root -cf layer.tar .
            sed -i "s/SUM/$(sha256sum layer.tar | cut -d' ' -f1)/" config.json
            tar -cf image.tar manifest.json config.json layer.tar
            ctr --address {} --namespace k8s.io images import --snapshotter native image.tar"#,
            self.folder.join("cd.sock").display()
        );
        let mut command = self.node.command("bash", ["-c", &build])?;
        command.current_dir(self.folder.join("image"));
        run_to_end("make the image of the pods", &mut command, PATIENCE)?
            .success()
            .map(drop)
    }

    /// The parent of the pods' cgroups, by its path in every hierarchy.
    fn cgroup(&self) -> Result<String> {
        let path = self.node.pods().path();
        let below = path.components().skip_while(|part| {
            let name = part.as_os_str().to_string_lossy();
            !name.starts_with("undermesh-testbed.")
        });
        let below: PathBuf = below.collect();
        match below.as_os_str().is_empty() {
            false => Ok(format!("/{}", below.display())),
            true => Err(Error::step("find the pods' cgroup", path.display())),
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What it leaves running ends with the run, and the cgroups of that go when the next run starts.
        let _ = self.end();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| Path::new(point).starts_with(&self.folder)) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

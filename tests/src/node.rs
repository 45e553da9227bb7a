//! A node: a place on the fabric with a bridge for its pods, and the agent that serves them.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::capture::Capture;
use crate::cgroup::Cgroup;
use crate::journal::{Journal, Lines};
use crate::pod::{Addresses, Pod, PodSpec};
use crate::process::Running;
use crate::testbed::fabric_addresses;
use crate::{Context, Place, Result};

/// The bridge that the pods of a node hang on, in the node's namespace.
const BRIDGE: &str = "pods";

/// The host part of the first pod; the bridge has 1.
const FIRST_POD: u8 = 2;

/// A node and its agent.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    place: Arc<Place>,
    pods: Cgroup,
    next_pod: AtomicU8,
    bpffs: PathBuf,
    pub(crate) agent: Mutex<Option<Running>>,
    pub(crate) log: Arc<Lines>,
}

impl Node {
    pub(crate) fn create(
        parent: &Path,
        cgroup: &Cgroup,
        journal: &Arc<Journal>,
        name: &str,
        number: u8,
    ) -> Result<Self> {
        let cgroup = cgroup.child(name)?;
        let pods = cgroup.child("kubepods")?;
        let place = Place::create(parent, name, cgroup.child("agent")?, journal)?;
        let bpffs = place.folder().join("bpf");
        fs::create_dir(&bpffs).context(|| format!("create {}", bpffs.display()))?;
        mount_bpffs(&bpffs)?;
        place.netns().sysctl("net/ipv4/ip_forward", "1")?;
        place.netns().sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let Addresses { v4, v6 } = pod_addresses(number, 1);
        place.netns().ip(&format!(
            "link add {BRIDGE} type bridge mcast_snooping 0\n\
             link set {BRIDGE} up\n\
             addr add {v4}/24 dev {BRIDGE}\n\
             addr add {v6}/64 dev {BRIDGE} nodad\n"
        ))?;
        Ok(Self {
            name: name.to_owned(),
            number,
            log: journal.open(&format!("agent of {name}")),
            place: Arc::new(place),
            pods,
            next_pod: AtomicU8::new(FIRST_POD),
            bpffs,
            agent: Mutex::default(),
        })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's addresses on the fabric.
    pub fn addresses(&self) -> Addresses {
        fabric_addresses(self.number)
    }

    /// The addresses of the bridge that the node's pods hang on.
    pub fn pod_gateway(&self) -> Addresses {
        pod_addresses(self.number, 1)
    }

    /// The cgroup above the node's pods, where an agent attaches its programs.
    pub fn pods(&self) -> &Cgroup {
        &self.pods
    }

    /// The BPF file system of the node.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Starts a pod on this node. Nothing is enrolled yet.
    ///
    /// # Errors
    /// When it cannot be wired.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let host = self.next_pod.fetch_add(1, Ordering::Relaxed);
        self.pod_at(spec, pod_addresses(self.number, host))
    }

    /// Starts a pod with addresses that an earlier pod of this node had, and has no more.
    ///
    /// # Errors
    /// When it cannot be wired.
    pub fn pod_at(&self, spec: PodSpec, addresses: Addresses) -> Result<Pod> {
        let host = addresses.v4.octets()[3];
        let label = format!("{}/{}", spec.namespace, spec.name);
        let (folder, group) = match &spec.uid {
            Some(uid) => (format!("{label}-{uid}"), format!("pod{uid}")),
            None => (label.clone(), label.replace('/', "_")),
        };
        let place = Place::create(
            self.folder(),
            &folder,
            self.pods.child(&group)?,
            self.journal(),
        )?;
        let gateway = self.pod_gateway();
        self.netns().ip(&format!(
            "link add pod{host} master {BRIDGE} type veth peer name eth0 netns {}\n\
             link set pod{host} up\n",
            place.netns().path().display()
        ))?;
        place.netns().ip(&format!(
            "link set eth0 up\n\
             addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             route add default via {}\n\
             route add ::/0 via {}\n",
            addresses.v4, addresses.v6, gateway.v4, gateway.v6
        ))?;
        Ok(Pod::new(spec, &self.name, addresses, place))
    }

    /// Records the packets between the pods of this node.
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub fn capture_pods(&self) -> Result<Capture> {
        Capture::start(&self.place, BRIDGE)
    }

    /// The `ip` commands that lead another host to the pods of this node.
    pub(crate) fn routes_to_pods(&self) -> String {
        let subnet = pod_addresses(self.number, 0);
        let Addresses { v4, v6 } = self.addresses();
        format!(
            "route add {}/24 via {v4}\nroute add {}/64 via {v6}\n",
            subnet.v4, subnet.v6
        )
    }

    /// Loses what a machine loses when it boots: the agent, its run directory, and all that is pinned.
    ///
    /// # Errors
    /// When a new BPF file system cannot be mounted.
    pub fn reboot(&self) -> Result<()> {
        self.forget();
        // There is none before the first start.
        let _ = fs::remove_dir_all(self.folder().join("run"));
        mount_bpffs(&self.bpffs)
    }

    /// Ends the agent and lets go of the BPF file system, and so of all that is pinned there.
    pub(crate) fn forget(&self) {
        self.agent_slot().take();
        // Already unmounted when called twice.
        let _ = umount2(&self.bpffs, MntFlags::MNT_DETACH);
    }
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

fn mount_bpffs(folder: &Path) -> Result<()> {
    mount(
        Some("bpf"),
        folder,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context(|| format!("mount a BPF file system at {}", folder.display()))
}

fn pod_addresses(node: u8, host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, node, 0, host),
        v6: Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, host.into()),
    }
}

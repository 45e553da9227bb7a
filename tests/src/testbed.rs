//! The testbed of one test: a fabric, the nodes on it, hosts outside the mesh, and the configuration.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::capture::Capture;
use crate::cgroup::Cgroup;
use crate::journal::Journal;
use crate::manifests::Manifests;
use crate::node::Node;
use crate::pod::Addresses;
use crate::{Context, Error, Place, Result, Sandbox};

/// The bridge that joins the nodes, in the fabric's own namespace.
const FABRIC: &str = "fabric";

/// The first host part of a host outside the mesh; nodes have lower ones.
const FIRST_OUTSIDE: u8 = 200;

/// The most nodes: pod subnets are `10.<node>.0.0/24`, and services live in `10.96.0.0/16`.
const MAX_NODES: usize = 90;

/// The testbed of one test.
#[derive(Debug)]
pub struct Testbed {
    folder: PathBuf,
    cgroup: Cgroup,
    journal: Arc<Journal>,
    manifests: Manifests,
    fabric: Arc<Place>,
    members: Mutex<Members>,
}

/// What is on the fabric.
#[derive(Debug, Default)]
struct Members {
    nodes: Vec<Arc<Node>>,
    outside: Vec<Arc<Place>>,
}

impl Testbed {
    /// An empty testbed with its fabric; `name` must be new in the sandbox.
    ///
    /// # Errors
    /// When the fabric cannot be made.
    pub fn new(sandbox: &Sandbox, name: &str) -> Result<Self> {
        let folder = sandbox.root().join(name);
        fs::create_dir_all(&folder).context(|| format!("create {}", folder.display()))?;
        let cgroup = sandbox.cgroup().child(name)?;
        let journal = Arc::default();
        let fabric = Place::create(&folder, FABRIC, cgroup.child(FABRIC)?, &journal)?;
        fabric.netns().ip(&format!(
            "link add {FABRIC} type bridge mcast_snooping 0\nlink set {FABRIC} up\n"
        ))?;
        Ok(Self {
            manifests: Manifests::create(&folder)?,
            folder,
            cgroup,
            journal,
            fabric: Arc::new(fabric),
            members: Mutex::default(),
        })
    }

    /// What the programs have printed.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The configuration that all agents read.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Adds a node and the routes between its pods and everyone else.
    ///
    /// # Errors
    /// When it cannot be wired.
    pub fn node(&self, name: &str) -> Result<Arc<Node>> {
        let mut members = self.members();
        let number = members.nodes.len() + 1;
        if number > MAX_NODES {
            return Err(Error::step(
                "add a node",
                format!("there are {MAX_NODES} already"),
            ));
        }
        let number = u8::try_from(number).context(|| "number a node")?;
        let node = Node::create(&self.folder, &self.cgroup, &self.journal, name, number)?;
        self.plug(&node, number)?;
        for other in &members.nodes {
            other.netns().ip(&node.routes_to_pods())?;
            node.netns().ip(&other.routes_to_pods())?;
        }
        for host in &members.outside {
            host.netns().ip(&node.routes_to_pods())?;
        }
        let node = Arc::new(node);
        members.nodes.push(Arc::clone(&node));
        Ok(node)
    }

    /// Adds a host on the fabric that no mesh knows of; it can reach every pod.
    ///
    /// # Errors
    /// When it cannot be wired.
    pub fn outside(&self, name: &str) -> Result<Outside> {
        let mut members = self.members();
        let count = u8::try_from(members.outside.len()).context(|| "number an outside host")?;
        let number = FIRST_OUTSIDE
            .checked_add(count)
            .context(|| "number an outside host")?;
        let place = Place::create(&self.folder, name, self.cgroup.child(name)?, &self.journal)?;
        self.plug(&place, number)?;
        for node in &members.nodes {
            place.netns().ip(&node.routes_to_pods())?;
        }
        let place = Arc::new(place);
        members.outside.push(Arc::clone(&place));
        Ok(Outside {
            place,
            addresses: fabric_addresses(number),
        })
    }

    /// Records the packets on the fabric.
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub fn capture_fabric(&self) -> Result<Capture> {
        Capture::start(&self.fabric, FABRIC)
    }

    /// Writes a manifest and waits until every running agent has taken the change.
    ///
    /// # Errors
    /// When it cannot be written, or an agent takes too long.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        self.change(|| self.manifests.write(name, yaml))
    }

    /// Removes a manifest and waits until every running agent has taken the change.
    ///
    /// # Errors
    /// When it cannot be removed, or an agent takes too long.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        self.change(|| self.manifests.remove(name))
    }

    fn change(&self, write: impl FnOnce() -> Result<()>) -> Result<()> {
        let nodes = self.members().nodes.clone();
        let mut before = Vec::new();
        for node in nodes.iter().filter(|node| node.has_agent()) {
            before.push((node, node.generation()?));
        }
        write()?;
        before
            .into_iter()
            .try_for_each(|(node, generation)| node.wait_generation_after(generation))
    }

    /// Joins `place` to the fabric by a link `fabric0` with the addresses of host `number`.
    fn plug(&self, place: &Place, number: u8) -> Result<()> {
        let Addresses { v4, v6 } = fabric_addresses(number);
        self.fabric.netns().ip(&format!(
            "link add port{number} master {FABRIC} type veth peer name fabric0 netns {}\n\
             link set port{number} up\n",
            place.netns().path().display()
        ))?;
        place.netns().ip(&format!(
            "link set fabric0 up\n\
             addr add {v4}/24 dev fabric0\n\
             addr add {v6}/64 dev fabric0 nodad\n"
        ))
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        for node in &self.members().nodes {
            node.forget();
        }
        self.cgroup.remove();
    }
}

/// A host on the fabric that is in no mesh.
#[derive(Debug, Clone)]
pub struct Outside {
    /// Where its programs run.
    pub place: Arc<Place>,
    /// Its addresses on the fabric.
    pub addresses: Addresses,
}

/// The addresses of host `number` on the fabric.
pub(crate) fn fabric_addresses(number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(172, 30, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0xfab, 0, 0, 0, 0, 0, number.into()),
    }
}

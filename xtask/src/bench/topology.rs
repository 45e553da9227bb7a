//! The topology that is measured: nodes, and the pods of each column of the result.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use undermesh_tests::usage::{self, Memory};
use undermesh_tests::{Error, Family, Node, Pod, PodSpec, Result, Testbed, manifests};

use super::case::Route;
use super::hook::{Hook, HookSpec};
use super::servers::{HTTP_PORT, Servers};
use super::{connections, hook};

/// The column without any proxy: what the others are compared with.
pub const NONE: &str = "none";

/// The column of undermesh.
pub const UNDERMESH: &str = "undermesh";

/// The family of the addresses that the load goes to.
const FAMILY: Family = Family::V4;

/// Counts the connections that the agent has carried under mutual TLS.
const CARRIED: &str = "istio_tcp_connections_opened_total";

/// Two nodes on the fabric.
#[derive(Debug, Clone)]
pub struct Nodes {
    /// The node of the client and of the server near it.
    pub a: Arc<Node>,
    /// The node of the server far from the client.
    pub b: Arc<Node>,
}

impl Nodes {
    fn create(bed: &Testbed, prefix: &str) -> Result<Self> {
        Ok(Self {
            a: bed.node(&format!("{prefix}a"))?,
            b: bed.node(&format!("{prefix}b"))?,
        })
    }

    fn both(&self) -> [&Arc<Node>; 2] {
        [&self.a, &self.b]
    }
}

/// The pods of a column.
#[derive(Debug)]
pub struct Pods {
    /// Where the load comes from.
    pub client: Pod,
    /// The server on the client's node.
    pub near: Pod,
    /// The server on the other node.
    pub far: Pod,
}

impl Pods {
    fn create(nodes: &Nodes, column: &str) -> Result<Self> {
        let namespace = format!("bench-{column}");
        Ok(Self {
            client: nodes.a.pod(PodSpec::new(&namespace, "client"))?,
            near: nodes.a.pod(PodSpec::new(&namespace, "near"))?,
            far: nodes.b.pod(PodSpec::new(&namespace, "far"))?,
        })
    }

    /// The address of the server at the end of `route`.
    pub fn server(&self, route: Route) -> IpAddr {
        match route {
            Route::Across => self.far.ip(FAMILY),
            Route::One => self.near.ip(FAMILY),
        }
    }

    fn manifest(&self) -> String {
        [
            manifests::namespace(&self.client.spec().namespace),
            manifests::pod(&self.client),
            manifests::pod(&self.near),
            manifests::pod(&self.far),
        ]
        .concat()
    }
}

/// What stands between the pods of a column.
#[derive(Debug)]
enum Proxy {
    None,
    Undermesh(Nodes),
    Hook(Hook),
}

/// One column of the result: pods, their servers, and what stands between them.
#[derive(Debug)]
pub struct Column {
    /// Its name in the result.
    pub name: String,
    /// Its pods.
    pub pods: Pods,
    proxy: Proxy,
    processes: BTreeSet<u32>,
    _servers: [Servers; 2],
}

impl Column {
    fn start(name: &str, pods: Pods, proxy: Proxy) -> Result<Self> {
        let processes = match &proxy {
            Proxy::None => BTreeSet::new(),
            Proxy::Undermesh(nodes) => agents(nodes)?,
            Proxy::Hook(hook) => hook.processes().clone(),
        };
        let servers = [Servers::start(&pods.near)?, Servers::start(&pods.far)?];
        Ok(Self {
            name: name.to_owned(),
            pods,
            proxy,
            processes,
            _servers: servers,
        })
    }

    /// The CPU time that the proxies of both nodes have spent so far; none without a proxy.
    ///
    /// # Errors
    /// When a proxy has ended.
    pub fn cpu(&self) -> Result<Option<Duration>> {
        match self.proxy {
            Proxy::None => Ok(None),
            Proxy::Undermesh(_) | Proxy::Hook(_) => usage::cpu(&self.processes).map(Some),
        }
    }

    /// The memory of the proxies of a node, the mean of both nodes; none without a proxy.
    ///
    /// # Errors
    /// When a proxy has ended.
    pub fn memory_per_node(&self) -> Result<Option<Memory>> {
        if matches!(self.proxy, Proxy::None) {
            return Ok(None);
        }
        let Memory { rss, pss } = usage::memory(&self.processes)?;
        Ok(Some(Memory {
            rss: rss / 2.0,
            pss: pss / 2.0,
        }))
    }

    /// Fetches the page on both routes, and asks undermesh whether it carried that.
    fn probe(&self) -> Result<()> {
        for route in Route::BOTH {
            let server = SocketAddr::new(self.pods.server(route), HTTP_PORT);
            connections::probe(&self.pods.client, server)?;
        }
        if let Proxy::Undermesh(nodes) = &self.proxy {
            require_carried(nodes)?;
        }
        Ok(())
    }
}

/// A figure of connections that went past the agents would be worth nothing.
fn require_carried(nodes: &Nodes) -> Result<()> {
    let tls = r#"connection_security_policy="mutual_tls""#;
    for node in nodes.both() {
        if node.metric(CARRIED, &[tls])? < 1.0 {
            return Err(Error::step(
                format!(
                    "see the probe's connection in {CARRIED} of node {}",
                    node.name()
                ),
                "there is none under mutual TLS, so the pods are not in the mesh",
            ));
        }
    }
    Ok(())
}

fn agents(nodes: &Nodes) -> Result<BTreeSet<u32>> {
    let mut processes = BTreeSet::new();
    for node in nodes.both() {
        let agent = usage::processes_of(node.cgroup())?;
        if agent.is_empty() {
            return Err(Error::step(
                format!("find the agent of node {}", node.name()),
                "its cgroup has no process",
            ));
        }
        processes.extend(agent);
    }
    Ok(processes)
}

/// All columns on one fabric. `none` and undermesh share two nodes; each hooked proxy has two of its
/// own, wired alike, so that its ports and programs meet nobody else's.
#[derive(Debug)]
pub struct Topology {
    /// The columns: `none`, undermesh, then the hooked proxies.
    pub columns: Vec<Column>,
}

impl Topology {
    /// Builds the nodes and pods, starts the proxies, lets them capture the pods, then starts the
    /// servers.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn build(bed: &Testbed, undermesh: bool, hooks: &[HookSpec]) -> Result<Self> {
        let nodes = Nodes::create(bed, "")?;
        let plain = Pods::create(&nodes, NONE)?;
        let meshed = undermesh
            .then(|| Pods::create(&nodes, UNDERMESH))
            .transpose()?;
        let mut hooked = Vec::new();
        for spec in hooks {
            let nodes = Nodes::create(bed, &format!("{}-", spec.name))?;
            let pods = Pods::create(&nodes, &spec.name)?;
            hooked.push((spec, nodes, pods));
        }

        let mut yaml = describe(&nodes, meshed.as_ref());
        for (_, nodes, pods) in &hooked {
            yaml.push_str(&describe(nodes, Some(pods)));
        }
        bed.manifests().write("bench", &yaml)?;

        let mut columns = vec![Column::start(NONE, plain, Proxy::None)?];
        if let Some(pods) = meshed {
            enroll(&nodes, &pods)?;
            columns.push(Column::start(UNDERMESH, pods, Proxy::Undermesh(nodes))?);
        }
        for (spec, nodes, pods) in hooked {
            let hook = Hook::start(bed, spec, &nodes, &pods)?;
            columns.push(Column::start(&spec.name, pods, Proxy::Hook(hook))?);
        }
        Ok(Self { columns })
    }

    /// Fetches the page once on each route of each column.
    ///
    /// # Errors
    /// When a column does not work, or undermesh did not carry it.
    pub fn probe(&self) -> Result<()> {
        self.columns.iter().try_for_each(Column::probe)
    }

    /// Ends the hooked proxies. One that does not end is reported and then killed with the testbed: the
    /// figures are complete by now.
    pub fn stop(self) {
        for column in self.columns {
            if let Proxy::Hook(hook) = column.proxy
                && let Err(error) = hook.stop(hook::STOP_TIMEOUT)
            {
                eprintln!("{}: {error}", column.name);
            }
        }
    }
}

fn describe(nodes: &Nodes, pods: Option<&Pods>) -> String {
    [
        manifests::node(&nodes.a),
        manifests::node(&nodes.b),
        pods.map(Pods::manifest).unwrap_or_default(),
    ]
    .concat()
}

fn enroll(nodes: &Nodes, pods: &Pods) -> Result<()> {
    let no_arguments: [&str; 0] = [];
    for node in nodes.both() {
        node.start_agent(no_arguments)?;
    }
    nodes.a.enroll(&pods.client)?;
    nodes.a.enroll(&pods.near)?;
    nodes.b.enroll(&pods.far)
}

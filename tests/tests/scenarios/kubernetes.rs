//! A cluster drives the mesh: pods join by a label and leave by it, policies arrive through the API, the control
//! plane goes and comes back.
//!
//! Each scenario runs against an API server in the test process, which keeps resource versions for real. Those
//! named `by_kube_apiserver` run against the real one, where `KUBEBUILDER_ASSETS` names it.

mod certificates;
mod containerd;
mod containers;
#[path = "../../../agent/cni/tests/runtime/cri.rs"]
mod cri;
mod enrollment;
mod machines;
mod outage;
mod peers;
mod policy;
mod race;
mod rejection;
mod replicas;
mod server;
mod traffic;
mod tutorial;

use serde_json::{Value, json};
use undermesh_tests::cluster::{Cluster, ClusterPod, namespace};
use undermesh_tests::pod::Addresses;
use undermesh_tests::{Node, PodSpec, Result, Testbed, apps};

use crate::Scenario;

pub const SCENARIOS: &[&[Scenario]] = &[
    enrollment::SCENARIOS,
    policy::SCENARIOS,
    race::SCENARIOS,
    rejection::SCENARIOS,
    outage::SCENARIOS,
    replicas::SCENARIOS,
    certificates::SCENARIOS,
    machines::SCENARIOS,
    tutorial::SCENARIOS,
    containers::SCENARIOS,
    peers::SCENARIOS,
];

/// The namespace of the applications.
const SHOP: &str = "shop";
/// The port of the shop's service.
const PORT: u16 = 80;

/// Two nodes with agents, a client on one, a server on the other and a service before it.
struct Town<'a> {
    cluster: Cluster<'a>,
    nodes: [std::sync::Arc<Node>; 2],
    client: ClusterPod,
    server: ClusterPod,
    _nginx: apps::App,
}

impl<'a> Town<'a> {
    /// A town in whatever namespace labels: `ambient` puts its pods into the mesh.
    fn new(bed: &'a Testbed, labels: &[(&str, &str)]) -> Result<Self> {
        Self::on(server::own(bed)?, labels)
    }

    fn on(cluster: Cluster<'a>, labels: &[(&str, &str)]) -> Result<Self> {
        cluster.start_controller(&[])?;
        Self::under(cluster, labels, &[])
    }

    /// A town under a controller that runs already; `agents` are more arguments of the agents' command lines.
    fn under(cluster: Cluster<'a>, labels: &[(&str, &str)], agents: &[&str]) -> Result<Self> {
        cluster.api().apply(&namespace(SHOP, labels))?;
        let nodes = [cluster.node("n1")?, cluster.node("n2")?];
        for node in &nodes {
            cluster.start_agent(node, agents)?;
        }
        let client = cluster.pod(&nodes[0], PodSpec::new(SHOP, "client"))?;
        let server = cluster.pod(&nodes[1], PodSpec::new(SHOP, "server").behind("web"))?;
        cluster.service(SHOP, "web", address(), (PORT, apps::NGINX_PORT))?;
        let nginx = apps::nginx(&server.pod)?;
        Ok(Self {
            cluster,
            nodes,
            client,
            server,
            _nginx: nginx,
        })
    }

    /// A town whose pods are in the mesh.
    fn in_mesh(bed: &'a Testbed) -> Result<Self> {
        let town = Self::new(bed, &[MEMBER])?;
        town.wait_enrolled()?;
        Ok(town)
    }

    fn wait_enrolled(&self) -> Result<()> {
        self.cluster.wait_enrolled(&self.client)?;
        self.cluster.wait_enrolled(&self.server)
    }

    /// The client fetches a page of the service.
    fn fetch(&self) -> Result<undermesh_tests::process::Output> {
        self.client.pod.curl(address().v4.into(), PORT, "/name")
    }
}

/// The label that puts a namespace into the mesh.
const MEMBER: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// The address of the service.
fn address() -> Addresses {
    undermesh_tests::shop::service_addresses(40)
}

/// A policy for the town's server: what becomes of these service accounts of the shop.
fn policy(name: &str, action: &str, accounts: &[&str]) -> Value {
    let principal = |account: &&str| format!("cluster.local/ns/{SHOP}/sa/{account}");
    let principals: Vec<String> = accounts.iter().map(principal).collect();
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": SHOP },
        "spec": {
            "selector": { "matchLabels": { "app": "server" } },
            "action": action,
            "rules": [{ "from": [{ "source": { "principals": principals } }] }],
        },
    })
}

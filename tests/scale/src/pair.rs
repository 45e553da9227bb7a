//! Two nodes with real agents in the midst of the generated cluster: one talks to many services, whose nearest
//! endpoints are on the other.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use serde_json::json;
use undermesh_tests::cluster::ClusterPod;
use undermesh_tests::tcp::{self, Server};
use undermesh_tests::usage::{self, Memory};
use undermesh_tests::{Context, Error, Node, PodSpec, Result};

use crate::objects::{self, POD_PORT, Progress, SERVICE_PORT};
use crate::plan::{Plan, PodName};
use crate::world::World;

/// The namespace of the real pods.
const NAMESPACE: &str = "real";
/// The first address of the services between them (10.112.0.0/16).
const FIRST_SERVICE: u32 = 0x0a70_0000;
/// The first address of generated endpoints of these services (10.240.0.0/12).
const FIRST_POD: u32 = 0x0af0_0000;
/// The node of the generated endpoints, in no region: what is real is nearer.
const ELSEWHERE: &str = "elsewhere";
/// Counts the connections that an agent has carried under mutual TLS.
const CARRIED: &str = "istio_tcp_connections_opened_total";

/// The nodes and what runs on them.
pub struct Pair {
    near: Arc<Node>,
    clients: Vec<ClusterPod>,
    _servers: Vec<(ClusterPod, Server)>,
    services: u32,
}

impl Pair {
    /// Builds the nodes and services, and waits until all pods are captured. Each service has as many endpoints as
    /// the services of the plan; one of them is real.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn build(world: &World<'_>, plan: &Plan) -> Result<Self> {
        let (cluster, size) = (&world.cluster, plan.size());
        let nodes = [cluster.node("near")?, cluster.node("far")?];
        for node in &nodes {
            cluster.start_agent(node, &[])?;
        }
        world.api.put(objects::namespace(NAMESPACE));
        let [near, far] = nodes;
        let mut servers = Vec::new();
        for talk in 0..size.talks {
            eprintln!("node: service {} of {}", talk + 1, size.talks);
            write_service(world, plan, talk);
            let spec = PodSpec::new(NAMESPACE, &format!("server-{talk}"));
            let pod = cluster.pod(&far, spec.behind(&service_name(talk)))?;
            let server = Server::start(&pod.pod, POD_PORT, tcp::echo)?;
            servers.push((pod, server));
        }
        let mut clients = Vec::new();
        for client in 0..size.pods / size.nodes {
            let spec = PodSpec::new(NAMESPACE, &format!("client-{client}"));
            clients.push(cluster.pod(&near, spec)?);
        }
        let servers_pods = servers.iter().map(|(pod, _)| pod);
        for pod in clients.iter().chain(servers_pods) {
            cluster.wait_enrolled(pod)?;
        }
        Ok(Self {
            near,
            clients,
            _servers: servers,
            services: size.talks,
        })
    }

    /// How many pods the measured node has in the mesh.
    pub fn pods(&self) -> usize {
        self.clients.len()
    }

    /// The memory of the agent.
    ///
    /// # Errors
    /// When it does not run.
    pub fn memory(&self) -> Result<Memory> {
        usage::memory(&usage::processes_of(self.near.cgroup())?)
    }

    /// Opens a connection from the first pod to each service, and checks that the mesh carries it.
    ///
    /// # Errors
    /// When one fails or goes past the mesh.
    pub fn talk(&self) -> Result<Vec<TcpStream>> {
        let client = self.clients.first().context(|| "find a client")?;
        let connections = client.pod.run(|| {
            (0..self.services)
                .map(|talk| {
                    let address = SocketAddr::from((service_address(talk), SERVICE_PORT));
                    let mut stream = tcp::connect(address)?;
                    tcp::ping(&mut stream, b"ping")?;
                    Ok(stream)
                })
                .collect::<std::io::Result<Vec<_>>>()
        })?;
        let connections = connections.context(|| "talk to every service")?;
        let tls = r#"connection_security_policy="mutual_tls""#;
        let carried = self.near.metric(CARRIED, &[tls, r#"reporter="source""#])?;
        if carried < f64::from(self.services) {
            return Err(Error::step(
                "talk to every service through the mesh",
                format!("only {carried} connections were carried"),
            ));
        }
        Ok(connections)
    }
}

fn service_name(talk: u32) -> String {
    format!("talk-{talk}")
}

fn service_address(talk: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST_SERVICE + 1 + talk)
}

/// Writes a service and its generated endpoints.
fn write_service(world: &World<'_>, plan: &Plan, talk: u32) {
    let (name, size) = (service_name(talk), plan.size());
    let selector = json!({ "service": name });
    let address = service_address(talk);
    let service = objects::service_named(NAMESPACE, &name, address, selector.clone());
    world.api.put(service);
    let endpoints = size.pods / size.services;
    for endpoint in 1..endpoints {
        let number = talk * endpoints + endpoint;
        let pod = PodName {
            namespace: NAMESPACE.to_owned(),
            name: format!("{name}-7d4b9c6f5-{endpoint}"),
            address: Ipv4Addr::from(FIRST_POD + number),
        };
        let object = objects::pod_named(&pod, &name, selector.clone(), ELSEWHERE, Progress::Ready);
        world.api.put(object);
    }
}

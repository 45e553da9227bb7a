//! The common case of a test: two nodes, a client on the first, and a service with a pod on each.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::apps::NGINX_PORT;
use crate::manifests::{self, ServicePort};
use crate::pod::Addresses;
use crate::{Family, Node, Pod, PodSpec, Result, Testbed};

/// The namespace of the shop.
pub const NAMESPACE: &str = "shop";

/// The port of the shop's services; the pods behind them listen on [`NGINX_PORT`].
pub const SERVICE_PORT: u16 = 80;

/// Two nodes with the pods `client` and `near` on the first and `far` on the second. `near` and `far`
/// have a service each.
#[derive(Debug)]
pub struct Shop {
    /// The node of `client` and `near`.
    pub first: Arc<Node>,
    /// The node of `far`.
    pub second: Arc<Node>,
    /// The pod that asks.
    pub client: Pod,
    /// A pod on the client's node.
    pub near: Pod,
    /// A pod on the other node.
    pub far: Pod,
}

impl Shop {
    /// Builds the shop without a mesh: no agent, no manifest.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn without_mesh(bed: &Testbed) -> Result<Self> {
        let first = bed.node("first")?;
        let second = bed.node("second")?;
        Ok(Self {
            client: first.pod(PodSpec::new(NAMESPACE, "client"))?,
            near: first.pod(PodSpec::new(NAMESPACE, "near").behind("near"))?,
            far: second.pod(PodSpec::new(NAMESPACE, "far").behind("far"))?,
            first,
            second,
        })
    }

    /// Builds the shop, starts the agents and enrolls every pod.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn in_mesh(bed: &Testbed) -> Result<Self> {
        Self::in_mesh_with(bed, &[])
    }

    /// Like [`Shop::in_mesh`], with more arguments for both agents.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn in_mesh_with(bed: &Testbed, arguments: &[&str]) -> Result<Self> {
        let shop = Self::without_mesh(bed)?;
        bed.manifests().write("shop", &shop.manifest())?;
        shop.join_mesh(arguments)?;
        Ok(shop)
    }

    /// Starts the agents, with more `arguments`, and enrolls every pod.
    ///
    /// # Errors
    /// When an agent does not start or refuses a pod.
    pub fn join_mesh(&self, arguments: &[&str]) -> Result<()> {
        for node in [&self.first, &self.second] {
            node.start_agent(arguments)?;
        }
        self.first.enroll(&self.client)?;
        self.first.enroll(&self.near)?;
        self.second.enroll(&self.far)
    }

    /// Adds a pod to `node`, tells the mesh of it and enrolls it.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn add_pod(&self, bed: &Testbed, node: &Node, spec: PodSpec) -> Result<Pod> {
        let pod = node.pod(spec)?;
        let name = format!("pod-{}-{}", pod.spec().namespace, pod.spec().name);
        let namespace = manifests::namespace(&pod.spec().namespace);
        let namespace = if pod.spec().namespace == NAMESPACE {
            ""
        } else {
            &namespace
        };
        bed.apply(&name, &format!("{namespace}{}", manifests::pod(&pod)))?;
        node.enroll(&pod)?;
        Ok(pod)
    }

    /// The address of the service of `near`.
    pub fn near_service(&self, family: Family) -> SocketAddr {
        SocketAddr::new(service_addresses(1).of(family), SERVICE_PORT)
    }

    /// The address of the service of `far`.
    pub fn far_service(&self, family: Family) -> SocketAddr {
        SocketAddr::new(service_addresses(2).of(family), SERVICE_PORT)
    }

    /// The manifests of all that the shop has.
    pub fn manifest(&self) -> String {
        let ports = [ServicePort {
            port: SERVICE_PORT,
            target: NGINX_PORT,
        }];
        [
            manifests::namespace(NAMESPACE),
            manifests::node(&self.first),
            manifests::node(&self.second),
            manifests::pod(&self.client),
            manifests::pod(&self.near),
            manifests::pod(&self.far),
            manifests::service(NAMESPACE, "near", service_addresses(1), &ports),
            manifests::service(NAMESPACE, "far", service_addresses(2), &ports),
        ]
        .concat()
    }
}

/// The virtual addresses of service `number`.
pub fn service_addresses(number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 96, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()),
    }
}

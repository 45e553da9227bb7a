//! The shop that the demo shows: two nodes, their pods, and who is not in the mesh.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use undermesh_tests::apps::{self, App, NGINX_PORT, REDIS_PORT};
use undermesh_tests::manifests::{self, ServicePort};
use undermesh_tests::pod::Addresses;
use undermesh_tests::process::Running;
use undermesh_tests::shop::service_addresses;
use undermesh_tests::testbed::Outside;
use undermesh_tests::{Family, Node, Place, Pod, PodSpec, Result, Testbed};

use super::remains::threads;

/// The namespace of the shop.
const SHOP: &str = "shop";

/// The port of the service `web`.
const WEB_PORT: u16 = 80;

/// All that the demo shows.
#[derive(Debug)]
pub struct Town {
    /// The node of `cart`, `guest` and `web-a`.
    pub node_a: Arc<Node>,
    /// The node of `web-b` and `redis`.
    pub node_b: Arc<Node>,
    /// The pod that calls the others.
    pub cart: Pod,
    /// The service `web` on the first node.
    pub web_a: Pod,
    /// The service `web` on the second node.
    pub web_b: Pod,
    /// The service `redis`.
    pub redis: Pod,
    /// A pod of another namespace.
    pub guest: Pod,
    /// A pod that is not enrolled, on the first node.
    pub old_cart: Pod,
    /// A pod that is not enrolled, on the second node.
    pub old_web: Pod,
    /// A host that no mesh knows of.
    pub visitor: Outside,
    _applications: Vec<App>,
    _idle: Vec<Running>,
}

impl Town {
    /// Builds the nodes and the pods, starts the agents and the applications, and enrolls the pods.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn build(bed: &Testbed) -> Result<Self> {
        let node_a = bed.node("node-a")?;
        let node_b = bed.node("node-b")?;
        let cart = node_a.pod(PodSpec::new(SHOP, "cart"))?;
        let web_a = node_a.pod(PodSpec::new(SHOP, "web-a").behind("web"))?;
        let web_b = node_b.pod(PodSpec::new(SHOP, "web-b").behind("web"))?;
        let redis = node_b.pod(PodSpec::new(SHOP, "redis").behind("redis"))?;
        let guest = node_a.pod(PodSpec::new("street", "guest"))?;
        let old_cart = node_a.pod(PodSpec::new("legacy", "old-cart"))?;
        let old_web = node_b.pod(PodSpec::new("legacy", "old-web"))?;
        let visitor = bed.outside("visitor")?;
        let applications = vec![
            apps::nginx(&web_a)?,
            apps::nginx(&web_b)?,
            apps::nginx(&old_web)?,
            apps::redis(&redis)?,
        ];
        let idle = [&*cart, &guest, &old_cart, &visitor.place]
            .into_iter()
            .map(|place| place.spawn("sleep", ["infinity"]))
            .collect::<Result<_>>()?;
        let town = Self {
            node_a,
            node_b,
            cart,
            web_a,
            web_b,
            redis,
            guest,
            old_cart,
            old_web,
            visitor,
            _applications: applications,
            _idle: idle,
        };
        town.join_mesh(bed)?;
        Ok(town)
    }

    /// The nodes, each with the pods that are enrolled there.
    pub fn nodes(&self) -> [(&Arc<Node>, Vec<&Pod>); 2] {
        [
            (&self.node_a, vec![&self.cart, &self.web_a, &self.guest]),
            (&self.node_b, vec![&self.web_b, &self.redis]),
        ]
    }

    /// The virtual address of the service `web`.
    pub fn web(&self, family: Family) -> SocketAddr {
        SocketAddr::new(web_addresses().of(family), WEB_PORT)
    }

    /// The virtual address of the service `redis`.
    pub fn redis(&self) -> IpAddr {
        redis_addresses().of(Family::V4)
    }

    fn join_mesh(&self, bed: &Testbed) -> Result<()> {
        bed.manifests().write("shop", &self.manifest())?;
        for (node, pods) in self.nodes() {
            node.start_agent::<&str>([])?;
            pods.into_iter().try_for_each(|pod| node.enroll(pod))?;
        }
        Ok(())
    }

    fn manifest(&self) -> String {
        let port = |port, target| [ServicePort { port, target }];
        let mut yaml = [
            manifests::namespace(SHOP),
            manifests::namespace("street"),
            manifests::service(SHOP, "web", web_addresses(), &port(WEB_PORT, NGINX_PORT)),
            manifests::service(
                SHOP,
                "redis",
                redis_addresses(),
                &port(REDIS_PORT, REDIS_PORT),
            ),
        ]
        .concat();
        for (node, pods) in self.nodes() {
            yaml.push_str(&manifests::node(node));
            yaml.extend(pods.into_iter().map(manifests::pod));
        }
        yaml
    }
}

/// The programs that run in a pod, as the kernel names them.
pub fn programs(place: &Place) -> Vec<String> {
    let mut names: Vec<String> = threads(place.cgroup().path())
        .iter()
        .filter_map(|id| std::fs::read_to_string(format!("/proc/{id}/comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The virtual addresses of the service `web`.
pub fn web_addresses() -> Addresses {
    service_addresses(1)
}

/// The virtual addresses of the service `redis`.
pub fn redis_addresses() -> Addresses {
    service_addresses(2)
}

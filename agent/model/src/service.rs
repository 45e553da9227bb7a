//! A service: a name and virtual addresses in front of workloads.
use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    address::canonical,
    gateway::{Gateway, WeightedWaypoint},
    identity::Identity,
};

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Port that clients ask for.
    pub port: u16,
    /// Port of the endpoints, unless an endpoint has one of its own; `None` is a named port.
    pub target_port: Option<u16>,
    /// Name of the port; may be empty.
    pub name: Arc<str>,
    /// What is spoken on it, as far as its service says.
    pub protocol: AppProtocol,
}

/// What is spoken on a port (`istio.workload.AppProtocol`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AppProtocol {
    /// Not said.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque TCP.
    Tcp,
    /// TLS that the mesh does not end.
    Tls,
}

/// Who sees a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Clients of its own namespace.
    Namespace,
}

/// The address families that a service offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum IpFamilies {
    /// Not said: whatever its addresses are.
    #[default]
    Automatic,
    /// IPv4.
    Ipv4Only,
    /// IPv6.
    Ipv6Only,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// Whether an endpoint may be reached at this address.
    pub fn admit(self, address: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::Ipv4Only => address.to_canonical().is_ipv4(),
            Self::Ipv6Only => address.to_canonical().is_ipv6(),
        }
    }
}

/// A part of an endpoint's place that a preference compares, in the order that Istio lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scope {
    /// Same network.
    Network,
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
}

/// How endpoints are preferred by place (`istio.workload.LoadBalancing`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "mode", content = "scopes", rename_all = "UPPERCASE")]
pub enum Preference {
    /// All endpoints are equal.
    #[default]
    None,
    /// Only endpoints that match every scope.
    Strict(Vec<Scope>),
    /// The endpoints that match most scopes from the front; others when there are none.
    Failover(Vec<Scope>),
    /// No endpoints: connect to the address that was asked for.
    Passthrough,
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum HealthPolicy {
    /// Only ready ones.
    #[default]
    OnlyHealthy,
    /// Unready ones too (`publishNotReadyAddresses`).
    AllowAll,
}

/// A workload's part in a service: its uid, and the port map where it differs from the service's own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEndpoint {
    /// [`crate::Workload::uid`].
    pub workload: Arc<str>,
    /// Service port to the workload's port; a service port that is missing here falls back to
    /// [`ServicePort::target_port`].
    pub ports: Vec<(u16, u16)>,
}

impl ServiceEndpoint {
    /// The workload's port for a port of the service: from its own map, else the service's target port.
    /// `None` when the port is named and the workload does not say which one it means.
    pub fn target(&self, port: &ServicePort) -> Option<u16> {
        let own = self
            .ports
            .iter()
            .find(|(service_port, _)| *service_port == port.port);
        own.map(|(_, target)| *target)
            .or(port.target_port)
            .filter(|target| *target != 0)
    }
}

/// A Service or ServiceEntry (`istio.workload.Service`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name of the object.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Fully qualified name, for example `web.shop.svc.cluster.local`.
    pub hostname: Arc<str>,
    /// The network that the virtual addresses belong to.
    pub network: Arc<str>,
    /// Virtual addresses; a wider prefix is a CIDR of a ServiceEntry.
    pub addresses: Vec<IpNet>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Endpoint preference by place.
    pub preference: Preference,
    /// Whether unready endpoints serve.
    pub health_policy: HealthPolicy,
    /// Identities that endpoints may have beside their own (`subjectAltNames`).
    pub subject_alt_names: Vec<Identity>,
    /// Whether a Kubernetes Service (true) or the oldest public ServiceEntry.
    pub canonical: bool,
    /// Who sees it.
    pub visibility: Visibility,
    /// The address families that it offers.
    pub ip_families: IpFamilies,
    /// The waypoint before it.
    pub waypoint: Option<Gateway>,
    /// Waypoints that share its connections by weight; when empty or all of weight 0, [`Self::waypoint`] alone counts.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Whether ingress gateways send to the waypoint too.
    pub ingress_use_waypoint: bool,
    /// Its endpoints.
    pub endpoints: Vec<ServiceEndpoint>,
}

impl Service {
    /// Key under which xDS and policies know it: `<namespace>/<hostname>`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }

    /// Whether `address` is one of the virtual addresses; IPv4-mapped forms count as IPv4.
    pub fn serves(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses
            .iter()
            .any(|net| canonical(*net).contains(&address))
    }

    /// Whether clients of a namespace see it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => &*self.namespace == namespace,
        }
    }

    /// The port that clients know as `port`.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|listed| listed.port == port)
    }
}

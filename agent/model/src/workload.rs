//! A workload: something with addresses that runs under one identity.
use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{gateway::Gateway, identity::Identity, locality::Locality, service::IpFamilies};

/// [`Workload::capacity`] of a workload that says nothing of it.
pub const DEFAULT_CAPACITY: u32 = 1;

/// What a workload accepts on port 15008.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Tunnel {
    /// Not in the mesh: reached by plain TCP.
    #[default]
    None,
    /// In the mesh: reached by HBONE.
    Hbone,
}

/// Whether a workload may be chosen as a service's endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Health {
    /// Ready and not being deleted.
    #[default]
    Healthy,
    /// Not ready, or being deleted.
    Unhealthy,
}

/// Whose addresses a workload has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NetworkMode {
    /// Its own.
    #[default]
    Standard,
    /// Its host's: several workloads share them, so an address alone does not tell which one is meant.
    HostNetwork,
}

/// How traffic is handed to a workload's application, where not as it is (`istio.workload.ApplicationTunnel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationTunnel {
    /// Whether each connection begins with a PROXY protocol header, version 2.
    pub proxy_protocol: bool,
    /// The port that takes all traffic; `None` keeps the one that was asked for.
    pub port: Option<u16>,
}

/// The kind of controller that a workload's name stands for; selects the baggage key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    /// A Deployment or whatever behaves like one.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    #[default]
    Pod,
    /// A Job.
    Job,
}

impl WorkloadKind {
    /// The name in lower case, as metrics and logs show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// A pod, a WorkloadEntry or an endpoint outside the cluster (`istio.workload.Workload`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Unique id, Istio's form: `<cluster>//Pod/<namespace>/<name>`.
    pub uid: Arc<str>,
    /// Name of the pod or entry.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The network that the addresses belong to; empty is the default network.
    pub network: Arc<str>,
    /// Whether it is reached by HBONE.
    pub tunnel: Tunnel,
    /// Trust domain, namespace and service account.
    pub identity: Identity,
    /// The node it runs on; empty when unknown.
    pub node: Arc<str>,
    /// `service.istio.io/canonical-name`, or `app`, or the workload's name.
    pub canonical_name: Arc<str>,
    /// `service.istio.io/canonical-revision`, or `version`, or `latest`.
    pub canonical_revision: Arc<str>,
    /// Name of the controller, for metrics and logs.
    pub workload_name: Arc<str>,
    /// Kind of the controller.
    pub workload_kind: WorkloadKind,
    /// Region, zone, subzone.
    pub locality: Locality,
    /// Whether it may be chosen as an endpoint.
    pub health: Health,
    /// The cluster it belongs to, `Kubernetes` by default.
    pub cluster: Arc<str>,
    /// Names (`<namespace>/<name>`) of the selector-scoped policies that apply to it.
    pub policies: Vec<Arc<str>>,
    /// Name to resolve for its address; empty unless it has no address of its own.
    pub hostname: Arc<str>,
    /// Whose addresses it has.
    pub network_mode: NetworkMode,
    /// Its share of a service's connections, relative to other endpoints; 0 is none, 1 the default.
    pub capacity: u32,
    /// The waypoint before connections to its own address.
    pub waypoint: Option<Gateway>,
    /// The way to its network from others.
    pub network_gateway: Option<Gateway>,
    /// How traffic is handed to its application, where not as it is.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Whether it speaks HBONE itself instead of through a node proxy.
    pub native_tunnel: bool,
}

impl Workload {
    /// Whether it is a pod, by the form of its uid.
    pub fn is_pod(&self) -> bool {
        self.uid.contains("//Pod/")
    }

    /// Whether `address` is one of its own; IPv4-mapped forms count as IPv4.
    pub fn owns(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses
            .iter()
            .any(|own| own.to_canonical() == address)
    }

    /// Its address for a connection that asked for `wanted`: that very one, or one that the service's
    /// `families` admit, first of the same family. `None` when it has no such address.
    pub fn address_for(&self, wanted: IpAddr, families: IpFamilies) -> Option<IpAddr> {
        let wanted = wanted.to_canonical();
        if self.owns(wanted) {
            return Some(wanted);
        }
        let mut own = self
            .addresses
            .iter()
            .map(IpAddr::to_canonical)
            .filter(|address| families.admit(*address));
        own.clone()
            .find(|address| address.is_ipv4() == wanted.is_ipv4())
            .or_else(|| own.next())
    }

    /// Whether its address is not known here and its [`Self::hostname`] tells it.
    pub fn is_named(&self) -> bool {
        self.addresses.is_empty() && !self.hostname.is_empty()
    }

    /// The port that its application takes all traffic on, if it has one (`istio.workload.ApplicationTunnel`).
    pub fn application_port(&self) -> Option<u16> {
        self.application_tunnel.and_then(|tunnel| tunnel.port)
    }
}

//! Proxies on the way to a destination: waypoints, and the gateways of other networks.
use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A proxy that stands before a destination (`istio.workload.GatewayAddress`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// What it is known by.
    pub destination: GatewayDestination,
    /// The port on which it takes HBONE, 15008 as a rule.
    pub port: u16,
}

/// What it is known by: `<namespace>/<hostname>`, or its address, with its network where it has a name.
impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            GatewayDestination::Hostname {
                namespace,
                hostname,
            } => write!(f, "{namespace}/{hostname}"),
            GatewayDestination::Address { network, address } if network.is_empty() => {
                write!(f, "{address}")
            }
            GatewayDestination::Address { network, address } => write!(f, "{network}/{address}"),
        }
    }
}

/// What a gateway is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum GatewayDestination {
    /// The service of its instances.
    Hostname {
        /// Namespace of the service.
        namespace: Arc<str>,
        /// Its fully qualified name.
        hostname: Arc<str>,
    },
    /// An address of its service or of a single instance.
    Address {
        /// The network that the address belongs to.
        network: Arc<str>,
        /// The address.
        address: IpAddr,
    },
}

/// A service's waypoint with its share of new connections.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub gateway: Gateway,
    /// Its share, relative to the others; 0 is none.
    pub weight: u32,
}

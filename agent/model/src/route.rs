//! Where an outbound connection goes: the decision tree of the node proxy.
use std::{net::SocketAddr, sync::Arc};

use crate::{identity::Identity, service::Service, workload::Workload};

/// The answer to «where does a connection from this pod to that address go?».
#[derive(Clone, Debug)]
pub enum Route {
    /// Through HBONE to a mesh workload.
    Hbone(Destination),
    /// Plain TCP to a known workload outside the mesh.
    Plain(Destination),
    /// Plain TCP to the address asked for: nothing in the mesh is known of it, or its service says so.
    Passthrough {
        /// The address asked for.
        address: SocketAddr,
        /// The service that asked for passthrough, if that was the reason.
        service: Option<Arc<Service>>,
    },
}

/// A chosen workload and the way to it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The chosen workload.
    pub workload: Arc<Workload>,
    /// The service that was asked for, if any.
    pub service: Option<Arc<Service>>,
    /// Address and port of the application in the workload: the CONNECT authority, or the plain target.
    pub address: SocketAddr,
    /// Identities that the peer may prove: the workload's own and its service's extra names.
    pub expected: Arc<[Identity]>,
}

/// Why there is nowhere to go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The destination is one of the mesh's own ports.
    #[error("port {0} belongs to the mesh itself; a connection to it would loop")]
    Loop(u16),
    /// The service is known and does not list the port.
    #[error("service {service} has no port {port}")]
    NoPort {
        /// Its hostname.
        service: Arc<str>,
        /// The port asked for.
        port: u16,
    },
    /// The service has no endpoint that may be used (none, none healthy, none by its preference, all tried).
    #[error("service {service} has no endpoint to offer on port {port}")]
    NoEndpoint {
        /// Its hostname.
        service: Arc<str>,
        /// The port asked for.
        port: u16,
    },
}

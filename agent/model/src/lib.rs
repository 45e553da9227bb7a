//! The mesh as data: identities, workloads, services, policies; lookup, endpoint choice, evaluation.
//!
//! No I/O, no clock, no runtime: time and randomness come in as arguments. A [`Mesh`] is an immutable
//! snapshot; a writer builds the next one and swaps it in, readers never lock.
#![forbid(unsafe_code)]

mod address;
pub mod baggage;
pub mod balance;
pub mod delta;
mod endpoints;
mod evaluation;
#[cfg(test)]
mod fixture;
pub mod gateway;
pub mod identity;
pub mod locality;
pub mod mesh;
mod network;
pub mod policy;
pub mod route;
mod rulebook;
pub mod service;
mod waypoint;
pub mod workload;

pub use baggage::Baggage;
pub use balance::{Load, OpenConnection};
pub use delta::Delta;
pub use gateway::{Gateway, GatewayDestination, WeightedWaypoint};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use locality::Locality;
pub use mesh::{Mesh, MeshBuilder, SharedMesh};
pub use policy::{Decision, Policy, Request, Verdict};
pub use route::{Destination, HBONE_PORT, MESH_PORTS, Named, Refusal, Route};
pub use service::{Service, ServicePort};
pub use workload::{Tunnel, Workload};

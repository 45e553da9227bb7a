//! The mesh as data: identities, workloads, services, policies; lookup, endpoint choice, evaluation.
//!
//! No I/O, no clock, no runtime: time and randomness come in as arguments. A [`Mesh`] is an immutable
//! snapshot; a writer builds the next one and swaps it in, readers never lock.
#![forbid(unsafe_code)]

pub mod balance;
pub mod identity;
pub mod locality;
pub mod mesh;
pub mod policy;
pub mod route;
pub mod service;
pub mod workload;

pub use identity::{Identity, IdentityError, TrustDomain};
pub use locality::Locality;
pub use mesh::{Mesh, MeshBuilder, SharedMesh};
pub use policy::{Decision, Policy, Request};
pub use route::{Destination, Refusal, Route};
pub use service::{Service, ServicePort};
pub use workload::{Tunnel, Workload};

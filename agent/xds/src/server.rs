//! The control plane's end of the protocol: serves the mesh to node proxies by delta ADS.
//!
//! ```text
//! let hub = Hub::new(Limits::default());
//! let service = server::service(Arc::clone(&hub), authenticator)     // for tonic's router, behind TLS
//!     .with_machines(machines);                                      // where machines may register
//! hub.publish(&delta);                                               // each change of the mesh
//! let clients: Vec<ClientReport> = hub.clients();                    // who is connected, and how far it is
//! let figures: Figures = hub.counters().read();
//! ```
//!
//! A [`Catalog`] holds every resource encoded once. A [`Session`] is what one client asked for and what it has
//! still to be told: a place in the order of changes for a client that wants everything, a set of names for one
//! that asks on demand. Neither grows with the number of changes, and a response is made only when the client's
//! flow control lets it leave, so a slow client costs the same as a fast one and delays nobody.
mod batch;
mod catalog;
mod clients;
mod conversation;
mod counters;
#[cfg(test)]
pub(crate) mod fixture;
mod frame;
mod hub;
mod index;
mod interests;
mod kind;
mod machines;
mod node;
mod scan;
mod service;
mod session;
mod shelf;
mod subscription;
#[cfg(test)]
mod tests;

pub use catalog::{Catalog, Change, Name};
pub use clients::{Acknowledgement, ClientReport, Rejection, SubscriptionReport};
pub use counters::{Counters, Figures, LATENCY_BOUNDS};
pub use frame::Response;
pub use hub::{Hub, Limits};
pub use interests::{Follow, Topic};
pub use kind::Kind;
pub use machines::{Attendance, Claim, Machines, RegistrationError};
pub use node::{Node, NodeError};
pub use service::{DiscoveryServer, service};
pub use session::{Outgoing, Receipt, Session, Violation};
pub use shelf::Lagging;

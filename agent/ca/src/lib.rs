//! The certificate service and its clients.
//!
//! In the controller:
//!
//! ```text
//! let keeper = Keeper::open(client, KeeperOptions { namespace, trust_domain, lifetimes, clock }).await?;
//! let authority: Arc<LiveAuthority> = keeper.authority();      // also an identity::Issuer
//! let service = CertificateService::new(Access { .. }, Arc::clone(&authority)).into_server();    // for tonic
//! let serving = Serving::new(Arc::clone(&authority), &serving::names(&namespace), clock)?;
//! let resolver: Arc<ServingCertificate> = serving.certificate();     // rustls: with_cert_resolver(resolver)
//! spawn(keeper.run(role.clone())); spawn(bundle::publish(client, authority, role)); spawn(serving.run());
//! ```
//!
//! On a node, as the issuer of its `CertificateCache`: [`CaClient`], [`SpireDelegated`] or [`SpireWorkload`].
#![forbid(unsafe_code)]

pub mod access;
mod answer;
pub mod bundle;
pub mod callers;
pub mod client;
#[cfg(test)]
mod fixtures;
pub mod keeper;
pub mod live;
pub mod refusal;
pub mod role;
pub mod root;
pub mod rotation;
pub mod service;
pub mod serving;
pub mod spire;
pub mod wire;

pub use access::{Access, Machines, NodeAccount, NodeAccountError, PodPlace, Pods};
pub use callers::OptionalCallers;
pub use client::{CaClient, ClientError, ClientOptions, ServerRoots, TokenOwner, Trust};
pub use keeper::{Keeper, KeeperError, KeeperOptions, RootStatus};
pub use live::{Lifetimes, LiveAuthority};
pub use refusal::{Counters, Reason, Refusal};
pub use role::Role;
pub use service::CertificateService;
pub use serving::Serving;
pub use spire::{SocketError, SpireDelegated, SpireWorkload};

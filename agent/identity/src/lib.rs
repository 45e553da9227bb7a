//! Keys, certificates, the CA and the rustls configurations.
//!
//! What the rest of the agent uses:
//!
//! ```text
//! let authority = Authority::open(directory, trust_domain, Arc::new(SystemClock))?;      // or another Issuer
//! let cache = CertificateCache::new(Arc::new(authority), CacheOptions::default(), runtime_handle);
//! let handle: CertificateHandle = cache.acquire(&identity);   // once a pod; forgotten when the last clone is dropped
//! let certificate: Arc<WorkloadCertificate> = handle.ready().await;         // waits for the first one
//! let certificate: Arc<WorkloadCertificate> = handle.load()?;               // hot path: lock-free, fails closed
//! let tls: Arc<rustls::ClientConfig> = certificate.client_config(&expected_identities);
//! let tls: Arc<rustls::ServerConfig> = certificate.server_config();
//! let peer: Identity = peer_identity(connection.peer_certificates().unwrap_or_default())?;
//! let generation: watch::Receiver<u64> = handle.subscribe();                // changes at each rotation
//! let table: Vec<CertificateReport> = cache.list();
//! ```
//!
//! Tests of other crates enable the feature `testing` and make a `testing::TestMesh`.
#![forbid(unsafe_code)]

pub mod authority;
pub mod cache;
pub mod caller;
pub mod certificate;
pub mod clock;
pub mod credentials;
pub mod csr;
mod gate;
pub mod issuer;
pub mod key;
pub mod material;
pub mod report;
pub mod schedule;
pub mod serving;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod verify;

pub use authority::{Authority, AuthorityError};
pub use cache::{CacheOptions, CertificateCache, CertificateHandle, Counters, NotReady};
pub use caller::{Authenticator, BoundPod, Caller, CallerError, PeerCertificate};
pub use certificate::{Certificate, CertificateError};
pub use clock::{Clock, SystemClock};
pub use credentials::{Credentials, NoCredentials, Presented, Proof, Secret};
pub use issuer::{CertificateRequest, IssueError, IssuedCertificate, Issuer};
pub use material::{CaParts, NewRoot};
pub use report::{CertificateReport, CertificateState};
pub use serving::{ServingCertificate, ServingError};
pub use tls::{TlsError, WorkloadCertificate, peer_identity};
pub use verify::PeerError;

//! A workload's certificate with its key, and the rustls configurations made of it.
//!
//! TLS 1.3 only, AES-GCM only, hybrid post-quantum key exchange first, ALPN `h2`, no SNI, no resumption, no tickets,
//! no early data: what ztunnel speaks, with less in each handshake.
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite, default_provider, kx_group},
    },
    pki_types::CertificateDer,
    server::{NoServerSessionStorage, VerifierBuilderError},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use undermesh_model::Identity;

use crate::{
    certificate::{self, Certificate, CertificateError},
    clock::{Clock, TlsClock, unix_time},
    credentials::{Presented, Proof, Secret},
    issuer::IssuedCertificate,
    key::{KeyError, WorkloadKey},
    verify::{ClientIdentityVerifier, PeerError, ServerIdentityVerifier},
};

/// Most sets of expected peers that a certificate keeps a client configuration for.
const MAX_CLIENT_CONFIGS: usize = 256;
/// The protocol of HBONE tunnels.
const ALPN_H2: &[u8] = b"h2";

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..default_provider()
    })
});

/// The cryptography of all tunnels: AES-256-GCM, AES-128-GCM; X25519MLKEM768, X25519, P-256, P-384.
pub fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// Why an issued certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate cannot be read.
    #[error("the certificate issued for {0} cannot be used: {1}")]
    Certificate(Identity, CertificateError),
    /// The certificate is for somebody else.
    #[error(
        "the issuer was asked for {expected} but certified {found}; check whom it allows this node to ask for"
    )]
    WrongIdentity {
        /// Who was asked for.
        expected: Identity,
        /// Who is named.
        found: String,
    },
    /// The chain does not lead to the roots that came with it.
    #[error(
        "the chain issued for {0} does not lead to the roots that came with it: {1}; check the issuer's chain and both clocks"
    )]
    Chain(Identity, rustls::Error),
    /// No root came with the certificate.
    #[error("the issuer sent no roots with the certificate of {0}")]
    NoRoots(Identity),
    /// The certificate belongs to another key.
    #[error("the certificate issued for {0} does not belong to its key: {1}")]
    KeyMismatch(Identity, rustls::Error),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// rustls refuses the configuration.
    #[error("cannot set up TLS for {0}: {1}")]
    Config(Identity, rustls::Error),
    /// rustls refuses the roots.
    #[error("cannot verify clients of {0}: {1}")]
    Verifier(Identity, VerifierBuilderError),
}

/// One certificate of one identity with its key and the roots that peers are judged by. Immutable; rotation makes
/// another one.
pub struct WorkloadCertificate {
    identity: Identity,
    leaf: Certificate,
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    root_store: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
    client: ClientConfig,
    clients: Mutex<ClientConfigs>,
    key: Secret,
}

impl WorkloadCertificate {
    /// Joins what was issued with the key that it was issued for: `key`, unless the issuer made another.
    ///
    /// # Errors
    /// When the leaf does not carry `identity`, is not for `key`, or does not chain to the roots now.
    pub fn new(
        identity: Identity,
        key: &WorkloadKey,
        issued: IssuedCertificate,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TlsError> {
        let leaf = Certificate::parse(issued.leaf)
            .map_err(|error| TlsError::Certificate(identity.clone(), error))?;
        check_named(&identity, &leaf)?;
        let root_store = root_store(&identity, &issued.roots)?;
        check_chain(
            &identity,
            &leaf,
            &issued.intermediates,
            &root_store,
            clock.now(),
        )?;
        let key = issued.key.as_deref().unwrap_or(key);
        let certified = certified_key(&identity, &leaf, &issued.intermediates, key)?;
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        Ok(Self {
            server: server_config(
                &identity,
                &root_store,
                Arc::clone(&resolver),
                Arc::clone(&clock),
            )?,
            client: client_template(&identity, &root_store, resolver, clock)?,
            clients: Mutex::default(),
            key: key.to_pem(),
            intermediates: issued.intermediates,
            roots: issued.roots,
            root_store,
            leaf,
            identity,
        })
    }

    /// Whose certificate it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The first moment at which it is valid.
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before()
    }

    /// The last moment at which it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after()
    }

    /// The serial number in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        self.leaf.serial()
    }

    /// The leaf and the intermediates as PEM, the leaf first.
    pub fn chain_pem(&self) -> String {
        certificate::to_pem(std::iter::once(self.leaf.der()).chain(&self.intermediates))
    }

    /// How to call a control plane of the mesh as this workload.
    pub fn presented(&self) -> Presented {
        Presented {
            proof: Proof::Certificate {
                chain: self.chain_pem(),
                key: self.key.clone(),
            },
            roots: self.roots_pem(),
        }
    }

    /// The roots that peers are judged by, as PEM.
    pub fn roots_pem(&self) -> String {
        certificate::to_pem(&self.roots)
    }

    /// The roots that peers are judged by.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// How to dial a server that must be one of `expected` (none is accepted if that is empty).
    ///
    /// Ready configurations are kept for the sets used last, so that asking again is cheap. rustls wants a server
    /// name to connect to; any will do, such as the address dialled: none is sent and none is checked.
    pub fn client_config(&self, expected: &[Identity]) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get_or_insert_with(expected, || {
            let roots = Arc::clone(&self.root_store);
            let verifier = ServerIdentityVerifier::new(roots, Arc::clone(provider()), expected);
            let mut config = self.client.clone();
            config
                .dangerous()
                .set_certificate_verifier(Arc::new(verifier));
            Arc::new(config)
        })
    }

    /// How to serve as this workload to clients of its own trust domain.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// Shows whose and which certificate it is, never the key.
impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("serial", &self.leaf.serial())
            .field("not_before", &self.leaf.not_before())
            .field("not_after", &self.leaf.not_after())
            .finish_non_exhaustive()
    }
}

/// Whom the peer's certificate names; to be asked after the handshake, which has judged the chain.
///
/// # Errors
/// When there is no certificate, or it names no identity.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerError> {
    let leaf = chain.first().ok_or(PeerError::Missing)?;
    certificate::identities_of(leaf)?
        .into_iter()
        .next()
        .ok_or(PeerError::Nameless)
}

fn check_named(identity: &Identity, leaf: &Certificate) -> Result<(), TlsError> {
    if leaf.identity() == Some(identity) {
        return Ok(());
    }
    let found = leaf
        .identity()
        .map_or_else(|| "nobody".to_owned(), ToString::to_string);
    Err(TlsError::WrongIdentity {
        expected: identity.clone(),
        found,
    })
}

fn root_store(
    identity: &Identity,
    roots: &[CertificateDer<'static>],
) -> Result<Arc<RootCertStore>, TlsError> {
    if roots.is_empty() {
        return Err(TlsError::NoRoots(identity.clone()));
    }
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone())
            .map_err(|error| TlsError::Chain(identity.clone(), error))?;
    }
    Ok(Arc::new(store))
}

fn check_chain(
    identity: &Identity,
    leaf: &Certificate,
    intermediates: &[CertificateDer<'static>],
    roots: &RootCertStore,
    now: SystemTime,
) -> Result<(), TlsError> {
    let check = || {
        let now = unix_time(now).ok_or(rustls::Error::FailedToGetCurrentTime)?;
        let algorithms = provider().signature_verification_algorithms.all;
        let leaf = rustls::server::ParsedCertificate::try_from(leaf.der())?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &leaf,
            roots,
            intermediates,
            now,
            algorithms,
        )
    };
    check().map_err(|error| TlsError::Chain(identity.clone(), error))
}

fn certified_key(
    identity: &Identity,
    leaf: &Certificate,
    intermediates: &[CertificateDer<'static>],
    key: &WorkloadKey,
) -> Result<CertifiedKey, TlsError> {
    let chain = std::iter::once(leaf.der())
        .chain(intermediates)
        .cloned()
        .collect();
    let certified = CertifiedKey::new(chain, key.signing_key()?);
    certified
        .keys_match()
        .map_err(|error| TlsError::KeyMismatch(identity.clone(), error))?;
    Ok(certified)
}

fn server_config(
    identity: &Identity,
    roots: &Arc<RootCertStore>,
    resolver: Arc<SingleCertAndKey>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let trust_domain = identity.trust_domain.clone();
    let verifier =
        ClientIdentityVerifier::new(Arc::clone(roots), Arc::clone(provider()), trust_domain)
            .map_err(|error| TlsError::Verifier(identity.clone(), error))?;
    let mut config =
        ServerConfig::builder_with_details(Arc::clone(provider()), Arc::new(TlsClock(clock)))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| TlsError::Config(identity.clone(), error))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A configuration that accepts nobody; [`WorkloadCertificate::client_config`] copies it and says who is expected.
fn client_template(
    identity: &Identity,
    roots: &Arc<RootCertStore>,
    resolver: Arc<SingleCertAndKey>,
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, TlsError> {
    let nobody = ServerIdentityVerifier::new(Arc::clone(roots), Arc::clone(provider()), &[]);
    let mut config =
        ClientConfig::builder_with_details(Arc::clone(provider()), Arc::new(TlsClock(clock)))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| TlsError::Config(identity.clone(), error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(nobody))
            .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The client configurations used last, by whom they expect.
#[derive(Default)]
struct ClientConfigs {
    uses: u64,
    entries: HashMap<Box<[Identity]>, (u64, Arc<ClientConfig>)>,
}

impl ClientConfigs {
    fn get_or_insert_with(
        &mut self,
        expected: &[Identity],
        make: impl FnOnce() -> Arc<ClientConfig>,
    ) -> Arc<ClientConfig> {
        self.uses += 1;
        if let Some((used, config)) = self.entries.get_mut(expected) {
            *used = self.uses;
            return Arc::clone(config);
        }
        if self.entries.len() >= MAX_CLIENT_CONFIGS {
            self.forget_oldest();
        }
        let config = make();
        self.entries
            .insert(expected.into(), (self.uses, Arc::clone(&config)));
        config
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.entries.values().map(|(used, _)| *used).min() {
            self.entries.retain(|_, (used, _)| *used != oldest);
        }
    }
}

#[cfg(test)]
mod tests;

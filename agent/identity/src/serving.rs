//! The certificate under which the control plane itself serves: signed by its own CA for DNS names, and exchanged
//! without a restart.
use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rand::Rng;
use rcgen::{KeyPair, SanType};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use crate::{Authority, Certificate, CertificateError, authority::SignError, schedule::Schedule};

/// Most names in one serving certificate.
pub const MAX_NAMES: usize = 64;

/// Why there is no certificate to serve under.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// A name that a certificate cannot hold.
    #[error("'{0}' is neither a DNS name nor an address; correct the serving names")]
    Name(String),
    /// No name, or too many.
    #[error("a serving certificate names 1 to {MAX_NAMES} hosts, not {0}")]
    Count(usize),
    /// The CA did not sign.
    #[error("the CA cannot sign the serving certificate: {0}")]
    Sign(String),
    /// No key could be made.
    #[error("cannot make the serving key: {0}")]
    Key(#[from] rcgen::Error),
    /// rustls does not take key and certificate.
    #[error("cannot serve under the certificate that the CA signed: {0}")]
    Tls(#[from] rustls::Error),
    /// The certificate cannot be read back.
    #[error("cannot read the serving certificate that the CA signed: {0}")]
    Certificate(#[from] CertificateError),
}

impl From<SignError> for ServingError {
    fn from(error: SignError) -> Self {
        Self::Sign(error.to_string())
    }
}

/// One signed certificate with its key.
struct Served {
    key: Arc<CertifiedKey>,
    certificate: Certificate,
}

/// A serving certificate that renews itself; give it to rustls as the `ResolvesServerCert` of every TLS server of the
/// control plane.
pub struct ServingCertificate {
    names: Vec<SanType>,
    lifetime: Duration,
    served: ArcSwap<Served>,
}

impl ServingCertificate {
    /// Has the first certificate signed, for DNS names and addresses.
    ///
    /// # Errors
    /// When a name is wrong or the CA cannot sign.
    pub fn new(
        authority: &Authority,
        names: &[String],
        lifetime: Duration,
    ) -> Result<Self, ServingError> {
        if names.is_empty() || names.len() > MAX_NAMES {
            return Err(ServingError::Count(names.len()));
        }
        let names = names.iter().map(|name| alternative_name(name));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        let served = make(authority, &names, lifetime)?;
        Ok(Self {
            names,
            lifetime,
            served: ArcSwap::from_pointee(served),
        })
    }

    /// Exchanges the certificate for a new one with a new key; handshakes from now on use it.
    ///
    /// # Errors
    /// When the CA cannot sign; the old one stays.
    pub fn renew(&self, authority: &Authority) -> Result<(), ServingError> {
        let served = make(authority, &self.names, self.lifetime)?;
        self.served.store(Arc::new(served));
        Ok(())
    }

    /// The certificate in use.
    pub fn certificate(&self) -> Certificate {
        self.served.load().certificate.clone()
    }

    /// Plans the next renewal at half of the life that is left.
    pub fn plan(&self, schedule: &mut Schedule, now: SystemTime, rng: &mut impl Rng) {
        let served = self.served.load();
        let certificate = &served.certificate;
        schedule.succeeded(now, certificate.not_before(), certificate.not_after(), rng);
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.served.load().key))
    }
}

/// Shows which certificate it is, never the key.
impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingCertificate")
            .field("names", &self.names)
            .field("serial", &self.served.load().certificate.serial())
            .finish_non_exhaustive()
    }
}

fn alternative_name(name: &str) -> Result<SanType, ServingError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let invalid = || ServingError::Name(name.to_owned());
    rustls::pki_types::DnsName::try_from(name).map_err(|_| invalid())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| invalid())?))
}

fn make(
    authority: &Authority,
    names: &[SanType],
    lifetime: Duration,
) -> Result<Served, ServingError> {
    let pair = KeyPair::generate()?;
    let leaf = authority.certify(names.to_vec(), &pair, lifetime)?;
    let pkcs8 = Zeroizing::new(pair.serialize_der());
    let signing_key =
        any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&pkcs8[..])))?;
    let chain: Vec<CertificateDer<'static>> = std::iter::once(leaf.clone())
        .chain(authority.intermediates().iter().cloned())
        .collect();
    let key = CertifiedKey::new(chain, signing_key);
    key.keys_match()?;
    Ok(Served {
        key: Arc::new(key),
        certificate: Certificate::parse(leaf)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, testing::ManualClock};
    use rand::SeedableRng;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

    const DAY: Duration = Duration::from_secs(86_400);

    fn authority() -> (Authority, Arc<ManualClock>) {
        let clock = ManualClock::new(SystemTime::now());
        let authority = Authority::ephemeral(
            "cluster.local".parse().unwrap(),
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        (authority.unwrap(), clock)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn handshake(
        authority: &Authority,
        serving: &Arc<ServingCertificate>,
        host: &str,
    ) -> Result<CertificateDer<'static>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for root in authority.roots() {
            roots.add(root.clone()).unwrap();
        }
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(serving) as _;
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        let name = host.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(client.peer_certificates().unwrap()[0].clone())
    }

    #[test]
    fn clients_that_trust_the_mesh_reach_the_control_plane_by_all_its_names() {
        let (authority, _) = authority();
        let all = names(&["undermesh.undermesh-system.svc", "localhost", "127.0.0.1"]);
        let serving = Arc::new(ServingCertificate::new(&authority, &all, DAY).unwrap());
        for name in &all {
            handshake(&authority, &serving, name).unwrap();
        }
        assert!(handshake(&authority, &serving, "elsewhere.svc").is_err());
    }

    #[test]
    fn a_renewal_is_seen_by_the_next_handshake() {
        let (authority, clock) = authority();
        let serving = ServingCertificate::new(&authority, &names(&["localhost"]), DAY).unwrap();
        let serving = Arc::new(serving);
        let mut schedule = Schedule::new(clock.now());
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        serving.plan(&mut schedule, clock.now(), &mut rng);
        let wait = schedule.due().duration_since(clock.now()).unwrap();
        assert!(wait > DAY / 3 && wait < DAY * 2 / 3, "{wait:?}");
        let before = handshake(&authority, &serving, "localhost").unwrap();
        serving.renew(&authority).unwrap();
        let after = handshake(&authority, &serving, "localhost").unwrap();
        assert_ne!(before, after);
        assert_eq!(&after, serving.certificate().der());
    }

    #[test]
    fn wrong_names_are_refused() {
        let (authority, _) = authority();
        let make = |list: &[&str]| ServingCertificate::new(&authority, &names(list), DAY);
        assert!(matches!(make(&["a b"]), Err(ServingError::Name(name)) if name == "a b"));
        assert!(matches!(make(&[]), Err(ServingError::Count(0))));
    }
}

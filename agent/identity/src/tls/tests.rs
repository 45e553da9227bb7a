//! Real handshakes, in memory: who is let in and who is not.
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    CipherSuite, ClientConnection, Connection, HandshakeKind, NamedGroup, PeerIncompatible,
    ProtocolVersion, ServerConnection, pki_types::ServerName, version::TLS12,
};

use super::*;
use crate::{
    clock::SystemClock,
    testing::{ManualClock, TestMesh},
};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

/// Both sides after a handshake, or the error of the side that refused.
struct Handshake {
    client: Connection,
    server: Connection,
}

#[derive(Debug)]
enum Refused {
    ByClient(rustls::Error),
    ByServer(rustls::Error),
}

impl Refused {
    fn by_server(&self) -> String {
        match self {
            Self::ByServer(error) => error.to_string(),
            Self::ByClient(error) => panic!("refused by the client: {error}"),
        }
    }

    fn by_client(&self) -> String {
        match self {
            Self::ByClient(error) => error.to_string(),
            Self::ByServer(error) => panic!("refused by the server: {error}"),
        }
    }
}

fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Handshake, Refused> {
    let name = ServerName::from(std::net::IpAddr::from([10, 0, 0, 1]));
    let mut client =
        Connection::from(ClientConnection::new(client, name).map_err(Refused::ByClient)?);
    let mut server = Connection::from(ServerConnection::new(server).map_err(Refused::ByServer)?);
    // The server judges the client's certificate after the client believes that all is done.
    while client.wants_write() || server.wants_write() {
        transfer(&mut client, &mut server).map_err(Refused::ByServer)?;
        transfer(&mut server, &mut client).map_err(Refused::ByClient)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(Handshake { client, server })
}

fn transfer(from: &mut Connection, to: &mut Connection) -> Result<(), rustls::Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn mesh() -> TestMesh {
    TestMesh::new("cluster.local")
}

#[test]
fn the_right_peers_connect_and_know_each_other() {
    let mesh = mesh();
    let (web, cart) = (mesh.certificate(WEB), mesh.certificate(CART));
    let done = handshake(web.client_config(&[id(CART)]), cart.server_config()).unwrap();
    assert_eq!(
        peer_identity(done.client.peer_certificates().unwrap()).unwrap(),
        id(CART)
    );
    assert_eq!(
        peer_identity(done.server.peer_certificates().unwrap()).unwrap(),
        id(WEB)
    );
}

#[test]
fn tunnels_use_tls_1_3_with_a_post_quantum_group_and_h2() {
    let mesh = mesh();
    let (web, cart) = (mesh.certificate(WEB), mesh.certificate(CART));
    let done = handshake(web.client_config(&[id(CART)]), cart.server_config()).unwrap();
    for side in [&done.client, &done.server] {
        assert_eq!(side.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(
            side.negotiated_cipher_suite().unwrap().suite(),
            CipherSuite::TLS13_AES_256_GCM_SHA384
        );
        assert_eq!(
            side.negotiated_key_exchange_group().unwrap().name(),
            NamedGroup::X25519MLKEM768
        );
        assert_eq!(side.alpn_protocol(), Some(ALPN_H2));
    }
    let Connection::Server(server) = &done.server else {
        panic!("not a server")
    };
    assert_eq!(server.server_name(), None, "no SNI is sent");
}

#[test]
fn a_peer_without_post_quantum_groups_still_connects() {
    let mesh = mesh();
    let (web, cart) = (mesh.certificate(WEB), mesh.certificate(CART));
    for group in [kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1] {
        let old = CryptoProvider {
            kx_groups: vec![group],
            ..provider().as_ref().clone()
        };
        let mut config = client_without_certificate(&mesh, old, &[&TLS13]);
        config.client_auth_cert_resolver =
            Arc::clone(&web.client_config(&[id(CART)]).client_auth_cert_resolver);
        let done = handshake(Arc::new(config), cart.server_config()).unwrap();
        assert_eq!(
            done.server.negotiated_key_exchange_group().unwrap().name(),
            group.name()
        );
    }
}

#[test]
fn nothing_is_resumed() {
    let mesh = mesh();
    let (web, cart) = (mesh.certificate(WEB), mesh.certificate(CART));
    for _ in 0..2 {
        let done = handshake(web.client_config(&[id(CART)]), cart.server_config()).unwrap();
        assert_eq!(done.client.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn any_of_the_expected_identities_will_do() {
    let mesh = mesh();
    let (web, cart) = (mesh.certificate(WEB), mesh.certificate(CART));
    handshake(
        web.client_config(&[id(WEB), id(CART)]),
        cart.server_config(),
    )
    .unwrap();
}

#[test]
fn another_identity_is_refused_and_both_are_named() {
    let mesh = mesh();
    let (web, cart) = (mesh.certificate(WEB), mesh.certificate(CART));
    let text = handshake(web.client_config(&[id(WEB)]), cart.server_config())
        .err()
        .unwrap()
        .by_client();
    assert!(
        text.contains(&format!("expected {WEB}, but the peer is {CART}")),
        "{text}"
    );
}

#[test]
fn nobody_is_accepted_when_nobody_is_expected() {
    let mesh = mesh();
    let (web, cart) = (mesh.certificate(WEB), mesh.certificate(CART));
    let text = handshake(web.client_config(&[]), cart.server_config())
        .err()
        .unwrap()
        .by_client();
    assert!(text.contains("expected nobody"), "{text}");
}

#[test]
fn a_client_of_another_trust_domain_is_refused_even_under_a_known_root() {
    let (home, abroad) = (mesh(), TestMesh::new("other.example"));
    let cart = home.certificate_trusting(CART, &abroad);
    let stranger = abroad.certificate_trusting("spiffe://other.example/ns/shop/sa/web", &home);
    let text = handshake(stranger.client_config(&[id(CART)]), cart.server_config())
        .err()
        .unwrap()
        .by_server();
    assert!(
        text.contains("cluster.local") && text.contains("spiffe://other.example/ns/shop/sa/web"),
        "{text}"
    );
}

#[test]
fn a_server_under_an_unknown_root_is_refused() {
    let (home, abroad) = (mesh(), mesh());
    let (web, cart) = (
        home.certificate(WEB),
        abroad.certificate_trusting(CART, &home),
    );
    let text = handshake(web.client_config(&[id(CART)]), cart.server_config())
        .err()
        .unwrap()
        .by_client();
    assert!(
        text.contains("BadSignature") || text.contains("UnknownIssuer"),
        "{text}"
    );
}

#[test]
fn a_client_under_an_unknown_root_is_refused() {
    let (home, abroad) = (mesh(), mesh());
    let (web, cart) = (
        abroad.certificate_trusting(WEB, &home),
        home.certificate(CART),
    );
    let text = handshake(web.client_config(&[id(CART)]), cart.server_config())
        .err()
        .unwrap()
        .by_server();
    assert!(
        text.contains("BadSignature") || text.contains("UnknownIssuer"),
        "{text}"
    );
}

/// A mesh of two days ago and one of today that trust each other.
fn past_and_present() -> (TestMesh, TestMesh) {
    let past = SystemTime::now() - Duration::from_secs(2 * 86_400);
    (
        TestMesh::at("cluster.local", ManualClock::new(past)),
        mesh(),
    )
}

#[test]
fn an_expired_server_is_refused() {
    let (past, present) = past_and_present();
    let (web, cart) = (
        present.certificate_trusting(WEB, &past),
        past.certificate(CART),
    );
    let text = handshake(web.client_config(&[id(CART)]), cart.server_config())
        .err()
        .unwrap()
        .by_client();
    assert!(text.contains("expired"), "{text}");
}

#[test]
fn an_expired_client_is_refused() {
    let (past, present) = past_and_present();
    let cart = present.certificate_trusting(CART, &past);
    let web = past.certificate_trusting(WEB, &present);
    let mut config = ClientConfig::clone(&web.client_config(&[id(CART)]));
    // By its own clock the client would find the server not yet valid.
    config.time_provider = Arc::new(TlsClock(Arc::new(SystemClock)));
    let text = handshake(Arc::new(config), cart.server_config())
        .err()
        .unwrap()
        .by_server();
    assert!(text.contains("expired"), "{text}");
}

fn client_without_certificate(
    mesh: &TestMesh,
    provider: CryptoProvider,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let roots = root_store(&id(CART), mesh.roots()).unwrap();
    let verifier = ServerIdentityVerifier::new(roots, Arc::new(default_provider()), &[id(CART)]);
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth()
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let mesh = mesh();
    let config = client_without_certificate(&mesh, default_provider(), &[&TLS13]);
    let refused = handshake(Arc::new(config), mesh.certificate(CART).server_config())
        .err()
        .unwrap();
    assert!(
        refused.by_server().contains("no certificates"),
        "{refused:?}"
    );
}

#[test]
fn tls_1_2_is_refused() {
    let mesh = mesh();
    let config = client_without_certificate(&mesh, default_provider(), &[&TLS12]);
    let refused = handshake(Arc::new(config), mesh.certificate(CART).server_config())
        .err()
        .unwrap();
    let expected = PeerIncompatible::Tls12NotOfferedOrEnabled;
    assert!(
        matches!(&refused, Refused::ByServer(rustls::Error::PeerIncompatible(why)) if *why == expected),
        "{refused:?}"
    );
}

#[test]
fn a_protocol_other_than_h2_is_refused() {
    let mesh = mesh();
    let (web, cart) = (mesh.certificate(WEB), mesh.certificate(CART));
    let mut config = ClientConfig::clone(&web.client_config(&[id(CART)]));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let refused = handshake(Arc::new(config), cart.server_config())
        .err()
        .unwrap();
    assert!(
        matches!(
            refused,
            Refused::ByServer(rustls::Error::NoApplicationProtocol)
        ),
        "{refused:?}"
    );
}

#[test]
fn a_configuration_is_made_once_for_a_set_of_peers_and_few_are_kept() {
    let web = mesh().certificate(WEB);
    let first = web.client_config(&[id(CART)]);
    assert!(Arc::ptr_eq(&first, &web.client_config(&[id(CART)])));
    for number in 0..2 * MAX_CLIENT_CONFIGS {
        web.client_config(&[id(&format!("spiffe://cluster.local/ns/shop/sa/{number}"))]);
        web.client_config(&[id(CART)]);
    }
    assert_eq!(
        web.clients.lock().unwrap().entries.len(),
        MAX_CLIENT_CONFIGS
    );
    assert!(
        Arc::ptr_eq(&first, &web.client_config(&[id(CART)])),
        "what is used often is kept"
    );
}

/// A CA that signs anything.
struct Forge {
    signer: rcgen::Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Forge {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().into();
        Self {
            signer: rcgen::Issuer::new(params, key),
            root,
        }
    }

    fn certificate(
        &self,
        names: &[SanType],
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<WorkloadCertificate, TlsError> {
        let key = WorkloadKey::generate(&id(CART)).unwrap();
        let request =
            rcgen::CertificateSigningRequestParams::from_der(&key.signing_request().unwrap())
                .unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = usages.to_vec();
        let leaf = params
            .signed_by(&request.public_key, &self.signer)
            .unwrap()
            .into();
        let issued = IssuedCertificate {
            leaf,
            key: None,
            intermediates: Vec::new(),
            roots: vec![self.root.clone()],
        };
        WorkloadCertificate::new(id(CART), &key, issued, Arc::new(SystemClock))
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn a_certificate_for_servers_only_is_refused_from_a_client_and_the_reverse() {
    let forge = Forge::new();
    let names = [uri(CART)];
    let server_only = forge
        .certificate(&names, &[ExtendedKeyUsagePurpose::ServerAuth])
        .unwrap();
    let refused = handshake(
        server_only.client_config(&[id(CART)]),
        server_only.server_config(),
    )
    .err()
    .unwrap();
    assert!(
        refused.by_server().contains("extended key usage"),
        "{refused:?}"
    );
    let client_only = forge.certificate(&names, &[ExtendedKeyUsagePurpose::ClientAuth]);
    assert!(matches!(client_only, Err(TlsError::Chain(..))));
}

#[test]
fn names_that_are_no_identities_are_passed_over_and_any_identity_counts_for_the_client() {
    let both = [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let names = [
        SanType::DnsName("cart.shop".try_into().unwrap()),
        uri("https://cart.shop"),
        uri(CART),
        uri(WEB),
    ];
    let cart = Forge::new().certificate(&names, &both).unwrap();
    let done = handshake(cart.client_config(&[id(WEB)]), cart.server_config()).unwrap();
    assert_eq!(
        peer_identity(done.server.peer_certificates().unwrap()).unwrap(),
        id(CART),
        "the first counts"
    );
}

#[test]
fn a_certificate_for_somebody_else_is_not_taken_from_an_issuer() {
    let error = Forge::new().certificate(&[uri(WEB)], &[]).unwrap_err();
    assert!(matches!(&error, TlsError::WrongIdentity { .. }), "{error}");
    let nameless = Forge::new().certificate(&[], &[]).unwrap_err();
    assert!(
        nameless.to_string().contains("certified nobody"),
        "{nameless}"
    );
}

#[test]
fn a_certificate_for_another_key_or_without_roots_is_not_taken_from_an_issuer() {
    let mesh = mesh();
    let (key, other) = (
        WorkloadKey::generate(&id(CART)).unwrap(),
        WorkloadKey::generate(&id(CART)).unwrap(),
    );
    let request = crate::CertificateRequest {
        identity: id(CART),
        csr: key.signing_request().unwrap(),
        lifetime: Duration::from_secs(60),
    };
    let mut issued = mesh.authority().sign(&request).unwrap();
    let clock = || Arc::new(SystemClock);
    let mixed = WorkloadCertificate::new(id(CART), &other, issued.clone(), clock());
    assert!(matches!(mixed, Err(TlsError::KeyMismatch(..))));
    issued.roots.clear();
    assert!(matches!(
        WorkloadCertificate::new(id(CART), &key, issued, clock()),
        Err(TlsError::NoRoots(_))
    ));
}

#[test]
fn a_peer_that_shows_nothing_has_no_identity() {
    assert_eq!(peer_identity(&[]), Err(PeerError::Missing));
}

/// An issuer that makes the key, as SPIRE does, of the given kind.
fn issued_with_key(
    mesh: &TestMesh,
    algorithm: &'static rcgen::SignatureAlgorithm,
) -> IssuedCertificate {
    let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&pair)
        .unwrap();
    let request = crate::CertificateRequest {
        identity: id(CART),
        csr: csr.into(),
        lifetime: std::time::Duration::from_secs(3600),
    };
    let pkcs8 = pair.serialize_der();
    let key = WorkloadKey::from_pkcs8(&id(CART), pkcs8.as_slice().into()).unwrap();
    IssuedCertificate {
        key: Some(Arc::new(key)),
        ..mesh.authority().sign(&request).unwrap()
    }
}

#[test]
fn a_key_that_the_issuer_made_serves_in_place_of_ours() {
    let mesh = TestMesh::new("cluster.local");
    let unused = WorkloadKey::generate(&id(CART)).unwrap();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let issued = issued_with_key(&mesh, algorithm);
        assert!(!format!("{issued:?}").contains("key"));
        let certificate =
            WorkloadCertificate::new(id(CART), &unused, issued, Arc::new(SystemClock)).unwrap();
        handshake(
            mesh.certificate(WEB).client_config(&[id(CART)]),
            certificate.server_config(),
        )
        .unwrap();
    }
    assert!(WorkloadKey::from_pkcs8(&id(CART), b"nonsense".as_slice().into()).is_err());
}

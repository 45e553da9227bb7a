//! The CA on real directories: what it makes, what it signs, and what it refuses to start with.
use std::{fs, os::unix::fs::PermissionsExt, process::Command, sync::Barrier, thread};

use rcgen::{BasicConstraints, DnType};
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::{
    certificate::{self, Certificate},
    clock::SystemClock,
    csr::MAX_REQUEST_BYTES,
    material::{
        CA_CERTIFICATE, CA_KEY, CHAIN, ROOT_CERTIFICATE, ROOT_KEY, ROOT_LIFETIME, base_params,
        self_signed,
    },
    store,
    testing::ManualClock,
};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn cluster_local() -> TrustDomain {
    TrustDomain::cluster_local()
}

fn open(directory: &Path) -> Result<Authority, AuthorityError> {
    Authority::open(directory, cluster_local(), Arc::new(SystemClock))
}

fn refusal(directory: &Path) -> String {
    open(directory).unwrap_err().to_string()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn write_key(path: &Path, pem: &str) {
    fs::write(path, pem).unwrap();
    set_mode(path, 0o600);
}

fn request_for(identity: &str, lifetime: Duration) -> CertificateRequest {
    let identity: Identity = identity.parse().unwrap();
    let csr = WorkloadKey::generate(&identity)
        .unwrap()
        .signing_request()
        .unwrap();
    CertificateRequest {
        identity,
        csr,
        lifetime,
    }
}

fn sign(authority: &Authority, lifetime: Duration) -> (IssuedCertificate, Certificate) {
    let issued = authority.sign(&request_for(CART, lifetime)).unwrap();
    let leaf = Certificate::parse(issued.leaf.clone()).unwrap();
    (issued, leaf)
}

#[test]
fn the_first_start_makes_a_root_that_only_the_owner_can_use() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("deep/ca");
    let first = open(&directory).unwrap();
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join(ROOT_KEY)), 0o600);
    assert_eq!(
        fs::read_dir(&directory).unwrap().count(),
        2,
        "no temporary files stay"
    );
    let second = open(&directory).unwrap();
    assert_eq!(first.roots(), second.roots());
}

#[test]
fn nodes_that_start_at_once_end_with_one_root() {
    const NODES: usize = 8;
    for _ in 0..5 {
        let directory = TempDir::new().unwrap();
        let start = Barrier::new(NODES);
        let roots: Vec<_> = thread::scope(|scope| {
            let node = || {
                start.wait();
                open(directory.path()).unwrap().roots().to_vec()
            };
            let nodes: Vec<_> = (0..NODES).map(|_| scope.spawn(node)).collect();
            nodes.into_iter().map(|node| node.join().unwrap()).collect()
        });
        assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}

#[test]
fn a_start_cut_short_after_the_key_is_completed_with_that_key() {
    let directory = TempDir::new().unwrap();
    let before = open(directory.path()).unwrap();
    fs::remove_file(directory.path().join(ROOT_CERTIFICATE)).unwrap();
    let after = open(directory.path()).unwrap();
    let key = |authority: &Authority| certificate::public_key_of(&authority.roots()[0]).unwrap();
    assert_eq!(key(&before), key(&after));
}

#[test]
fn a_lost_key_is_not_replaced_in_silence() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).unwrap();
    fs::remove_file(directory.path().join(ROOT_KEY)).unwrap();
    assert!(refusal(directory.path()).contains("root-key.pem is missing beside root-cert.pem"));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).unwrap();
    for exposed in [0o640, 0o604, 0o660] {
        set_mode(&directory.path().join(ROOT_KEY), exposed);
        let text = refusal(directory.path());
        assert!(
            text.contains("chmod 600") && text.contains(&format!("{exposed:o}")),
            "{text}"
        );
    }
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let directory = TempDir::new().unwrap();
    set_mode(directory.path(), 0o770);
    assert!(refusal(directory.path()).contains("chmod 700"));
}

#[test]
fn bad_files_are_named() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).unwrap();
    let (key, certificate) = (
        directory.path().join(ROOT_KEY),
        directory.path().join(ROOT_CERTIFICATE),
    );
    let good_key = fs::read_to_string(&key).unwrap();

    write_key(&key, &KeyPair::generate().unwrap().serialize_pem());
    assert!(refusal(directory.path()).contains("root-key.pem is not the key of root-cert.pem"));
    write_key(&key, "nonsense");
    assert!(refusal(directory.path()).contains("root-key.pem holds no usable private key"));
    write_key(&key, &good_key);

    for nonsense in [
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        fs::write(&certificate, nonsense).unwrap();
        assert!(
            refusal(directory.path()).contains("root-cert.pem: "),
            "{}",
            refusal(directory.path())
        );
    }
    fs::write(
        &certificate,
        vec![b'x'; usize::try_from(store::MAX_FILE_BYTES).unwrap() + 1],
    )
    .unwrap();
    assert!(refusal(directory.path()).contains("is larger than"));
}

#[test]
fn a_certificate_is_for_one_identity_both_roles_and_one_life() {
    let authority = Authority::ephemeral(cluster_local(), Arc::new(SystemClock)).unwrap();
    let (issued, leaf) = sign(&authority, Duration::from_secs(3600));
    let (_, x509) = X509Certificate::from_der(&issued.leaf).unwrap();
    assert_eq!(x509.subject().iter().count(), 0);
    let names = x509.subject_alternative_name().unwrap().unwrap();
    assert!(
        names.critical,
        "RFC 5280, section 4.2.1.6: the subject is empty"
    );
    assert_eq!(leaf.identities().len(), 1);
    assert_eq!(leaf.identity().unwrap().to_string(), CART);
    let usage = x509.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && usage.other.is_empty() && !usage.any);
    let key_usage = x509.key_usage().unwrap().unwrap();
    assert!(key_usage.critical);
    assert_eq!(key_usage.value.flags, 1, "digitalSignature alone");
    assert!(!x509.is_ca());
    assert_eq!(
        leaf.not_after()
            .duration_since(leaf.not_before())
            .unwrap()
            .as_secs(),
        3660
    );
    assert!(issued.intermediates.is_empty(), "a root is not sent");
}

#[test]
fn serial_numbers_do_not_repeat() {
    let authority = Authority::ephemeral(cluster_local(), Arc::new(SystemClock)).unwrap();
    let serials: std::collections::HashSet<_> = (0..50)
        .map(|_| sign(&authority, BACKDATE).1.serial().to_owned())
        .collect();
    assert_eq!(serials.len(), 50);
}

#[test]
fn lifetimes_are_capped_by_the_limit_and_by_the_ca() {
    let clock = ManualClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let authority =
        Authority::ephemeral(cluster_local(), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let life = |leaf: &Certificate| leaf.not_after().duration_since(clock.now()).unwrap();
    assert_eq!(life(&sign(&authority, Duration::MAX).1), MAX_LIFETIME);
    clock.advance(ROOT_LIFETIME - Duration::from_secs(10));
    assert_eq!(life(&sign(&authority, MAX_LIFETIME).1).as_secs(), 10);
    clock.advance(Duration::from_secs(11));
    let error = authority
        .sign(&request_for(CART, MAX_LIFETIME))
        .unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
}

#[test]
fn an_expired_ca_does_not_start() {
    let directory = TempDir::new().unwrap();
    let long_ago = SystemTime::now() - ROOT_LIFETIME - Duration::from_secs(86_400);
    Authority::open(
        directory.path(),
        cluster_local(),
        ManualClock::new(long_ago),
    )
    .unwrap();
    assert!(refusal(directory.path()).contains("has expired at"));
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let authority = Authority::ephemeral(cluster_local(), Arc::new(SystemClock)).unwrap();
    let honest = request_for(CART, BACKDATE);
    let mut bytes = honest.csr.to_vec();
    // The last byte belongs to the signature.
    *bytes.last_mut().unwrap() ^= 1;
    let forged = CertificateRequest {
        csr: bytes.into(),
        ..honest
    };
    let error = authority.sign(&forged).unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { reason, .. } if reason.contains("signature")),
        "{error}"
    );
}

#[test]
fn what_is_no_request_is_refused() {
    let authority = Authority::ephemeral(cluster_local(), Arc::new(SystemClock)).unwrap();
    for bytes in [Vec::new(), vec![0x30; 100], vec![0; MAX_REQUEST_BYTES + 1]] {
        let request = CertificateRequest {
            csr: bytes.into(),
            ..request_for(CART, BACKDATE)
        };
        assert!(matches!(
            authority.sign(&request),
            Err(IssueError::Refused { .. })
        ));
    }
}

#[test]
fn the_name_comes_from_the_caller_not_from_the_request() {
    let authority = Authority::ephemeral(cluster_local(), Arc::new(SystemClock)).unwrap();
    let admin = request_for("spiffe://cluster.local/ns/kube-system/sa/admin", BACKDATE);
    let request = CertificateRequest {
        identity: CART.parse().unwrap(),
        ..admin
    };
    let leaf = Certificate::parse(authority.sign(&request).unwrap().leaf).unwrap();
    assert_eq!(leaf.identities(), [request.identity]);
}

#[test]
fn another_trust_domain_is_refused() {
    let authority = Authority::ephemeral(cluster_local(), Arc::new(SystemClock)).unwrap();
    let error = authority
        .sign(&request_for("spiffe://other.example/ns/a/sa/b", BACKDATE))
        .unwrap_err();
    assert!(error.to_string().contains("cluster.local only"), "{error}");
}

/// A directory in the form of Istio's `cacerts`, its root and its intermediate of the given kinds of key.
fn cacerts(algorithm: &'static rcgen::SignatureAlgorithm) -> TempDir {
    let directory = TempDir::new().unwrap();
    let (root_key, ca_key) = (
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(algorithm).unwrap(),
    );
    let now = SystemTime::now();
    let root = self_signed(&root_key, &cluster_local(), now).unwrap();
    let mut params = base_params(now, now + MAX_LIFETIME / 2).unwrap();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Istio");
    params
        .distinguished_name
        .push(DnType::CommonName, "Intermediate CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    let root_issuer = rcgen::Issuer::from_ca_cert_der(root.der(), root_key).unwrap();
    let ca = params.signed_by(&ca_key, &root_issuer).unwrap();
    write_key(&directory.path().join(CA_KEY), &ca_key.serialize_pem());
    fs::write(directory.path().join(CA_CERTIFICATE), ca.pem()).unwrap();
    fs::write(directory.path().join(ROOT_CERTIFICATE), root.pem()).unwrap();
    fs::write(directory.path().join(CHAIN), ca.pem() + &root.pem()).unwrap();
    directory
}

#[test]
fn a_plugged_in_intermediate_signs_under_its_root() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let directory = cacerts(algorithm);
        let authority = open(directory.path()).unwrap();
        let (issued, leaf) = sign(&authority, Duration::MAX);
        assert_eq!(
            issued.intermediates.len(),
            1,
            "the intermediate, once, without the root"
        );
        assert_eq!(issued.roots.len(), 1);
        assert!(
            leaf.not_after() <= SystemTime::now() + MAX_LIFETIME / 2,
            "not longer than the intermediate"
        );
    }
}

#[test]
fn an_intermediate_under_another_root_is_refused_at_the_start() {
    let (directory, other) = (
        cacerts(&rcgen::PKCS_ECDSA_P256_SHA256),
        cacerts(&rcgen::PKCS_ECDSA_P256_SHA256),
    );
    fs::copy(
        other.path().join(ROOT_CERTIFICATE),
        directory.path().join(ROOT_CERTIFICATE),
    )
    .unwrap();
    let text = refusal(directory.path());
    assert!(
        text.contains(
            "check that its certificate is a CA's and that cert-chain.pem leads to root-cert.pem"
        ),
        "{text}"
    );
}

#[test]
fn an_intermediate_without_its_root_or_key_is_refused() {
    for missing in [ROOT_CERTIFICATE, CA_KEY] {
        let directory = cacerts(&rcgen::PKCS_ECDSA_P256_SHA256);
        fs::remove_file(directory.path().join(missing)).unwrap();
        let text = refusal(directory.path());
        assert!(
            text.contains(&format!("{missing} is missing beside ca-cert.pem")),
            "{text}"
        );
    }
}

#[test]
fn openssl_accepts_the_chain() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("not run: openssl is not installed");
        return;
    }
    let directory = cacerts(&rcgen::PKCS_ECDSA_P256_SHA256);
    let (issued, _) = sign(&open(directory.path()).unwrap(), Duration::from_secs(3600));
    let leaf = directory.path().join("leaf.pem");
    fs::write(&leaf, certificate::to_pem([&issued.leaf])).unwrap();
    for purpose in ["sslserver", "sslclient"] {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose])
            .arg("-CAfile")
            .arg(directory.path().join(ROOT_CERTIFICATE))
            .arg("-untrusted")
            .arg(directory.path().join(CA_CERTIFICATE))
            .arg(&leaf)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn during_a_root_rotation_the_key_finds_its_root_among_several() {
    let (directory, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (own, old) = (open(directory.path()).unwrap(), open(other.path()).unwrap());
    let bundle = certificate::to_pem(old.roots().iter().chain(own.roots()));
    fs::write(directory.path().join(ROOT_CERTIFICATE), bundle).unwrap();
    let (issued, _) = sign(&open(directory.path()).unwrap(), BACKDATE);
    assert_eq!(issued.roots.len(), 2);
    assert!(issued.intermediates.is_empty());
}

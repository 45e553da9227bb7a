//! Certificates: any bytes are read or refused, as DER and as PEM, and what is read keeps its identities.
#![no_main]
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use undermesh_identity::{Certificate, certificate, peer_identity};

fuzz_target!(|bytes: &[u8]| {
    let der = CertificateDer::from(bytes.to_vec());
    let read = Certificate::parse(der.clone());
    if let Ok(read) = &read {
        let identities = certificate::identities_of(&der);
        assert_eq!(identities.as_deref().ok(), Some(read.identities()));
    }
    if let Ok(peer) = peer_identity(&[der]) {
        let read = read.as_ref().ok().map(Certificate::identities);
        assert!(read.is_none_or(|identities| identities.contains(&peer)));
    }
    if let Ok(chain) = certificate::parse_pem(bytes) {
        let again = certificate::parse_pem(certificate::to_pem(&chain).as_bytes());
        assert_eq!(again.ok().as_ref(), Some(&chain));
    }
});

//! Splits certificates that stand one after another as DER, the form in which SPIFFE sends chains and bundles.
use rustls_pki_types::CertificateDer;
use undermesh_identity::certificate::{MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES};

/// Why bytes are not certificates one after another.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DerError {
    #[error("byte {0} begins no certificate")]
    Form(usize),
    #[error("there are more than {MAX_CERTIFICATES} certificates")]
    Count,
}

/// The certificates in `bytes`, by their outer lengths (X.690, section 8.1.3).
pub(super) fn split(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, DerError> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        if found.len() == MAX_CERTIFICATES {
            return Err(DerError::Count);
        }
        let length = element_length(rest)
            .filter(|length| *length <= rest.len().min(MAX_CERTIFICATE_BYTES))
            .ok_or(DerError::Form(bytes.len() - rest.len()))?;
        let (element, after) = rest.split_at(length);
        found.push(CertificateDer::from(element.to_vec()));
        rest = after;
    }
    Ok(found)
}

/// The length of the SEQUENCE that `bytes` begin with, its header included.
fn element_length(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [0x30, short, ..] if short < 0x80 => Some(2 + usize::from(short)),
        [0x30, 0x81, one, ..] => Some(3 + usize::from(one)),
        [0x30, 0x82, high, low, ..] => Some(4 + usize::from(u16::from_be_bytes([high, low]))),
        [0x30, 0x83, high, middle, low, ..] => {
            let length = u32::from_be_bytes([0, high, middle, low]);
            usize::try_from(length).ok().map(|length| 5 + length)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use undermesh_identity::testing::TestMesh;

    #[test]
    fn certificates_are_found_one_after_another() {
        let (one, two) = (TestMesh::new("one.example"), TestMesh::new("two.example"));
        let both = [one.roots()[0].as_ref(), two.roots()[0].as_ref()].concat();
        assert_eq!(
            split(&both).unwrap(),
            [one.roots()[0].clone(), two.roots()[0].clone()]
        );
        assert_eq!(split(&[]).unwrap(), []);
        assert_eq!(
            split(&both[..both.len() - 1]).unwrap_err(),
            DerError::Form(one.roots()[0].len())
        );
        assert_eq!(
            split(&[0x30, 0].repeat(MAX_CERTIFICATES + 1)).unwrap_err(),
            DerError::Count
        );
    }

    proptest! {
        #[test]
        fn what_is_split_joins_to_the_same(bytes: Vec<u8>) {
            if let Ok(parts) = split(&bytes) {
                let joined: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
                prop_assert_eq!(joined, bytes);
            }
        }
    }
}

//! The forms of names in Kubernetes.

/// Longest DNS subdomain (RFC 1123), the form of most names of objects.
pub const MAX_SUBDOMAIN: usize = 253;

/// Whether a text is a DNS subdomain: labels of lower-case letters, digits and hyphens, joined by dots.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_label)
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|byte| inner(*byte))
        && bytes.last().is_some_and(|byte| inner(*byte))
        && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_other_texts() {
        for name in ["vm", "vm-10.0.0.7", "vm-fd00--7-far"] {
            assert!(is_subdomain(name), "{name}");
        }
        for other in ["", "vm-", "-vm", "VM", "a..b", "a/b", "a_b"] {
            assert!(!is_subdomain(other), "{other}");
        }
    }
}

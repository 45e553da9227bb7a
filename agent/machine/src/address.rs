//! The address of a machine: which ones a machine may have, and the name that follows from it.
use std::net::IpAddr;

use crate::names::{MAX_SUBDOMAIN, is_subdomain};

/// Why an address cannot be a machine's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It means something else than one machine.
    #[error(
        "{address} is {what}, by which nobody reaches this machine; name the address that the cluster reaches it by, with --address"
    )]
    Special {
        /// The address.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
    /// The name that follows is none for an object of Kubernetes.
    #[error(
        "'{0}' cannot be the name of a WorkloadEntry; use lower-case letters, digits and hyphens in the names of the group and of its network, and keep them short"
    )]
    Name(String),
}

/// Whether a machine may be registered with an address.
///
/// # Errors
/// When it is an address of no single machine, or of no use beyond the machine itself.
pub fn check(address: IpAddr) -> Result<(), AddressError> {
    let what = match address {
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "an address of no network",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in the form of IPv6",
        _ => return Ok(()),
    };
    Err(AddressError::Special { address, what })
}

/// The name of the WorkloadEntry of a machine, as istiod makes it: group, address and, where it is not the default one,
/// network.
///
/// # Errors
/// When that is no name of an object.
pub fn entry_name(group: &str, address: IpAddr, network: &str) -> Result<String, AddressError> {
    let mut name = format!("{group}-{}", address.to_string().replace(':', "-"));
    if !network.is_empty() {
        name.push('-');
        name.push_str(network);
    }
    if is_subdomain(&name) {
        return Ok(name);
    }
    Err(AddressError::Name(
        name.chars().take(MAX_SUBDOMAIN).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_those_of_istiod() {
        assert_eq!(entry_name("vm", ip("10.0.0.7"), "").unwrap(), "vm-10.0.0.7");
        assert_eq!(
            entry_name("vm", ip("fd00::7"), "far").unwrap(),
            "vm-fd00--7-far"
        );
        assert!(entry_name("vm", ip("fd00::"), "").is_err());
        assert!(entry_name("vm", ip("10.0.0.7"), "Far").is_err());
        assert!(entry_name(&"v".repeat(250), ip("10.0.0.7"), "").is_err());
    }

    #[test]
    fn addresses_of_no_machine_are_refused() {
        for address in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "169.254.169.254",
            "0.1.2.3",
            "fe80::1",
            "::ffff:10.0.0.7",
        ] {
            assert!(check(ip(address)).is_err(), "{address}");
        }
        for address in ["10.0.0.7", "192.0.2.1", "fd00::7", "2001:db8::7"] {
            assert_eq!(check(ip(address)), Ok(()), "{address}");
        }
    }

    proptest! {
        #[test]
        fn different_machines_of_a_group_have_different_names(one: IpAddr, other: IpAddr) {
            prop_assume!(one != other);
            if let (Ok(one), Ok(other)) = (entry_name("vm", one, ""), entry_name("vm", other, "")) {
                prop_assert_ne!(one, other);
            }
        }
    }
}

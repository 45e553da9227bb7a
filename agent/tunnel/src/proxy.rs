//! The PROXY protocol, version 2: tells an application behind the node proxy who its client is.
//!
//! Source: HAProxy's `proxy-protocol.txt`, section 2.2; the type of the identity is Istio's.
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use undermesh_model::Identity;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, a proxied connection.
const VERSION_AND_COMMAND: u8 = 0x21;
/// TCP over IPv4.
const TCP4: u8 = 0x11;
/// TCP over IPv6.
const TCP6: u8 = 0x21;
/// The client's SPIFFE identity.
const TYPE_IDENTITY: u8 = 0xd0;

/// The header of a connection from `client`, who proved `identity`, to the address that it asked for.
pub(crate) fn header(client: SocketAddr, asked: SocketAddr, identity: &Identity) -> Vec<u8> {
    let (family, mut body) = match (client.ip(), asked.ip()) {
        (IpAddr::V4(client), IpAddr::V4(asked)) => {
            (TCP4, [client.octets(), asked.octets()].concat())
        }
        (client, asked) => (TCP6, [wide(client).octets(), wide(asked).octets()].concat()),
    };
    body.extend(client.port().to_be_bytes());
    body.extend(asked.port().to_be_bytes());
    let identity = identity.to_string();
    // An identity is shorter by its own limits, and so is the sum.
    if let Ok(length) = u16::try_from(identity.len()) {
        body.push(TYPE_IDENTITY);
        body.extend(length.to_be_bytes());
        body.extend(identity.into_bytes());
    }
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_AND_COMMAND, family]);
    header.extend(length.to_be_bytes());
    header.extend(body);
    header
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn of(client: &str, asked: &str) -> Vec<u8> {
        let identity = IDENTITY.parse().unwrap();
        header(client.parse().unwrap(), asked.parse().unwrap(), &identity)
    }

    #[test]
    fn an_ipv4_client_is_told_byte_for_byte() {
        let mut expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11".to_vec();
        expected.extend([0, 12 + 3 + 37]);
        expected.extend([10, 0, 0, 1, 10, 96, 0, 1, 0x9c, 0x40, 0, 80]);
        expected.extend([0xd0, 0, 37]);
        expected.extend(IDENTITY.as_bytes());
        assert_eq!(of("10.0.0.1:40000", "10.96.0.1:80"), expected);
    }

    #[test]
    fn addresses_of_different_families_are_both_written_as_ipv6() {
        let header = of("10.0.0.1:40000", "[fd00::1]:80");
        assert_eq!(header[13], TCP6);
        assert_eq!(u16::from_be_bytes([header[14], header[15]]), 36 + 3 + 37);
        assert_eq!(header[26..32], [0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(header[32..34], [0xfd, 0]);
    }
}

//! IPv4 in one form: addresses and networks that are mapped into IPv6 (RFC 4291, section 2.5.5.2) become IPv4.
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Bits of `::ffff:0:0/96`, in front of a mapped IPv4 address.
const MAPPED_BITS: u8 = 96;

/// The network in its own family, its host bits kept. Networks wider than `::ffff:0:0/96` stay as they are.
pub(crate) fn canonical(net: IpNet) -> IpNet {
    let (IpAddr::V4(address), Some(bits)) = (
        net.addr().to_canonical(),
        net.prefix_len().checked_sub(MAPPED_BITS),
    ) else {
        return net;
    };
    match net {
        IpNet::V4(_) => net,
        IpNet::V6(_) => Ipv4Net::new(address, bits).map_or(net, IpNet::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_networks_become_ipv4() {
        for (written, meant) in [
            ("::ffff:10.1.0.0/112", "10.1.0.0/16"),
            ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("::/0", "::/0"),
            ("fd00::/8", "fd00::/8"),
        ] {
            assert_eq!(
                canonical(written.parse().unwrap()),
                meant.parse().unwrap(),
                "{written}"
            );
        }
    }
}

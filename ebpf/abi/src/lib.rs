//! Map keys and values shared by the kernel programs and user space.
//!
//! Everything here is `#[repr(C)]` with explicit padding, so that both sides agree on each byte.
//! Addresses are always sixteen octets in network order; IPv4 is written as `::ffff:a.b.c.d`
//! (RFC 4291, section 2.5.5.2), so that one key serves IPv4, IPv6 and v4-mapped sockets.
#![cfg_attr(not(any(feature = "user", test)), no_std)]

/// Port of the outbound listener, on loopback inside every enrolled pod.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the inbound plaintext listener; `sk_lookup` hands plain connections to it.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// Port of the inbound HBONE listener, reached directly by mesh peers.
pub const INBOUND_HBONE_PORT: u16 = 15008;

/// Socket mark of connections that the agent makes to an application from the client's address.
/// Replies to it are routed to the loopback device by a rule on this mark. Such a socket is also bound
/// to `lo` (`SO_BINDTODEVICE`): to the kernel, a packet to an own address arrives on that address's
/// device otherwise, and `sk_lookup` would hand the connection back to the agent.
pub const INBOUND_MARK: u32 = 0x0000_0111;
/// Routing table inside a pod that sends packets marked [`INBOUND_MARK`] to the loopback device.
pub const INBOUND_TABLE: u32 = 100;

/// Bound of [`Pod`] entries: pods enrolled on one node.
pub const MAX_PODS: u32 = 4096;
/// Bound of connections captured but not yet taken by the agent, per node.
pub const MAX_PENDING: u32 = 65_536;

/// Bound of connections of kubelet's that are open at a time; a probe that gave way is judged like any other client.
pub const MAX_PROBES: u32 = 16_384;
/// Bound of addresses whose connections are taken for probes.
pub const MAX_PROBERS: u32 = 64;

/// Slot of the IPv4 plaintext listener in a pod's listener map.
pub const LISTENER_IPV4: u32 = 0;
/// Slot of the IPv6 plaintext listener in a pod's listener map.
pub const LISTENER_IPV6: u32 = 1;

/// Sixteen octets in network order; IPv4 is mapped (`::ffff:a.b.c.d`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// The second half of the v4-mapped prefix, in network order.
    pub const MAPPED: u32 = 0x0000_ffff_u32.to_be();

    /// Maps an IPv4 address that is already in network order.
    #[inline(always)]
    pub const fn from_ipv4(network_order: u32) -> Self {
        Self([0, 0, Self::MAPPED, network_order])
    }

    /// The IPv4 address in network order, where this is a mapped one.
    #[inline(always)]
    pub const fn ipv4(self) -> Option<u32> {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED {
            Some(self.0[3])
        } else {
            None
        }
    }
}

/// What an enrolled pod is, under its network namespace's cookie. A missing entry means: not enrolled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The pod's own IPv4 address, mapped; zero when it has none.
    pub ipv4: Address,
    /// The pod's own IPv6 address; zero when it has none.
    pub ipv6: Address,
}

/// The near end of a captured connection, as the agent sees it after `accept()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// `SO_NETNS_COOKIE` of the pod's network namespace.
    pub netns_cookie: u64,
    /// The application's address.
    pub address: Address,
    /// The application's port, host order.
    pub port: u32,
    /// Keeps the key free of uninitialised bytes.
    pub padding: u32,
}

/// The address and port that an application asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// The address asked for.
    pub address: Address,
    /// The port asked for, host order.
    pub port: u32,
    /// Keeps the value free of uninitialised bytes.
    pub padding: u32,
}

/// Both ends of a connection that kubelet makes, from its first packet until its socket is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProbeKey {
    /// Kubelet's address.
    pub source: Address,
    /// The pod's address.
    pub destination: Address,
    /// Kubelet's port, host order.
    pub source_port: u32,
    /// The pod's port, host order.
    pub destination_port: u32,
}

/// Node-wide settings of the programs, written once before they are attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Socket mark of the agent's own outgoing connections: random for each node, so that a pod
    /// that may set marks cannot guess its way around capture. Zero never matches.
    pub outbound_mark: u32,
    /// Layout version of the maps, [`LAYOUT`].
    pub layout: u32,
}

/// Version of the layouts in this file; pinned maps of another version are not adopted.
pub const LAYOUT: u32 = 2;

/// Counters kept by the programs, one slot each of a per-CPU array.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Outbound connections steered to the agent.
    Captured = 0,
    /// Outbound connections of enrolled pods left alone (loopback, own address, the agent's own).
    Skipped = 1,
    /// Outbound connections refused because the original destination could not be kept.
    Refused = 2,
    /// Inbound plain connections handed to the agent.
    InboundAssigned = 3,
    /// Inbound plain connections refused because no listener of the agent was there.
    InboundRefused = 4,
    /// Inbound plain connections left alone because they are probes.
    Probes = 5,
}

/// Number of [`Counter`] slots.
pub const COUNTERS: u32 = 6;

#[cfg(feature = "user")]
mod user {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::{Address, Destination, FlowKey, Pod, ProbeKey, Settings};

    impl From<IpAddr> for Address {
        fn from(address: IpAddr) -> Self {
            let octets = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let mut words = [0; 4];
            for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
                *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            }
            Self(words)
        }
    }

    impl From<Address> for IpAddr {
        fn from(address: Address) -> Self {
            if let Some(v4) = address.ipv4() {
                return Self::V4(Ipv4Addr::from(v4.to_ne_bytes()));
            }
            let mut octets = [0; 16];
            for (chunk, word) in octets.chunks_exact_mut(4).zip(address.0) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            Self::V6(Ipv6Addr::from(octets))
        }
    }

    impl FlowKey {
        /// The key under which the kernel files a connection made from `source` in a namespace.
        pub fn new(netns_cookie: u64, source: SocketAddr) -> Self {
            Self {
                netns_cookie,
                address: source.ip().into(),
                port: source.port().into(),
                padding: 0,
            }
        }
    }

    impl From<Destination> for SocketAddr {
        fn from(destination: Destination) -> Self {
            // The programs store a port of sixteen bits in the wider field.
            Self::new(destination.address.into(), destination.port as u16)
        }
    }

    // SAFETY: `#[repr(C)]`, made of integers alone, without implicit padding.
    unsafe impl aya::Pod for Pod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Destination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ProbeKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_hold_no_implicit_padding() {
        assert_eq!(size_of::<Address>(), 16);
        assert_eq!(size_of::<Pod>(), 32);
        assert_eq!(size_of::<FlowKey>(), 8 + 16 + 4 + 4);
        assert_eq!(size_of::<Destination>(), 16 + 4 + 4);
        assert_eq!(size_of::<ProbeKey>(), 16 + 16 + 4 + 4);
        assert_eq!(size_of::<Settings>(), 8);
        assert_eq!(align_of::<FlowKey>(), 8);
    }

    #[test]
    fn ipv4_is_mapped_and_back() {
        let octets = u32::from_ne_bytes([10, 96, 0, 7]);
        assert_eq!(Address::from_ipv4(octets).ipv4(), Some(octets));
        assert_eq!(Address([1, 2, 3, 4]).ipv4(), None);
    }
}

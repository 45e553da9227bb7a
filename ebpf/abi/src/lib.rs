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
/// Routing table of a machine for the same: administrators use low numbers such as [`INBOUND_TABLE`] themselves.
pub const MACHINE_TABLE: u32 = 15_006;

/// Bound of sockets of a machine's slice that are bound to a port at a time.
pub const MAX_BOUND: u32 = 65_536;
/// Bound of [`Port`] entries: every port that there is.
pub const MAX_PORTS: u32 = 65_536;
/// Bound of addresses, besides the wildcards, to which sockets of a machine's slice are bound on one port.
pub const MAX_ADDRESSES: usize = 8;

/// Bound of [`Pod`] entries: pods enrolled on one node.
pub const MAX_PODS: u32 = 4096;
/// Bound of connections captured but not yet taken by the agent, per node.
pub const MAX_PENDING: u32 = 65_536;

/// Bound of connections of kubelet's that are open at a time; a probe that gave way is judged like any other client.
pub const MAX_PROBES: u32 = 16_384;
/// Bound of connections that the agent is making to applications at a time, where they must be announced.
pub const MAX_ANNOUNCED: u32 = 16_384;
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

    /// The wildcard of IPv6.
    pub const ANY: Self = Self([0; 4]);
    /// The wildcard of IPv4.
    pub const ANY_IPV4: Self = Self::from_ipv4(0);

    /// Whether both are the same; word by word, since a call is not allowed where a lock is held.
    #[inline(always)]
    pub const fn is(self, other: Self) -> bool {
        self.0[0] == other.0[0]
            && self.0[1] == other.0[1]
            && self.0[2] == other.0[2]
            && self.0[3] == other.0[3]
    }

    /// Whether it is 127.0.0.0/8, mapped, or `::1`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        match self.ipv4() {
            Some(v4) => u32::from_be(v4) >> 24 == 127,
            None => self.is(Self([0, 0, 0, 1_u32.to_be()])),
        }
    }

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

/// Both ends of a connection, as its maker sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The maker's address.
    pub source: Address,
    /// The pod's address.
    pub destination: Address,
    /// The maker's port, host order.
    pub source_port: u32,
    /// The pod's port, host order.
    pub destination_port: u32,
}

/// Where a socket of a machine's slice is bound.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// The local address; a wildcard is all zeroes, or the mapped `0.0.0.0`.
    pub address: Address,
    /// The local port, host order.
    pub port: u32,
    /// Whether user space found it in the kernel's list ([`LISTED`]), or a hook saw it (zero).
    pub listed: u32,
}

/// Mark of a [`Binding`] that user space found.
pub const LISTED: u32 = 1;

/// A socket that was bound before the programs were there, as user space hands it to them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `SO_COOKIE` of the socket: never used twice while the kernel runs.
    pub socket: u64,
    /// Where it is bound.
    pub binding: Binding,
}

/// What became of a socket that was to be noted: the results of the program that takes a [`Found`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noting {
    /// It is noted, was noted before, or need not be.
    Noted = 1,
    /// There is no room.
    Full = 2,
}

/// The lock of a map value. The kernel knows it by this name (`include/uapi/linux/bpf.h`).
#[allow(non_camel_case_types)]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct bpf_spin_lock {
    value: u32,
}

/// How many sockets of a machine's slice are bound to one port, by local address. All calls are made under its
/// lock. It is never removed: a removal could cross with a count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Must be held in the kernel; user space sees zero.
    pub lock: bpf_spin_lock,
    /// Sockets on `::`, which take IPv4 as well unless they are set to `IPV6_V6ONLY`; the programs cannot tell.
    any: u32,
    /// Sockets on `0.0.0.0`.
    any_ipv4: u32,
    /// Keeps the value free of uninitialised bytes.
    padding: u32,
    /// Sockets on one address each; a place with no sockets is free.
    each: [Bound; MAX_ADDRESSES],
}

/// Sockets bound to one address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bound {
    address: Address,
    sockets: u32,
}

impl Port {
    /// A port that no socket is bound to.
    pub const FREE: Self = Self {
        lock: bpf_spin_lock { value: 0 },
        any: 0,
        any_ipv4: 0,
        padding: 0,
        each: [Bound {
            address: Address([0; 4]),
            sockets: 0,
        }; MAX_ADDRESSES],
    };

    /// Counts a socket on `address`; false means that there is no place for another address.
    #[inline(always)]
    pub fn add(&mut self, address: Address) -> bool {
        if address.is(Address::ANY) {
            self.any += 1;
            return true;
        }
        if address.is(Address::ANY_IPV4) {
            self.any_ipv4 += 1;
            return true;
        }
        for bound in &mut self.each {
            if bound.sockets != 0 && bound.address.is(address) {
                bound.sockets += 1;
                return true;
            }
        }
        for bound in &mut self.each {
            if bound.sockets == 0 {
                bound.address = address;
                bound.sockets = 1;
                return true;
            }
        }
        false
    }

    /// Takes back what [`Port::add`] counted.
    #[inline(always)]
    pub fn remove(&mut self, address: Address) {
        if address.is(Address::ANY) {
            self.any = less(self.any);
        } else if address.is(Address::ANY_IPV4) {
            self.any_ipv4 = less(self.any_ipv4);
        } else {
            for bound in &mut self.each {
                if bound.sockets != 0 && bound.address.is(address) {
                    bound.sockets -= 1;
                    return;
                }
            }
        }
    }

    /// Whether a socket may take connections to `address`.
    #[inline(always)]
    pub fn takes(&self, address: Address) -> bool {
        if self.any != 0 || (self.any_ipv4 != 0 && address.ipv4().is_some()) {
            return true;
        }
        for bound in &self.each {
            if bound.sockets != 0 && bound.address.is(address) {
                return true;
            }
        }
        false
    }
}

/// One less, but not below zero; the library's own is a call, which a lock does not allow.
#[inline(always)]
const fn less(count: u32) -> u32 {
    if count == 0 { 0 } else { count - 1 }
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
pub const LAYOUT: u32 = 3;

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
    /// Sockets of a machine's slice that could not be noted: their `bind()` was refused, or, where it was
    /// the kernel that chose the port in `listen()`, they are reached past the agent.
    Unnoted = 6,
}

/// Number of [`Counter`] slots.
pub const COUNTERS: u32 = 7;

#[cfg(feature = "user")]
mod user {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::{Address, Binding, Destination, Ends, FlowKey, Found, LISTED, Pod, Port, Settings};

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

    impl Ends {
        /// Both ends of a connection from `source` to `destination`.
        pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
            Self {
                source: source.ip().into(),
                destination: destination.ip().into(),
                source_port: source.port().into(),
                destination_port: destination.port().into(),
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
    unsafe impl aya::Pod for Ends {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Binding {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Port {}

    impl Binding {
        /// Where a listener is bound that was found in the kernel's list.
        pub fn listed(end: SocketAddr) -> Self {
            Self {
                address: end.ip().into(),
                port: end.port().into(),
                listed: LISTED,
            }
        }
    }

    impl Found {
        /// The bytes that the program takes it in.
        pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
            let mut bytes = [0; size_of::<Self>()];
            let binding = &self.binding;
            bytes[..8].copy_from_slice(&self.socket.to_ne_bytes());
            for (chunk, word) in bytes[8..24].chunks_exact_mut(4).zip(binding.address.0) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            bytes[24..28].copy_from_slice(&binding.port.to_ne_bytes());
            bytes[28..].copy_from_slice(&binding.listed.to_ne_bytes());
            bytes
        }
    }
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
        assert_eq!(size_of::<Ends>(), 16 + 16 + 4 + 4);
        assert_eq!(size_of::<Settings>(), 8);
        assert_eq!(size_of::<Binding>(), 16 + 4 + 4);
        assert_eq!(size_of::<Found>(), 8 + 24);
        assert_eq!(size_of::<Port>(), 4 * 4 + MAX_ADDRESSES * (16 + 4));
        assert_eq!(align_of::<FlowKey>(), 8);
    }

    #[test]
    fn ipv4_is_mapped_and_back() {
        let octets = u32::from_ne_bytes([10, 96, 0, 7]);
        assert_eq!(Address::from_ipv4(octets).ipv4(), Some(octets));
        assert_eq!(Address([1, 2, 3, 4]).ipv4(), None);
    }

    const OWN: Address = Address::from_ipv4(u32::from_ne_bytes([10, 0, 0, 1]));
    const OTHER: Address = Address::from_ipv4(u32::from_ne_bytes([10, 0, 0, 2]));
    const IPV6: Address = Address([1, 2, 3, 4]);

    #[test]
    fn a_port_is_taken_until_its_last_socket_closes() {
        let mut port = Port::FREE;
        assert!(port.add(OWN) && port.add(OWN));
        port.remove(OWN);
        assert!(port.takes(OWN) && !port.takes(OTHER));
        port.remove(OWN);
        assert!(!port.takes(OWN));
        port.remove(OWN);
        assert!(!port.takes(OWN));
    }

    #[test]
    fn a_wildcard_takes_the_addresses_of_its_family() {
        let mut port = Port::FREE;
        assert!(port.add(Address::ANY_IPV4));
        assert!(port.takes(OWN) && !port.takes(IPV6));
        port.remove(Address::ANY_IPV4);
        assert!(port.add(Address::ANY));
        assert!(port.takes(OWN) && port.takes(IPV6));
    }

    #[test]
    fn a_port_without_a_place_says_so_and_gets_places_back() {
        let mut port = Port::FREE;
        let address = |number: u32| Address([number, 0, 0, 0]);
        let all = 1..=MAX_ADDRESSES as u32;
        assert!(all.clone().all(|number| port.add(address(number))));
        assert!(!port.add(OWN));
        assert!(all.clone().all(|number| port.takes(address(number))));
        port.remove(address(3));
        assert!(port.add(OWN) && port.takes(OWN) && !port.takes(address(3)));
    }

    #[test]
    fn loopback_is_known_in_both_families() {
        let v4 = |octets| Address::from_ipv4(u32::from_ne_bytes(octets));
        assert!(v4([127, 9, 9, 9]).is_loopback());
        assert!(Address([0, 0, 0, 1_u32.to_be()]).is_loopback());
        assert!(!v4([128, 0, 0, 1]).is_loopback() && !Address::ANY.is_loopback());
    }
}

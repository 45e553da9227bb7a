//! Addresses and policy routing inside a pod's namespace.
//!
//! Packets that carry [`INBOUND_MARK`] (replies of the application to connections that the agent made from
//! the client's address) are looked up in a table whose only route delivers everything locally.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use undermesh_abi::{INBOUND_MARK, INBOUND_TABLE};

use crate::netlink::Netlink;

/// Index of `lo` in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// The rule's place: just before the main table (32766), after rules of the pod's own.
const RULE_PRIORITY: u32 = 32_764;

/// The addresses of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    all: Vec<IpAddr>,
}

impl Addresses {
    /// Every global unicast address on an interface other than `lo`, in the kernel's order.
    pub fn all(&self) -> &[IpAddr] {
        &self.all
    }

    /// The pod's own IPv4 address: the first one.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.all.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    /// The pod's own IPv6 address: the first one.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.all.iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(*v6),
        })
    }

    /// The address families that the pod has.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> {
        let ipv4 = self.ipv4().map(|_| Family::Ipv4);
        let ipv6 = self.ipv6().map(|_| Family::Ipv6);
        ipv4.into_iter().chain(ipv6)
    }
}

/// One of the two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

/// Both families.
pub(crate) const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Inet,
            Family::Ipv6 => Self::Inet6,
        }
    }
}

/// Lists the addresses of the calling thread's namespace.
pub(crate) fn addresses(netlink: &Netlink) -> io::Result<Addresses> {
    let messages = netlink.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let mut all = Vec::new();
    for message in messages {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && let Some(address) = own_address(&message)
        {
            all.push(address);
        }
    }
    Ok(Addresses { all })
}

/// The address of a message, if it is one by which others reach the pod.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let header = &message.header;
    if header.index == LOOPBACK_INDEX
        || header.scope != AddressScope::Universe
        || header.flags.contains(AddressHeaderFlags::Dadfailed)
    {
        return None;
    }
    // On a point-to-point interface `Address` is the other end; `Local`, where present, is ours.
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    })
}

/// Brings `lo` up, without which nothing in the pod reaches the agent's listeners.
pub(crate) fn raise_loopback(netlink: &Netlink) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = LOOPBACK_INDEX;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message))
}

/// Makes the rule and the route of one family; what is there already stays.
pub(crate) fn add(netlink: &Netlink, family: Family) -> io::Result<()> {
    netlink.ensure(RouteNetlinkMessage::NewRoute(local_default(family)))?;
    netlink.ensure(RouteNetlinkMessage::NewRule(mark_rule(family)))
}

/// Takes away what [`add`] made.
pub(crate) fn remove(netlink: &Netlink, family: Family) -> io::Result<()> {
    netlink.remove(RouteNetlinkMessage::DelRule(mark_rule(family)))?;
    netlink.remove(RouteNetlinkMessage::DelRoute(local_default(family)))
}

/// `ip rule add fwmark INBOUND_MARK lookup INBOUND_TABLE pref 32764`
fn mark_rule(family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.into();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(INBOUND_MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(INBOUND_TABLE),
    ];
    rule
}

/// `ip route add local default dev lo table INBOUND_TABLE`
fn local_default(family: Family) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family.into();
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.attributes = vec![
        RouteAttribute::Table(INBOUND_TABLE),
        RouteAttribute::Oif(LOOPBACK_INDEX),
    ];
    route
}

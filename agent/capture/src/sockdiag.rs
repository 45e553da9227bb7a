//! Listening TCP sockets as the kernel lists them (`sock_diag(7)`), with the cgroups that they belong to.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::{
    netlink::{self, Netlink},
    routes::{FAMILIES, Family},
};

/// Message type of requests and answers (`include/uapi/linux/sock_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The attribute with the id of the socket's cgroup, since Linux 5.8 (`include/uapi/linux/inet_diag.h`).
const INET_DIAG_CGROUP_ID: u16 = 21;
/// The state of a listener, as a bit (`include/net/tcp_states.h`).
const TCPF_LISTEN: u32 = 1 << 10;

/// Lengths of `struct inet_diag_req_v2`, `struct inet_diag_msg` and `struct nlattr`.
const REQUEST: usize = 56;
const ANSWER: usize = 72;
const ATTRIBUTE: usize = 4;

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// `SO_COOKIE`.
    pub(crate) cookie: u64,
    /// The id of the cgroup in which it was made.
    pub(crate) cgroup: u64,
    /// Where it listens.
    pub(crate) end: SocketAddr,
}

/// Lists the listeners of the calling thread's namespace.
pub(crate) fn listeners() -> io::Result<Vec<Listener>> {
    let netlink = Netlink::<Message>::open()?;
    let mut listeners = Vec::new();
    for family in FAMILIES {
        for message in netlink.list(Message::Request(family))? {
            if let Message::Answer(listener) = message {
                listeners.push(listener);
            }
        }
    }
    Ok(listeners)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Request(Family),
    Answer(Listener),
}

impl netlink::Family for Message {
    const PROTOCOL: isize = NETLINK_SOCK_DIAG;
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        REQUEST
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let Self::Request(family) = self else {
            return;
        };
        buffer.fill(0);
        buffer[0] = number(*family);
        buffer[1] = libc::IPPROTO_TCP as u8;
        buffer[4..8].copy_from_slice(&TCPF_LISTEN.to_ne_bytes());
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        parse(payload).map(Self::Answer).ok_or_else(|| {
            DecodeError::from(
                "the kernel's description of a socket is cut short or names no cgroup",
            )
        })
    }
}

fn number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => libc::AF_INET as u8,
        Family::Ipv6 => libc::AF_INET6 as u8,
    }
}

/// Reads a `struct inet_diag_msg` and its attributes; `None` where it is too short, or tells no cgroup.
fn parse(payload: &[u8]) -> Option<Listener> {
    let (fixed, attributes) = payload.split_at_checked(ANSWER)?;
    let port = u16::from_be_bytes(array(fixed, 4)?);
    let address = if fixed[0] == number(Family::Ipv4) {
        IpAddr::from(Ipv4Addr::from(array::<4>(fixed, 8)?))
    } else {
        IpAddr::from(Ipv6Addr::from(array::<16>(fixed, 8)?))
    };
    // Two words, the lower one first.
    let low = u32::from_ne_bytes(array(fixed, 44)?);
    let high = u32::from_ne_bytes(array(fixed, 48)?);
    Some(Listener {
        cookie: u64::from(low) | u64::from(high) << 32,
        cgroup: u64::from_ne_bytes(array(attribute(attributes, INET_DIAG_CGROUP_ID)?, 0)?),
        end: SocketAddr::new(address, port),
    })
}

fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        let kind = u16::from_ne_bytes(array(rest, 2)?);
        let value = rest.get(ATTRIBUTE..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _};

    use proptest::prelude::*;

    use super::*;

    fn answer(attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; ANSWER];
        bytes[0] = libc::AF_INET as u8;
        bytes[4..6].copy_from_slice(&8080_u16.to_be_bytes());
        bytes[8..12].copy_from_slice(&[10, 0, 0, 1]);
        bytes[44..48].copy_from_slice(&7_u32.to_ne_bytes());
        bytes[48..52].copy_from_slice(&1_u32.to_ne_bytes());
        bytes.extend_from_slice(attributes);
        bytes
    }

    fn encoded(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = (ATTRIBUTE + value.len()) as u16;
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_listener_is_read_with_its_cgroup() {
        let attributes = [
            encoded(8, &[0]),
            encoded(INET_DIAG_CGROUP_ID, &42_u64.to_ne_bytes()),
        ];
        let listener = parse(&answer(&attributes.concat())).unwrap();
        assert_eq!(listener.end, "10.0.0.1:8080".parse().unwrap());
        assert_eq!((listener.cookie, listener.cgroup), (1 << 32 | 7, 42));
        assert_eq!(parse(&answer(&encoded(8, &[0]))), None, "no cgroup");
    }

    #[test]
    fn the_kernel_lists_a_listener_under_its_cookie() {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let end = own.local_addr().unwrap();
        let found = listeners().unwrap();
        let found = found.iter().find(|listener| listener.end == end).unwrap();
        assert_eq!(found.cookie, cookie(&own));
    }

    fn cookie(socket: &TcpListener) -> u64 {
        let mut cookie = 0_u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        #[allow(unsafe_code)]
        // SAFETY: the value and its length live for the call, and the length is that of the value.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}

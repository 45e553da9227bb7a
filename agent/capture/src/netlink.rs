//! Requests to the kernel's netlink families (`netlink(7)`), in the calling thread's namespace.
use std::{io, marker::PhantomData, num::NonZeroI32};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Bound of messages read in answer to one request.
const MAX_MESSAGES: usize = 65_536;

/// The messages of one family, requests and answers.
pub(crate) trait Family: NetlinkSerializable + NetlinkDeserializable {
    /// Its number in `include/uapi/linux/netlink.h`.
    const PROTOCOL: isize;
}

impl Family for RouteNetlinkMessage {
    const PROTOCOL: isize = NETLINK_ROUTE;
}

/// A blocking netlink socket for the messages of one family; without a name, those of routing (`rtnetlink(7)`).
pub(crate) struct Netlink<M = RouteNetlinkMessage> {
    socket: Socket,
    messages: PhantomData<fn(M)>,
}

impl<M: Family> Netlink<M> {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(M::PROTOCOL)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            messages: PhantomData,
        })
    }

    /// Lists objects.
    pub(crate) fn list(&self, request: M) -> io::Result<Vec<M>> {
        self.exchange(request, NLM_F_DUMP)
    }

    fn exchange(&self, request: M, flags: u16) -> io::Result<Vec<M>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        self.answers()
    }

    /// Reads messages up to the one that ends the answer.
    fn answers(&self) -> io::Result<Vec<M>> {
        let mut answers = Vec::new();
        while answers.len() < MAX_MESSAGES {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<M>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                // Messages are padded to four octets.
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(1)..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return error.code.map_or(Ok(answers), |code| Err(refusal(code)));
                    }
                    _ => {}
                }
            }
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer does not end",
        ))
    }
}

impl Netlink {
    /// Makes an object; one that is there already is as good.
    pub(crate) fn ensure(&self, request: RouteNetlinkMessage) -> io::Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        tolerate(self.exchange(request, flags), &[libc::EEXIST])
    }

    /// Changes an object that exists.
    pub(crate) fn change(&self, request: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(request, NLM_F_ACK).map(drop)
    }

    /// Removes an object; one that is gone already is as good.
    pub(crate) fn remove(&self, request: RouteNetlinkMessage) -> io::Result<()> {
        tolerate(
            self.exchange(request, NLM_F_ACK),
            &[libc::ENOENT, libc::ESRCH],
        )
    }
}

fn refusal(code: NonZeroI32) -> io::Error {
    io::Error::from_raw_os_error(code.get().saturating_abs())
}

fn tolerate<T>(result: io::Result<T>, codes: &[i32]) -> io::Result<()> {
    match result {
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|code| codes.contains(&code)) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

//! TLS without I/O: ciphertext in and out of two buffers, driven by whoever owns the socket.
//!
//! rustls' buffered interface reads four kilobytes at a time. Here records are decrypted where they
//! were received, many to a system call, and encrypted straight into what is sent next. Buffers are
//! lent by the worker thread for as long as they hold something, so idle connections have none.
use std::{cell::RefCell, io, ops::Range};

use bytes::{Buf as _, BufMut as _, BytesMut};
use rustls::{
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::CertificateDer,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};
use tokio::io::ReadBuf;

/// Size of a lent buffer: eight full records.
const BUFFER_BYTES: usize = 8 * (RECORD_BYTES + RECORD_OVERHEAD);
/// Buffers that a worker thread keeps for the next use.
const KEPT_BUFFERS: usize = 8;
/// Largest plaintext of one record (RFC 8446, section 5.1).
pub(crate) const RECORD_BYTES: usize = 16 * 1024;
/// Header, content type and tag of a record (RFC 8446, section 5.2), rounded up.
const RECORD_OVERHEAD: usize = 64;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Either end of a connection, so that one engine serves both.
pub(crate) trait Endpoint {
    /// rustls' own data of this end.
    type Data;

    /// Processes records until something is to be done.
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Whether the handshake still runs.
    fn is_handshaking(&self) -> bool;

    /// Whether a message, such as an alert, is queued to be encoded.
    fn wants_write(&self) -> bool;

    /// What the peer presented.
    fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]>;
}

macro_rules! endpoint {
    ($connection:ty, $data:ty) => {
        impl Endpoint for $connection {
            type Data = $data;

            fn process<'c, 'i>(
                &'c mut self,
                incoming: &'i mut [u8],
            ) -> UnbufferedStatus<'c, 'i, Self::Data> {
                self.process_tls_records(incoming)
            }

            fn is_handshaking(&self) -> bool {
                (**self).is_handshaking()
            }

            fn wants_write(&self) -> bool {
                (**self).wants_write()
            }

            fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
                (**self).peer_certificates()
            }
        }
    };
}

endpoint!(UnbufferedClientConnection, ClientConnectionData);
endpoint!(UnbufferedServerConnection, ServerConnectionData);

/// Bytes in a lent buffer; the buffer goes back when the last of them is taken.
#[derive(Default)]
pub(crate) struct Lent {
    bytes: Vec<u8>,
    filled: Range<usize>,
}

impl Lent {
    /// What the buffer holds.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled.clone()]
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// Room after what is held; [`Self::fill`] tells how much of it was used.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = KEPT
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        }
        if self.filled.start > 0 {
            self.bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        &mut self.bytes[self.filled.end..]
    }

    /// Notes that `count` bytes were written to the spare room.
    pub(crate) fn fill(&mut self, count: usize) {
        self.filled.end += count;
        self.settle();
    }

    /// Takes `count` bytes away from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.filled.start += count;
        self.settle();
    }

    /// Gives an empty buffer back.
    fn settle(&mut self) {
        if self.filled.is_empty() && !self.bytes.is_empty() {
            self.filled = 0..0;
            let bytes = std::mem::take(&mut self.bytes);
            KEPT.with_borrow_mut(|kept| {
                if kept.len() < KEPT_BUFFERS {
                    kept.push(bytes);
                }
            });
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.consume(self.filled.len());
    }
}

/// What the engine waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// More ciphertext from the peer.
    Input,
    /// Room for plaintext.
    Room,
    /// Nothing: the peer has ended its side.
    Ended,
}

/// One end of a TLS connection.
pub(crate) struct Engine<E> {
    tls: E,
    /// Ciphertext that was received.
    pub incoming: Lent,
    /// Ciphertext that is to be sent.
    pub outgoing: Lent,
    /// Plaintext that came before there was room for it; bounded by what one buffer decrypts to.
    early: BytesMut,
    /// Whether rustls has failed; it is not called again then.
    failed: bool,
}

impl<E: Endpoint> Engine<E> {
    pub(crate) fn new(tls: E) -> Self {
        Self {
            tls,
            incoming: Lent::default(),
            outgoing: Lent::default(),
            early: BytesMut::new(),
            failed: false,
        }
    }

    /// Whether the handshake still runs.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// What the peer presented.
    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.tls.peer_certificates()
    }

    /// Processes what was received, with its plaintext to `out`.
    ///
    /// # Errors
    /// When the peer breaks the protocol or is refused; the alert that tells it is in `outgoing`.
    pub(crate) fn open(&mut self, out: &mut ReadBuf<'_>) -> io::Result<Need> {
        let early = self.early.len().min(out.remaining());
        out.put_slice(&self.early[..early]);
        self.early.advance(early);
        if self.early.is_empty() {
            self.early = BytesMut::new();
        } else {
            return Ok(Need::Room);
        }
        self.process(Some(out))
    }

    /// Processes what was received without a reader; its plaintext is kept.
    fn process(&mut self, mut out: Option<&mut ReadBuf<'_>>) -> io::Result<Need> {
        if self.failed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        loop {
            let UnbufferedStatus {
                mut discard, state, ..
            } = self.tls.process(self.incoming.filled_mut());
            let need = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut need = None;
                    while traffic.peek_len().is_some() {
                        if out.as_ref().is_some_and(|out| out.remaining() == 0) {
                            need = Some(Need::Room);
                            break;
                        }
                        let Some(record) = traffic.next_record() else {
                            break;
                        };
                        let record = record.map_err(broken)?;
                        discard += record.discard;
                        let mut rest = record.payload;
                        if let Some(out) = &mut out {
                            let taken = rest.len().min(out.remaining());
                            out.put_slice(&rest[..taken]);
                            rest = &rest[taken..];
                        }
                        self.early.put_slice(rest);
                    }
                    need
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, |spare| data.encode(spare))?;
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => {
                    Some(Need::Input)
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Need::Ended),
                Ok(_) => return Err(io::Error::other("early data, which is never offered")),
                Err(error) => {
                    self.failed = true;
                    self.incoming.consume(discard);
                    self.encode_alert();
                    return Err(broken(error));
                }
            };
            self.incoming.consume(discard);
            if let Some(need) = need {
                return Ok(need);
            }
        }
    }

    /// Encrypts as much of `plaintext` as there is room for; zero means that `outgoing` is to be sent first.
    ///
    /// # Errors
    /// When the connection cannot be written to.
    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        self.write(|traffic, spare| {
            let room = spare.len() / (RECORD_BYTES + RECORD_OVERHEAD) * RECORD_BYTES;
            taken = plaintext.len().min(room);
            traffic.encrypt(&plaintext[..taken], spare)
        })?;
        Ok(taken)
    }

    /// Tells the peer that nothing more is sent.
    ///
    /// # Errors
    /// When the connection cannot be written to.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.write(|traffic, spare| traffic.queue_close_notify(spare))
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut WriteTraffic<'_, E::Data>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        // rustls lets nothing be written before what was received is processed.
        self.process(None)?;
        let status = self.tls.process(self.incoming.filled_mut());
        let discard = status.discard;
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let written = write(&mut traffic, self.outgoing.spare()).map_err(io::Error::other);
        self.outgoing.fill(*written.as_ref().unwrap_or(&0));
        self.incoming.consume(discard);
        written.map(drop)
    }

    /// After a failure: what tells the peer of it. rustls must not be asked for anything else then.
    fn encode_alert(&mut self) {
        while self.tls.wants_write() {
            let status = self.tls.process(self.incoming.filled_mut());
            let discard = status.discard;
            let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else {
                return;
            };
            if encode(&mut self.outgoing, |spare| data.encode(spare)).is_err() {
                return;
            }
            self.incoming.consume(discard);
        }
    }
}

fn encode(
    outgoing: &mut Lent,
    encode: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<()> {
    let encoded = encode(outgoing.spare()).map_err(io::Error::other);
    outgoing.fill(*encoded.as_ref().unwrap_or(&0));
    encoded.map(drop)
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use undermesh_identity::testing::TestMesh;

    use super::*;

    const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
    const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";

    fn engines(
        mesh: &TestMesh,
    ) -> (
        Engine<UnbufferedClientConnection>,
        Engine<UnbufferedServerConnection>,
    ) {
        let config = mesh
            .certificate(CLIENT)
            .client_config(&[SERVER.parse().unwrap()]);
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let client = UnbufferedClientConnection::new(config, name).unwrap();
        let config = Arc::clone(&mesh.certificate(SERVER).server_config());
        let server = UnbufferedServerConnection::new(config).unwrap();
        (Engine::new(client), Engine::new(server))
    }

    /// Moves what one end has to send to the other, through `change`.
    fn carry<A: Endpoint, B: Endpoint>(
        from: &mut Engine<A>,
        to: &mut Engine<B>,
        change: &mut impl FnMut(&mut [u8]),
    ) -> usize {
        let mut moved = 0;
        while !from.outgoing.is_empty() {
            let spare = to.incoming.spare();
            let count = from.outgoing.filled().len().min(spare.len());
            spare[..count].copy_from_slice(&from.outgoing.filled()[..count]);
            change(&mut spare[..count]);
            from.outgoing.consume(count);
            to.incoming.fill(count);
            moved += count;
        }
        moved
    }

    /// Runs both ends until neither has anything to send, or one fails.
    fn converse(mesh: &TestMesh, mut change: impl FnMut(&mut [u8])) -> io::Result<()> {
        let (mut client, mut server) = engines(mesh);
        let mut room = vec![0; 64];
        loop {
            let opened = client.open(&mut ReadBuf::new(&mut room)).map(drop);
            let there = carry(&mut client, &mut server, &mut change);
            opened?;
            let opened = server.open(&mut ReadBuf::new(&mut room)).map(drop);
            let back = carry(&mut server, &mut client, &mut change);
            opened?;
            if there + back == 0 {
                break;
            }
        }
        if client.is_handshaking() || server.is_handshaking() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        client.seal(b"hello")?;
        carry(&mut client, &mut server, &mut change);
        server.open(&mut ReadBuf::new(&mut room)).map(drop)
    }

    #[test]
    fn both_ends_agree() {
        converse(&TestMesh::new("cluster.local"), |_| {}).unwrap();
    }

    #[test]
    fn a_failed_connection_stays_failed() {
        let mesh = TestMesh::new("cluster.local");
        let (_, mut server) = engines(&mesh);
        server.incoming.spare()[..8].copy_from_slice(b"GET / HT");
        server.incoming.fill(8);
        for _ in 0..3 {
            assert!(server.open(&mut ReadBuf::new(&mut [0; 64])).is_err());
            assert!(server.seal(b"hello").is_err() && server.close().is_err());
        }
        // An alert record (RFC 8446, section 5.1).
        assert_eq!(server.outgoing.filled()[0], 21);
    }

    #[test]
    fn a_buffer_is_lent_only_while_it_holds_something() {
        let mut lent = Lent::default();
        lent.spare()[..3].copy_from_slice(b"abc");
        lent.fill(3);
        lent.consume(2);
        assert_eq!(lent.filled(), b"c");
        lent.consume(1);
        assert_eq!(lent.bytes.capacity(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn damaged_records_fail_without_harm(byte in 0_usize..6000, value in 1_u8..) {
            thread_local!(static MESH: TestMesh = TestMesh::new("cluster.local"));
            let mut seen = 0;
            let result = MESH.with(|mesh| converse(mesh, |bytes| {
                if let Some(damaged) = byte.checked_sub(seen).and_then(|at| bytes.get_mut(at)) {
                    *damaged ^= value;
                }
                seen += bytes.len();
            }));
            // A byte past the end of the conversation damages nothing, and the legacy version of
            // a record's header is not looked at (RFC 8446, section 5.1).
            let _ = result;
        }

        #[test]
        fn arbitrary_bytes_fail_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            thread_local!(static MESH: TestMesh = TestMesh::new("cluster.local"));
            MESH.with(|mesh| {
                let (_, mut server) = engines(mesh);
                let spare = server.incoming.spare();
                spare[..bytes.len()].copy_from_slice(&bytes);
                server.incoming.fill(bytes.len());
                let _ = server.open(&mut ReadBuf::new(&mut [0; 64]));
                assert!(server.is_handshaking());
            });
        }
    }
}

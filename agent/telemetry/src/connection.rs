//! One proxied connection, from its opening to its single closing record.
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};
use undermesh_model::{Identity, Service, Workload};

use crate::{series::Series, table::Slot, telemetry::Telemetry};

/// Which listener of the pod took the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The pod's application called out (15001).
    Outbound,
    /// A mesh peer came in over HBONE (15008).
    Inbound,
    /// A client came in without the mesh (15006).
    InboundPlaintext,
}

impl Direction {
    /// The access log's word, which does not tell the two inbound kinds apart (Istio's form).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound | Self::InboundPlaintext => "inbound",
        }
    }

    /// The `reporter` label: the side of the connection that this node speaks for.
    pub fn reporter(self) -> &'static str {
        match self {
            Self::Outbound => "source",
            Self::Inbound | Self::InboundPlaintext => "destination",
        }
    }
}

/// Istio's `connection_security_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Carried over mutual TLS.
    MutualTls,
    /// Not secured by the mesh.
    Unknown,
}

impl Security {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a connection failed, as far as Istio has a word for it (`response_flags`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// No failure, or one that has no word.
    #[default]
    None,
    /// Policy denied it.
    Deny,
    /// The destination could not be connected to.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake failed.
    H2HandshakeFailure,
    /// Port 15008 did not answer in time: a NetworkPolicy may block it.
    NetworkPolicy,
    /// The own certificate is missing, or the peer's identity is not the expected one.
    IdentityError,
    /// The peer's certificate was revoked.
    CertRevoked,
}

impl ResponseFlag {
    /// Every flag, in the order of [`Self::index`].
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address: for an inbound destination the pod's listener, for an outbound one the real TCP target.
    pub address: SocketAddr,
    /// The workload behind the address.
    pub workload: Option<Arc<Workload>>,
    /// The identity that mutual TLS proved; `None` without mutual TLS.
    pub identity: Option<Identity>,
}

/// Everything about a connection that is fixed when it opens.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The listener that took it.
    pub direction: Direction,
    /// The client.
    pub source: Peer,
    /// The server.
    pub destination: Peer,
    /// The CONNECT authority when carried over HBONE; from the network, so it is escaped where it is shown.
    pub hbone_authority: Option<Arc<str>>,
    /// The service that the client addressed.
    pub service: Option<Arc<Service>>,
    /// How it is carried.
    pub security: Security,
    /// Netns cookie of the enrolled pod whose listener took it.
    pub id: u64,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both directions ended in good order.
    Complete,
    /// Something broke.
    Failed {
        /// Istio's word for it, if any.
        flag: ResponseFlag,
        /// What broke, for the access log.
        reason: String,
    },
}

/// A connection that failed before it could be described by an [`Opening`].
#[derive(Clone, Debug)]
pub struct Early {
    /// The listener that took it.
    pub direction: Direction,
    /// Address of the client.
    pub source: SocketAddr,
    /// Where it wanted to go; the listener's own address when that is not known.
    pub destination: SocketAddr,
    /// What broke, for the access log.
    pub reason: String,
    /// Istio's word for it, if any.
    pub flag: ResponseFlag,
}

/// Bytes carried so far. The copy loop adds, everyone else reads; all accesses are relaxed, because each
/// number stands alone.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    /// Adds `bytes` that went from the client to the destination.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds `bytes` that went from the destination to the client.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes from the client to the destination.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the destination to the client.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// The shared part of an open connection: the table lists it, the metrics read its counters.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) opening: Opening,
    pub(crate) started: Instant,
    pub(crate) counters: Arc<Counters>,
    pub(crate) series: Arc<Series>,
    /// The part of the counters that has been added to the series.
    accounted: Counters,
}

impl Open {
    pub(crate) fn new(opening: Opening, series: Arc<Series>, now: Instant) -> Self {
        Self {
            opening,
            started: now,
            counters: Arc::default(),
            series,
            accounted: Counters::default(),
        }
    }

    /// Adds to the series what was carried since the last call. Calls may overlap: `fetch_max` gives every
    /// byte to exactly one of them.
    pub(crate) fn account(&self) {
        let sent = advance(&self.accounted.sent, self.counters.sent());
        let received = advance(&self.accounted.received, self.counters.received());
        self.series.add_bytes(sent, received);
    }

    /// Bytes sent and received as the pod on this node sees them: what its application sent comes first.
    pub(crate) fn local_bytes(&self) -> (u64, u64) {
        let (sent, received) = (self.counters.sent(), self.counters.received());
        match self.opening.direction {
            Direction::Outbound => (sent, received),
            Direction::Inbound | Direction::InboundPlaintext => (received, sent),
        }
    }
}

fn advance(accounted: &AtomicU64, now: u64) -> u64 {
    now.saturating_sub(accounted.fetch_max(now, Ordering::Relaxed))
}

/// A connection in progress. Ends with [`Self::finish`]; dropped without it, it is recorded as aborted.
#[derive(Debug)]
#[must_use = "a connection that is dropped at once is recorded as aborted"]
pub struct Connection {
    telemetry: Telemetry,
    open: Arc<Open>,
    slot: Slot,
    finished: bool,
}

impl Connection {
    pub(crate) fn new(telemetry: Telemetry, open: Arc<Open>, slot: Slot) -> Self {
        Self {
            telemetry,
            open,
            slot,
            finished: false,
        }
    }

    /// The counters, for a copy loop that runs elsewhere.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.open.counters)
    }

    /// Adds `bytes` that went from the client to the destination.
    pub fn add_sent(&self, bytes: u64) {
        self.open.counters.add_sent(bytes);
    }

    /// Adds `bytes` that went from the destination to the client.
    pub fn add_received(&self, bytes: u64) {
        self.open.counters.add_received(bytes);
    }

    /// Records the end: closed and failed counters, the last bytes, the access-log line.
    pub fn finish(mut self, outcome: Outcome) {
        self.finished = true;
        self.telemetry.closed(&self.open, self.slot, outcome);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.finished {
            let reason = "the connection was aborted before both sides had closed it".to_owned();
            let outcome = Outcome::Failed {
                flag: ResponseFlag::None,
                reason,
            };
            self.telemetry.closed(&self.open, self.slot, outcome);
        }
    }
}

//! Counters of the protocol, under the names that Istio's ztunnel gives them.
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

/// Why a stream ended (label `reason` of `istio_xds_connection_terminations_total`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// The server could not be reached, or refused.
    ConnectionError,
    /// The stream failed.
    Error,
    /// The server or something between ended the connection, as it does at its end of life.
    Reconnect,
    /// The server ended the stream in order.
    Complete,
}

impl Termination {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ConnectionError,
        Self::Error,
        Self::Reconnect,
        Self::Complete,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

/// What was received of one type.
#[derive(Debug, Default)]
pub struct TypeCounters {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl TypeCounters {
    /// Responses (`istio_xds_message_total`).
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Bytes of resources in them (`istio_xds_message_bytes_total`).
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn received(&self, bytes: u64) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// All counters of a client, since its start.
#[derive(Debug, Default)]
pub struct Counters {
    terminations: [AtomicU64; 4],
    addresses: TypeCounters,
    policies: TypeCounters,
    rejections: AtomicU64,
}

impl Counters {
    /// Streams that ended (`istio_xds_connection_terminations_total`).
    pub fn terminations(&self, reason: Termination) -> u64 {
        self.terminations[reason as usize].load(Ordering::Relaxed)
    }

    /// What was received, by type URL (label `url`).
    pub fn types(&self) -> [(&'static str, &TypeCounters); 2] {
        [
            (ADDRESS_TYPE, &self.addresses),
            (AUTHORIZATION_TYPE, &self.policies),
        ]
    }

    /// Responses that were answered by NACK.
    pub fn rejections(&self) -> u64 {
        self.rejections.load(Ordering::Relaxed)
    }

    pub(super) fn ended(&self, reason: Termination) {
        self.terminations[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn rejected(&self) {
        self.rejections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn of_type(&self, url: &str) -> Option<&TypeCounters> {
        let mut types = self.types().into_iter();
        types.find(|(known, _)| *known == url).map(|(_, it)| it)
    }
}

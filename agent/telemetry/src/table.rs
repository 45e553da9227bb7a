//! The table of open connections: cheap to enter and leave, listed by snapshot.
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::connection::{Direction, Open, Peer, Security};

/// Parts of the table with a lock each, so that workers rarely meet.
const SHARDS: usize = 16;

/// Where a connection sits in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    shard: usize,
    key: usize,
}

/// All open connections of the node.
#[derive(Debug, Default)]
pub(crate) struct Table {
    shards: [Mutex<Slab<Arc<Open>>>; SHARDS],
}

impl Table {
    /// Enters a connection.
    pub(crate) fn insert(&self, open: Arc<Open>) -> Slot {
        // Allocations are 16 bytes apart at least, usually more: the address spreads well above that.
        let shard = (Arc::as_ptr(&open).addr() >> 8) % SHARDS;
        let key = self.lock(shard).insert(open);
        Slot { shard, key }
    }

    /// Takes a connection out. A slot is given up once.
    pub(crate) fn remove(&self, slot: Slot) {
        self.lock(slot.shard).try_remove(slot.key);
    }

    /// The connections that are open now; each shard is locked only while its pointers are copied.
    pub(crate) fn list(&self) -> Vec<Arc<Open>> {
        let mut all = Vec::new();
        for shard in 0..SHARDS {
            all.extend(self.lock(shard).iter().map(|(_, open)| Arc::clone(open)));
        }
        all
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).len()).sum()
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Slab<Arc<Open>>> {
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end of a connection, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// `ip:port`.
    pub address: SocketAddr,
    /// The CONNECT authority; only of a destination reached over HBONE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hbone_address: Option<String>,
    /// The service that was addressed; only of a destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The workload's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The workload's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The identity that mutual TLS proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// An open connection, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionView {
    /// The listener that took it.
    pub direction: Direction,
    /// The client.
    pub source: PeerView,
    /// The server.
    pub destination: PeerView,
    /// How it is carried.
    pub security: Security,
    /// Bytes that the pod on this node has sent.
    pub bytes_sent: u64,
    /// Bytes that the pod on this node has received.
    pub bytes_received: u64,
    /// Milliseconds since it was opened.
    pub age_ms: u64,
}

impl ConnectionView {
    pub(crate) fn of(open: &Open, now: Instant) -> Self {
        let opening = &open.opening;
        let (bytes_sent, bytes_received) = open.local_bytes();
        let age = now.saturating_duration_since(open.started);
        let mut destination = PeerView::of(&opening.destination);
        destination.hbone_address = opening.hbone_authority.as_deref().map(str::to_owned);
        destination.service = opening
            .service
            .as_ref()
            .map(|service| service.hostname.to_string());
        Self {
            direction: opening.direction,
            source: PeerView::of(&opening.source),
            destination,
            security: opening.security,
            bytes_sent,
            bytes_received,
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl PeerView {
    fn of(peer: &Peer) -> Self {
        let workload = peer.workload.as_ref();
        Self {
            address: peer.address,
            hbone_address: None,
            service: None,
            namespace: workload.map(|workload| workload.namespace.to_string()),
            workload: workload.map(|workload| workload.name.to_string()),
            identity: peer.identity.as_ref().map(ToString::to_string),
        }
    }
}

//! Asking for what a connection needs, on demand.
use std::{net::IpAddr, sync::Arc};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::interest::{Full, Interest, Interests, Key, Phase};

/// What came of a question. Keep the [`Interest`] for as long as the answer is in use: names that nobody keeps are
/// given up when room is needed.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// The mesh holds the answer, or lacks what does not exist. It stays current.
    Answered(Interest),
    /// There is something, and it could not be taken: whatever it is, it is not outside the mesh.
    Rejected(Interest),
    /// The server cannot be asked now. It will be, when it can.
    Disconnected(Interest),
    /// The answer did not come in time. It may yet come.
    Late(Interest),
    /// As many names as there may be are in use ([`super::MAX_INTERESTS`]).
    Full,
}

/// Asks the server for single names. Clones share what they asked for.
#[derive(Clone, Debug)]
pub struct Resolver {
    interests: Arc<Interests>,
    connected: watch::Receiver<bool>,
}

impl Resolver {
    pub(super) fn new(interests: Arc<Interests>, connected: watch::Receiver<bool>) -> Self {
        Self {
            interests,
            connected,
        }
    }

    /// Makes sure that the mesh holds what has an address on a network. After the first time it costs a lookup.
    pub async fn resolve(
        &self,
        network: &Arc<str>,
        address: IpAddr,
        deadline: Instant,
    ) -> Resolution {
        let key = Key::Address(Arc::clone(network), address);
        self.answer(&key, deadline).await
    }

    /// Makes sure that the mesh holds the service with a hostname, and its endpoints: a waypoint's, for example.
    pub async fn resolve_host(
        &self,
        namespace: &Arc<str>,
        hostname: &Arc<str>,
        deadline: Instant,
    ) -> Resolution {
        let key = Key::Host(Arc::clone(namespace), Arc::clone(hostname));
        self.answer(&key, deadline).await
    }

    async fn answer(&self, key: &Key, deadline: Instant) -> Resolution {
        let interest = match self.interests.take(key) {
            Ok(interest) => interest,
            Err(Full) => return Resolution::Full,
        };
        if interest.phase() == Phase::Asked {
            return self.wait(interest, deadline).await;
        }
        settled(interest)
    }

    async fn wait(&self, interest: Interest, deadline: Instant) -> Resolution {
        let mut phase = interest.subscribe();
        let mut connected = self.connected.clone();
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Asked) => settled(interest),
            // It fails when the client has ended, which is the same.
            _ = connected.wait_for(|connected| !connected) => Resolution::Disconnected(interest),
            () = sleep_until(deadline) => Resolution::Late(interest),
        }
    }
}

fn settled(interest: Interest) -> Resolution {
    match interest.phase() {
        Phase::Answered => Resolution::Answered(interest),
        Phase::Rejected => Resolution::Rejected(interest),
        Phase::Asked => Resolution::Disconnected(interest),
    }
}

//! The node's side of the discovery protocol: it follows istiod or our own controller, and keeps the last known
//! state through an outage and a restart.
//!
//! `session` holds the rules, `store` what is known, `interest` what is asked for on demand, `cache` what is on disk;
//! none of them does any waiting. `transport` makes streams, and one task, `driver`, ties them together.
use std::sync::Arc;

use rand::rngs::StdRng;
use tokio::{runtime::Handle, sync::watch};
use undermesh_model::MeshBuilder;

mod backoff;
mod batch;
mod cache;
mod counters;
mod driver;
mod feed;
#[cfg(test)]
mod fixture;
mod interest;
pub mod options;
mod resolver;
mod session;
mod shared;
mod store;
mod transport;
mod writer;

#[cfg(test)]
mod tests;

pub use cache::MAX_CACHE_BYTES;
pub use counters::{Counters, Termination, TypeCounters};
pub use driver::{SAVE_BYTES_PER_SECOND, SAVE_INTERVAL, SWEEP_QUIET, TORN_GRACE};
pub use interest::{Interest, MAX_INTERESTS, Phase};
pub use options::{Options, OptionsError, Subscription};
pub use resolver::{Resolution, Resolver};
pub use shared::{MAX_REJECTED, Status, Update};
pub use store::Counts;

use driver::Driver;
use interest::Interests;
use session::Session;
use shared::Shared;

use crate::health::Health;

/// A handle of the client. When the last one and its [`Updates`] are gone, or it is told to [`Self::stop`], the
/// client ends. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    address: Arc<str>,
    shared: Arc<Shared>,
    interests: Option<Arc<Interests>>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl Client {
    /// Starts a client on `runtime`. It reads the last known state, connects, and goes on connecting; whatever goes
    /// wrong is in its [`Status`].
    pub fn start(options: Options, runtime: &Handle) -> (Self, Updates) {
        let options = Arc::new(options);
        let node_name = Arc::clone(&options.node.name);
        let session = Session::new(options.wire_node(), node_name, options.subscription);
        let shared = Arc::new(Shared::new(session));
        let interests = match options.subscription {
            Subscription::Wildcard => None,
            Subscription::OnDemand => Some(Arc::new(Interests::new(MAX_INTERESTS))),
        };
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = watch::channel(());
        let client = Self {
            address: Arc::from(options.address.to_string()),
            shared: Arc::clone(&shared),
            interests: interests.clone(),
            stop,
            ended,
        };
        let updates = Updates {
            published: shared.published.subscribe(),
            client: client.clone(),
        };
        let rng: StdRng = rand::make_rng();
        runtime.spawn(async move {
            Driver::new(options, shared, interests, rng)
                .run(stopped)
                .await;
            drop(end);
        });
        (client, updates)
    }

    /// Asks for single names; there is one for [`Subscription::OnDemand`] alone.
    pub fn resolver(&self) -> Option<Resolver> {
        let interests = self.interests.clone()?;
        Some(Resolver::new(interests, self.shared.connected.subscribe()))
    }

    /// All that is known; [`Updates::next`] says when it is worth asking.
    pub fn builder(&self) -> MeshBuilder {
        self.shared.state().session.store().builder()
    }

    /// Waits until there is a state to run on: the server has told everything once, or an earlier run's state was
    /// taken up. An [`Update`] with it may still be due.
    pub async fn ready(&self) {
        let mut published = self.shared.published.subscribe();
        // Asked between the changes, never by the channel: it asks under its own lock, and the driver publishes under
        // the state's.
        while !self.is_ready() {
            // The sender lives in `self`.
            if published.changed().await.is_err() {
                return;
            }
        }
    }

    fn is_ready(&self) -> bool {
        let state = self.shared.state();
        state.link.restored || state.session.is_complete()
    }

    /// Says how the application of this machine is: now, and at the start of each stream from now on.
    pub fn report_health(&self, health: Health) {
        self.shared.health.send_if_modified(|told| {
            let differs = told.as_ref() != Some(&health);
            *told = Some(health);
            differs
        });
    }

    /// How the client stands.
    pub fn status(&self) -> Status {
        let mut state = self.shared.state();
        let rejected = state.session.rejected().take(MAX_REJECTED);
        Status {
            address: self.address.to_string(),
            connected: *self.shared.connected.borrow(),
            since: state.link.since,
            last_error: state.link.last_error.clone(),
            complete: state.session.is_complete(),
            restored: state.link.restored,
            cache_error: state.link.cache_error.clone(),
            rejected: rejected.map(|rejection| rejection.to_string()).collect(),
            counts: state.session.store().counts(),
            interests: self.interests.as_ref().map_or(0, |it| it.count()),
        }
    }

    /// Counters since the start.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Ends the client and waits until its state is on disk.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        // It fails when the task is over, which is what is waited for.
        drop(ended.changed().await);
    }
}

/// The changes, in order. There is one of it.
#[derive(Debug)]
pub struct Updates {
    client: Client,
    published: watch::Receiver<u64>,
}

impl Updates {
    /// The next changes, several responses in one where they came faster than they were taken. The first holds all
    /// that is known then. `None` when the client has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Update> {
        let mut ended = self.client.ended.clone();
        loop {
            tokio::select! {
                biased;
                published = self.published.changed() => published.ok()?,
                // It fails when the task is over.
                _ = ended.changed() => return None,
            }
            if let Some(update) = self.client.shared.take() {
                return Some(update);
            }
        }
    }
}

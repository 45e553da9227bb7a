//! What the client's task and its handles share.
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;
use undermesh_model::Delta;

use super::{
    counters::Counters,
    interest::{Interest, Phase},
    session::Session,
    store::Counts,
};
use crate::health::Health;

/// How the client stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// The server.
    pub address: String,
    /// Whether a stream is open.
    pub connected: bool,
    /// Since when it is, or is not.
    pub since: SystemTime,
    /// What ended the last stream, or prevented it.
    pub last_error: Option<String>,
    /// Whether the server has told everything that is subscribed to as a whole.
    pub complete: bool,
    /// Whether the state of an earlier run was taken up.
    pub restored: bool,
    /// Why the state could not be read or kept.
    pub cache_error: Option<String>,
    /// How much is known.
    pub counts: Counts,
    /// How many names are asked for on demand.
    pub interests: usize,
    /// The resources that are not taken as they are, `name: reason`; the first [`MAX_REJECTED`] of them.
    pub rejected: Vec<String>,
}

/// Most rejections that a status shows.
pub const MAX_REJECTED: usize = 100;

/// How the connection stands.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) since: SystemTime,
    pub(super) last_error: Option<String>,
    pub(super) restored: bool,
    pub(super) cache_error: Option<String>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) session: Session,
    pub(super) link: Link,
    /// What the next update answers.
    pub(super) answered: Vec<(Interest, Phase)>,
    /// Whether the state waits for its other half, see [`super::store::Store::is_torn`].
    pub(super) withheld: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) counters: Counters,
    pub(super) connected: watch::Sender<bool>,
    /// Counts what is published.
    pub(super) published: watch::Sender<u64>,
    /// What a machine says of its application; `None` until it has something to say.
    pub(super) health: watch::Sender<Option<Health>>,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(session: Session) -> Self {
        let link = Link {
            since: SystemTime::now(),
            last_error: None,
            restored: false,
            cache_error: None,
        };
        Self {
            counters: Counters::default(),
            connected: watch::Sender::new(false),
            published: watch::Sender::new(0),
            health: watch::Sender::new(None),
            state: Mutex::new(State {
                session,
                link,
                answered: Vec::new(),
                withheld: false,
            }),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self) {
        self.published.send_modify(|count| *count += 1);
    }

    /// What is new, unless it is withheld.
    pub(super) fn take(&self) -> Option<Update> {
        let mut state = self.state();
        if state.withheld {
            return None;
        }
        Some(Update {
            delta: state.session.store().take_delta(),
            answered: std::mem::take(&mut state.answered),
        })
    }
}

/// What has changed. Drop it when the changes are in force: those who asked for them go on then, and find them.
#[derive(Debug)]
#[must_use = "questions are answered when it is dropped: put it in force first"]
pub struct Update {
    /// The changes; perhaps none, where the answer to a question was that there is nothing.
    pub delta: Delta,
    answered: Vec<(Interest, Phase)>,
}

impl Drop for Update {
    fn drop(&mut self) {
        for (interest, phase) in self.answered.drain(..) {
            interest.reach(phase);
        }
    }
}

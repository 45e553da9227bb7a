//! How the watches are doing, by kind.
use std::{collections::BTreeMap, time::SystemTime};

use tokio::sync::watch;
use undermesh_control::resources::kinds::Kind;

/// How the watch of one kind is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindHealth {
    /// What is known of the kind.
    pub state: WatchState,
    /// Since when.
    pub since: SystemTime,
    /// What went wrong last, while it does.
    pub error: Option<String>,
    /// Objects that the API server has.
    pub objects: usize,
}

/// What is known of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// Not listed yet.
    Starting,
    /// The cluster has no such kind; looked for again now and then.
    Absent,
    /// Followed.
    Synced,
    /// Listed once, but not followed at present: what is known grows old.
    Stale,
}

/// All kinds.
pub type Health = BTreeMap<Kind, KindHealth>;

/// Where the watches report.
#[derive(Clone, Debug)]
pub(super) struct Board(watch::Sender<Health>);

impl Board {
    pub fn new(now: SystemTime) -> (Self, watch::Receiver<Health>) {
        let starting = KindHealth {
            state: WatchState::Starting,
            since: now,
            error: None,
            objects: 0,
        };
        let health = Kind::ALL.iter().map(|kind| (*kind, starting.clone()));
        let (sender, receiver) = watch::channel(health.collect());
        (Self(sender), receiver)
    }

    /// A kind is followed, or known to be absent.
    pub fn well(&self, kind: Kind, state: WatchState, objects: usize) {
        self.change(kind, |health| {
            set_state(health, state);
            health.error = None;
            health.objects = objects;
        });
    }

    /// An attempt failed.
    pub fn failed(&self, kind: Kind, error: &str) {
        self.change(kind, |health| {
            let state = match health.state {
                WatchState::Starting => WatchState::Starting,
                WatchState::Absent | WatchState::Synced | WatchState::Stale => WatchState::Stale,
            };
            set_state(health, state);
            health.error = Some(error.to_owned());
        });
    }

    fn change(&self, kind: Kind, change: impl FnOnce(&mut KindHealth)) {
        self.0.send_if_modified(|all| {
            let Some(health) = all.get_mut(&kind) else {
                return false;
            };
            let before = health.clone();
            change(health);
            *health != before
        });
    }
}

fn set_state(health: &mut KindHealth, state: WatchState) {
    if health.state != state {
        health.state = state;
        health.since = SystemTime::now();
    }
}

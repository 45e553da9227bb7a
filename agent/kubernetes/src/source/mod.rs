//! The configuration source that follows a cluster's API server.
//!
//! ```text
//! let mut source = Source::start(client, SourceSettings::new(settings));
//! while let Some(update) = source.next().await { … update.delta … }    // the first one holds everything
//! source.health();                                                   // how each kind is doing
//! source.pods();                                                     // which pods run where
//! ```
//!
//! Nothing is told before every kind was listed once, so that no policy is missing in what is told first. A kind
//! that the cluster does not have counts as listed; it is picked up when it appears.
use std::time::{Duration, SystemTime};

use kube::Client;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use undermesh_control::{
    Settings,
    engine::Engine,
    resources::{kinds::Kind, strings::Strings},
};

mod backoff;
mod discovery;
mod failure;
mod feed;
mod follow;
mod health;
mod plan;
mod shape;
#[cfg(test)]
mod tests;

pub use feed::Update;
pub use follow::FollowSettings;
pub use health::{Health, KindHealth, WatchState};

use self::{
    feed::Feed,
    follow::{Context, Follower},
    health::Board,
    shape::{PodShape, WholeShape},
};
use crate::pods::PodIndex;

/// Changes that wait for the engine; a full queue makes the watches wait, and the API server keeps the rest.
const QUEUE: usize = 4096;

/// How a cluster is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSettings {
    /// What the translation must know of the mesh; [`Settings::source`] is always Kubernetes here.
    pub mesh: Settings,
    /// Shortest time between two updates.
    pub pace: Duration,
    /// How patient the watches are.
    pub follow: FollowSettings,
}

impl SourceSettings {
    /// The usual ones.
    pub fn new(mesh: Settings) -> Self {
        Self {
            mesh,
            pace: Duration::from_millis(20),
            follow: FollowSettings::default(),
        }
    }
}

/// A cluster that is followed, until it is dropped.
#[derive(Debug)]
pub struct Source {
    updates: mpsc::Receiver<Update>,
    health: watch::Receiver<Health>,
    pods: PodIndex,
    tasks: JoinSet<()>,
}

impl Source {
    /// Begins to list and watch.
    pub fn start(client: Client, settings: SourceSettings) -> Self {
        let (board, health) = Board::new(SystemTime::now());
        let (messages, input) = mpsc::channel(QUEUE);
        let (output, updates) = mpsc::channel(1);
        let pods = PodIndex::default();
        let context = Context {
            client,
            settings: settings.follow,
            strings: Strings::default(),
            board,
            pods: pods.clone(),
            output: messages,
        };
        let mut tasks = JoinSet::new();
        for &kind in Kind::ALL {
            let follower = Follower::new(context.clone(), kind);
            if kind == Kind::Pod {
                tasks.spawn(follower.run::<PodShape>());
            } else {
                tasks.spawn(follower.run::<WholeShape>());
            }
        }
        let mesh = Settings {
            source: undermesh_control::settings::Source::Kubernetes,
            ..settings.mesh
        };
        let feed = Feed::new(Engine::new(mesh), settings.pace);
        tasks.spawn(feed.run(input, output));
        Self {
            updates,
            health,
            pods,
            tasks,
        }
    }

    /// Waits for the next change; `None` when a task behind this has ended, which only a defect makes it: the mesh
    /// would grow old from then on. Cancel safe. Updates that are not taken are merged.
    pub async fn next(&mut self) -> Option<Update> {
        tokio::select! {
            biased;
            update = self.updates.recv() => update,
            _ = self.tasks.join_next() => None,
        }
    }

    /// How the watch of each kind is doing, and every change of that.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// The pods of the cluster.
    pub fn pods(&self) -> PodIndex {
        self.pods.clone()
    }
}

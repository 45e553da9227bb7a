//! From followed kinds to the engine, and from its commits to whoever uses the mesh.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::mpsc::{Permit, Receiver, Sender},
    time::{Instant, sleep_until},
};
use undermesh_control::{
    Diagnostic,
    engine::Engine,
    resources::{Key, kinds::Kind},
};
use undermesh_model::Delta;

use super::follow::Message;

/// Most messages that are taken at once.
const BATCH: usize = 1024;

/// What changed with one commit.
#[derive(Debug)]
pub struct Update {
    /// The changes of the mesh's parts; everything, in the first update.
    pub delta: Delta,
    /// Every resource whose diagnostics changed, with all that it has now: none when it is well, or gone.
    pub diagnostics: BTreeMap<Key, Vec<Diagnostic>>,
    /// Objects in force, by kind.
    pub counts: BTreeMap<&'static str, usize>,
}

/// The engine, and what is not committed yet.
pub(super) struct Feed {
    engine: Engine,
    /// Kinds that were not listed yet.
    awaited: BTreeSet<Kind>,
    /// Shortest time between two commits.
    pace: Duration,
    next: Instant,
    is_changed: bool,
    is_first: bool,
}

impl Feed {
    pub fn new(engine: Engine, pace: Duration) -> Self {
        Self {
            engine,
            awaited: Kind::ALL.iter().copied().collect(),
            pace,
            next: Instant::now(),
            is_changed: false,
            is_first: true,
        }
    }

    /// Carries changes until the followers or the user of the mesh are gone. A first change is committed at once,
    /// further ones together after the pace; a user that is not ready for an update gets a larger one later.
    pub async fn run(mut self, mut input: Receiver<Message>, output: Sender<Update>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let is_due = self.is_changed && self.awaited.is_empty();
            tokio::select! {
                biased;
                permit = turn(&output, self.next), if is_due => match permit {
                    Some(permit) => self.commit(permit),
                    None => return,
                },
                count = input.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    for message in batch.drain(..) {
                        self.take(message);
                    }
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Change(change) => {
                self.engine.apply(change);
                self.is_changed = true;
            }
            Message::Synced(kind) => {
                // An empty cluster is news, too: the first update tells it.
                self.is_changed |= self.awaited.remove(&kind);
            }
        }
    }

    fn commit(&mut self, permit: Permit<'_, Update>) {
        let commit = self.engine.commit();
        self.is_changed = false;
        self.next = Instant::now() + self.pace;
        let is_news = !commit.delta.is_empty() || !commit.diagnostics.is_empty();
        if is_news || self.is_first {
            self.is_first = false;
            permit.send(Update {
                delta: commit.delta,
                diagnostics: commit.diagnostics,
                counts: self.engine.counts().collect(),
            });
        }
    }
}

/// Waits for the time and for room; nothing when nobody listens any more.
async fn turn(output: &Sender<Update>, next: Instant) -> Option<Permit<'_, Update>> {
    sleep_until(next).await;
    output.reserve().await.ok()
}

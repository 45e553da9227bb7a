//! Writes conditions while this replica leads.
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    time::Duration,
};

use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Value as Json, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use undermesh_control::{Diagnostic, resources::Key};

use super::{
    Clock, KINDS, Reports, WriterSettings, conditions,
    follow::{self, News, Observed},
    queue::Queue,
};

/// The name under which the API server keeps what we write.
const FIELD_MANAGER: &str = "undermesh-status";
/// Longest wait for an answer of the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// News of objects that wait for the writer; a full queue makes the watches wait.
const QUEUE: usize = 256;

/// Writes conditions; made by [`super::writer`].
pub struct Writer {
    client: Client,
    settings: WriterSettings,
    clock: Clock,
    reports: Reports,
    /// What there is to say of each resource; those without findings are not in it.
    findings: BTreeMap<Key, Vec<Diagnostic>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn new(
        client: Client,
        settings: WriterSettings,
        clock: Clock,
        reports: Reports,
    ) -> Self {
        Self {
            client,
            settings,
            clock,
            reports,
            findings: BTreeMap::new(),
        }
    }

    /// Writes while `leads` says so, until dropped. A sender that is gone has said its last word.
    pub async fn run(mut self, mut leads: watch::Receiver<bool>) -> Infallible {
        // Without the first report, everything would seem to be well.
        let first = self.reports.next().await;
        self.learn(first);
        loop {
            if *leads.borrow_and_update() {
                self.lead(&mut leads).await;
            } else {
                tokio::select! {
                    () = change(&mut leads) => {}
                    changed = self.reports.next() => { self.learn(changed); }
                }
            }
        }
    }

    /// Takes findings in; returns the resources that they are about.
    fn learn(&mut self, changed: BTreeMap<Key, Vec<Diagnostic>>) -> Vec<Key> {
        let mut keys = Vec::with_capacity(changed.len());
        for (key, findings) in changed {
            keys.push(key.clone());
            if findings.is_empty() {
                self.findings.remove(&key);
            } else {
                self.findings.insert(key, findings);
            }
        }
        keys
    }

    /// Follows the objects and writes, until this replica leads no more.
    async fn lead(&mut self, leads: &mut watch::Receiver<bool>) {
        let (output, mut news) = mpsc::channel(QUEUE);
        let mut followers = JoinSet::new();
        for &kind in KINDS {
            let retry = self.settings.absent_retry;
            followers.spawn(follow::follow(
                self.client.clone(),
                kind,
                retry,
                output.clone(),
            ));
        }
        let mut term = Term::new(self.client.clone(), self.settings.clone());
        loop {
            let (turn, has_room) = (term.turn(), term.has_room());
            tokio::select! {
                () = change(leads) => {
                    if !*leads.borrow() {
                        return;
                    }
                }
                changed = self.reports.next() => {
                    for key in self.learn(changed) {
                        term.reconsider(key);
                    }
                }
                Some(news) = news.recv() => term.observe(news),
                Some(written) = term.writes.join_next() => term.finish(written),
                () = sleep_until(turn), if has_room => {
                    term.write_next(&self.findings, &self.clock);
                }
            }
        }
    }
}

/// Waits for a change of leadership.
async fn change(leads: &mut watch::Receiver<bool>) {
    if leads.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What came of a write.
enum Written {
    Done,
    /// The object has changed or gone meanwhile; the watch tells.
    Outdated,
    Failed(String),
}

/// One time of leading.
struct Term {
    client: Client,
    settings: WriterSettings,
    known: BTreeMap<Key, Box<Observed>>,
    queue: Queue,
    writes: JoinSet<(Key, Written)>,
    in_flight: BTreeSet<Key>,
    /// The earliest time of the next write.
    pace: Instant,
}

impl Term {
    fn new(client: Client, settings: WriterSettings) -> Self {
        Self {
            client,
            settings,
            known: BTreeMap::new(),
            queue: Queue::default(),
            writes: JoinSet::new(),
            in_flight: BTreeSet::new(),
            pace: Instant::now(),
        }
    }

    fn observe(&mut self, news: News) {
        match news {
            News::Seen(key, observed) => {
                self.known.insert(key.clone(), observed);
                self.queue
                    .schedule(key, Instant::now() + self.settings.settle);
            }
            News::Gone(key) => {
                self.known.remove(&key);
                self.queue.forget(&key);
            }
        }
    }

    /// The findings about a resource changed.
    fn reconsider(&mut self, key: Key) {
        if self.known.contains_key(&key) {
            self.queue.schedule(key, Instant::now());
        }
    }

    fn has_room(&self) -> bool {
        self.queue.next().is_some() && self.writes.len() < self.settings.concurrency.max(1)
    }

    /// When the next write is due.
    fn turn(&self) -> Instant {
        self.queue.next().map_or(self.pace, |at| at.max(self.pace))
    }

    /// Writes the conditions of the first object that is due, if they differ from what it has.
    fn write_next(&mut self, findings: &BTreeMap<Key, Vec<Diagnostic>>, clock: &Clock) {
        let now = Instant::now();
        let Some(key) = self.queue.pop(now) else {
            return;
        };
        if self.in_flight.contains(&key) {
            return self.queue.schedule(key, now + self.settings.first_retry);
        }
        let Some(observed) = self.known.get(&key) else {
            return;
        };
        let findings = findings.get(&key).map(Vec::as_slice).unwrap_or_default();
        let wanted = conditions::conditions(&observed.subject, findings);
        let time = clock().to_string();
        let list = conditions::merged(&observed.conditions, &wanted, observed.generation, &time);
        let Some(list) = list else {
            return self.queue.succeeded(&key);
        };
        self.pace = now + self.settings.pace;
        self.in_flight.insert(key.clone());
        let api = Api::namespaced_with(self.client.clone(), &key.namespace, &*observed.resource);
        let version = observed.resource_version.clone();
        self.writes.spawn(async move {
            let written = write(&api, &key.name, version, list).await;
            (key, written)
        });
    }

    fn finish(&mut self, joined: Result<(Key, Written), tokio::task::JoinError>) {
        let Ok((key, written)) = joined else {
            return;
        };
        self.in_flight.remove(&key);
        match written {
            Written::Done => self.queue.succeeded(&key),
            Written::Outdated => {
                self.retry(key);
            }
            Written::Failed(error) => {
                let text = key.to_string();
                if self.retry(key) == 1 {
                    tracing::warn!(
                        "status: cannot write the conditions of {text}: {error}; trying again"
                    );
                } else {
                    tracing::debug!("status: cannot write the conditions of {text}: {error}");
                }
            }
        }
    }

    fn retry(&mut self, key: Key) -> u32 {
        let WriterSettings {
            first_retry,
            longest_retry,
            ..
        } = self.settings;
        self.queue
            .failed(key, Instant::now(), first_retry, longest_retry)
    }
}

/// Writes the whole list, if the object is still the one that was seen: the list holds conditions of others, and the
/// schema of these kinds does not merge it by type.
async fn write(
    api: &Api<DynamicObject>,
    name: &str,
    resource_version: Option<String>,
    conditions: Vec<Json>,
) -> Written {
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": resource_version },
        "status": { "conditions": conditions },
    }));
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match timeout(REQUEST_TIMEOUT, api.patch_status(name, &params, &patch)).await {
        Ok(Ok(_)) => Written::Done,
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Written::Outdated,
        Ok(Err(error)) => Written::Failed(error.to_string()),
        Err(_) => Written::Failed("the API server does not answer".to_owned()),
    }
}

//! One kind, followed: listed, then watched, listed again when the watch has fallen behind.
//!
//! What is known stays in force until the API server says otherwise. After a new list, what it lacks is removed.
use std::{collections::HashSet, pin::pin, time::Duration};

use futures::StreamExt;
use kube::{Client, api::WatchEvent};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use undermesh_control::{
    engine::Change,
    resources::{Key, decode_json, kinds::Kind, strings::Strings},
};

use super::{
    backoff::Backoff,
    discovery,
    failure::{Failure, Remedy},
    health::{Board, WatchState},
    plan::Plan,
    shape::{Page, Shape, Shaped},
};
use crate::pods::PodIndex;

/// Longest wait for a page of a list, for discovery, and for a watch to begin.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Bounds of how long a watch is asked to last, in seconds; they differ so that not all end at once.
const WATCH_SECONDS: std::ops::Range<u32> = 240..290;
/// A watch that lasted this long was no failure, even when it told nothing.
const HEALTHY_WATCH: Duration = Duration::from_secs(10);

/// How patient the watches are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowSettings {
    /// Objects in a page of a list.
    pub page: u32,
    /// The first wait after a failure.
    pub first_retry: Duration,
    /// The longest wait after a failure.
    pub longest_retry: Duration,
    /// How often a kind that the cluster does not have is looked for.
    pub absent_retry: Duration,
    /// A watch without any event, bookmarks included, is begun again after this time. The API server sends a
    /// bookmark about every minute.
    pub idle: Duration,
}

impl Default for FollowSettings {
    fn default() -> Self {
        Self {
            page: 500,
            first_retry: Duration::from_millis(250),
            longest_retry: Duration::from_secs(30),
            absent_retry: Duration::from_secs(5),
            idle: Duration::from_secs(150),
        }
    }
}

/// What a follower tells.
#[derive(Debug)]
pub(super) enum Message {
    /// An object came, changed or went.
    Change(Change),
    /// All objects of a kind were told.
    Synced(Kind),
}

/// Whoever listens has gone; ends the follower.
#[derive(Debug)]
pub(super) struct Closed;

/// What followers share.
#[derive(Clone)]
pub(super) struct Context {
    pub client: Client,
    pub settings: FollowSettings,
    pub strings: Strings,
    pub board: Board,
    pub pods: PodIndex,
    pub output: mpsc::Sender<Message>,
}

/// Namespace and name.
type Name = (Box<str>, Box<str>);

/// From where a watch goes on.
#[derive(Debug)]
struct Position {
    /// The API version that is read.
    version: String,
    resource_version: String,
}

/// What came of an attempt.
enum Outcome {
    /// Go on from here.
    Watch(Position),
    /// The cluster has no such kind.
    Absent,
}

/// Follows one kind.
pub(super) struct Follower {
    context: Context,
    plan: Plan,
    /// The objects that were told and not removed.
    known: HashSet<Name>,
    backoff: Backoff,
}

impl Follower {
    pub fn new(context: Context, kind: Kind) -> Self {
        let FollowSettings {
            first_retry,
            longest_retry,
            ..
        } = context.settings;
        Self {
            plan: Plan::new(kind),
            known: HashSet::new(),
            backoff: Backoff::new(first_retry, longest_retry),
            context,
        }
    }

    /// Follows the kind until nobody listens.
    pub async fn run<S: Shape>(mut self) {
        let mut position = None;
        loop {
            let attempt = match position.take() {
                None => self.list::<S>().await,
                Some(at) => self.watch::<S>(at).await,
            };
            position = match attempt {
                Ok(Outcome::Watch(at)) => Some(at),
                Ok(Outcome::Absent) => {
                    sleep(self.context.settings.absent_retry).await;
                    None
                }
                Err(Stop::Failed(failure, at)) => self.recover(failure, at).await,
                Err(Stop::Closed) => return,
            };
        }
    }

    /// Reports a failure and waits; returns from where to go on.
    async fn recover(&mut self, failure: Failure, at: Option<Position>) -> Option<Position> {
        let kind = self.plan.kind;
        let at = at.filter(|_| failure.remedy == Remedy::Resume);
        let wait = self.backoff.wait(rand::random()).max(failure.retry_after);
        if failure.is_expiry() {
            tracing::debug!("{}: {failure}", kind.plural());
        } else {
            self.context.board.failed(kind, &failure.to_string());
            tracing::warn!("{}: {failure}; trying again in {wait:?}", kind.plural());
        }
        sleep(wait).await;
        at
    }

    async fn list<S: Shape>(&mut self) -> Result<Outcome, Stop> {
        let found = timed(discovery::version(&self.context.client, &self.plan)).await?;
        let Some(version) = found else {
            self.settle(HashSet::new(), WatchState::Absent).await?;
            return Ok(Outcome::Absent);
        };
        let paged = self.pages::<S>(&version, Some(self.context.settings.page));
        let (seen, resource_version) = match paged.await {
            // The pages grew too old on the way; one large answer cannot.
            Err(Stop::Failed(failure, _)) if failure.is_expiry() => {
                self.pages::<S>(&version, None).await?
            }
            other => other?,
        };
        self.settle(seen, WatchState::Synced).await?;
        Ok(Outcome::Watch(Position {
            version,
            resource_version,
        }))
    }

    /// Tells all objects; returns their names and the version of the list.
    async fn pages<S: Shape>(
        &mut self,
        version: &str,
        limit: Option<u32>,
    ) -> Result<(HashSet<Name>, String), Stop> {
        let mut seen = HashSet::new();
        let mut token = None;
        loop {
            let request = self.plan.list(version, limit, token);
            let request = request.map_err(Failure::request)?;
            let page: Page<S> = timed(self.context.client.request(request)).await?;
            for object in page.items.unwrap_or_default() {
                seen.extend(self.applied(object).await?);
            }
            token = page.metadata.continue_.filter(|it| !it.is_empty());
            if token.is_none() {
                let resource_version = page.metadata.resource_version.unwrap_or_default();
                return Ok((seen, resource_version));
            }
        }
    }

    /// Takes a complete list: what it lacks is gone.
    async fn settle(&mut self, seen: HashSet<Name>, state: WatchState) -> Result<(), Closed> {
        let gone: Vec<Name> = self.known.difference(&seen).cloned().collect();
        for name in gone {
            self.removed(&name).await?;
        }
        self.known = seen;
        let kind = self.plan.kind;
        if kind == Kind::Pod {
            self.context.pods.complete();
        }
        self.context.board.well(kind, state, self.known.len());
        self.tell(Message::Synced(kind)).await
    }

    /// Tells changes until the watch ends or fails.
    async fn watch<S: Shape>(&mut self, mut at: Position) -> Result<Outcome, Stop> {
        let begun = Instant::now();
        let mut events = 0usize;
        let outcome = self.changes::<S>(&mut at, &mut events).await;
        let was_healthy = events > 0 || begun.elapsed() >= HEALTHY_WATCH;
        if was_healthy {
            self.backoff.reset();
        }
        match outcome {
            Ok(()) if was_healthy => Ok(Outcome::Watch(at)),
            Ok(()) => Err(Stop::Failed(Failure::short_watch(), Some(at))),
            Err(Stop::Failed(failure, _)) => Err(Stop::Failed(failure, Some(at))),
            Err(Stop::Closed) => Err(Stop::Closed),
        }
    }

    async fn changes<S: Shape>(
        &mut self,
        at: &mut Position,
        events: &mut usize,
    ) -> Result<(), Stop> {
        let seconds = rand::random_range(WATCH_SECONDS);
        let request = self.plan.watch(&at.version, &at.resource_version, seconds);
        let request = request.map_err(Failure::request)?;
        let client = self.context.client.clone();
        let stream = timed(client.request_events::<Shaped<S>>(request)).await;
        let mut stream = pin!(stream.map_err(Failure::at_start)?);
        self.report_synced();
        loop {
            let idle = self.context.settings.idle;
            let Ok(next) = timeout(idle, stream.next()).await else {
                return Ok(());
            };
            let event = match next {
                None => return Ok(()),
                Some(event) => event.map_err(Failure::from)?,
            };
            self.changed(event, at).await?;
            *events += 1;
            self.report_synced();
        }
    }

    async fn changed<S: Shape>(
        &mut self,
        event: WatchEvent<Shaped<S>>,
        at: &mut Position,
    ) -> Result<(), Stop> {
        let version = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = version_of(&object.value);
                let name = self.applied(object).await?;
                self.known.extend(name);
                version
            }
            WatchEvent::Deleted(object) => {
                if let Some(name) = name_of(&object.value) {
                    self.known.remove(&name);
                    self.removed(&name).await?;
                }
                version_of(&object.value)
            }
            WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(Failure::status(&status).into()),
        };
        if let Some(version) = version.filter(|it| !it.is_empty()) {
            at.resource_version = version;
        }
        Ok(())
    }

    fn report_synced(&self) {
        let board = &self.context.board;
        board.well(self.plan.kind, WatchState::Synced, self.known.len());
    }

    /// Tells a state of an object; returns its name.
    async fn applied<S: Shape>(&mut self, object: Shaped<S>) -> Result<Option<Name>, Closed> {
        let Some(name) = name_of(&object.value) else {
            tracing::warn!(
                "an object of {} without a name is ignored",
                self.plan.kind.plural()
            );
            return Ok(None);
        };
        let Context { pods, strings, .. } = &self.context;
        if self.plan.kind == Kind::Pod {
            pods.apply(&object.value, strings);
        }
        let decoded = decode_json(self.plan.kind, &object.value, strings);
        self.known.insert(name.clone());
        self.tell(Message::Change(Change::Applied(decoded))).await?;
        Ok(Some(name))
    }

    async fn removed(&self, (namespace, name): &Name) -> Result<(), Closed> {
        let Context { pods, strings, .. } = &self.context;
        if self.plan.kind == Kind::Pod {
            pods.remove(namespace, name);
        }
        let key = Key::new(self.plan.kind, strings.get(namespace), strings.get(name));
        self.tell(Message::Change(Change::Removed(key))).await
    }

    async fn tell(&self, message: Message) -> Result<(), Closed> {
        self.context.output.send(message).await.map_err(|_| Closed)
    }
}

/// Why an attempt ended early.
enum Stop {
    /// It failed; a watch can go on from the position, as far as there is one.
    Failed(Failure, Option<Position>),
    /// Nobody listens.
    Closed,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure, None)
    }
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

async fn timed<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::silence()),
    }
}

fn name_of(object: &Value) -> Option<Name> {
    let metadata = object.get("metadata")?;
    let text = |field: &str| metadata.get(field).and_then(Value::as_str);
    let name = text("name").filter(|name| !name.is_empty())?;
    Some((text("namespace").unwrap_or_default().into(), name.into()))
}

fn version_of(object: &Value) -> Option<String> {
    let version = object.get("metadata")?.get("resourceVersion")?.as_str()?;
    Some(version.to_owned())
}

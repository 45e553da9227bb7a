//! Election of the one replica that writes, by a `coordination.k8s.io` Lease.
use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

pub mod election;
#[cfg(test)]
mod tests;

pub use election::Timing;
use election::{Election, Record, Step};

/// Longest wait for an answer of the API server; a slower one counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Duration that a released lease names, so that a candidate that misses the release waits no longer.
const RELEASED_SECONDS: i32 = 1;

/// Which Lease is fought for, and by whom.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// A name that no other candidate has, such as the pod's.
    pub identity: String,
    /// The times.
    pub timing: Timing,
}

/// Whether this replica leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It does: it alone may write.
    Leader,
    /// It does not.
    Follower {
        /// Who does, as far as known.
        holder: Option<String>,
    },
}

impl Leadership {
    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        *self == Self::Leader
    }
}

/// A candidacy; ends without releasing the Lease when dropped.
#[derive(Debug)]
pub struct Candidate {
    leadership: watch::Receiver<Leadership>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Candidate {
    /// Begins to seek the Lease.
    pub fn start(client: Client, settings: LeaseSettings) -> Self {
        let (sender, leadership) = watch::channel(Leadership::Follower { holder: None });
        let (stop, stopped) = oneshot::channel();
        let run = Run {
            api: Api::namespaced(client, &settings.namespace),
            election: Election::new(settings.identity.clone(), settings.timing),
            settings,
            leadership: sender,
        };
        Self {
            leadership,
            stop: Some(stop),
            task: tokio::spawn(run.until(stopped)),
        }
    }

    /// Whether this replica leads, and every change of that. A leader whose API server does not answer stops
    /// leading by itself.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Stops leading and clears the Lease, so that another takes over at once. Stop what leading allows first.
    pub async fn release(mut self) {
        if let Some(stop) = self.stop.take() {
            // The task ends early only when it panicked, and then there is nothing to release.
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Run {
    api: Api<Lease>,
    settings: LeaseSettings,
    election: Election,
    leadership: watch::Sender<Leadership>,
}

impl Run {
    async fn until(mut self, stopped: oneshot::Receiver<()>) {
        tokio::select! {
            () = self.seek() => {}
            _ = stopped => {}
        }
        self.give_up().await;
    }

    async fn seek(&mut self) {
        loop {
            let pause = self.attempt().await;
            self.publish();
            self.rest(pause).await;
        }
    }

    /// Waits, and stops leading in time when no renewal came through.
    async fn rest(&mut self, pause: Duration) {
        let wake = Instant::now() + pause;
        match self.election.leads_until() {
            Some(end) if end < wake => {
                sleep(end.saturating_duration_since(Instant::now())).await;
                self.publish();
                sleep(wake.saturating_duration_since(Instant::now())).await;
            }
            _ => sleep(pause).await,
        }
    }

    fn publish(&self) {
        let now = if self.election.is_leader(Instant::now()) {
            Leadership::Leader
        } else {
            let holder = self.election.holder().map(str::to_owned);
            Leadership::Follower { holder }
        };
        self.leadership.send_if_modified(|before| {
            let differs = *before != now;
            if before.is_leader() != now.is_leader() {
                tracing::info!(lease = self.settings.name, leadership = ?now, "leadership changed");
            }
            *before = now;
            differs
        });
    }

    /// Reads the Lease and does what the rules say; returns how long to wait.
    async fn attempt(&mut self) -> Duration {
        let begun = Instant::now();
        let outcome = timeout(self.request_timeout(begun), self.read_and_write(begun)).await;
        let step = match outcome {
            Ok(Ok(step)) => step,
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_) => self.failed("the API server does not answer"),
        };
        match step {
            Step::Wait(pause) => pause,
            Step::Create | Step::Write { .. } => self.settings.timing.retry,
        }
    }

    /// An attempt never outlasts the leadership that it is to renew.
    fn request_timeout(&self, now: Instant) -> Duration {
        match self.election.leads_until() {
            Some(end) if end > now => REQUEST_TIMEOUT.min(end - now),
            _ => REQUEST_TIMEOUT,
        }
    }

    fn failed(&mut self, reason: &str) -> Step {
        let LeaseSettings {
            namespace, name, ..
        } = &self.settings;
        tracing::warn!(
            "cannot renew the lease {namespace}/{name}: {reason}; \
             check that the API server is reachable and that get, create and update of leases is allowed"
        );
        self.election.failed(Instant::now())
    }

    async fn read_and_write(&mut self, begun: Instant) -> kube::Result<Step> {
        let found = self.api.get_opt(&self.settings.name).await?;
        let step = self
            .election
            .observe(Instant::now(), found.as_ref().map(record));
        let post = PostParams::default();
        let written = match &step {
            Step::Wait(_) => return Ok(step),
            Step::Create => {
                let lease = self.lease(None, 0, true);
                self.api.create(&post, &lease).await
            }
            Step::Write {
                version,
                transitions,
                acquires,
            } => {
                let mut lease = self.lease(Some(version), *transitions, *acquires);
                if let (Some(spec), Some(old)) = (&mut lease.spec, found.and_then(|it| it.spec)) {
                    spec.acquire_time = spec.acquire_time.take().or(old.acquire_time);
                }
                self.api.replace(&self.settings.name, &post, &lease).await
            }
        };
        match written {
            Ok(lease) => Ok(self.election.written(begun, record(&lease))),
            // Somebody else was first; the next attempt sees who.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Ok(Step::Wait(self.settings.timing.retry))
            }
            Err(error) => Err(error),
        }
    }

    fn lease(&self, version: Option<&str>, transitions: i32, acquires: bool) -> Lease {
        let now = MicroTime(Timestamp::now());
        let seconds = self.settings.timing.lease.as_secs();
        Lease {
            metadata: self.metadata(version),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.settings.identity.clone()),
                lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
                lease_transitions: Some(transitions),
                acquire_time: acquires.then(|| now.clone()),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    fn metadata(&self, version: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.settings.name.clone()),
            namespace: Some(self.settings.namespace.clone()),
            resource_version: version.map(str::to_owned),
            ..ObjectMeta::default()
        }
    }

    /// Stops leading, here first and then for the others.
    async fn give_up(mut self) {
        let held = self.election.release(Instant::now());
        self.publish();
        let Some((version, transitions)) = held else {
            return;
        };
        let now = MicroTime(Timestamp::now());
        let lease = Lease {
            metadata: self.metadata(Some(&version)),
            spec: Some(LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(RELEASED_SECONDS),
                lease_transitions: Some(transitions),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        let post = PostParams::default();
        let cleared = self.api.replace(&self.settings.name, &post, &lease);
        match timeout(REQUEST_TIMEOUT, cleared).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!("the lease was not released: {error}; it expires"),
            Err(_) => tracing::warn!("the lease was not released in time; it expires"),
        }
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|it| it.lease_duration_seconds).unwrap_or(0);
    Record {
        holder: spec
            .and_then(|it| it.holder_identity.clone())
            .unwrap_or_default(),
        lease: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        transitions: spec.and_then(|it| it.lease_transitions).unwrap_or(0),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

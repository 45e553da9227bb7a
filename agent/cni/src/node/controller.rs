//! The controller: takes changes in, and works on the pods that they concern.
use std::{
    collections::BTreeSet,
    io,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    Stream, StreamExt as _,
    stream::{FusedStream as _, FuturesUnordered},
};
use tokio::{sync::Notify, task::spawn_blocking, time::sleep_until};

use super::{
    Cluster, ClusterError, EnrollError, Enroller, Held, Namespaces, PodKey, Release, Target,
    agenda::{Agenda, Outcome},
    book::{Book, Step, Wanted},
    turns::Turns,
    watch::Change,
};
use crate::{
    discovery::{DiscoveryError, Found},
    membership::Rules,
    netns::NetnsId,
};

/// Between the word that a pod is not captured any more and its release: the time for its peers to hear of it.
const PROPAGATION: Duration = Duration::from_secs(2);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error("a search through processes broke off: {0}; this is a bug, see the log before")]
    Search(#[from] tokio::task::JoinError),
}

/// The enrollment controller of a node. Cheap to clone.
pub struct Controller<E, C, N>(Arc<Shared<E, C, N>>);

struct Shared<E, C, N> {
    enroller: E,
    cluster: C,
    namespaces: Arc<N>,
    book: Mutex<Book>,
    agenda: Mutex<Agenda>,
    turns: Turns<PodKey>,
    wake: Notify,
}

impl<E, C, N> Clone for Controller<E, C, N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Enroller, C: Cluster, N: Namespaces> Controller<E, C, N> {
    /// A controller that has heard of nothing yet. Start it once the enroller has taken over what an earlier
    /// agent left.
    pub fn new(enroller: E, cluster: C, namespaces: impl Into<Arc<N>>, rules: Rules) -> Self {
        Self(Arc::new(Shared {
            enroller,
            cluster,
            namespaces: namespaces.into(),
            book: Mutex::new(Book::new(rules)),
            agenda: Mutex::default(),
            turns: Turns::default(),
            wake: Notify::new(),
        }))
    }

    /// Follows `changes`, such as [`Kubernetes::changes`](super::Kubernetes::changes), until they end. Nothing
    /// is released before both pods and namespaces have been listed.
    pub async fn run(&self, changes: impl Stream<Item = Change> + Send) {
        let mut changes = pin!(changes);
        let mut work = FuturesUnordered::new();
        loop {
            let ready = self.agenda().take(Instant::now());
            work.extend(ready.into_iter().map(|key| self.work_on(key)));
            let next = self.agenda().next();
            tokio::select! {
                change = changes.next() => match change {
                    Some(change) => self.apply(change),
                    None => return,
                },
                Some((key, outcome)) = work.next(), if !work.is_terminated() => {
                    self.agenda().finish(key, outcome, Instant::now());
                }
                () = self.0.wake.notified() => {}
                () = until(next) => {}
            }
        }
    }

    /// Looks at a pod again, for example since its namespace has vanished.
    pub fn look_at(&self, pod: PodKey) {
        self.agenda().touch(pod, Instant::now());
        self.0.wake.notify_one();
    }

    pub(super) fn apply(&self, change: Change) {
        let mut concerned = match change {
            Change::Pods(pods) => self.book().list_pods(pods),
            Change::Pod(key, facts) => {
                self.book().put_pod(key.clone(), *facts);
                BTreeSet::from([key])
            }
            Change::PodGone(key, uid) => {
                self.book().remove_pod(&key, &uid);
                BTreeSet::from([key])
            }
            Change::Namespaces(modes) => {
                let held = self.0.enroller.enrolled().into_iter().map(|held| held.pod);
                let mut concerned: BTreeSet<PodKey> = held.collect();
                concerned.append(&mut self.book().list_namespaces(modes));
                concerned
            }
            Change::Namespace(name, mode) => self.book().put_namespace(&name, mode),
        };
        let now = Instant::now();
        let mut agenda = self.agenda();
        while let Some(key) = concerned.pop_first() {
            agenda.touch(key, now);
        }
    }

    async fn work_on(&self, key: PodKey) -> (PodKey, Outcome) {
        let turn = self.0.turns.take(&key).await;
        let outcome = self.advance(&key).await.unwrap_or_else(|error| {
            tracing::warn!(%error, pod = %key, "the pod's enrollment is not as it should be; trying again");
            Outcome::Failed
        });
        drop(turn);
        (key, outcome)
    }

    /// Takes one step; the caller holds the pod's turn.
    pub(super) async fn advance(&self, key: &PodKey) -> Result<Outcome, StepError> {
        match self.step(key) {
            Step::Rest => Ok(Outcome::Settled),
            Step::Enroll(wanted) => {
                self.take_in(key, wanted).await?;
                Ok(Outcome::Again)
            }
            Step::Mark { uid } => {
                self.mark(key, &uid, true).await?;
                Ok(Outcome::Settled)
            }
            Step::Release(_) | Step::Unmark { .. } => self.take_out(key).await,
        }
    }

    /// What takes a pod out of the mesh is done on the API server's own word alone.
    async fn take_out(&self, key: &PodKey) -> Result<Outcome, StepError> {
        let view = self.0.cluster.look(key).await?;
        self.book().learn(key, view);
        match self.step(key) {
            Step::Release(why) => {
                self.let_go(key, why).await?;
                Ok(Outcome::Again)
            }
            Step::Unmark { uid } => {
                self.mark(key, &uid, false).await?;
                let captured = self.held(key).is_some();
                Ok(if captured {
                    Outcome::Pause(PROPAGATION)
                } else {
                    Outcome::Settled
                })
            }
            // The watch was late; it will tell the same.
            Step::Rest | Step::Enroll(_) | Step::Mark { .. } => Ok(Outcome::Again),
        }
    }

    async fn mark(&self, key: &PodKey, uid: &str, marked: bool) -> Result<(), ClusterError> {
        if self.0.cluster.mark(key, uid, marked).await? {
            self.book().set_marked(key, uid, marked);
        }
        Ok(())
    }

    async fn take_in(&self, key: &PodKey, wanted: Wanted) -> Result<(), StepError> {
        let Wanted {
            uid,
            kubelet_uid,
            service_account,
            addresses,
        } = wanted;
        let searched = addresses.clone();
        let found = self
            .search(move |namespaces| namespaces.of_pod(&kubelet_uid, &searched))
            .await?;
        self.enroll(key, uid, service_account, addresses, found)
            .await
    }

    /// Captures a pod in the namespace that was found; what else is captured under its name is let go before.
    pub(super) async fn enroll(
        &self,
        key: &PodKey,
        uid: String,
        service_account: String,
        addresses: Vec<std::net::IpAddr>,
        found: Found,
    ) -> Result<(), StepError> {
        let Found { netns, id, path } = found;
        let other = |held: &Held| held.netns != id || held.service_account != service_account;
        if self.held(key).is_some_and(|held| other(&held)) {
            self.let_go(key, Release::Ended).await?;
        }
        let target = Target {
            pod: key.clone(),
            uid: uid.clone(),
            service_account,
            addresses,
            netns,
            netns_id: id,
            path,
        };
        self.0.enroller.enroll(target).await?;
        self.book().own(key, id, &uid);
        Ok(())
    }

    /// Releases what is captured under a name.
    pub(super) async fn let_go(&self, key: &PodKey, why: Release) -> Result<(), EnrollError> {
        self.0.enroller.release(key, why).await?;
        self.book().disown(key);
        Ok(())
    }

    /// Searches for a namespace where it delays nobody.
    pub(super) async fn search(
        &self,
        search: impl FnOnce(&N) -> Result<Found, DiscoveryError> + Send + 'static,
    ) -> Result<Found, StepError> {
        let namespaces = Arc::clone(&self.0.namespaces);
        Ok(spawn_blocking(move || search(&namespaces)).await??)
    }

    /// Which namespace is at a path.
    pub(super) fn identify_at(&self, path: &Path) -> io::Result<NetnsId> {
        self.0.namespaces.identify(path)
    }

    /// What is captured under a name.
    pub(super) fn held(&self, key: &PodKey) -> Option<Held> {
        let mut enrolled = self.0.enroller.enrolled().into_iter();
        enrolled.find(|held| held.pod == *key)
    }

    pub(super) fn cluster(&self) -> &C {
        &self.0.cluster
    }

    pub(super) fn turns(&self) -> &Turns<PodKey> {
        &self.0.turns
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, key: &PodKey) -> Step {
        let held = self.held(key);
        self.book().step(key, held.as_ref())
    }

    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.0.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

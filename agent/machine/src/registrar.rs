//! Registers machines: checks what they claim, writes their entries, and does what the ledger says is due.
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures::future::BoxFuture;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::{interval, sleep_until},
};
use undermesh_identity::{Caller, Clock};

use crate::{
    address::{self, AddressError},
    cluster::{Cluster, ClusterError},
    entry::{self, Entry, Key},
    group::WorkloadGroup,
    ledger::{ConnectionId, Job, Ledger, Outcome, Task, Times},
    monitor::Verdict,
};

/// Machines that are registered at once; the others wait.
const MAX_REGISTERING: usize = 32;
/// Entries that are written at once after that.
const MAX_WRITING: usize = 8;
/// How often an entry is written that somebody else changes at the same time.
const ATTEMPTS: usize = 4;
/// How often the leader looks for entries that were left behind.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How far the clocks of two replicas may differ.
const CLOCK_SKEW: Duration = Duration::from_secs(30);
/// Refreshments after which an entry counts as left behind by a replica that died.
const MISSED_REFRESHMENTS: u32 = 3;

/// What a machine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its group, in the namespace that the caller has proved.
    pub group: String,
    /// Its address.
    pub address: IpAddr,
    /// The network that its address is on; empty is the default one.
    pub network: String,
}

/// Why a machine is not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No such group.
    #[error("there is no WorkloadGroup {0}; create it, or join with a token of another group")]
    NoGroup(Key),
    /// The group is another account's.
    #[error(
        "the WorkloadGroup {group} is for service account {wanted}, the caller is {caller}; join with a token of the group"
    )]
    Account {
        /// The group.
        group: Key,
        /// Its account.
        wanted: String,
        /// The caller's.
        caller: String,
    },
    /// The network is another than the group's.
    #[error(
        "the WorkloadGroup {group} is on network '{wanted}', the machine says '{claimed}'; join with a new token of the group"
    )]
    Network {
        /// The group.
        group: Key,
        /// Its network.
        wanted: String,
        /// The machine's.
        claimed: String,
    },
    /// The address cannot be a machine's.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The address is somebody else's.
    #[error("{address} is the address of {holder}; name the machine's own with --address")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: String,
    },
    /// Somebody wrote an entry of that name.
    #[error(
        "there is a WorkloadEntry {0} that was not made by registration; remove it, or give the machine another address"
    )]
    Foreign(Key),
    /// It is not known yet who has which address.
    #[error("the cluster has not been listed yet")]
    NotListed,
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl RegisterError {
    /// Whether it may go better by itself.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::NotListed => true,
            Self::Cluster(error) => !matches!(error, ClusterError::Group(_)),
            _ => false,
        }
    }
}

/// What is known of who has which address.
pub trait Holders: Send + Sync {
    /// Names of the workloads and services with an address on a network; `None` before the cluster was listed. The
    /// workload of a WorkloadEntry is named by its uid in the mesh.
    fn holders(&self, network: &str, address: IpAddr) -> Option<Vec<String>>;
}

/// What a registrar depends on.
pub struct Settings {
    /// This replica's name, unique among them.
    pub replica: String,
    /// Name of the cluster, the first part of the uids of workloads.
    pub cluster: String,
    /// The network of machines whose group names none.
    pub network: String,
    /// How patient it is.
    pub times: Times,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

/// Registers machines, see [`Registrar::run`] and [`Registrar::sweep`].
pub struct Registrar {
    cluster: Cluster,
    holders: Arc<dyn Holders>,
    settings: Settings,
    places: Semaphore,
    state: Mutex<State>,
    news: Notify,
}

struct State {
    ledger: Ledger,
    /// Of the connections that live, what ends them.
    ends: HashMap<ConnectionId, watch::Sender<bool>>,
}

impl Registrar {
    /// Nobody is connected yet.
    pub fn new(cluster: Cluster, holders: Arc<dyn Holders>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            holders,
            places: Semaphore::new(MAX_REGISTERING),
            state: Mutex::new(State {
                ledger: Ledger::new(settings.times),
                ends: HashMap::new(),
            }),
            news: Notify::new(),
            settings,
        })
    }

    /// Registers a machine that has connected.
    ///
    /// # Errors
    /// When its claim does not hold, or the entry cannot be written.
    pub async fn register(
        self: &Arc<Self>,
        caller: &Caller,
        claim: &Claim,
    ) -> Result<Attendance, RegisterError> {
        let _place = self.places.acquire().await;
        let group = self.admitted(caller, claim).await?;
        let name = address::entry_name(&group.name, claim.address, &group.network)?;
        let key = Key {
            namespace: group.namespace.clone(),
            name,
        };
        self.check_address(&key, &group, claim.address)?;
        let attendance = self.attend(key);
        // If this fails, or is given up, dropping the attendance undoes what was begun.
        self.write(&attendance.key, &group, claim.address).await?;
        tracing::info!(entry = %attendance.key, "a machine is registered");
        Ok(attendance)
    }

    /// The group that the caller may register with as it claims.
    async fn admitted(
        &self,
        caller: &Caller,
        claim: &Claim,
    ) -> Result<WorkloadGroup, RegisterError> {
        address::check(claim.address)?;
        let named = Key {
            namespace: caller.namespace.clone(),
            name: claim.group.clone(),
        };
        let found = self.cluster.group(&caller.namespace, &claim.group).await?;
        let group = found.ok_or_else(|| RegisterError::NoGroup(named.clone()))?;
        if group.service_account != caller.service_account {
            return Err(RegisterError::Account {
                group: named,
                wanted: group.service_account,
                caller: caller.service_account.clone(),
            });
        }
        if group.network != claim.network {
            return Err(RegisterError::Network {
                group: named,
                wanted: group.network,
                claimed: claim.network.clone(),
            });
        }
        Ok(group)
    }

    fn check_address(
        &self,
        key: &Key,
        group: &WorkloadGroup,
        address: IpAddr,
    ) -> Result<(), RegisterError> {
        let network = match &*group.network {
            "" => &self.settings.network,
            network => network,
        };
        let own = format!(
            "{}/networking.istio.io/WorkloadEntry/{key}",
            self.settings.cluster
        );
        let holders = self.holders.holders(network, address);
        let holders = holders.ok_or(RegisterError::NotListed)?;
        match holders.into_iter().find(|holder| *holder != own) {
            Some(holder) => Err(RegisterError::Taken { address, holder }),
            None => Ok(()),
        }
    }

    /// Writes that a machine is connected here, into the entry that it has or a new one.
    async fn write(
        &self,
        key: &Key,
        group: &WorkloadGroup,
        address: IpAddr,
    ) -> Result<(), RegisterError> {
        let mut attempt = 1;
        loop {
            match self.write_once(key, group, address).await {
                Err(RegisterError::Cluster(error)) if error.is_conflict() && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                written => return written,
            }
        }
    }

    async fn write_once(
        &self,
        key: &Key,
        group: &WorkloadGroup,
        address: IpAddr,
    ) -> Result<(), RegisterError> {
        let (replica, now) = (&self.settings.replica, self.settings.clock.now());
        let Some(found) = self.cluster.entry(key).await? else {
            // Nodes are asked once in the life of an entry, because all of them have to be.
            if let Some(node) = self.cluster.node_at(address).await? {
                let holder = format!("node {node}");
                return Err(RegisterError::Taken { address, holder });
            }
            let made = entry::made(group, &key.name, address, replica, now);
            return Ok(self.cluster.create(key, made).await?);
        };
        if found.group.as_deref() != Some(&group.name) {
            return Err(RegisterError::Foreign(key.clone()));
        }
        let patch = entry::connected(&found, replica, now);
        Ok(self.cluster.change(key, patch).await?)
    }

    fn attend(self: &Arc<Self>, key: Key) -> Attendance {
        let (end, ended) = watch::channel(false);
        let mut state = self.lock();
        let connection = state.ledger.connect(key.clone(), Instant::now());
        state.ends.insert(connection, end);
        Attendance {
            registrar: Arc::clone(self),
            key,
            connection,
            ended,
        }
    }

    /// Tells that an entry may be gone; its machine's connection is ended if it is.
    pub fn suspect(&self, key: &Key) {
        self.lock().ledger.suspect(key, Instant::now());
        self.news.notify_one();
    }

    /// Does what is due about the machines of this replica, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut jobs = JoinSet::new();
        loop {
            while jobs.len() < MAX_WRITING
                && let Some(job) = self.begin()
            {
                let registrar = Arc::clone(&self);
                jobs.spawn(async move { registrar.perform(job).await });
            }
            let due = self.lock().ledger.due(Instant::now());
            let has_room = jobs.len() < MAX_WRITING;
            tokio::select! {
                () = self.news.notified() => {}
                Some(_) = jobs.join_next() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() && has_room => {}
            }
        }
    }

    fn begin(&self) -> Option<Job> {
        self.lock().ledger.begin(Instant::now())
    }

    async fn perform(&self, job: Job) {
        let outcome = match self.attempt(&job).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(entry = %job.key, %error, "a machine's entry is not up to date; trying again");
                Outcome::Failed
            }
        };
        let mut state = self.lock();
        let ended = state.ledger.finish(&job, outcome, Instant::now());
        if let Some(end) = ended.and_then(|ended| state.ends.remove(&ended)) {
            tracing::info!(entry = %job.key, "a machine's registration is gone; its connection is ended");
            end.send_replace(true);
        }
    }

    async fn attempt(&self, job: &Job) -> Result<Outcome, ClusterError> {
        let (key, now) = (&job.key, self.settings.clock.now());
        let found = self.cluster.entry(key).await?;
        let Some(found) = found.filter(|found| self.has(found)) else {
            return Ok(Outcome::Lost);
        };
        let written = match &job.task {
            Task::Refresh => {
                let patch = entry::connected(&found, &self.settings.replica, now);
                self.cluster.change(key, patch).await
            }
            Task::Mark => {
                let patch = entry::disconnected(&found, now);
                self.cluster.change(key, patch).await
            }
            Task::Health(verdict) => match entry::health(&found, verdict, now) {
                Some(patch) => self.cluster.change_status(key, patch).await,
                None => Ok(()),
            },
            Task::Remove if found.disconnected_at.is_none() => return Ok(Outcome::Lost),
            Task::Remove => {
                let deleted = self.cluster.delete(&found).await;
                deleted.inspect(|()| tracing::info!(entry = %key, "a machine that left is removed"))
            }
        };
        match written {
            // Somebody else has changed it at the same time; another look tells what.
            Err(error) if error.is_conflict() => Ok(Outcome::Failed),
            written => written.map(|()| Outcome::Done),
        }
    }

    /// Whether an entry is of a machine that is connected here, or was last.
    fn has(&self, entry: &Entry) -> bool {
        entry.group.is_some() && entry.controller == self.settings.replica
    }

    /// Removes what replicas left behind that died, while this one leads.
    pub async fn sweep(self: Arc<Self>, mut leads: watch::Receiver<bool>) {
        let mut ticks = interval(SWEEP_INTERVAL);
        loop {
            ticks.tick().await;
            // Without a sender there is nobody left who would lead.
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            if let Err(error) = self.sweep_once().await {
                tracing::warn!(%error, "entries of machines that are gone may stay; trying again");
            }
        }
    }

    async fn sweep_once(&self) -> Result<(), ClusterError> {
        for entry in self.cluster.registered().await? {
            let is_here = self.lock().ledger.is_connected(&entry.key);
            if is_here || !is_left_behind(&entry, self.settings.times, self.settings.clock.now()) {
                continue;
            }
            match self.cluster.delete(&entry).await {
                Ok(()) => {
                    tracing::info!(entry = %entry.key, "a machine that nobody serves is removed")
                }
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an entry should have been removed, or refreshed, long ago.
fn is_left_behind(entry: &Entry, times: Times, now: SystemTime) -> bool {
    let is_over = |since: SystemTime, limit: Duration| {
        now.duration_since(since)
            .is_ok_and(|passed| passed > limit + CLOCK_SKEW)
    };
    match (entry.disconnected_at, entry.connected_at) {
        (Some(since), _) => is_over(since, times.grace),
        (None, Some(since)) => is_over(since, times.refresh * MISSED_REFRESHMENTS),
        (None, None) => true,
    }
}

/// A machine that is connected and registered; dropping it says that it is connected no more.
pub struct Attendance {
    registrar: Arc<Registrar>,
    key: Key,
    connection: ConnectionId,
    ended: watch::Receiver<bool>,
}

impl Attendance {
    /// The name of its entry.
    pub fn name(&self) -> &str {
        &self.key.name
    }

    /// Takes what the machine says of its application.
    pub fn report(&self, verdict: Verdict) {
        let mut state = self.registrar.lock();
        state.ledger.report(&self.key, self.connection, verdict);
        drop(state);
        self.registrar.news.notify_one();
    }

    /// Waits until the registration is gone without the machine's doing.
    pub fn withdrawn(&self) -> BoxFuture<'static, ()> {
        let mut ended = self.ended.clone();
        Box::pin(async move {
            // The sender is kept as long as this lives; one that is gone has said its last word.
            let _ = ended.wait_for(|ended| *ended).await;
        })
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut state = self.registrar.lock();
        state.ends.remove(&self.connection);
        state
            .ledger
            .disconnect(&self.key, self.connection, Instant::now());
        drop(state);
        self.registrar.news.notify_one();
    }
}

#[cfg(test)]
mod tests;

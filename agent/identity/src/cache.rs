//! The certificates of this node's identities: one per identity, shared by its pods, made ahead of need, rotated at
//! half life, and never used after they expire.
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rand::rngs::StdRng;
use tokio::{runtime::Handle, sync::watch, task::AbortHandle, time::timeout};
use undermesh_model::Identity;

use crate::{
    clock::{Clock, SystemClock},
    gate::{Gate, Urgency},
    issuer::{CertificateRequest, IssueError, Issuer},
    key::{KeyError, WorkloadKey},
    report::{CertificateReport, CertificateState},
    schedule::Schedule,
    tls::{TlsError, WorkloadCertificate},
};

/// Requests to the issuer that may run at once.
pub const MAX_PARALLEL_REQUESTS: usize = 8;
/// Longest time that one request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The lifetime that is asked for unless configured otherwise, as in Istio (`SECRET_TTL`).
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What a cache depends on.
#[derive(Debug)]
pub struct CacheOptions {
    /// The lifetime to ask for.
    pub lifetime: Duration,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Spreads rotations and retries.
    pub rng: StdRng,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            lifetime: DEFAULT_LIFETIME,
            clock: Arc::new(SystemClock),
            rng: rand::make_rng(),
        }
    }
}

/// Why there is no certificate to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The first one has not come yet.
    #[error("the certificate of {0} has been asked for and has not come yet")]
    Pending(Identity),
    /// There is none, and the last attempt failed.
    #[error("there is no certificate of {0}: {1}")]
    Failed(Identity, String),
    /// It expired before it could be rotated.
    #[error("the certificate of {0} has expired: {1}")]
    Expired(Identity, String),
}

/// How often issuers were asked, by outcome, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    issued: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    /// Certificates received.
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// Attempts that brought none.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The certificates of all identities in use on this node. Clones share them.
#[derive(Clone)]
pub struct CertificateCache {
    shared: Arc<Shared>,
}

impl CertificateCache {
    /// Asks `issuer` for certificates, in tasks on `runtime`.
    pub fn new(issuer: Arc<dyn Issuer>, options: CacheOptions, runtime: Handle) -> Self {
        let shared = Shared {
            issuer,
            clock: options.clock,
            lifetime: options.lifetime,
            rng: Mutex::new(options.rng),
            runtime,
            gate: Gate::new(MAX_PARALLEL_REQUESTS),
            counters: Counters::default(),
            leases: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Takes part in an identity's certificate; the first to do so has it issued. When the last clone of the last
    /// handle is dropped, the certificate and its key are forgotten.
    pub fn acquire(&self, identity: &Identity) -> CertificateHandle {
        let mut leases = self.shared.leases();
        if let Some(lease) = leases.get(identity).and_then(Weak::upgrade) {
            return CertificateHandle { lease };
        }
        let lease = Arc::new(Lease::start(&self.shared, identity));
        leases.insert(identity.clone(), Arc::downgrade(&lease));
        CertificateHandle { lease }
    }

    /// The certificate of an identity in use, if it has a valid one. Pods keep a [`CertificateHandle`] instead,
    /// which asks no map.
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        let lease = self.shared.leases().get(identity).and_then(Weak::upgrade)?;
        lease.slot.load().ok()
    }

    /// How every identity in use stands, in the order of their names.
    pub fn list(&self) -> Vec<CertificateReport> {
        let leases: Vec<_> = self
            .shared
            .leases()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        let mut reports: Vec<_> = leases.iter().map(|lease| lease.slot.report()).collect();
        reports.sort_by(|one, other| one.identity.cmp(&other.identity));
        reports
    }

    /// How often certificates were issued and not issued.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

/// A pod's part in the certificate of its identity. Clones count as parts of their own.
#[derive(Clone)]
pub struct CertificateHandle {
    lease: Arc<Lease>,
}

impl CertificateHandle {
    /// Whose certificate it is.
    pub fn identity(&self) -> &Identity {
        &self.lease.slot.identity
    }

    /// The certificate to use for a new connection. Takes no lock.
    ///
    /// # Errors
    /// When there is none yet, or it has expired: the connection must be refused.
    pub fn load(&self) -> Result<Arc<WorkloadCertificate>, NotReady> {
        self.lease.slot.load()
    }

    /// Waits until there is a valid certificate. An issuer that is down makes this wait without end: callers bound it.
    pub async fn ready(&self) -> Arc<WorkloadCertificate> {
        let mut generation = self.subscribe();
        loop {
            if let Ok(certificate) = self.load() {
                return certificate;
            }
            // The sender lives in the lease that `self` holds, so that only a change ends the wait.
            if generation.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Counts the certificates of this identity: each change means new keys and perhaps new roots.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.lease.slot.generation.subscribe()
    }
}

impl fmt::Debug for CertificateHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CertificateHandle")
            .field(self.identity())
            .finish()
    }
}

/// Why an attempt to get a certificate failed.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("the issuer did not answer within {} seconds; check that it runs and can be reached", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Unusable(#[from] TlsError),
}

struct Shared {
    issuer: Arc<dyn Issuer>,
    clock: Arc<dyn Clock>,
    lifetime: Duration,
    rng: Mutex<StdRng>,
    runtime: Handle,
    gate: Arc<Gate>,
    counters: Counters,
    leases: Mutex<HashMap<Identity, Weak<Lease>>>,
}

impl Shared {
    fn leases(&self) -> MutexGuard<'_, HashMap<Identity, Weak<Lease>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rng(&self) -> MutexGuard<'_, StdRng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(&self, identity: &Identity) -> Result<WorkloadCertificate, RenewalError> {
        let key = WorkloadKey::generate(identity)?;
        let csr = key.signing_request()?;
        let request = CertificateRequest {
            identity: identity.clone(),
            csr,
            lifetime: self.lifetime,
        };
        let answer = timeout(REQUEST_TIMEOUT, self.issuer.issue(request)).await;
        let issued = answer.map_err(|_| RenewalError::Timeout)??;
        Ok(WorkloadCertificate::new(
            identity.clone(),
            &key,
            issued,
            Arc::clone(&self.clock),
        )?)
    }
}

/// One identity in use: its certificate and the task that renews it.
struct Lease {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    renewal: AbortHandle,
}

impl Lease {
    fn start(shared: &Arc<Shared>, identity: &Identity) -> Self {
        let slot = Arc::new(Slot::new(identity.clone(), Arc::clone(&shared.clock)));
        let renewal = shared
            .runtime
            .spawn(renew(Arc::clone(shared), Arc::clone(&slot)));
        Self {
            shared: Arc::clone(shared),
            slot,
            renewal: renewal.abort_handle(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        let mut leases = self.shared.leases();
        // Between the last drop and this lock, somebody may have started a new lease under the same name.
        let own = leases
            .get(&self.slot.identity)
            .is_some_and(|lease| std::ptr::eq(lease.as_ptr(), self));
        if own {
            leases.remove(&self.slot.identity);
        }
    }
}

/// Where the renewing task puts certificates and handles find them.
struct Slot {
    identity: Identity,
    clock: Arc<dyn Clock>,
    certificate: ArcSwapOption<WorkloadCertificate>,
    generation: watch::Sender<u64>,
    progress: Mutex<Progress>,
}

struct Progress {
    schedule: Schedule,
    last_error: Option<String>,
}

impl Slot {
    fn new(identity: Identity, clock: Arc<dyn Clock>) -> Self {
        let progress = Progress {
            schedule: Schedule::new(clock.now()),
            last_error: None,
        };
        Self {
            identity,
            clock,
            certificate: ArcSwapOption::empty(),
            generation: watch::Sender::new(0),
            progress: Mutex::new(progress),
        }
    }

    fn load(&self) -> Result<Arc<WorkloadCertificate>, NotReady> {
        match self.certificate.load_full() {
            Some(certificate) if self.clock.now() <= certificate.not_after() => Ok(certificate),
            certificate => Err(self.explain(certificate.is_some())),
        }
    }

    fn explain(&self, expired: bool) -> NotReady {
        let identity = self.identity.clone();
        match (self.progress().last_error.clone(), expired) {
            (None, false) => NotReady::Pending(identity),
            (Some(error), false) => NotReady::Failed(identity, error),
            (error, true) => NotReady::Expired(
                identity,
                error.unwrap_or_else(|| "a new one has been asked for".to_owned()),
            ),
        }
    }

    fn succeeded(&self, certificate: WorkloadCertificate, rng: &mut StdRng) {
        let (not_before, not_after) = (certificate.not_before(), certificate.not_after());
        self.certificate.store(Some(Arc::new(certificate)));
        {
            let mut progress = self.progress();
            progress.last_error = None;
            progress
                .schedule
                .succeeded(self.clock.now(), not_before, not_after, rng);
        }
        self.generation.send_modify(|generation| *generation += 1);
    }

    fn failed(&self, error: &RenewalError, rng: &mut StdRng) {
        let mut progress = self.progress();
        progress.last_error = Some(error.to_string());
        progress.schedule.failed(self.clock.now(), rng);
    }

    fn urgency(&self) -> Urgency {
        if self.load().is_ok() {
            Urgency::Rotation
        } else {
            Urgency::FirstUse
        }
    }

    fn wait(&self) -> Duration {
        self.progress().schedule.wait(self.clock.now())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> CertificateReport {
        let certificate = self.certificate.load_full();
        let (renewal, last_error) = {
            let progress = self.progress();
            (progress.schedule.due(), progress.last_error.clone())
        };
        CertificateReport {
            identity: self.identity.clone(),
            state: state(
                certificate.as_deref(),
                last_error.is_some(),
                self.clock.now(),
            ),
            serial: certificate
                .as_ref()
                .map(|certificate| certificate.serial().to_owned()),
            not_before: certificate
                .as_ref()
                .map(|certificate| certificate.not_before()),
            not_after: certificate
                .as_ref()
                .map(|certificate| certificate.not_after()),
            renewal: Some(renewal),
            chain_pem: certificate
                .as_ref()
                .map(|certificate| certificate.chain_pem()),
            roots_pem: certificate
                .as_ref()
                .map(|certificate| certificate.roots_pem()),
            last_error,
        }
    }
}

fn state(
    certificate: Option<&WorkloadCertificate>,
    failing: bool,
    now: SystemTime,
) -> CertificateState {
    match (certificate, failing) {
        (Some(certificate), _) if now > certificate.not_after() => CertificateState::Expired,
        (Some(_), false) => CertificateState::Valid,
        (Some(_), true) => CertificateState::Stale,
        (None, false) => CertificateState::Pending,
        (None, true) => CertificateState::Failed,
    }
}

/// Keeps one identity's certificate fresh until the lease aborts it.
async fn renew(shared: Arc<Shared>, slot: Arc<Slot>) {
    let mut renewals = shared.issuer.renewals();
    loop {
        // What changes from here on is not in the answer that is asked for now.
        if let Some(renewals) = &mut renewals {
            renewals.mark_unchanged();
        }
        let permit = shared.gate.enter(slot.urgency()).await;
        let outcome = shared.request(&slot.identity).await;
        drop(permit);
        match outcome {
            Ok(certificate) => {
                shared.counters.issued.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(identity = %slot.identity, serial = certificate.serial(), "certificate issued");
                slot.succeeded(certificate, &mut shared.rng());
            }
            Err(error) => {
                shared.counters.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(identity = %slot.identity, %error, "no certificate; trying again");
                slot.failed(&error, &mut shared.rng());
            }
        }
        tokio::select! {
            () = nap_until_due(&slot) => {}
            () = called_for(renewals.as_mut()) => {}
        }
    }
}

/// Waits until the issuer calls for new certificates ahead of their time.
async fn called_for(renewals: Option<&mut watch::Receiver<u64>>) {
    if let Some(renewals) = renewals
        && renewals.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn nap_until_due(slot: &Slot) {
    loop {
        let wait = slot.wait();
        if wait.is_zero() {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests;

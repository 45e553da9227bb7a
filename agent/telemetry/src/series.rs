//! The traffic series: one a label set, resolved through a cache and evicted when long unused.
//!
//! They are kept here and written straight as text, not through the registry: a series has 26 labels in six
//! families, which a registry would copy as strings on every scrape.
use std::{
    collections::HashMap,
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use undermesh_model::{Identity, Service, Workload};

use crate::{
    connection::{Opening, Peer, ResponseFlag, Security},
    labels::Labels,
};

/// Most label sets that are counted apart; the rest is counted in one series of `other`.
pub const MAX_SERIES: usize = 8192;
/// Most resolved (source, destination, service) combinations that are remembered.
pub const MAX_RESOLVED: usize = 4 * MAX_SERIES;
/// How long a series stays after its last connection closed.
pub const SERIES_IDLE: Duration = Duration::from_secs(15 * 60);
/// How long a resolved combination stays after it was last asked for: it keeps old workloads in memory.
pub const RESOLVED_IDLE: Duration = Duration::from_secs(60);

const FLAGS: usize = ResponseFlag::ALL.len();

/// The counters of one label set.
#[derive(Debug)]
pub(crate) struct Series {
    labels: Labels,
    opened: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    closed: [AtomicU64; FLAGS],
    failed: [AtomicU64; FLAGS],
    /// Milliseconds since the store's birth at which it was last used.
    used: AtomicU64,
}

impl Series {
    fn new(labels: Labels) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            closed: Default::default(),
            failed: Default::default(),
            used: AtomicU64::new(0),
        }
    }

    /// Counts a connection's start.
    pub(crate) fn add_opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    /// Counts a connection's end.
    pub(crate) fn add_closed(&self, flag: ResponseFlag) {
        self.closed[flag.index()].fetch_add(1, Relaxed);
        self.add_failed(flag);
    }

    /// Counts a failure that Istio has a word for.
    pub(crate) fn add_failed(&self, flag: ResponseFlag) {
        if flag != ResponseFlag::None {
            self.failed[flag.index()].fetch_add(1, Relaxed);
        }
    }

    /// Counts bytes from the client to the destination (`sent`) and back (`received`).
    ///
    /// Istio's metrics see the exchange as the server does on both sides: received is what the client sent.
    pub(crate) fn add_bytes(&self, sent: u64, received: u64) {
        self.received.fetch_add(sent, Relaxed);
        self.sent.fetch_add(received, Relaxed);
    }

    fn touch(&self, millis: u64) {
        self.used.fetch_max(millis, Relaxed);
    }
}

/// What a label set is made from. Objects are compared by address: holding them keeps an address from being
/// used for another object.
#[derive(Clone, Debug)]
struct Parties {
    reporter: &'static str,
    security: Security,
    source: Option<Arc<Workload>>,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    source_identity: Option<Identity>,
    destination_identity: Option<Identity>,
}

impl Parties {
    fn of(opening: &Opening) -> Self {
        let part = |peer: &Peer| (peer.workload.clone(), peer.identity.clone());
        let (source, source_identity) = part(&opening.source);
        let (destination, destination_identity) = part(&opening.destination);
        Self {
            reporter: opening.direction.reporter(),
            security: opening.security,
            source,
            destination,
            service: opening.service.clone(),
            source_identity,
            destination_identity,
        }
    }

    fn key(
        &self,
    ) -> (
        &str,
        Security,
        [*const (); 3],
        Option<&Identity>,
        Option<&Identity>,
    ) {
        let addresses = [
            address(self.source.as_ref()),
            address(self.destination.as_ref()),
            address(self.service.as_ref()),
        ];
        let identities = (
            self.source_identity.as_ref(),
            self.destination_identity.as_ref(),
        );
        (
            self.reporter,
            self.security,
            addresses,
            identities.0,
            identities.1,
        )
    }
}

fn address<T>(object: Option<&Arc<T>>) -> *const () {
    object.map_or(std::ptr::null(), |object| Arc::as_ptr(object).cast())
}

impl PartialEq for Parties {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Parties {}

impl std::hash::Hash for Parties {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

#[derive(Debug, Default)]
struct Maps {
    by_labels: HashMap<Labels, Arc<Series>>,
    resolved: HashMap<Parties, (Arc<Series>, u64)>,
}

/// All traffic series of the node.
#[derive(Debug)]
pub(crate) struct SeriesStore {
    birth: Instant,
    limit: usize,
    other: Arc<Series>,
    overflow: IntCounter,
    maps: Mutex<Maps>,
}

impl SeriesStore {
    /// `overflow` counts the connections that found the store full.
    pub(crate) fn new(limit: usize, overflow: IntCounter, now: Instant) -> Self {
        let other = Arc::new(Series::new(Labels::other()));
        Self {
            birth: now,
            limit,
            other,
            overflow,
            maps: Mutex::default(),
        }
    }

    /// The series of a connection that opens.
    pub(crate) fn resolve(&self, opening: &Opening, now: Instant) -> Arc<Series> {
        let millis = self.millis(now);
        let parties = Parties::of(opening);
        let mut maps = self.lock();
        if let Some((series, asked)) = maps.resolved.get_mut(&parties) {
            *asked = millis;
            series.touch(millis);
            return Arc::clone(series);
        }
        let series = self.find(&mut maps, Labels::of(opening), millis);
        if maps.resolved.len() < MAX_RESOLVED {
            maps.resolved.insert(parties, (Arc::clone(&series), millis));
        }
        series
    }

    /// The series of a connection that failed before anything was known.
    pub(crate) fn unknown(&self, reporter: &'static str, now: Instant) -> Arc<Series> {
        self.find(
            &mut self.lock(),
            Labels::unknown(reporter),
            self.millis(now),
        )
    }

    /// Marks the series as used, so that it stays for [`SERIES_IDLE`] more.
    pub(crate) fn touch(&self, series: &Series, now: Instant) {
        series.touch(self.millis(now));
    }

    /// Forgets resolved combinations and series that were not used for long and have no open connection.
    pub(crate) fn evict(&self, now: Instant) {
        let now = self.millis(now);
        let idle =
            |used: u64, limit: Duration| u128::from(now.saturating_sub(used)) > limit.as_millis();
        let mut maps = self.lock();
        maps.resolved
            .retain(|_, (_, asked)| !idle(*asked, RESOLVED_IDLE));
        maps.by_labels.retain(|_, series| {
            Arc::strong_count(series) > 1 || !idle(series.used.load(Relaxed), SERIES_IDLE)
        });
    }

    /// How many label sets are counted apart.
    pub(crate) fn len(&self) -> usize {
        self.lock().by_labels.len()
    }

    /// Appends all traffic families in the Prometheus text form.
    pub(crate) fn write(&self, out: &mut String) {
        let mut all: Vec<Arc<Series>> = self.lock().by_labels.values().cloned().collect();
        if self.other.opened.load(Relaxed) > 0 {
            all.push(Arc::clone(&self.other));
        }
        if !all.is_empty() {
            write_families(out, &all);
        }
    }

    fn find(&self, maps: &mut Maps, labels: Labels, millis: u64) -> Arc<Series> {
        if let Some(series) = maps.by_labels.get(&labels) {
            series.touch(millis);
            return Arc::clone(series);
        }
        if maps.by_labels.len() >= self.limit {
            self.overflow.inc();
            return Arc::clone(&self.other);
        }
        let series = Arc::new(Series::new(labels.clone()));
        series.touch(millis);
        maps.by_labels.insert(labels, Arc::clone(&series));
        series
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.birth).as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Plain = fn(&Series) -> &AtomicU64;
type Flagged = fn(&Series) -> &[AtomicU64; FLAGS];

const PLAIN: [(&str, &str, Plain); 3] = [
    (
        "istio_tcp_connections_opened_total",
        "TCP connections opened.",
        |s| &s.opened,
    ),
    (
        "istio_tcp_sent_bytes_total",
        "Bytes that servers sent to clients.",
        |s| &s.sent,
    ),
    (
        "istio_tcp_received_bytes_total",
        "Bytes that clients sent to servers.",
        |s| &s.received,
    ),
];
const FLAGGED: [(&str, &str, Flagged); 2] = [
    (
        "istio_tcp_connections_closed_total",
        "TCP connections closed.",
        |s| &s.closed,
    ),
    (
        "istio_tcp_connections_failed_total",
        "TCP connections that failed.",
        |s| &s.failed,
    ),
];

fn write_families(out: &mut String, all: &[Arc<Series>]) {
    for (name, help, value) in PLAIN {
        head(out, name, help);
        for series in all {
            sample(
                out,
                name,
                series,
                ResponseFlag::None,
                value(series).load(Relaxed),
            );
        }
    }
    for (name, help, values) in FLAGGED {
        head(out, name, help);
        for series in all {
            for (flag, value) in ResponseFlag::ALL.into_iter().zip(values(series)) {
                let value = value.load(Relaxed);
                if value > 0 {
                    sample(out, name, series, flag, value);
                }
            }
        }
    }
}

/// Writing to a `String` cannot fail.
fn head(out: &mut String, name: &str, help: &str) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n");
}

fn sample(out: &mut String, name: &str, series: &Series, flag: ResponseFlag, value: u64) {
    out.push_str(name);
    series.labels.write(out, flag.as_str());
    let _ = writeln!(out, " {value}");
}

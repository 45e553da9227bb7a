//! The node's telemetry: every connection is opened and closed here.
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use prometheus::IntGauge;
use tracing::Level;

use crate::{
    access_log::{self, Record},
    connection::{Connection, Direction, Early, Open, Opening, Outcome, ResponseFlag},
    metrics::{Family, Kind, Metrics, MetricsError, Sample},
    output::{Entry, Output},
    series::{MAX_SERIES, SeriesStore},
    table::{ConnectionView, Slot, Table},
};

/// Metrics, access log and table of connections. Clones share them.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    series: Arc<SeriesStore>,
    table: Table,
    output: Output,
}

impl Telemetry {
    /// Telemetry of a node that runs `version` and writes its access log to `output`.
    ///
    /// # Errors
    /// When two metrics share a name.
    pub fn new(output: Output, version: &str) -> Result<Self, MetricsError> {
        let metrics = Metrics::new(version)?;
        add_output(&metrics, &output)?;
        let overflow = metrics.series_overflow.clone();
        let series = Arc::new(SeriesStore::new(MAX_SERIES, overflow, Instant::now()));
        add_series(&metrics, &series)?;
        Ok(Self(Arc::new(Shared {
            metrics,
            series,
            table: Table::default(),
            output,
        })))
    }

    /// Records a connection's start.
    pub fn opened(&self, opening: Opening) -> Connection {
        let now = Instant::now();
        let shared = &self.0;
        let series = shared.series.resolve(&opening, now);
        series.add_opened();
        shared.open_gauge(opening.direction).inc();
        let open = Arc::new(Open::new(opening, series, now));
        let slot = shared.table.insert(Arc::clone(&open));
        if tracing::enabled!(target: access_log::TARGET, Level::DEBUG) {
            shared
                .output
                .push(Entry::Access(Record::opened(&open, SystemTime::now())));
        }
        Connection::new(self.clone(), open, slot)
    }

    /// Records a connection that never opened.
    pub fn refused(&self, early: Early) {
        let shared = &self.0;
        let series = shared
            .series
            .unknown(early.direction.reporter(), Instant::now());
        series.add_failed(early.flag);
        if tracing::enabled!(target: access_log::TARGET, Level::WARN) {
            shared
                .output
                .push(Entry::Access(Record::failed(early, SystemTime::now())));
        }
    }

    /// The metrics beside traffic, to set and to add to.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// All metrics in the Prometheus text form, with the bytes of open connections up to now.
    ///
    /// # Errors
    /// When a metric cannot be shown.
    pub fn scrape(&self) -> Result<String, MetricsError> {
        self.account();
        let mut text = String::new();
        self.0.metrics.write(&mut text)?;
        self.0.series.write(&mut text);
        Ok(text)
    }

    /// Open connections, oldest first.
    pub fn connections(&self) -> Vec<ConnectionView> {
        let now = Instant::now();
        let mut open = self.0.table.list();
        open.sort_by_key(|open| open.started);
        open.iter()
            .map(|open| ConnectionView::of(open, now))
            .collect()
    }

    /// How many connections are open for each [`Opening::id`] that has any.
    pub fn connections_by_id(&self) -> HashMap<u64, usize> {
        let mut counts = HashMap::new();
        for open in self.0.table.list() {
            *counts.entry(open.opening.id).or_default() += 1;
        }
        counts
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.0.table.len()
    }

    /// Forgets series that have long been without a connection; call it every minute or so.
    pub fn maintain(&self, now: Instant) {
        self.0.series.evict(now);
    }

    pub(crate) fn closed(&self, open: &Arc<Open>, slot: Slot, outcome: Outcome) {
        let now = Instant::now();
        let shared = &self.0;
        let (flag, error) = match outcome {
            Outcome::Complete => (ResponseFlag::None, None),
            Outcome::Failed { flag, reason } => (flag, Some(reason)),
        };
        shared.table.remove(slot);
        open.account();
        open.series.add_closed(flag);
        shared.series.touch(&open.series, now);
        shared.open_gauge(open.opening.direction).dec();
        let wanted = match error {
            Some(_) => tracing::enabled!(target: access_log::TARGET, Level::ERROR),
            None => tracing::enabled!(target: access_log::TARGET, Level::INFO),
        };
        if wanted {
            let duration = now.saturating_duration_since(open.started);
            let record = Record::closed(open, duration, error, SystemTime::now());
            shared.output.push(Entry::Access(record));
        }
    }

    /// Adds what open connections carried since the last scrape.
    fn account(&self) {
        for open in self.0.table.list() {
            open.account();
        }
    }
}

impl Shared {
    fn open_gauge(&self, direction: Direction) -> &IntGauge {
        match direction {
            Direction::Outbound => &self.metrics.open_as_source,
            Direction::Inbound | Direction::InboundPlaintext => &self.metrics.open_as_destination,
        }
    }
}

fn add_series(metrics: &Metrics, series: &Arc<SeriesStore>) -> Result<(), MetricsError> {
    let family = Family {
        name: "undermesh_metric_series",
        help: "Label sets of traffic that are counted apart.",
        kind: Kind::Gauge,
        labels: &[],
    };
    let series = Arc::clone(series);
    metrics.read(family, move || Sample::plain(series.len() as u64))
}

fn add_output(metrics: &Metrics, output: &Output) -> Result<(), MetricsError> {
    let counter = |name, help| Family {
        name,
        help,
        kind: Kind::Counter,
        labels: &[],
    };
    let (access, log) = (output.clone(), output.clone());
    metrics.read(
        counter(
            "undermesh_access_log_dropped_total",
            "Access-log lines that found no room.",
        ),
        move || Sample::plain(access.dropped_access()),
    )?;
    metrics.read(
        counter(
            "undermesh_log_dropped_total",
            "Log lines that found no room.",
        ),
        move || Sample::plain(log.dropped_log()),
    )
}

#[cfg(test)]
mod tests;

//! The registry of everything but traffic: values that are set, and values that are read when scraped.
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use prometheus::{
    IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

/// Most samples that one read family may have; the rest is left out.
pub const MAX_SAMPLES: usize = 4096;

/// Why a metric could not be made or shown: a name that is not a metric's, or that is taken.
#[derive(Debug, thiserror::Error)]
#[error("metric '{name}': {source}")]
pub struct MetricsError {
    name: String,
    source: prometheus::Error,
}

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A family of values that is read when scraped.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Full name, `undermesh_…` unless Istio has one.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// Names of the labels.
    pub labels: &'static [&'static str],
}

/// One value of a [`Family`].
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Values of the labels, in the family's order.
    pub labels: Vec<String>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// The value of a family without labels.
    #[allow(clippy::cast_precision_loss)] // Prometheus values are doubles.
    pub fn plain(value: u64) -> Vec<Self> {
        vec![Self {
            labels: Vec::new(),
            value: value as f64,
        }]
    }

    /// A value under labels.
    #[allow(clippy::cast_precision_loss)] // Prometheus values are doubles.
    pub fn labelled(labels: &[&str], value: u64) -> Self {
        Self {
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
            value: value as f64,
        }
    }
}

/// The node's metrics beside traffic.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Pods that are enrolled and served (`workload_manager_active_proxy_count`).
    pub proxies_active: IntGauge,
    /// Pods that wait for their manifest (`workload_manager_pending_proxy_count`).
    pub proxies_pending: IntGauge,
    /// Pods taken up since the start (`workload_manager_proxies_started_total`).
    pub proxies_started: IntCounter,
    /// Pods given up since the start (`workload_manager_proxies_stopped_total`).
    pub proxies_stopped: IntCounter,
    pub(crate) series_overflow: IntCounter,
    pub(crate) open_as_source: IntGauge,
    pub(crate) open_as_destination: IntGauge,
}

impl Metrics {
    /// The fixed metrics; `version` goes to `istio_build`.
    ///
    /// # Errors
    /// When two metrics share a name.
    pub fn new(version: &str) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let gauge = |name, help| added(&registry, name, IntGauge::new(name, help));
        let counter = |name, help| added(&registry, name, IntCounter::new(name, help));
        let vector = |name: &str, help: &str, labels: &[&str]| {
            added(
                &registry,
                name,
                IntGaugeVec::new(Opts::new(name, help), labels),
            )
        };
        let open = vector(
            "istio_tcp_sockets_open",
            "Connections open now.",
            &["reporter"],
        )?;
        let build = vector("istio_build", "The running version.", &["component", "tag"])?;
        build.with_label_values(&["undermesh", version]).set(1);
        let active = "workload_manager_active_proxy_count";
        let pending = "workload_manager_pending_proxy_count";
        let started = "workload_manager_proxies_started_total";
        let stopped = "workload_manager_proxies_stopped_total";
        let overflow = "undermesh_metric_series_overflow_total";
        let metrics = Self {
            proxies_active: gauge(active, "Pods that are served.")?,
            proxies_pending: gauge(pending, "Pods that wait for their manifest.")?,
            proxies_started: counter(started, "Pods taken up.")?,
            proxies_stopped: counter(stopped, "Pods given up.")?,
            series_overflow: counter(overflow, "Label sets counted as `other` for lack of room.")?,
            open_as_source: open.with_label_values(&["source"]),
            open_as_destination: open.with_label_values(&["destination"]),
            registry,
        };
        metrics.add_process()?;
        Ok(metrics)
    }

    /// Adds a family whose values `read` gives at each scrape; it must be quick.
    ///
    /// # Errors
    /// When the name is taken or is not a metric's name.
    pub fn read(
        &self,
        family: Family,
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) -> Result<(), MetricsError> {
        let labels = family
            .labels
            .iter()
            .map(|&label| label.to_owned())
            .collect();
        let desc = Desc::new(
            family.name.to_owned(),
            family.help.to_owned(),
            labels,
            Default::default(),
        );
        let collector = desc.map(|desc| ReadFamily {
            family,
            desc,
            read: Box::new(read),
        });
        collector
            .and_then(|collector| self.registry.register(Box::new(collector)))
            .map_err(|source| MetricsError {
                name: family.name.to_owned(),
                source,
            })
    }

    /// Everything in the Prometheus text form.
    pub(crate) fn write(&self, out: &mut String) -> Result<(), MetricsError> {
        TextEncoder::new()
            .encode_utf8(&self.registry.gather(), out)
            .map_err(|source| MetricsError {
                name: "all".to_owned(),
                source,
            })
    }

    fn add_process(&self) -> Result<(), MetricsError> {
        let open = Family {
            name: "process_open_fds",
            help: "Open file descriptors.",
            kind: Kind::Gauge,
            labels: &[],
        };
        self.read(open, || {
            fs::read_dir("/proc/self/fd")
                .map_or_else(|_| Vec::new(), |fds| Sample::plain(fds.count() as u64))
        })?;
        let most = Family {
            name: "process_max_fds",
            help: "File descriptors that may be open.",
            kind: Kind::Gauge,
            labels: &[],
        };
        self.read(most, || {
            getrlimit(Resource::RLIMIT_NOFILE)
                .map_or_else(|_| Vec::new(), |(soft, _)| Sample::plain(soft))
        })
    }
}

fn added<C: Collector + Clone + 'static>(
    registry: &Registry,
    name: &str,
    metric: prometheus::Result<C>,
) -> Result<C, MetricsError> {
    metric
        .and_then(|metric| registry.register(Box::new(metric.clone())).map(|()| metric))
        .map_err(|source| MetricsError {
            name: name.to_owned(),
            source,
        })
}

struct ReadFamily {
    family: Family,
    desc: Desc,
    read: Box<dyn Fn() -> Vec<Sample> + Send + Sync>,
}

impl ReadFamily {
    fn metric(&self, sample: &Sample) -> Metric {
        let pair = |(name, value): (&&str, &String)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.clone());
            pair
        };
        let pairs = self
            .family
            .labels
            .iter()
            .zip(&sample.labels)
            .map(pair)
            .collect();
        let mut metric = Metric::from_label(pairs);
        match self.family.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(sample.value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(sample.value);
                metric.set_gauge(gauge);
            }
        }
        metric
    }
}

impl Collector for ReadFamily {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let samples = (self.read)();
        let mut family = MetricFamily::default();
        family.set_name(self.family.name.to_owned());
        family.set_help(self.family.help.to_owned());
        family.set_field_type(match self.family.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
        });
        family.set_metric(
            samples
                .iter()
                .take(MAX_SAMPLES)
                .map(|s| self.metric(s))
                .collect(),
        );
        vec![family]
    }
}

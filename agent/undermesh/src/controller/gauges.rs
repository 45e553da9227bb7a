//! The controller's own metrics: what its parts know, read when scraped.
use std::{collections::BTreeMap, sync::Arc, time::UNIX_EPOCH};

use tokio::sync::watch;
use undermesh_ca::refusal::{self, Reason};
use undermesh_kubernetes::{
    lease::Leadership,
    source::{Health, WatchState},
};
use undermesh_telemetry::{
    Telemetry,
    metrics::{Family, Kind, MetricsError, Sample},
};
use undermesh_xds::server::{self as discovery, Hub};

/// A counter of what nodes were told: its name, its help, and how it is read.
type Push = (&'static str, &'static str, fn(&Hub) -> u64);

const fn family(
    name: &'static str,
    help: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
) -> Family {
    Family {
        name,
        help,
        kind,
        labels,
    }
}

/// Adds them. They are read as long as the process lives.
///
/// # Errors
/// When a name is taken.
pub fn add(
    telemetry: &Telemetry,
    hub: &Arc<Hub>,
    certificates: &Arc<refusal::Counters>,
    health: watch::Receiver<Health>,
    leadership: watch::Receiver<Leadership>,
) -> Result<(), MetricsError> {
    let metrics = telemetry.metrics();
    let pushes: [Push; 7] = [
        (
            "undermesh_discovery_responses_total",
            "Responses sent to nodes.",
            |hub| hub.counters().read().responses,
        ),
        (
            "undermesh_discovery_resources_total",
            "Resources in them.",
            |hub| hub.counters().read().resources,
        ),
        (
            "undermesh_discovery_bytes_total",
            "Their size, before TLS and HTTP/2.",
            |hub| hub.counters().read().bytes,
        ),
        (
            "undermesh_discovery_rejections_total",
            "Responses of which nodes rejected resources.",
            |hub| hub.counters().read().rejected,
        ),
        (
            "undermesh_discovery_connections_total",
            "Nodes that were let in.",
            |hub| hub.counters().read().connections,
        ),
        (
            "undermesh_discovery_refusals_total",
            "Calls that were refused.",
            |hub| hub.counters().read().refused,
        ),
        (
            "undermesh_discovery_latency_microseconds_total",
            "Sum of the times from a change to its departure.",
            |hub| u64::try_from(hub.counters().read().latency_sum.as_micros()).unwrap_or(u64::MAX),
        ),
    ];
    for (name, help, read) in pushes {
        let hub = Arc::clone(hub);
        metrics.read(family(name, help, Kind::Counter, &[]), move || {
            Sample::plain(read(&hub))
        })?;
    }
    let clients = Arc::clone(hub);
    metrics.read(
        family(
            "undermesh_discovery_clients",
            "Nodes that are connected.",
            Kind::Gauge,
            &[],
        ),
        move || Sample::plain(clients.clients().len() as u64),
    )?;
    let clients = Arc::clone(hub);
    metrics.read(
        family(
            "undermesh_discovery_last_rejection_timestamp_seconds",
            "When a connected node last rejected resources, as Unix time; the log names them.",
            Kind::Gauge,
            &["node", "type"],
        ),
        move || rejections(&clients),
    )?;
    let certificates = Arc::clone(certificates);
    metrics.read(
        family(
            "undermesh_ca_requests_total",
            "Requests for certificates.",
            Kind::Counter,
            &["result"],
        ),
        move || {
            let refused = Reason::ALL
                .iter()
                .map(|reason| Sample::labelled(&[reason.label()], certificates.refused(*reason)));
            let signed = Sample::labelled(&["signed"], certificates.signed());
            refused.chain([signed]).collect()
        },
    )?;
    metrics.read(
        family(
            "undermesh_watch_synced",
            "Whether a kind is listed and followed.",
            Kind::Gauge,
            &["kind"],
        ),
        move || {
            let health = health.borrow();
            let synced = |state: &WatchState| u64::from(*state == WatchState::Synced);
            health
                .iter()
                .map(|(kind, it)| Sample::labelled(&[kind.name()], synced(&it.state)))
                .collect()
        },
    )?;
    metrics.read(
        family(
            "undermesh_leader",
            "Whether this replica leads.",
            Kind::Gauge,
            &[],
        ),
        move || Sample::plain(u64::from(leadership.borrow().is_leader())),
    )
}

/// A node has two connections for a moment when it comes back; its latest word counts.
fn rejections(hub: &Hub) -> Vec<Sample> {
    let mut latest: BTreeMap<(Arc<str>, &str), u64> = BTreeMap::new();
    for client in hub.clients() {
        for subscription in client.subscriptions {
            let Some(rejected) = subscription.rejected else {
                continue;
            };
            let at = rejected.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            let key = (Arc::clone(&client.node.name), type_name(subscription.kind));
            let known = latest.entry(key).or_default();
            *known = at.as_secs().max(*known);
        }
    }
    let samples = latest.into_iter();
    samples
        .map(|((node, kind), at)| Sample::labelled(&[&node, kind], at))
        .collect()
}

fn type_name(kind: discovery::Kind) -> &'static str {
    match kind {
        discovery::Kind::Address => "address",
        discovery::Kind::Authorization => "authorization",
    }
}

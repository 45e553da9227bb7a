//! The node's own metrics: what the rooms know, read when scraped.
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use undermesh_telemetry::metrics::{Family, Kind, MetricsError, Sample};

use super::{agent::Agent, dump};

type Read = fn(&Agent) -> Vec<Sample>;

const fn counter(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
) -> Family {
    Family {
        name,
        help,
        kind: Kind::Counter,
        labels,
    }
}

const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Family {
    Family {
        name,
        help,
        kind: Kind::Gauge,
        labels,
    }
}

const FAMILIES: [(Family, Read); 9] = [
    (gauge("undermesh_pods", "Enrolled pods.", &["state"]), pods),
    (
        counter(
            "undermesh_capture_connections_total",
            "Connections that the kernel programs saw.",
            &["result"],
        ),
        captured,
    ),
    (
        gauge("undermesh_tunnels", "Tunnels open to peers.", &[]),
        |agent| Sample::plain(agent.pods.tunnels() as u64),
    ),
    (
        counter(
            "undermesh_certificates_issued_total",
            "Certificates received.",
            &[],
        ),
        |agent| Sample::plain(agent.pods.certificates().counters().issued()),
    ),
    (
        counter(
            "undermesh_certificates_failed_total",
            "Attempts that brought no certificate.",
            &[],
        ),
        |agent| Sample::plain(agent.pods.certificates().counters().failed()),
    ),
    (
        gauge(
            "undermesh_certificate_expiry_seconds",
            "When certificates expire, in seconds since 1970.",
            &["identity"],
        ),
        expiry,
    ),
    (
        gauge(
            "undermesh_config_generation",
            "How often the configuration was replaced.",
            &[],
        ),
        |agent| Sample::plain(agent.pods.mesh().generation()),
    ),
    (
        gauge("undermesh_config_objects", "Objects in force.", &["kind"]),
        objects,
    ),
    (
        gauge(
            "undermesh_config_findings",
            "What is wrong with the manifests.",
            &["severity"],
        ),
        findings,
    ),
];

/// Adds them. They are read as long as the agent lives.
///
/// # Errors
/// When a name is taken.
pub fn add(agent: &Arc<Agent>) -> Result<(), MetricsError> {
    for (family, read) in FAMILIES {
        let agent_then = Arc::downgrade(agent);
        let sampled = move || {
            agent_then
                .upgrade()
                .map(|agent| read(&agent))
                .unwrap_or_default()
        };
        agent.telemetry.metrics().read(family, sampled)?;
    }
    Ok(())
}

fn pods(agent: &Agent) -> Vec<Sample> {
    let counts = agent.pods.counts();
    let states = [
        ("active", counts.active),
        ("pending", counts.pending),
        ("draining", counts.draining),
    ];
    states
        .map(|(state, count)| Sample::labelled(&[state], count as u64))
        .into()
}

fn captured(agent: &Agent) -> Vec<Sample> {
    let Ok(counters) = agent.pods.captured() else {
        return Vec::new();
    };
    dump::counters(&counters)
        .map(|(result, count)| Sample::labelled(&[result], count))
        .into()
}

fn expiry(agent: &Agent) -> Vec<Sample> {
    let seconds = |at: SystemTime| {
        at.duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    let mut samples = Vec::new();
    for report in agent.pods.certificates().list() {
        if let Some(at) = report.not_after {
            samples.push(Sample::labelled(
                &[&report.identity.to_string()],
                seconds(at),
            ));
        }
    }
    samples
}

fn objects(agent: &Agent) -> Vec<Sample> {
    let counts = agent.source.view().counts;
    counts
        .iter()
        .map(|(kind, count)| Sample::labelled(&[kind], *count as u64))
        .collect()
}

fn findings(agent: &Agent) -> Vec<Sample> {
    let mut counts = BTreeMap::from([("error", 0), ("warning", 0), ("info", 0)]);
    let view = agent.source.view();
    for finding in &view.diagnostics {
        *counts.entry(finding.severity.as_str()).or_default() += 1;
    }
    counts
        .iter()
        .map(|(severity, count)| Sample::labelled(&[severity], *count))
        .collect()
}

//! The configuration in force, as JSON: sections named as in ztunnel's `/config_dump`.
use serde::Serialize;
use undermesh_capture::Counters;
use undermesh_identity::CertificateReport;
use undermesh_model::{Policy, Service, Workload};

use super::agent::Agent;
use crate::{
    api::types::{Pod, Source},
    duration,
    process::VERSION,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump<'a> {
    version: &'static str,
    config: Options<'a>,
    source: Source,
    workloads: Vec<&'a Workload>,
    services: Vec<&'a Service>,
    policies: Vec<&'a Policy>,
    pods: Vec<Pod>,
    certificates: Vec<CertificateReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Options<'a> {
    node_name: &'a str,
    trust_domain: &'a str,
    cluster_id: &'a str,
    network: &'a str,
    certificate_lifetime: String,
    drain_timeout: String,
    log_level: String,
}

/// The whole configuration of the node.
///
/// # Errors
/// When a part of it has no JSON form.
pub fn json(agent: &Agent) -> Result<String, serde_json::Error> {
    let mesh = agent.pods.mesh().snapshot();
    let options = &agent.options;
    serde_json::to_string_pretty(&Dump {
        version: VERSION,
        config: Options {
            node_name: &agent.name,
            trust_domain: options.trust_domain.as_str(),
            cluster_id: &options.cluster_id,
            network: &options.network,
            certificate_lifetime: duration::written(options.certificate_lifetime),
            drain_timeout: duration::written(options.drain_timeout),
            log_level: agent.logging.level(),
        },
        source: agent.source.view(),
        workloads: mesh.workloads().map(AsRef::as_ref).collect(),
        services: mesh.services().map(AsRef::as_ref).collect(),
        policies: mesh.policies().map(AsRef::as_ref).collect(),
        pods: agent.pods.list(),
        certificates: agent.pods.certificates().list(),
    })
}

/// Capture's counters by name.
pub fn counters(counters: &Counters) -> [(&'static str, u64); 7] {
    [
        ("captured", counters.captured),
        ("skipped", counters.skipped),
        ("refused", counters.refused),
        ("inbound_assigned", counters.inbound_assigned),
        ("inbound_refused", counters.inbound_refused),
        ("probes", counters.probes),
        ("unnoted", counters.unnoted),
    ]
}

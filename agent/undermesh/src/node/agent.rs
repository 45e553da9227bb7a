//! The running node, as the API sees it.
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use http::StatusCode;
use undermesh_capture::Enrollment;
use undermesh_identity::{CertificateReport, CertificateState};
use undermesh_telemetry::{
    ConnectionView, Logging, Readiness, Telemetry, admin::ConfigDump, logging::LoggingError,
};

use super::{dump, place, pods::Pods, source::Source};
use crate::{
    api::{
        Node, Refusal,
        types::{Kernel, Pod, PodKey, Status},
    },
    command::NodeOptions,
    process::VERSION,
};

/// The hooks without which capture does not open.
const NODE_HOOKS: [&str; 5] = [
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "sock_ops",
];
/// The hook of each pod.
const POD_HOOK: &str = "sk_lookup";

/// A running node.
pub struct Agent {
    /// The node's name.
    pub name: String,
    /// When the process started.
    pub started: Instant,
    /// What it was told.
    pub options: NodeOptions,
    /// Its pods.
    pub pods: Arc<Pods>,
    /// Where its configuration comes from.
    pub source: Arc<Source>,
    /// What it counts.
    pub telemetry: Telemetry,
    /// Its log.
    pub logging: Logging,
    /// What it waits for.
    pub readiness: Readiness,
}

impl Agent {
    /// Shows the configuration as JSON, as long as the agent lives.
    pub fn config_dump(self: &Arc<Self>) -> ConfigDump {
        let agent = Arc::downgrade(self);
        Arc::new(move || {
            let agent = agent
                .upgrade()
                .ok_or_else(|| "the agent has stopped".to_owned())?;
            dump::json(&agent)
                .map_err(|error| format!("the configuration has no JSON form: {error}"))
        })
    }

    fn kernel(&self) -> Kernel {
        let pod_hook = (self.pods.len() > 0).then_some(POD_HOOK);
        let hooks = NODE_HOOKS
            .into_iter()
            .chain(pod_hook)
            .map(str::to_owned)
            .collect();
        Kernel {
            release: place::kernel_release(),
            hooks,
        }
    }

    fn capture_counters(&self) -> BTreeMap<String, u64> {
        match self.pods.captured() {
            Ok(counters) => dump::counters(&counters)
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
            Err(error) => {
                tracing::warn!(%error, "the counters of capture cannot be read");
                BTreeMap::new()
            }
        }
    }

    fn certificate_counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for report in self.pods.certificates().list() {
            *counts.entry(state(report.state).to_owned()).or_default() += 1;
        }
        counts
    }
}

impl Node for Agent {
    fn enroll(&self, enrollment: Enrollment) -> BoxFuture<'_, Result<Pod, Refusal>> {
        Box::pin(self.pods.enroll(enrollment))
    }

    fn release(&self, pod: PodKey, drain: Option<Duration>) -> BoxFuture<'_, Result<Pod, Refusal>> {
        Box::pin(self.pods.release(pod, drain))
    }

    fn pods(&self) -> Vec<Pod> {
        self.pods.list()
    }

    fn status(&self) -> Status {
        Status {
            version: VERSION.to_owned(),
            node: self.name.clone(),
            kernel: self.kernel(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            waiting_for: self.readiness.pending(),
            source: self.source.view(),
            pods: self.pods.counts(),
            connections: self.telemetry.open_connections(),
            certificates: self.certificate_counts(),
            capture: self.capture_counters(),
        }
    }

    fn connections(&self) -> Vec<ConnectionView> {
        self.telemetry.connections()
    }

    fn certificates(&self) -> Vec<CertificateReport> {
        self.pods.certificates().list()
    }

    fn config(&self) -> Result<String, Refusal> {
        dump::json(self).map_err(|error| {
            let error = format!("the configuration has no JSON form: {error}");
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                error,
                "report this as a bug",
            )
        })
    }

    fn log_level(&self) -> String {
        self.logging.level()
    }

    fn set_log_level(&self, directives: &str) -> Result<(), Refusal> {
        let set = self.logging.set_level(directives);
        set.map_err(|error| {
            let status = match error {
                LoggingError::Length(_) | LoggingError::Directives { .. } => {
                    StatusCode::BAD_REQUEST
                }
                LoggingError::Started(_) | LoggingError::Gone(_) => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            };
            Refusal::from_error(status, &error)
        })
    }
}

/// The state's name in counts and metrics.
pub fn state(state: CertificateState) -> &'static str {
    match state {
        CertificateState::Pending => "pending",
        CertificateState::Valid => "valid",
        CertificateState::Stale => "stale",
        CertificateState::Expired => "expired",
        CertificateState::Failed => "failed",
    }
}

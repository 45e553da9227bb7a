//! Istio's L4 traffic labels: who talked to whom, as the metrics name it.
use std::{fmt::Write, sync::Arc};

use undermesh_model::{Identity, Service, Workload};

use crate::connection::{Opening, Peer, Security};

/// Istio's word for a value that is not known.
const UNKNOWN: &str = "unknown";
/// The value of every label of the series that takes what exceeds the bound.
const OTHER: &str = "other";

/// The label set of a connection. Equal sets share one series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Labels {
    reporter: &'static str,
    security: Option<Security>,
    source: Side,
    service: Option<Addressed>,
    destination: Side,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Addressed {
    hostname: Arc<str>,
    namespace: Arc<str>,
    name: Arc<str>,
}

/// The labels of one end. `Other` only occurs in the series beyond the bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Side {
    #[default]
    Unknown,
    Known {
        workload: Option<Described>,
        principal: Option<Identity>,
    },
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Described {
    workload: Arc<str>,
    namespace: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    cluster: Arc<str>,
    region: Arc<str>,
    zone: Arc<str>,
}

impl Labels {
    /// The labels of a described connection.
    pub(crate) fn of(opening: &Opening) -> Self {
        Self {
            reporter: opening.direction.reporter(),
            security: Some(opening.security),
            source: Side::of(&opening.source),
            service: opening.service.as_deref().map(Addressed::of),
            destination: Side::of(&opening.destination),
        }
    }

    /// The labels of a connection of which nothing is known but the side that reports it.
    pub(crate) fn unknown(reporter: &'static str) -> Self {
        Self {
            reporter,
            security: Some(Security::Unknown),
            source: Side::Unknown,
            service: None,
            destination: Side::Unknown,
        }
    }

    /// The labels of the one series that takes everything beyond the bound.
    pub(crate) fn other() -> Self {
        let other: Arc<str> = Arc::from(OTHER);
        Self {
            reporter: OTHER,
            security: None,
            source: Side::Other,
            service: Some(Addressed {
                hostname: Arc::clone(&other),
                namespace: Arc::clone(&other),
                name: other,
            }),
            destination: Side::Other,
        }
    }

    /// Appends `{reporter="…",…,response_flags="<flag>"…}` in Istio's order.
    pub(crate) fn write(&self, out: &mut String, flag: &str) {
        out.push('{');
        pair(out, "reporter", self.reporter);
        self.source.write(out, "source");
        let service = self.service.as_ref();
        pair(
            out,
            "destination_service",
            service.map_or(UNKNOWN, |s| &s.hostname),
        );
        pair(
            out,
            "destination_service_namespace",
            service.map_or(UNKNOWN, |s| &s.namespace),
        );
        pair(
            out,
            "destination_service_name",
            service.map_or(UNKNOWN, |s| &s.name),
        );
        self.destination.write(out, "destination");
        pair(out, "request_protocol", "tcp");
        pair(out, "response_flags", flag);
        let security = self.security.map_or(OTHER, Security::as_str);
        pair(out, "connection_security_policy", security);
        self.source.write_locality(out, "source");
        self.destination.write_locality(out, "destination");
        out.push('}');
    }
}

impl Addressed {
    fn of(service: &Service) -> Self {
        Self {
            hostname: Arc::clone(&service.hostname),
            namespace: Arc::clone(&service.namespace),
            name: Arc::clone(&service.name),
        }
    }
}

impl Side {
    fn of(peer: &Peer) -> Self {
        if peer.workload.is_none() && peer.identity.is_none() {
            return Self::Unknown;
        }
        Self::Known {
            workload: peer.workload.as_deref().map(Described::of),
            principal: peer.identity.clone(),
        }
    }

    fn write(&self, out: &mut String, side: &str) {
        let absent = if matches!(self, Self::Other) {
            OTHER
        } else {
            UNKNOWN
        };
        let (workload, principal) = match self {
            Self::Known {
                workload,
                principal,
            } => (workload.as_ref(), principal.as_ref()),
            Self::Unknown | Self::Other => (None, None),
        };
        let field = |get: fn(&Described) -> &str| known(workload.map_or(absent, get));
        let service = field(|w| &w.canonical_service);
        let revision = field(|w| &w.canonical_revision);
        sided(out, side, "workload", field(|w| &w.workload));
        sided(out, side, "canonical_service", service);
        sided(out, side, "canonical_revision", revision);
        sided(out, side, "workload_namespace", field(|w| &w.namespace));
        match principal {
            Some(identity) => sided(out, side, "principal", &identity.to_string()),
            None => sided(out, side, "principal", absent),
        }
        sided(out, side, "app", service);
        sided(out, side, "version", revision);
        sided(out, side, "cluster", field(|w| &w.cluster));
    }

    fn write_locality(&self, out: &mut String, side: &str) {
        let Self::Known {
            workload: Some(workload),
            ..
        } = self
        else {
            return;
        };
        for (name, value) in [("region", &workload.region), ("zone", &workload.zone)] {
            if !value.is_empty() {
                sided(out, side, name, value);
            }
        }
    }
}

impl Described {
    fn of(workload: &Workload) -> Self {
        Self {
            workload: Arc::clone(&workload.workload_name),
            namespace: Arc::clone(&workload.namespace),
            canonical_service: Arc::clone(&workload.canonical_name),
            canonical_revision: Arc::clone(&workload.canonical_revision),
            cluster: Arc::clone(&workload.cluster),
            region: Arc::clone(&workload.locality.region),
            zone: Arc::clone(&workload.locality.zone),
        }
    }
}

fn known(value: &str) -> &str {
    if value.is_empty() { UNKNOWN } else { value }
}

fn sided(out: &mut String, side: &str, name: &str, value: &str) {
    separate(out);
    let _ = write!(out, "{side}_{name}=\"");
    escape(out, value);
    out.push('"');
}

/// Appends one label.
fn pair(out: &mut String, name: &str, value: &str) {
    separate(out);
    out.push_str(name);
    out.push_str("=\"");
    escape(out, value);
    out.push('"');
}

fn separate(out: &mut String) {
    if !out.ends_with('{') {
        out.push(',');
    }
}

/// Prometheus exposition format, label values: backslash, quote and line feed are escaped.
fn escape(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

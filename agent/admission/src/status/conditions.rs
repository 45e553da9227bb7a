//! From findings to conditions, and into the list that an object has.
//!
//! `ZtunnelAccepted` and `istio.io/WaypointBound` are as istiod writes them, so that dashboards read them the same
//! way; those below `undermesh.io/` are ours.
use serde_json::{Value as Json, json};
use undermesh_control::{
    Diagnostic, Severity,
    resources::{Decoded, Outcome, decode_json, kinds::Kind, strings::Strings},
};

/// Whether the node proxies have an AuthorizationPolicy (istiod, ambient).
const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";
/// Whether connections to a service go through the waypoint that it names (istiod, ambient).
const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
/// Whether an object of another kind was taken over.
const ACCEPTED: &str = "undermesh.io/Accepted";
/// Whether all that an object says is in force.
const ENFORCED: &str = "undermesh.io/Enforced";
/// The types that are written here, and so removed when they do not apply any more.
const TYPES: &[&str] = &[ZTUNNEL_ACCEPTED, WAYPOINT_BOUND, ACCEPTED, ENFORCED];

/// The label that attaches a service to a waypoint.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// The label that says in which namespace that waypoint is.
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";

/// Most findings that a message names.
const MAX_NAMED: usize = 8;
/// Longest message, in characters; Kubernetes takes 32768.
const MAX_MESSAGE: usize = 2048;

/// What of an object decides which conditions it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    /// What is wrong with the object alone makes it unusable.
    is_unreadable: bool,
    enforcer: Enforcer,
    /// `namespace/name` of the waypoint that a service names itself.
    waypoint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enforcer {
    /// The node proxies, as istiod says it.
    Ztunnel,
    /// A waypoint, whose controller tells how it goes.
    Waypoint,
    /// The mesh as a whole.
    Mesh,
}

impl Subject {
    pub fn read(kind: Kind, json: &Json) -> Self {
        let decoded = decode_json(kind, json, &Strings::default());
        Self {
            is_unreadable: is_unreadable(&decoded),
            enforcer: enforcer(kind, json),
            waypoint: (kind == Kind::ServiceEntry)
                .then(|| waypoint(json))
                .flatten(),
        }
    }
}

fn is_unreadable(decoded: &Decoded) -> bool {
    matches!(decoded.outcome, Outcome::Bad(_))
}

fn enforcer(kind: Kind, json: &Json) -> Enforcer {
    let is_attached = ["targetRef", "targetRefs"]
        .iter()
        .any(|field| !json["spec"][field].is_null());
    match (kind, is_attached) {
        (Kind::AuthorizationPolicy, true) => Enforcer::Waypoint,
        (Kind::AuthorizationPolicy, false) => Enforcer::Ztunnel,
        _ => Enforcer::Mesh,
    }
}

fn waypoint(json: &Json) -> Option<String> {
    let metadata = &json["metadata"];
    let label = |name: &str| metadata["labels"][name].as_str();
    let name = label(USE_WAYPOINT).filter(|name| *name != "none")?;
    let own = metadata["namespace"].as_str();
    let namespace = label(USE_WAYPOINT_NAMESPACE).or(own).unwrap_or_default();
    Some(format!("{namespace}/{name}"))
}

/// A condition as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn wanted(kind: &'static str, holds: bool, reason: &'static str, message: String) -> Wanted {
    Wanted {
        kind,
        status: if holds { "True" } else { "False" },
        reason,
        message,
    }
}

/// The conditions of an object with these findings.
pub(super) fn conditions(subject: &Subject, findings: &[Diagnostic]) -> Vec<Wanted> {
    let accepted = match subject.enforcer {
        Enforcer::Ztunnel => Some(ztunnel_accepted(subject, findings)),
        Enforcer::Mesh => Some(accepted(subject, findings)),
        Enforcer::Waypoint => None,
    };
    let bound = subject
        .waypoint
        .as_ref()
        .map(|waypoint| bound(waypoint, findings));
    accepted
        .into_iter()
        .chain([enforced(subject, findings)])
        .chain(bound)
        .collect()
}

/// As istiod: True also for a policy of which a part is left out, with the reason in its place.
fn ztunnel_accepted(subject: &Subject, findings: &[Diagnostic]) -> Wanted {
    let (holds, reason) = match worst(findings) {
        _ if subject.is_unreadable => (false, "Invalid"),
        Some(Severity::Error) => (false, "UnsupportedValue"),
        Some(Severity::Warning) => (true, "UnsupportedValue"),
        Some(Severity::Info) | None => {
            return wanted(
                ZTUNNEL_ACCEPTED,
                true,
                "Accepted",
                "attached to ztunnel".to_owned(),
            );
        }
    };
    wanted(ZTUNNEL_ACCEPTED, holds, reason, told(findings))
}

fn accepted(subject: &Subject, findings: &[Diagnostic]) -> Wanted {
    match worst(findings) {
        _ if subject.is_unreadable => wanted(ACCEPTED, false, "Invalid", told(findings)),
        Some(Severity::Error) => wanted(ACCEPTED, false, "Refused", told(findings)),
        _ => wanted(ACCEPTED, true, "Accepted", "in use by the mesh".to_owned()),
    }
}

fn enforced(subject: &Subject, findings: &[Diagnostic]) -> Wanted {
    let (holds, reason) = match worst(findings) {
        _ if subject.is_unreadable => (false, "NotEnforced"),
        Some(Severity::Error) => (false, "NotEnforced"),
        Some(Severity::Warning) => (false, "PartlyEnforced"),
        Some(Severity::Info) => (true, "Enforced"),
        None => {
            return wanted(
                ENFORCED,
                true,
                "Enforced",
                "all of it is in force".to_owned(),
            );
        }
    };
    wanted(ENFORCED, holds, reason, told(findings))
}

fn bound(waypoint: &str, findings: &[Diagnostic]) -> Wanted {
    let label = format!("metadata.labels['{USE_WAYPOINT}']");
    match findings.iter().find(|it| it.field.to_string() == label) {
        Some(finding) => {
            let why = told(std::slice::from_ref(finding));
            wanted(WAYPOINT_BOUND, false, "WaypointRefused", why)
        }
        None => {
            let message = format!("Successfully attached to waypoint {waypoint}");
            wanted(WAYPOINT_BOUND, true, "WaypointAccepted", message)
        }
    }
}

fn worst(findings: &[Diagnostic]) -> Option<Severity> {
    findings.iter().map(|finding| finding.severity).max()
}

/// The findings in one text, the worst first, without the name of the object that they are on.
fn told(findings: &[Diagnostic]) -> String {
    let mut sorted: Vec<&Diagnostic> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let named = sorted.iter().take(MAX_NAMED).map(|finding| {
        let nameless = Diagnostic {
            resource: None,
            ..(*finding).clone()
        };
        nameless.to_string()
    });
    let mut text = named.collect::<Vec<_>>().join(". ");
    if let more @ 1.. = sorted.len().saturating_sub(MAX_NAMED) {
        text.push_str(&format!(". And {more} more"));
    }
    if text.is_empty() {
        text.push_str("the object cannot be read");
    }
    text.chars().take(MAX_MESSAGE).collect()
}

/// The list of conditions as it should be, when it differs from `present`. Conditions of others stay as they are, and
/// so does the time of a condition whose status stays.
pub(super) fn merged(
    present: &[Json],
    wanted: &[Wanted],
    generation: Option<i64>,
    now: &str,
) -> Option<Vec<Json>> {
    let is_kept = |it: &&Json| {
        let kind = it["type"].as_str().unwrap_or_default();
        !TYPES.contains(&kind) || wanted.iter().any(|wanted| wanted.kind == kind)
    };
    let mut list: Vec<Json> = present.iter().filter(is_kept).cloned().collect();
    for condition in wanted {
        match list.iter_mut().find(|it| it["type"] == condition.kind) {
            Some(found) if condition.is_in(found, generation) => {}
            Some(found) => *found = condition.json(generation, since(found, condition, now)),
            None => list.push(condition.json(generation, now.to_owned())),
        }
    }
    (list != present).then_some(list)
}

fn since(found: &Json, condition: &Wanted, now: &str) -> String {
    let before = found["lastTransitionTime"].as_str();
    let is_same = found["status"] == condition.status;
    before.filter(|_| is_same).unwrap_or(now).to_owned()
}

impl Wanted {
    /// Whether the object has it already. A schema may drop the generation; that is no difference.
    fn is_in(&self, found: &Json, generation: Option<i64>) -> bool {
        let observed = &found["observedGeneration"];
        let observed = observed
            .as_i64()
            .or_else(|| observed.as_str()?.parse().ok());
        found["status"] == self.status
            && found["reason"] == self.reason
            && found["message"] == self.message
            && (observed.is_none() || observed == generation)
    }

    /// The generation is a text, as 64 bit numbers are in the JSON of protocol buffers.
    fn json(&self, generation: Option<i64>, since: String) -> Json {
        let mut json = json!({
            "type": self.kind,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": since,
        });
        if let Some(generation) = generation {
            json["observedGeneration"] = Json::String(generation.to_string());
        }
        json
    }
}

//! `security.istio.io`: PeerAuthentication, AuthorizationPolicy.
pub mod rules;

use undermesh_model::policy::Enforcement;

use self::rules::Rule;
use super::{
    field::{Fields, Labels, Node, Report},
    metadata::Metadata,
    names,
};
use crate::{
    diagnostic::{Severity, quote},
    path::Path,
};

/// The annotation that makes a policy report and not decide.
const DRY_RUN_ANNOTATION: &str = "istio.io/dry-run";

/// Whether plain connections are accepted (`mtls.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What the next wider scope says.
    #[default]
    Unset,
    /// Yes; `DISABLE` means the same here, where mTLS is never refused.
    Permissive,
    /// No.
    Strict,
}

const MODES: &[(&str, Mode)] = &[
    ("UNSET", Mode::Unset),
    ("DISABLE", Mode::Permissive),
    ("PERMISSIVE", Mode::Permissive),
    ("STRICT", Mode::Strict),
];

/// Whether the workloads it selects accept plain connections.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    /// Metadata.
    pub metadata: Metadata,
    /// Labels of the workloads; empty selects all of the namespace.
    pub selector: Labels,
    /// On every port but those below.
    pub mode: Mode,
    /// On some ports.
    pub ports: Vec<(u16, Mode)>,
}

impl PeerAuthentication {
    /// Reads `spec`.
    pub fn read(metadata: Metadata, fields: &Fields<'_>, report: &Report) -> Self {
        let spec = fields
            .get("spec")
            .map(|node| node.fields(&["mtls", "portLevelMtls", "selector"]));
        let get = |name| spec.as_ref().and_then(|spec| spec.get(name));
        let selector = get("selector")
            .map(|node| match_labels(&node))
            .unwrap_or_default();
        let ports = get("portLevelMtls");
        if let Some(node) = ports.as_ref().filter(|_| selector.is_empty()) {
            let remedy = "add spec.selector.matchLabels, or use spec.mtls";
            report.add(Severity::Error, node.path(), "needs a selector", remedy);
        }
        Self {
            metadata,
            selector,
            mode: get("mtls").map(|node| mode(&node)).unwrap_or_default(),
            ports: ports.map(|node| port_modes(&node)).unwrap_or_default(),
        }
    }

    /// The strictest one with the same selection, unless the selection is in doubt.
    pub fn strict(self, report: &Report) -> Option<Self> {
        selection_is_certain(report).then_some(Self {
            mode: Mode::Strict,
            ports: Vec::new(),
            ..self
        })
    }
}

fn mode(node: &Node<'_>) -> Mode {
    let mode = node.fields(&["mode"]).get("mode");
    mode.and_then(|node| node.choice(MODES)).unwrap_or_default()
}

fn port_modes(node: &Node<'_>) -> Vec<(u16, Mode)> {
    let read = |(key, node): (&str, Node<'_>)| match names::port(key) {
        Some(port) => Some((port, mode(&node))),
        None => {
            node.error(
                format!("{} is not a port", quote(key)),
                "write a number from 1 to 65535",
            );
            None
        }
    };
    node.any_fields().each().filter_map(read).collect()
}

/// `matchLabels` of a selector.
fn match_labels(node: &Node<'_>) -> Labels {
    let Some(labels) = node.fields(&["matchLabels"]).get("matchLabels") else {
        return Labels::default();
    };
    for (key, value) in labels.any_fields().each() {
        if key.contains('*')
            || value
                .value()
                .as_text()
                .is_some_and(|text| text.contains('*'))
        {
            value.error("'*' is no wildcard here", "write the label in full");
        }
    }
    labels.texts()
}

/// Whether what a wrong document selects is beyond doubt.
fn selection_is_certain(report: &Report) -> bool {
    let spec = Path::root().key("spec");
    !SELECTION_FIELDS
        .iter()
        .any(|field| report.has_errors_in(&spec.key(*field)))
        && !report.has_misspelt(&spec, SELECTION_FIELDS)
}

const SELECTION_FIELDS: &[&str] = &["selector", "targetRef", "targetRefs"];

/// Who may connect to the workloads it selects.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    /// Metadata.
    pub metadata: Metadata,
    /// What it governs.
    pub target: PolicyTarget,
    /// What it does.
    pub effect: Effect,
    /// Whether it decides.
    pub enforcement: Enforcement,
}

/// What an AuthorizationPolicy governs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyTarget {
    /// Workloads by labels; empty selects all of the namespace.
    Workloads(Labels),
    /// Services or gateways, at their waypoint; `kind/name` of each.
    Waypoint(Vec<String>),
}

/// What an AuthorizationPolicy does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Lets through what a rule matches.
    Allow(Vec<Rule>),
    /// Refuses what a rule matches.
    Deny(Vec<Rule>),
    /// Leaves the decision to an external authorizer.
    Custom,
    /// Records requests.
    Audit,
    /// The document is wrong: refuses everything.
    Unreadable,
}

const POLICY_FIELDS: &[&str] = &[
    "action",
    "provider",
    "rules",
    "selector",
    "targetRef",
    "targetRefs",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
    Custom,
    Audit,
}

const ACTIONS: &[(&str, Action)] = &[
    ("ALLOW", Action::Allow),
    ("DENY", Action::Deny),
    ("AUDIT", Action::Audit),
    ("CUSTOM", Action::Custom),
];

impl AuthorizationPolicy {
    /// Reads `spec` and the annotations.
    pub fn read(metadata: Metadata, fields: &Fields<'_>, report: &Report) -> Self {
        let spec = fields.get("spec").map(|node| node.fields(POLICY_FIELDS));
        let get = |name| spec.as_ref().and_then(|spec| spec.get(name));
        // First, so that its problems are among those that are kept.
        let target = spec
            .as_ref()
            .map_or_else(|| PolicyTarget::Workloads(Labels::default()), policy_target);
        let action = get("action").map_or(Some(Action::Allow), |node| node.choice(ACTIONS));
        let rules = get("rules").map(|node| node.items()).unwrap_or_default();
        let rules = rules
            .iter()
            .map(|node| Rule::read(node, metadata.namespace()))
            .collect();
        Self {
            target,
            effect: match action {
                Some(Action::Allow) => Effect::Allow(rules),
                Some(Action::Deny) => Effect::Deny(rules),
                Some(Action::Custom) => Effect::Custom,
                Some(Action::Audit) => Effect::Audit,
                None => Effect::Unreadable,
            },
            enforcement: enforcement(&metadata, report),
            metadata,
        }
    }

    /// The policy that refuses everything it selects, unless the selection is in doubt or not ours.
    pub fn denying_all(self, report: &Report) -> Option<Self> {
        let is_ours = matches!(self.target, PolicyTarget::Workloads(_));
        (is_ours && selection_is_certain(report)).then_some(Self {
            effect: Effect::Unreadable,
            ..self
        })
    }
}

fn enforcement(metadata: &Metadata, report: &Report) -> Enforcement {
    let Some(value) = metadata.annotations.get(DRY_RUN_ANNOTATION) else {
        return Enforcement::Enforced;
    };
    match &**value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Enforcement::DryRun,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Enforcement::Enforced,
        other => {
            let path = Path::root()
                .key("metadata")
                .key("annotations")
                .key(DRY_RUN_ANNOTATION);
            let message = format!(
                "{} is not a truth value; the policy is enforced",
                quote(other)
            );
            report.add(
                Severity::Warning,
                &path,
                message,
                "write \"true\" or \"false\"",
            );
            Enforcement::Enforced
        }
    }
}

fn policy_target(spec: &Fields<'_>) -> PolicyTarget {
    let targets: Vec<Node<'_>> = spec
        .get("targetRef")
        .into_iter()
        .chain(spec.items("targetRefs"))
        .collect();
    let Some(first) = targets.first() else {
        let selector = spec.get("selector").map(|node| match_labels(&node));
        return PolicyTarget::Workloads(selector.unwrap_or_default());
    };
    if spec.get("selector").is_some() {
        first.error("stands beside a selector", "keep one of the two");
    }
    let read = |node: &Node<'_>| {
        let fields = node.fields(&["group", "kind", "name", "namespace"]);
        let text = |name| fields.required(name).and_then(|node| node.filled_text());
        Some(format!("{}/{}", text("kind")?, text("name")?))
    };
    PolicyTarget::Waypoint(targets.iter().filter_map(read).collect())
}

//! `security.istio.io`: PeerAuthentication, AuthorizationPolicy.
use std::sync::Arc;

use ipnet::IpNet;
use undermesh_model::policy::{Enforcement, Match, ServiceAccountMatch, StringMatch};

use super::{
    field::{Fields, Labels, Node, Report},
    metadata::Metadata,
    names::{self, Form},
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
#[derive(Clone, Debug)]
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
        selection_is_certain(report).then(|| Self {
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
#[derive(Clone, Debug)]
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

/// One rule: every clause must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `to`, then `from`, then every entry of `when`.
    pub clauses: Vec<Clause>,
}

/// A condition: one of its alternatives must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// The alternatives; never empty.
    pub alternatives: Vec<Alternative>,
}

/// One `source`, `operation` or `when`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternative {
    /// What can be judged at L4; no family is set when there is nothing.
    pub l4: Match,
    /// The fields that need HTTP.
    pub http: Vec<Path>,
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
        (is_ours && selection_is_certain(report)).then(|| Self {
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

impl Rule {
    fn read(node: &Node<'_>, namespace: &Arc<str>) -> Self {
        let fields = node.fields(&["from", "to", "when"]);
        let clause = |name, inner, read: fn(&Node<'_>, &Arc<str>) -> Alternative| {
            let list = fields.get(name)?;
            let items = list.items();
            if items.is_empty() && !list.has_errors() {
                list.error("is empty", "add an item, or remove it to match everything");
            }
            let alternatives: Vec<Alternative> = items
                .iter()
                .filter_map(|item| item.fields(inner).required(inner[0]))
                .map(|node| read(&node, namespace))
                .collect();
            (!alternatives.is_empty()).then_some(Clause { alternatives })
        };
        let to = clause("to", &["operation"], operation);
        let from = clause("from", &["source"], source);
        let when = fields.items("when");
        let when = when.iter().map(|node| Clause {
            alternatives: vec![condition(node, namespace)],
        });
        Self {
            clauses: to.into_iter().chain(from).chain(when).collect(),
        }
    }
}

const SOURCE_FIELDS: &[&str] = &[
    "ipBlocks",
    "namespaces",
    "notIpBlocks",
    "notNamespaces",
    "notPrincipals",
    "notRemoteIpBlocks",
    "notRequestPrincipals",
    "notServiceAccounts",
    "principals",
    "remoteIpBlocks",
    "requestPrincipals",
    "serviceAccounts",
];

fn source(node: &Node<'_>, namespace: &Arc<str>) -> Alternative {
    let fields = node.fields(SOURCE_FIELDS);
    let account = service_account(namespace);
    let l4 = Match {
        principals: values(&fields, "principals", principal),
        not_principals: values(&fields, "notPrincipals", principal),
        namespaces: values(&fields, "namespaces", wildcard),
        not_namespaces: values(&fields, "notNamespaces", wildcard),
        service_accounts: values(&fields, "serviceAccounts", &account),
        not_service_accounts: values(&fields, "notServiceAccounts", &account),
        source_ips: values(&fields, "ipBlocks", network),
        not_source_ips: values(&fields, "notIpBlocks", network),
        ..Match::default()
    };
    let http = [
        "requestPrincipals",
        "notRequestPrincipals",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
    ];
    finish(&fields, l4, http_fields(&fields, &http))
}

const OPERATION_FIELDS: &[&str] = &[
    "hosts",
    "methods",
    "notHosts",
    "notMethods",
    "notPaths",
    "notPorts",
    "paths",
    "ports",
];

fn operation(node: &Node<'_>, _: &Arc<str>) -> Alternative {
    let fields = node.fields(OPERATION_FIELDS);
    let l4 = Match {
        destination_ports: values(&fields, "ports", port),
        not_destination_ports: values(&fields, "notPorts", port),
        ..Match::default()
    };
    let http = [
        "hosts",
        "notHosts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
    ];
    finish(&fields, l4, http_fields(&fields, &http))
}

/// Refuses a source or operation that says nothing: a match without a family is never true, which would turn a
/// DENY off.
fn finish(fields: &Fields<'_>, l4: Match, http: Vec<Path>) -> Alternative {
    if l4 == Match::default() && http.is_empty() && !fields.node().has_errors() {
        fields
            .node()
            .error("says nothing", "give it a field with a value, or remove it");
    }
    Alternative { l4, http }
}

fn values<T>(
    fields: &Fields<'_>,
    name: &'static str,
    read: impl Fn(&Node<'_>) -> Option<T>,
) -> Vec<T> {
    let Some(list) = fields.get(name) else {
        return Vec::new();
    };
    let items = list.items();
    if items.is_empty() {
        list.warn(
            "is empty and so has no effect",
            "give it a value or remove it",
        );
    }
    items.iter().filter_map(read).collect()
}

fn http_fields(fields: &Fields<'_>, names: &[&'static str]) -> Vec<Path> {
    let set = |name: &&'static str| {
        let path = fields.get(name)?.path().clone();
        (!values(fields, name, |node| node.text().map(str::to_owned)).is_empty()).then_some(path)
    };
    names.iter().filter_map(set).collect()
}

fn network(node: &Node<'_>) -> Option<IpNet> {
    node.network()
}

fn port(node: &Node<'_>) -> Option<u16> {
    node.port_text()
}

/// `*`, `*suffix`, `prefix*`, or the text itself.
fn wildcard(node: &Node<'_>) -> Option<StringMatch> {
    let text = node.filled_text()?;
    let (first, last) = (text.strip_prefix('*'), text.strip_suffix('*'));
    let found = match (first, last) {
        (Some(""), _) => StringMatch::Presence,
        (Some(suffix), _) => StringMatch::Suffix(Arc::from(suffix)),
        (None, Some(prefix)) => StringMatch::Prefix(Arc::from(prefix)),
        (None, None) => StringMatch::Exact(Arc::from(text)),
    };
    if text.matches('*').count() > 1 || (first.is_none() && last.is_none() && text.contains('*')) {
        node.error(
            format!("{} has '*' in the middle", quote(text)),
            "use one '*', at the beginning or the end",
        );
        return None;
    }
    Some(found)
}

fn principal(node: &Node<'_>) -> Option<StringMatch> {
    if let Some(rest) = node
        .value()
        .as_text()
        .and_then(|text| text.strip_prefix("spiffe://"))
    {
        node.error(
            "begins with spiffe://, which would never match",
            format!("write {}", quote(rest)),
        );
        return None;
    }
    wildcard(node)
}

/// Reads `namespace/account`, or `account` in the policy's namespace.
fn service_account(own_namespace: &str) -> impl Fn(&Node<'_>) -> Option<ServiceAccountMatch> {
    move |node| {
        let text = node.filled_text()?;
        let (namespace, account) = text.split_once('/').unwrap_or((own_namespace, text));
        if !Form::Label.accepts(namespace) || !Form::Subdomain.accepts(account) {
            let message = format!("{} is not a service account", quote(text));
            node.error(
                message,
                "write <namespace>/<name>, or <name> for one of the policy's namespace",
            );
            return None;
        }
        Some(ServiceAccountMatch {
            namespace: Arc::from(namespace),
            service_account: Arc::from(account),
        })
    }
}

const L4_KEYS: &[&str] = &[
    "destination.ip",
    "destination.port",
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
];
const HTTP_KEYS: &[&str] = &[
    "connection.sni",
    "remote.ip",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.principal",
];
const HTTP_KEY_PREFIXES: &[&str] = &[
    "request.headers[",
    "request.auth.claims[",
    "experimental.envoy.filters.",
];

/// One entry of `when`.
fn condition(node: &Node<'_>, namespace: &Arc<str>) -> Alternative {
    let fields = node.fields(&["key", "notValues", "values"]);
    if fields.items("values").is_empty() && fields.items("notValues").is_empty() {
        node.error("has neither values nor notValues", "add one");
    }
    let Some(key_node) = fields.required("key") else {
        return Alternative::default();
    };
    let Some(key) = key_node.filled_text() else {
        return Alternative::default();
    };
    let mut l4 = Match::default();
    match key {
        "source.ip" => both(&fields, network, &mut l4.source_ips, &mut l4.not_source_ips),
        "source.namespace" => both(
            &fields,
            wildcard,
            &mut l4.namespaces,
            &mut l4.not_namespaces,
        ),
        "source.principal" => both(
            &fields,
            principal,
            &mut l4.principals,
            &mut l4.not_principals,
        ),
        "source.serviceAccount" => {
            let account = service_account(namespace);
            both(
                &fields,
                account,
                &mut l4.service_accounts,
                &mut l4.not_service_accounts,
            );
        }
        "destination.ip" => both(
            &fields,
            network,
            &mut l4.destination_ips,
            &mut l4.not_destination_ips,
        ),
        "destination.port" => {
            both(
                &fields,
                port,
                &mut l4.destination_ports,
                &mut l4.not_destination_ports,
            );
        }
        _ if is_http_key(key) => {
            return Alternative {
                l4,
                http: vec![key_node.path().clone()],
            };
        }
        _ => unknown_key(&key_node, key),
    }
    Alternative {
        l4,
        http: Vec::new(),
    }
}

fn both<T>(
    fields: &Fields<'_>,
    read: impl Fn(&Node<'_>) -> Option<T>,
    positive: &mut Vec<T>,
    negative: &mut Vec<T>,
) {
    *positive = values(fields, "values", &read);
    *negative = values(fields, "notValues", &read);
}

fn is_http_key(key: &str) -> bool {
    HTTP_KEYS.contains(&key)
        || HTTP_KEY_PREFIXES
            .iter()
            .any(|prefix| key.starts_with(prefix))
}

fn unknown_key(node: &Node<'_>, key: &str) {
    let known: Vec<&str> = L4_KEYS.iter().chain(HTTP_KEYS).copied().collect();
    let remedy = match names::nearest(key, &known) {
        Some(name) => format!("did you mean '{name}'?"),
        None => format!("write one of {}, or one of request.*", L4_KEYS.join(", ")),
    };
    node.error(format!("{} is not a known key", quote(key)), remedy);
}

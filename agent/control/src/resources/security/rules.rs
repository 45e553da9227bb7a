//! The rules of an AuthorizationPolicy: what can be judged at L4, and which fields need HTTP.
use std::sync::Arc;

use ipnet::IpNet;
use undermesh_model::policy::{Match, ServiceAccountMatch, StringMatch};

use crate::{
    diagnostic::quote,
    path::Path,
    resources::{
        field::{Fields, Node},
        names::{self, Form},
    },
};

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

impl Rule {
    pub(super) fn read(node: &Node<'_>, namespace: &Arc<str>) -> Self {
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
        list.error("is empty", "give it a value or remove it");
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

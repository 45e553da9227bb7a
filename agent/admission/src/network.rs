//! NetworkPolicies, as far as the mesh depends on them: connections of the mesh reach a pod on its HBONE port, so a
//! policy that lets in the application's port alone cuts the pod off from the mesh.
//!
//! Source: `NetworkPolicySpec` of `networking.k8s.io/v1`.
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use undermesh_control::{
    Diagnostic, Severity,
    path::Path,
    resources::{
        Key,
        field::{Labels, Problem},
        metadata::Origin,
    },
    value::Value,
};

/// The API group of the kind.
pub(crate) const GROUP: &str = "networking.k8s.io";
/// The version that is read; there is no other.
pub(crate) const VERSION: &str = "v1";
/// The kind.
pub(crate) const KIND: &str = "NetworkPolicy";
/// The kind in paths of an API server.
pub(crate) const PLURAL: &str = "networkpolicies";

/// Where pods in the mesh take the connections of others.
const HBONE_PORT: u16 = 15_008;
/// The namespace of an object that names none, as for `kubectl apply`.
const DEFAULT_NAMESPACE: &str = "default";

/// A policy that restricts what comes in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkPolicy {
    key: Key,
    origin: Origin,
    selector: Selector,
    /// For each rule, what it lets in.
    rules: Vec<Ports>,
}

/// The TCP ports that a rule lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    /// None: it is about another protocol.
    None,
    /// Some, and not [`HBONE_PORT`].
    Others,
    /// [`HBONE_PORT`], alone or among others.
    Hbone,
}

/// Which pods of its namespace a policy is for.
#[derive(Clone, Debug, Default, PartialEq)]
struct Selector {
    labels: Labels,
    expressions: Vec<Expression>,
}

/// `matchExpressions`: a label, and the values that it may or may not have.
#[derive(Clone, Debug, PartialEq)]
struct Expression {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl NetworkPolicy {
    /// Whether an object calls itself one.
    pub fn is_named_by(object: &Value) -> bool {
        let text = |name| object.get(name).and_then(Value::as_text);
        text("kind") == Some(KIND)
            && text("apiVersion").and_then(|it| it.split_once('/')) == Some((GROUP, VERSION))
    }

    /// Reads one; nothing when it restricts nothing that comes in, or is not as the API has it, which the API server
    /// tells better.
    pub fn read(object: &Value, origin: &Origin) -> Option<Self> {
        let metadata = object.get("metadata")?;
        let text = |name| metadata.get(name).and_then(Value::as_text);
        let spec = object.get("spec")?;
        if !restricts_ingress(spec) {
            return None;
        }
        let rules = spec.get("ingress").map(items).unwrap_or_default();
        Some(Self {
            key: Key {
                kind: Cow::Borrowed(KIND),
                namespace: Arc::from(text("namespace").unwrap_or(DEFAULT_NAMESPACE)),
                name: Arc::from(text("name")?),
            },
            origin: origin.clone(),
            selector: Selector::read(spec.get("podSelector")?)?,
            rules: rules.iter().map(Ports::of_rule).collect::<Option<_>>()?,
        })
    }

    /// The namespace of the pods that it is for.
    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// Whether it is for a pod of its namespace with these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.selects(labels)
    }

    /// Whether it lets connections of the mesh in, whoever they are from.
    pub fn admits_mesh(&self) -> bool {
        self.rules.contains(&Ports::Hbone)
    }

    /// Says that a rule does not do what it is for; nothing when no rule lets any TCP port in, and so nothing is
    /// lost. `whom` is who cannot be reached.
    pub fn complain(&self, whom: &str) -> Option<Diagnostic> {
        let rule = self.rules.iter().position(|it| *it == Ports::Others)?;
        let path = Path::root().key("spec").key("ingress").index(rule);
        let problem = Problem {
            severity: Severity::Warning,
            path: path.key("ports"),
            message: format!(
                "lets nothing of the mesh in to {whom}: connections come to TCP port {HBONE_PORT} there, and no \
                 policy admits that"
            ),
            remedy: format!("add the port {HBONE_PORT} with protocol TCP to the rule"),
        };
        Some(self.origin.diagnostic(Some(self.key.clone()), problem))
    }
}

/// Without `policyTypes`, every policy restricts what comes in.
fn restricts_ingress(spec: &Value) -> bool {
    match spec.get("policyTypes").map(items) {
        Some(types) if !types.is_empty() => types.iter().any(|it| it.as_text() == Some("Ingress")),
        _ => true,
    }
}

impl Ports {
    /// A rule without ports lets all of them in.
    fn of_rule(rule: &Value) -> Option<Self> {
        let ports = rule.get("ports").map(items).unwrap_or_default();
        if ports.is_empty() {
            return Some(Self::Hbone);
        }
        let each = ports.iter().map(Self::of_port);
        each.collect::<Option<Vec<_>>>()
            .map(|each| each.into_iter().fold(Self::None, Self::joined))
    }

    fn of_port(port: &Value) -> Option<Self> {
        let protocol = port.get("protocol").and_then(Value::as_text);
        if protocol.is_some_and(|it| it != "TCP") {
            return Some(Self::None);
        }
        let first = match port.get("port") {
            None | Some(Value::Null) => return Some(Self::Hbone),
            // Its number is the pod's to say; it is the application's, since the HBONE port is nobody's there.
            Some(Value::Text(_)) => return Some(Self::Others),
            Some(Value::Integer(number)) => u16::try_from(*number).ok()?,
            Some(_) => return None,
        };
        let last = match port.get("endPort") {
            None | Some(Value::Null) => first,
            Some(Value::Integer(number)) => u16::try_from(*number).ok()?,
            Some(_) => return None,
        };
        Some(match (first..=last).contains(&HBONE_PORT) {
            true => Self::Hbone,
            false => Self::Others,
        })
    }

    fn joined(self, other: Self) -> Self {
        match (self, other) {
            (Self::Hbone, _) | (_, Self::Hbone) => Self::Hbone,
            (Self::Others, _) | (_, Self::Others) => Self::Others,
            (Self::None, Self::None) => Self::None,
        }
    }
}

impl Selector {
    fn read(value: &Value) -> Option<Self> {
        let labels = match value.get("matchLabels") {
            Some(Value::Map(entries)) => entries
                .iter()
                .map(|(key, value)| Some((key.as_str().into(), value.as_text()?.into())))
                .collect::<Option<BTreeMap<Arc<str>, Arc<str>>>>()?,
            _ => BTreeMap::new(),
        };
        let expressions = value.get("matchExpressions").map(items);
        let expressions = expressions.unwrap_or_default().iter();
        Some(Self {
            labels: labels.into_iter().collect(),
            expressions: expressions.map(Expression::read).collect::<Option<_>>()?,
        })
    }

    fn selects(&self, labels: &Labels) -> bool {
        let mut expressions = self.expressions.iter();
        labels.include(&self.labels) && expressions.all(|it| it.holds(labels))
    }
}

impl Expression {
    fn read(value: &Value) -> Option<Self> {
        let listed = value.get("values").map(items).unwrap_or_default().iter();
        let values: Option<Vec<String>> =
            listed.map(|it| it.as_text().map(str::to_owned)).collect();
        Some(Self {
            key: value.get("key")?.as_text()?.to_owned(),
            test: match value.get("operator")?.as_text()? {
                "In" => Test::In(values?),
                "NotIn" => Test::NotIn(values?),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::DoesNotExist,
                _ => return None,
            },
        })
    }

    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_among = |values: &[String]| {
            value.is_some_and(|value| values.iter().any(|it| it.as_str() == &**value))
        };
        match &self.test {
            Test::In(values) => is_among(values),
            Test::NotIn(values) => !is_among(values),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    }
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::List(items) => items,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn policy(spec: Json) -> Option<NetworkPolicy> {
        let object = json!({ "metadata": { "name": "p", "namespace": "shop" }, "spec": spec });
        NetworkPolicy::read(&Value::from_json(&object).unwrap(), &Origin::Cluster)
    }

    fn ports(ports: Json) -> Ports {
        let spec = json!({ "podSelector": {}, "ingress": [{ "ports": ports }] });
        policy(spec).unwrap().rules[0]
    }

    fn labels(entries: &[(&str, &str)]) -> Labels {
        let entries = entries.iter();
        entries
            .map(|(key, value)| (Arc::from(*key), Arc::from(*value)))
            .collect()
    }

    #[test]
    fn a_rule_says_which_ports_it_lets_in() {
        assert_eq!(ports(json!([])), Ports::Hbone);
        assert_eq!(ports(json!([{ "port": 8080 }])), Ports::Others);
        assert_eq!(ports(json!([{ "port": "http" }])), Ports::Others);
        assert_eq!(
            ports(json!([{ "port": 8080 }, { "port": 15008 }])),
            Ports::Hbone
        );
        assert_eq!(
            ports(json!([{ "port": 8080, "endPort": 20000 }])),
            Ports::Hbone
        );
        assert_eq!(ports(json!([{ "protocol": "TCP" }])), Ports::Hbone);
        assert_eq!(
            ports(json!([{ "port": 15008, "protocol": "UDP" }])),
            Ports::None
        );
    }

    #[test]
    fn only_what_restricts_ingress_counts() {
        let egress = json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [] });
        assert_eq!(policy(egress), None);
        let both = json!({ "podSelector": {}, "policyTypes": ["Egress", "Ingress"] });
        assert!(policy(both).is_some());
        assert!(policy(json!({ "podSelector": {} })).is_some());
    }

    #[test]
    fn a_policy_that_lets_nobody_in_takes_nothing_away() {
        let closed = policy(json!({ "podSelector": {}, "ingress": [] })).unwrap();
        assert_eq!(closed.complain("anybody"), None);
    }

    #[test]
    fn every_operator_of_a_selector_is_understood() {
        let selects = |operator: &str, values: Json, own: &[(&str, &str)]| {
            let expression = json!({ "key": "app", "operator": operator, "values": values });
            let spec = json!({ "podSelector": { "matchExpressions": [expression] } });
            policy(spec).unwrap().selects(&labels(own))
        };
        let web = [("app", "web")];
        assert!(selects("In", json!(["db", "web"]), &web));
        assert!(!selects("In", json!(["db"]), &web));
        assert!(!selects("In", json!(["db"]), &[]));
        assert!(selects("NotIn", json!(["db"]), &web));
        assert!(selects("NotIn", json!(["db"]), &[]));
        assert!(selects("Exists", json!([]), &web));
        assert!(selects("DoesNotExist", json!([]), &[]));
        let labelled = json!({ "podSelector": { "matchLabels": { "app": "web" } } });
        assert!(policy(labelled.clone()).unwrap().selects(&labels(&web)));
        assert!(!policy(labelled).unwrap().selects(&labels(&[])));
    }

    #[test]
    fn what_is_not_as_the_api_has_it_is_left_to_the_api_server() {
        for spec in [
            json!({}),
            json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Near" }] } }),
            json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 70_000 }] }] }),
        ] {
            assert_eq!(policy(spec.clone()), None, "{spec}");
        }
    }
}

//! Istio's WorkloadGroup (`networking.istio.io`): what the machines of one kind have in common.
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::{names::is_subdomain, probe::Probe};

/// Most labels, annotations or ports of a group.
pub const MAX_ENTRIES: usize = 256;
/// Longest text of a group, in bytes.
pub const MAX_TEXT: usize = 8 * 1024;
/// The service account of groups that name none.
const DEFAULT_ACCOUNT: &str = "default";

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadGroup {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, by which its entries name it as their owner.
    pub uid: String,
    /// Labels of its machines.
    pub labels: BTreeMap<String, String>,
    /// Annotations of its entries.
    pub annotations: BTreeMap<String, String>,
    /// The service account of its machines.
    pub service_account: String,
    /// Ports of its machines by the names of services' ports.
    pub ports: BTreeMap<String, u16>,
    /// The network that its machines are on; empty is the default one.
    pub network: String,
    /// Where they are: region, zone and subzone, joined by slashes; empty when it does not say.
    pub locality: String,
    /// Share of the traffic; unset is 1.
    pub weight: Option<u32>,
    /// How their applications are asked whether they are well.
    pub probe: Option<Probe>,
}

/// Why a group cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the WorkloadGroup {name} cannot be used: {reason}; correct it")]
pub struct GroupError {
    name: String,
    reason: String,
}

#[derive(Deserialize)]
struct Object {
    metadata: ObjectMetadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct ObjectMetadata {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    metadata: Metadata,
    template: Template,
    probe: Option<Probe>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Template {
    service_account: String,
    labels: BTreeMap<String, String>,
    ports: BTreeMap<String, u16>,
    network: String,
    locality: String,
    weight: Option<u32>,
}

impl WorkloadGroup {
    /// Reads one as the API server has it.
    ///
    /// # Errors
    /// When a part of it is not what Istio's API allows.
    pub fn read(object: &Value) -> Result<Self, GroupError> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or("?");
        let wrong = |reason: String| GroupError {
            name: format!("{}/{}", text("namespace"), text("name")),
            reason,
        };
        let Object { metadata, spec } =
            Object::deserialize(object).map_err(|error| wrong(error.to_string()))?;
        let mut labels = spec.template.labels;
        labels.extend(spec.metadata.labels);
        let group = Self {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            labels,
            annotations: spec.metadata.annotations,
            service_account: match spec.template.service_account {
                none if none.is_empty() => DEFAULT_ACCOUNT.to_owned(),
                account => account,
            },
            ports: spec.template.ports,
            network: spec.template.network,
            locality: spec.template.locality,
            weight: spec.template.weight,
            probe: spec.probe,
        };
        group.check().map_err(wrong)?;
        Ok(group)
    }

    fn check(&self) -> Result<(), String> {
        let maps = [&self.labels, &self.annotations];
        if maps.iter().any(|map| map.len() > MAX_ENTRIES) || self.ports.len() > MAX_ENTRIES {
            return Err(format!(
                "it has more than {MAX_ENTRIES} labels, annotations or ports"
            ));
        }
        let mapped = maps
            .into_iter()
            .flatten()
            .flat_map(|(key, value)| [key, value]);
        let texts = mapped.chain([&self.network, &self.locality]);
        if texts
            .chain(self.ports.keys())
            .any(|text| text.len() > MAX_TEXT)
        {
            return Err(format!("a text of it is longer than {MAX_TEXT} bytes"));
        }
        if !is_subdomain(&self.service_account) {
            return Err("spec.template.serviceAccount is no name of a service account".to_owned());
        }
        if self.ports.values().any(|port| *port == 0) {
            return Err("spec.template.ports has port 0".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    pub(crate) fn object() -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadGroup",
            "metadata": { "name": "vm", "namespace": "shop", "uid": "u-1" },
            "spec": {
                "metadata": {
                    "labels": { "app": "stock", "tier": "data" },
                    "annotations": { "team": "stock" },
                },
                "template": {
                    "serviceAccount": "stock",
                    "labels": { "app": "template", "zone": "a" },
                    "ports": { "http": 8080 },
                    "locality": "eu/eu-a",
                    "weight": 2,
                },
                "probe": { "tcpSocket": { "port": 8080 } },
            },
        })
    }

    #[test]
    fn a_group_is_read_and_its_metadata_counts_before_its_template() {
        let group = WorkloadGroup::read(&object()).unwrap();
        assert_eq!((&*group.service_account, group.weight), ("stock", Some(2)));
        let labels: Vec<_> = group
            .labels
            .iter()
            .map(|(key, value)| (&**key, &**value))
            .collect();
        assert_eq!(labels, [("app", "stock"), ("tier", "data"), ("zone", "a")]);
        assert!(group.probe.is_some());
    }

    #[test]
    fn a_group_needs_next_to_nothing() {
        let mut bare = object();
        bare["spec"] = json!({ "template": {} });
        let group = WorkloadGroup::read(&bare).unwrap();
        assert_eq!(group.service_account, "default");
        assert_eq!(group.probe, None);
    }

    #[test]
    fn mistakes_are_named_with_the_group() {
        for (path, value, named) in [
            (
                "/spec/template/serviceAccount",
                json!("a/b"),
                "serviceAccount",
            ),
            ("/spec/template/ports/http", json!(0), "port 0"),
            ("/spec/template/ports/http", json!(70000), "70000"),
            (
                "/spec/template/locality",
                json!("a".repeat(9000)),
                "longer than",
            ),
            ("/spec/probe/tcpSocket/port", json!(0), "port is 0"),
        ] {
            let mut group = object();
            *group.pointer_mut(path).unwrap() = value;
            let error = WorkloadGroup::read(&group).unwrap_err().to_string();
            assert!(error.starts_with("the WorkloadGroup shop/vm "), "{error}");
            assert!(error.contains(named), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_object_is_read_or_refused(account in "\\PC{0,20}", port: i64, text in "\\PC{0,20}") {
            let mut group = object();
            group["spec"]["template"]["serviceAccount"] = json!(account);
            group["spec"]["template"]["ports"][&text] = json!(port);
            group["spec"]["template"]["labels"][&text] = json!(text);
            if let Ok(group) = WorkloadGroup::read(&group) {
                prop_assert!(is_subdomain(&group.service_account));
                prop_assert!(group.ports.values().all(|port| *port > 0));
            }
        }
    }
}

//! The WorkloadEntry of a machine: as it is made of its group, as it is marked, and as it is read back.
//!
//! Source: istiod's `autoregistration` controller, whose names and forms these are.
use std::{net::IpAddr, time::SystemTime};

use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{group::WorkloadGroup, monitor::Verdict};

/// API group of entries and groups.
pub const API_GROUP: &str = "networking.istio.io";
/// Its version.
pub const API_VERSION: &str = "v1";
/// The annotation that names the group.
pub const GROUP: &str = "istio.io/autoRegistrationGroup";
/// The annotation that names the replica that the machine is, or was last, connected to.
pub const CONTROLLER: &str = "istio.io/workloadController";
/// The annotation that says since when it is connected.
pub const CONNECTED_AT: &str = "istio.io/connectedAt";
/// The annotation that says since when it is not.
pub const DISCONNECTED_AT: &str = "istio.io/disconnectedAt";
/// The annotation by which an entry counts as ill until its condition says that it is well.
pub const HEALTH_CHECKED: &str = "proxy.istio.io/health-checks-enabled";
/// The condition of that.
pub const HEALTHY: &str = "Healthy";
/// The annotation of workloads that an agent has captured.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The annotation that says on which node a workload is; a machine is its own.
const NODE: &str = "undermesh.io/node";
/// Most characters of a condition's message.
const MAX_MESSAGE: usize = 1024;

/// The name of an entry with its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An entry, as far as registration cares.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub resource_version: String,
    /// Its address.
    pub address: String,
    /// Its service account.
    pub service_account: String,
    /// The group that it was made of; `None` for one that somebody wrote.
    pub group: Option<String>,
    /// The replica that the machine is or was connected to.
    pub controller: String,
    /// Since when it is connected.
    pub connected_at: Option<SystemTime>,
    /// Since when it is not.
    pub disconnected_at: Option<SystemTime>,
    /// All its conditions.
    pub conditions: Vec<Value>,
}

impl Entry {
    /// Reads one as the API server has it.
    pub fn read(object: &Value) -> Self {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let owned = |path: &str| text(path).unwrap_or_default().to_owned();
        let annotation = |name: &str| object["metadata"]["annotations"][name].as_str();
        let account = text("/spec/serviceAccount").filter(|account| !account.is_empty());
        let conditions = object
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        Self {
            key: Key {
                namespace: owned("/metadata/namespace"),
                name: owned("/metadata/name"),
            },
            uid: owned("/metadata/uid"),
            resource_version: owned("/metadata/resourceVersion"),
            address: owned("/spec/address"),
            service_account: account.unwrap_or("default").to_owned(),
            group: annotation(GROUP).map(str::to_owned),
            controller: annotation(CONTROLLER).unwrap_or_default().to_owned(),
            connected_at: annotation(CONNECTED_AT).and_then(moment),
            disconnected_at: annotation(DISCONNECTED_AT).and_then(moment),
            conditions: conditions.cloned().unwrap_or_default(),
        }
    }
}

/// The entry of a machine that connects for the first time. A group cannot say otherwise of what is said here of the
/// machine's state.
pub fn made(
    group: &WorkloadGroup,
    name: &str,
    address: IpAddr,
    controller: &str,
    now: SystemTime,
) -> Value {
    let mut annotations: Map<String, Value> = group
        .annotations
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    annotations.extend([
        (GROUP.to_owned(), json!(group.name)),
        (CONTROLLER.to_owned(), json!(controller)),
        (CONNECTED_AT.to_owned(), json!(written(now))),
        (HEALTH_CHECKED.to_owned(), json!("true")),
        (REDIRECTION.to_owned(), json!("enabled")),
        (NODE.to_owned(), json!(name)),
    ]);
    let mut spec = json!({
        "address": address.to_string(),
        "serviceAccount": group.service_account,
        "labels": group.labels,
    });
    if !group.ports.is_empty() {
        spec["ports"] = json!(group.ports);
    }
    if !group.network.is_empty() {
        spec["network"] = json!(group.network);
    }
    if !group.locality.is_empty() {
        spec["locality"] = json!(group.locality);
    }
    if let Some(weight) = group.weight {
        spec["weight"] = json!(weight);
    }
    json!({
        "apiVersion": format!("{API_GROUP}/{API_VERSION}"),
        "kind": "WorkloadEntry",
        "metadata": {
            "name": name,
            "namespace": group.namespace,
            "labels": group.labels,
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": format!("{API_GROUP}/{API_VERSION}"),
                "kind": "WorkloadGroup",
                "name": group.name,
                "uid": group.uid,
                "controller": true,
            }],
        },
        "spec": spec,
    })
}

/// Says that the machine is connected to `controller`, if nobody has changed the entry meanwhile.
pub fn connected(entry: &Entry, controller: &str, now: SystemTime) -> Value {
    marked(
        entry,
        json!({
            CONTROLLER: controller,
            CONNECTED_AT: written(now),
            DISCONNECTED_AT: null,
        }),
    )
}

/// Says that it is connected to nobody, if nobody has changed the entry meanwhile.
pub fn disconnected(entry: &Entry, now: SystemTime) -> Value {
    marked(entry, json!({ DISCONNECTED_AT: written(now) }))
}

fn marked(entry: &Entry, annotations: Value) -> Value {
    json!({
        "metadata": {
            "uid": entry.uid,
            "resourceVersion": entry.resource_version,
            "annotations": annotations,
        },
    })
}

/// Says how its application is, in the condition `Healthy`, if nobody has changed the entry meanwhile. The other
/// conditions stay as they are; `None` when it says so already.
pub fn health(entry: &Entry, verdict: &Verdict, now: SystemTime) -> Option<Value> {
    let (status, message) = match verdict {
        Verdict::Healthy => ("True", String::new()),
        Verdict::Unhealthy(reason) => ("False", reason.chars().take(MAX_MESSAGE).collect()),
    };
    let time = written(now);
    let condition = json!({
        "type": HEALTHY,
        "status": status,
        "message": message,
        "lastProbeTime": time,
        "lastTransitionTime": time,
    });
    let is_health = |it: &Value| it["type"] == HEALTHY;
    let told = entry.conditions.iter().find(|it| is_health(it));
    if told.is_some_and(|it| {
        it["status"] == status && it["message"].as_str().unwrap_or_default() == message
    }) {
        return None;
    }
    let others = entry.conditions.iter().filter(|it| !is_health(it)).cloned();
    let conditions: Vec<Value> = others.chain([condition]).collect();
    Some(json!({
        "metadata": { "uid": entry.uid, "resourceVersion": entry.resource_version },
        "status": { "conditions": conditions },
    }))
}

fn written(time: SystemTime) -> String {
    // Every time of day has this form.
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

fn moment(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::group::tests::object;

    fn sample(now: SystemTime) -> Value {
        let mut group = WorkloadGroup::read(&object()).unwrap();
        group
            .annotations
            .insert(REDIRECTION.to_owned(), "off".to_owned());
        made(
            &group,
            "vm-10.0.0.7",
            [10, 0, 0, 7].into(),
            "replica-1",
            now,
        )
    }

    #[test]
    fn an_entry_is_made_of_its_group_and_a_group_cannot_lie_about_the_machine() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let object = sample(now);
        let entry = Entry::read(&object);
        assert_eq!(entry.key.to_string(), "shop/vm-10.0.0.7");
        assert_eq!(
            (&*entry.address, &*entry.service_account),
            ("10.0.0.7", "stock")
        );
        assert_eq!(
            (entry.group.as_deref(), &*entry.controller),
            (Some("vm"), "replica-1")
        );
        assert_eq!(
            (entry.connected_at, entry.disconnected_at),
            (Some(now), None)
        );
        let metadata = &object["metadata"];
        assert_eq!(metadata["annotations"][REDIRECTION], "enabled");
        assert_eq!(metadata["annotations"]["team"], "stock");
        assert_eq!(metadata["annotations"][HEALTH_CHECKED], "true");
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u-1");
        assert_eq!(metadata["labels"]["app"], "stock");
        assert_eq!(object["spec"]["ports"]["http"], 8080);
    }

    #[test]
    fn health_is_one_condition_among_others() {
        let now = SystemTime::now();
        let mut object = sample(now);
        object["status"]["conditions"] =
            json!([{ "type": "undermesh.io/Accepted", "status": "True" }]);
        let patch = health(&Entry::read(&object), &Verdict::Healthy, now).unwrap();
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 2);
        assert_eq!(
            (&conditions[1]["type"], &conditions[1]["status"]),
            (&json!(HEALTHY), &json!("True"))
        );

        object["status"] = patch["status"].clone();
        let entry = Entry::read(&object);
        assert_eq!(health(&entry, &Verdict::Healthy, now), None);
        let ill = health(&entry, &Verdict::Unhealthy("refused".to_owned()), now).unwrap();
        assert_eq!(ill["status"]["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(ill["status"]["conditions"][1]["message"], "refused");
    }
}

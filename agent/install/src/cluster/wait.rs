//! Waiting until workloads are ready, and until they are gone.
use std::{fmt::Debug, pin::pin, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ContainerStatus, Pod},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Event, InstallError, Progress, list};
use crate::chart::Manifest;

/// Most pods whose trouble is told.
const MAX_REASONS: usize = 3;

/// How far a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rollout {
    ready: i32,
    wanted: i32,
    done: bool,
}

/// A kind of workload with pods of its own.
pub(super) trait Workload:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + 'static
{
    /// How far it is, by the rules of `kubectl rollout status`.
    fn rollout(&self) -> Rollout;
}

impl Workload for Deployment {
    fn rollout(&self) -> Rollout {
        let spec = self.spec.as_ref();
        let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let status = self.status.clone().unwrap_or_default();
        let ready = status.available_replicas.unwrap_or(0);
        let updated = status.updated_replicas.unwrap_or(0);
        Rollout {
            // Replicas of the earlier version are ready, too, but not what is waited for.
            ready: ready.min(updated),
            wanted,
            done: is_current(self, status.observed_generation)
                && updated >= wanted
                && status.replicas.unwrap_or(0) <= updated
                && ready >= updated,
        }
    }
}

impl Workload for DaemonSet {
    fn rollout(&self) -> Rollout {
        let status = self.status.clone().unwrap_or_default();
        let wanted = status.desired_number_scheduled;
        let ready = status.number_available.unwrap_or(0);
        let updated = status.updated_number_scheduled.unwrap_or(0);
        Rollout {
            ready: ready.min(updated),
            wanted,
            done: is_current(self, status.observed_generation)
                && updated >= wanted
                && ready >= wanted,
        }
    }
}

/// Whether the status speaks of the newest specification.
fn is_current(object: &impl Resource, observed: Option<i64>) -> bool {
    observed.unwrap_or(0) >= object.meta().generation.unwrap_or(0)
}

/// Waits until all pods of the workload run its newest version and are ready; returns how many they are.
///
/// # Errors
/// When that takes longer than `patience`.
pub(super) async fn until_ready<K: Workload>(
    client: &Client,
    manifest: &Manifest,
    patience: Duration,
    progress: &mut dyn Progress,
) -> Result<i32, InstallError> {
    let namespace = manifest.namespace().unwrap_or_default();
    let object = manifest.to_string();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match timeout(patience, follow(api, manifest.name(), &object, progress)).await {
        Ok(Some(pods)) => Ok(pods),
        Ok(None) | Err(_) => Err(InstallError::NotReady {
            after: patience,
            reason: reasons(client, manifest).await,
            object,
        }),
    }
}

async fn follow<K: Workload>(
    api: Api<K>,
    name: &str,
    object: &str,
    progress: &mut dyn Progress,
) -> Option<i32> {
    let mut seen = None;
    let mut watch = pin!(watcher::watch_object(api, name).default_backoff());
    while let Some(event) = watch.next().await {
        // An interrupted watch begins anew; how long that may go on is the caller's to say.
        let Ok(Some(workload)) = event else { continue };
        let rollout = workload.rollout();
        if rollout.done {
            let pods = rollout.ready;
            progress.event(&Event::Ready { object, pods });
            return Some(pods);
        }
        if seen.replace(rollout) != Some(rollout) {
            progress.event(&Event::Waiting {
                object,
                ready: rollout.ready,
                wanted: rollout.wanted,
            });
        }
    }
    None
}

/// Waits until the workload, as it was seen with its uid, is gone.
///
/// # Errors
/// When that takes longer than `patience`.
pub(super) async fn until_gone<K: Workload>(
    client: &Client,
    workload: &K,
    object: &str,
    patience: Duration,
) -> Result<(), InstallError> {
    let namespace = workload.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let name = workload.name_any();
    let mut watch = pin!(watcher::watch_object(api, &name).default_backoff());
    let gone = async {
        while let Some(event) = watch.next().await {
            let same = |found: &K| found.uid() == workload.uid();
            if event.is_ok_and(|found| !found.as_ref().is_some_and(same)) {
                return true;
            }
        }
        false
    };
    match timeout(patience, gone).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(InstallError::NotGone {
            object: object.to_owned(),
            after: patience,
        }),
    }
}

/// What the pods of a workload suffer from; begins with ": " when there is something.
async fn reasons(client: &Client, manifest: &Manifest) -> String {
    let namespace = manifest.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selector = manifest.object().data["spec"]["selector"]["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(",");
    let params = ListParams::default().labels(&selector);
    // The reason is an extra; without it the caller still learns what is not ready.
    let mut troubles = list(&pods, params, |pod| trouble(&pod))
        .await
        .unwrap_or_default();
    troubles.truncate(MAX_REASONS);
    if troubles.is_empty() {
        String::new()
    } else {
        format!(": {}", troubles.join("; "))
    }
}

/// Why a pod is not ready, in the words of the kubelet or the scheduler.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.filter_map(container_trouble).next();
    let unmet = || {
        let conditions = status.conditions.iter().flatten();
        conditions
            .filter(|it| it.status == "False")
            .find_map(|it| it.message.clone())
    };
    let reason = waiting.or_else(unmet)?;
    Some(format!("pod {}: {reason}", pod.name_any()))
}

fn container_trouble(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone()?;
    Some(match &waiting.message {
        Some(message) => format!("{reason} ({message})"),
        None => reason,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(status: Value) -> Rollout {
        let object = json!({"metadata": {"generation": 2}, "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status});
        serde_json::from_value::<Deployment>(object)
            .unwrap()
            .rollout()
    }

    fn daemon_set(status: Value) -> Rollout {
        let object = json!({"metadata": {"generation": 2}, "spec": {"selector": {}, "template": {}}, "status": status});
        serde_json::from_value::<DaemonSet>(object)
            .unwrap()
            .rollout()
    }

    #[test]
    fn a_deployment_is_ready_when_only_its_newest_version_runs() {
        let status = |observed, replicas, updated, available| json!({"observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated, "availableReplicas": available});
        assert!(deployment(status(2, 2, 2, 2)).done);
        for (observed, replicas, updated, available) in
            [(1, 2, 2, 2), (2, 3, 2, 3), (2, 2, 1, 2), (2, 2, 2, 1)]
        {
            let rollout = deployment(status(observed, replicas, updated, available));
            assert!(!rollout.done, "{rollout:?}");
        }
        assert_eq!(
            deployment(json!({})),
            Rollout {
                ready: 0,
                wanted: 2,
                done: false
            }
        );
    }

    #[test]
    fn a_daemon_set_is_ready_when_every_node_runs_its_newest_version() {
        let status = |observed, desired, updated, available| {
            json!({"observedGeneration": observed, "desiredNumberScheduled": desired, "updatedNumberScheduled": updated,
                   "numberAvailable": available, "currentNumberScheduled": desired, "numberMisscheduled": 0, "numberReady": available})
        };
        assert!(daemon_set(status(2, 3, 3, 3)).done);
        assert!(!daemon_set(status(1, 3, 3, 3)).done);
        assert!(!daemon_set(status(2, 3, 2, 3)).done);
        assert!(!daemon_set(status(2, 3, 3, 2)).done);
        assert!(!daemon_set(json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0})).done);
    }

    #[test]
    fn the_reason_of_a_pod_is_told_in_the_clusters_words() {
        let pod = |status: Value| {
            let pod = json!({"metadata": {"name": "a"}, "status": status});
            trouble(&serde_json::from_value(pod).unwrap())
        };
        let container = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}});
        assert_eq!(
            pod(json!({"containerStatuses": [container]})).unwrap(),
            "pod a: ImagePullBackOff (no such image)"
        );
        let condition = json!({"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"});
        assert_eq!(
            pod(json!({"conditions": [condition]})).unwrap(),
            "pod a: 0/3 nodes are available"
        );
        assert_eq!(pod(json!({"conditions": []})), None);
    }
}

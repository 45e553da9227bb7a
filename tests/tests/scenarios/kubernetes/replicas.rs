//! Several replicas of the controller: every one serves, one writes, and any of them can go.
use undermesh_tests::agent::poll;
use undermesh_tests::cluster::{SYSTEM, namespace};
use undermesh_tests::controller::Controller;
use undermesh_tests::{Cluster, PodSpec, Result, Testbed};

use super::traffic::Traffic;
use super::{MEMBER, SHOP, Town, server};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "kubernetes_the_writing_replica_is_lost_and_another_goes_on",
        |bed| leader_lost(server::own(bed)?),
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_by_kube_apiserver_the_writing_replica_is_lost",
        |bed| leader_lost(server::real_with_istio(bed)?),
    )
    .needs(&["nginx", "curl", "openssl"])
    .given(undermesh_tests::apiserver::assets),
    Scenario::new(
        "kubernetes_replicas_are_upgraded_one_by_one_under_traffic",
        upgraded,
    )
    .needs(&["nginx", "curl"]),
];

const NAMES: [&str; 2] = ["controller-a", "controller-b"];

/// The name of the Lease of the replicas.
const LEASE: &str = "undermesh-controller";

fn leader_lost(cluster: Cluster<'_>) -> Result<()> {
    let (replicas, _service) = cluster.start_replicas(NAMES)?;
    let town = Town::under(cluster, &[MEMBER], &[])?;
    town.wait_enrolled()?;
    for replica in &replicas {
        wait_nodes(replica, 1.0)?;
    }
    let holder = holder(&town)?;
    let [lost, other] = match replicas {
        [a, b] if a.name() == holder => [a, b],
        [a, b] => [b, a],
    };
    assert_eq!(lost.name(), holder);
    assert_eq!(other.metric("undermesh_leader", &[])?, 0.0);
    Traffic::start(&town)?.during(|| {
        lost.kill()?;
        wait_nodes(&other, 2.0)?;
        // Configuration and certificates come from the one that is left, before it leads.
        let late = town
            .cluster
            .pod(&town.nodes[0], PodSpec::new(SHOP, "late"))?;
        town.cluster.wait_enrolled(&late)?;
        poll("wait until the Lease has moved", || {
            Ok(self::holder(&town)? == other.name())
        })?;
        assert_written(&town)
    })
}

fn upgraded(bed: &Testbed) -> Result<()> {
    let cluster = server::own(bed)?;
    let (replicas, _service) = cluster.start_replicas(NAMES)?;
    let town = Town::under(cluster, &[MEMBER], &[])?;
    town.wait_enrolled()?;
    Traffic::start(&town)?.during(|| {
        for (old, other) in [(0, 1), (1, 0)] {
            replicas[old].stop()?;
            wait_nodes(&replicas[other], 2.0)?;
            town.cluster.start_replica(&replicas[old], &[])?;
        }
        assert_written(&town)
    })
}

/// Waits until so many nodes are connected to a replica.
fn wait_nodes(replica: &Controller, count: f64) -> Result<()> {
    let wait = format!(
        "wait until {count} nodes are connected to {}",
        replica.name()
    );
    poll(&wait, || {
        Ok(replica.metric("undermesh_discovery_clients", &[])? == count)
    })
}

fn holder(town: &Town<'_>) -> Result<String> {
    let lease = town.cluster.api().get("Lease", SYSTEM, LEASE)?;
    let holder = lease["spec"]["holderIdentity"].as_str();
    Ok(holder.unwrap_or_default().to_owned())
}

/// What only the leader writes is written: the roots of a new namespace, the conditions of a new policy.
fn assert_written(town: &Town<'_>) -> Result<()> {
    let api = town.cluster.api();
    api.apply(&namespace("annex", &[]))?;
    api.apply(&super::policy("opening", "ALLOW", &["client"]))?;
    poll("wait until the new namespace has the roots", || {
        Ok(town.cluster.root_bundle("annex").is_ok())
    })?;
    poll("wait until the new policy has its conditions", || {
        let policy = api.get("AuthorizationPolicy", SHOP, "opening")?;
        let conditions = policy["status"]["conditions"].as_array();
        Ok(conditions.is_some_and(|it| !it.is_empty()))
    })
}

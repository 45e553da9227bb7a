//! The control plane goes away, comes back, and changes its root; traffic does not notice.
use serde_json::json;
use undermesh_tests::agent::poll;
use undermesh_tests::cluster::{NODE_ACCOUNT, SYSTEM};
use undermesh_tests::{Context, Family, Node, PodSpec, Result, Testbed, apps};

use super::traffic::Traffic;
use super::{ClusterPod, MEMBER, SHOP, Town, server};
use crate::Scenario;

/// Lives of certificates of which one half passes in an outage, and not the other half too: an agent that restarts
/// waits ten seconds for the certificates of its pods before it serves without them.
const LIVES: [&str; 2] = ["--certificate-lifetime", "30s"];

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "kubernetes_traffic_goes_on_without_the_controller",
        controller_away,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_an_agent_restarts_alone_and_leaks_nothing",
        agent_restarts_alone,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_a_long_outage_of_the_controller_costs_no_connection",
        away_for_long,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_an_agent_that_goes_with_its_daemonset_lets_pods_go",
        uninstalled,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_a_controller_that_comes_back_brings_what_changed",
        controller_back,
    )
    .needs(&["nginx", "curl"]),
];

fn controller_away(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    assert_eq!(town.fetch()?.success()?, "server");
    town.cluster.kill_controller()?;
    for node in &town.nodes {
        wait_connected(node, false)?;
    }
    assert_eq!(town.fetch()?.success()?, "server");
    Ok(())
}

/// Waits until the node has noticed that its control plane is there, or is not.
fn wait_connected(node: &Node, connected: bool) -> Result<()> {
    let wait = format!(
        "wait until {} has noticed: connected {connected}",
        node.name()
    );
    poll(&wait, || {
        let status = node.json(&["status"])?;
        Ok(status["source"]["controlPlane"]["connected"] == connected)
    })
}

fn agent_restarts_alone(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    assert_eq!(town.fetch()?.success()?, "server");
    town.cluster.kill_controller()?;
    town.nodes[0].stop_agent()?;
    assert_refused(&town.client, &town)?;
    // Certificates live in memory alone: without an issuer a restarted agent refuses rather than leaks.
    town.cluster.start_agent(&town.nodes[0], &[])?;
    let status = town.nodes[0].json(&["status"])?;
    assert_eq!(status["source"]["controlPlane"]["connected"], false);
    assert_refused(&town.client, &town)?;
    town.cluster.start_controller(&[])?;
    poll("wait until the client is served again", || {
        Ok(town.fetch()?.status.success())
    })
}

/// The server takes plain connections too, so only capture keeps the pod from it.
fn assert_refused(pod: &ClusterPod, town: &Town<'_>) -> Result<()> {
    let server = town.server.pod.ip(Family::V4);
    let fetched = pod.pod.curl(server, apps::NGINX_PORT, "/name")?;
    assert!(!fetched.status.success(), "it must not leave in clear");
    Ok(())
}

/// Long is what outlasts half of a certificate's life: renewals fail, and an agent that restarts has none at all.
fn away_for_long(bed: &Testbed) -> Result<()> {
    let cluster = server::own(bed)?;
    cluster.start_controller(&LIVES)?;
    let town = Town::under(cluster, &[MEMBER], &LIVES)?;
    let third = town.cluster.node("n3")?;
    town.cluster.start_agent(&third, &LIVES)?;
    let other = town.cluster.pod(&third, PodSpec::new(SHOP, "other"))?;
    town.wait_enrolled()?;
    town.cluster.wait_enrolled(&other)?;
    let late = Traffic::start(&town)?.during(|| {
        town.cluster.kill_controller()?;
        third.stop_agent()?;
        town.cluster.start_agent(&third, &LIVES)?;
        assert_refused(&other, &town)?;
        for node in &town.nodes {
            wait_certificates(node, "stale")?;
        }
        let late = town
            .cluster
            .pod(&town.nodes[0], PodSpec::new(SHOP, "late"))?;
        assert_refused(&other, &town)?;

        town.cluster.start_controller(&LIVES)?;
        town.cluster.wait_enrolled(&late)?;
        for node in town.nodes.iter().chain([&third]) {
            wait_certificates(node, "valid")?;
            wait_connected(node, true)?;
        }
        Ok(late)
    })?;
    let server = town.server.pod.ip(Family::V4);
    for pod in [&late, &other] {
        let mark = town.nodes[1].log_mark();
        let fetched = pod.pod.curl(server, apps::NGINX_PORT, "/name")?;
        assert_eq!(fetched.success()?, "server");
        let access =
            town.nodes[1].wait_access(mark, |it| it.text("src.workload") == pod.pod.spec().name)?;
        assert_eq!(access.text("src.identity"), pod.pod.spec().identity());
    }
    Ok(())
}

/// Waits until all certificates of a node are in a state.
fn wait_certificates(node: &Node, state: &str) -> Result<()> {
    let wait = format!("wait until the certificates of {} are {state}", node.name());
    poll(&wait, || {
        let reports = node.json(&["certificates"])?;
        let reports = reports.as_array().context(|| "list the certificates")?;
        Ok(!reports.is_empty() && reports.iter().all(|it| it["state"] == state))
    })
}

fn uninstalled(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    assert_eq!(town.fetch()?.success()?, "server");
    let api = town.cluster.api();
    api.delete("DaemonSet", SYSTEM, NODE_ACCOUNT)?;
    for node in &town.nodes {
        node.stop_agent()?;
    }
    let server = town.server.pod.ip(Family::V4);
    let fetched = town.client.pod.curl(server, apps::NGINX_PORT, "/peer")?;
    assert_eq!(
        fetched.success()?,
        town.client.pod.ip(Family::V4).to_string()
    );
    Ok(())
}

fn controller_back(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    assert_eq!(town.fetch()?.success()?, "server");
    town.cluster.stop_controller()?;
    town.cluster.api().apply(&json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "closed", "namespace": SHOP },
        "spec": {},
    }))?;
    assert_eq!(town.fetch()?.success()?, "server");
    town.cluster.start_controller(&[])?;
    poll("wait until the new policy closes the shop", || {
        Ok(!town.fetch()?.status.success())
    })
}

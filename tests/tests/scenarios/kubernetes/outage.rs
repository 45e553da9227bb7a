//! The control plane goes away, comes back, and changes its root; traffic does not notice.
use serde_json::json;
use undermesh_tests::agent::poll;
use undermesh_tests::{Result, Testbed};

use super::{SHOP, Town};
use crate::Scenario;

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
        poll("wait until the node has noticed", || {
            let status = node.json(&["status"])?;
            Ok(status["source"]["controlPlane"]["connected"] == false)
        })?;
    }
    assert_eq!(town.fetch()?.success()?, "server");
    Ok(())
}

fn agent_restarts_alone(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    assert_eq!(town.fetch()?.success()?, "server");
    town.cluster.kill_controller()?;
    town.nodes[0].stop_agent()?;
    assert!(
        !town.fetch()?.status.success(),
        "it must not leave in clear"
    );
    // Certificates live in memory alone: without an issuer a restarted agent refuses rather than leaks.
    town.cluster.start_agent(&town.nodes[0], &[])?;
    let status = town.nodes[0].json(&["status"])?;
    assert_eq!(status["source"]["controlPlane"]["connected"], false);
    assert!(!town.fetch()?.status.success());
    town.cluster.start_controller(&[])?;
    poll("wait until the client is served again", || {
        Ok(town.fetch()?.status.success())
    })
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

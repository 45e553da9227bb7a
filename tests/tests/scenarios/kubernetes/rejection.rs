//! A resource that nodes cannot take: it is named where operators look, and everything else works on.
use serde_json::Value;
use undermesh_tests::agent::poll;
use undermesh_tests::{Family, Node, PodSpec, Result, Testbed, apps};

use super::{MEMBER, SHOP, Town, server};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "kubernetes_a_rejected_resource_is_named_and_the_rest_works",
    rejected,
)
.needs(&["nginx", "curl"])];

/// The longest name of a resource that a node takes, in bytes.
const LONGEST_NAME: usize = 2048;
/// What the name of a pod is joined with in the name of its resource: `<cluster>//Pod/<namespace>/<pod>`.
const BESIDE_THE_POD: usize = "//Pod/".len() + SHOP.len() + "/".len();

/// The controller checks all that it reads, so what it sends is right; only a cluster's name that takes nearly all
/// the room makes one resource longer than nodes take, and the others not.
fn rejected(bed: &Testbed) -> Result<()> {
    let long = "p".repeat(60);
    let cluster_name = "c".repeat(LONGEST_NAME - BESIDE_THE_POD - long.len() + 1);
    let cluster = server::own(bed)?;
    cluster.start_controller(&["--cluster-id", &cluster_name])?;
    let town = Town::under(cluster, &[MEMBER], &[])?;
    town.wait_enrolled()?;
    assert_eq!(town.fetch()?.success()?, "server");
    let controller = town.cluster.controller();
    assert_eq!(
        controller.metric("undermesh_discovery_rejections_total", &[])?,
        0.0
    );

    // Every node is told of its own pods. Of a long name not all is kept.
    let shown = &format!("//Pod/{SHOP}/{}", &long[..long.len() / 2]);
    let spec = PodSpec {
        service_account: "long".to_owned(),
        ..PodSpec::new(SHOP, &long)
    };
    let pod = town.cluster.pod(&town.nodes[1], spec)?;
    poll("wait until the node names what it rejects", || {
        let names = rejections(&town.nodes[1])?;
        Ok(names
            .iter()
            .any(|it| it.contains(shown) && it.contains("shorten it")))
    })?;
    let shown = town.nodes[1].cli(["status"])?.success()?;
    assert!(shown.contains("1 resources rejected"), "{shown}");
    poll("wait until the controller has counted it", || {
        Ok(controller.metric("undermesh_discovery_rejections_total", &[])? >= 1.0)
    })?;
    let since = "undermesh_discovery_last_rejection_timestamp_seconds";
    assert!(controller.metric(since, &["node=\"n2\"", "type=\"address\""])? > 0.0);
    assert_eq!(controller.metric(since, &["node=\"n1\""])?, 0.0);
    controller.wait_line(&["client rejected resources"])?;

    // Whoever asks for it gets no answer, neither in clear nor under a wrong identity; the others do.
    let _nginx = apps::nginx(&pod.pod)?;
    let address = pod.pod.ip(Family::V4);
    let fetched = town.client.pod.curl(address, apps::NGINX_PORT, "/name")?;
    assert!(!fetched.status.success());
    assert_eq!(town.fetch()?.success()?, "server");

    town.cluster.delete_pod(pod)?;
    poll("wait until nothing is rejected any more", || {
        Ok(rejections(&town.nodes[1])?.is_empty())
    })
}

fn rejections(node: &Node) -> Result<Vec<String>> {
    let status = node.json(&["status"])?;
    let names = status["source"]["controlPlane"]["rejected"].as_array();
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    Ok(names.map(str::to_owned).collect())
}

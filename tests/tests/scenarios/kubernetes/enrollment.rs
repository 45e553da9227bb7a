//! Pods join by a label, leave by it, move, and hand their addresses on.
use serde_json::json;
use undermesh_tests::agent::poll;
use undermesh_tests::cluster::Cluster;
use undermesh_tests::{Family, PodSpec, Result, Testbed, apps};

use super::traffic::during;
use super::{MEMBER, SHOP, Town, address, server};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kubernetes_a_labelled_namespace_is_in_the_mesh", |bed| {
        labelled(server::own(bed)?)
    })
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_by_kube_apiserver_a_namespace_is_in_the_mesh",
        |bed| labelled(server::real(bed)?),
    )
    .needs(&["nginx", "curl", "openssl"])
    .given(undermesh_tests::apiserver::assets),
    Scenario::new(
        "kubernetes_a_namespace_joins_while_traffic_flows",
        joins_under_traffic,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_taking_the_label_off_lets_the_pods_go",
        label_off,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_a_pod_can_stay_out_of_a_labelled_namespace",
        opted_out,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_a_pod_that_moves_to_another_node_is_found_there",
        pod_moves,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_a_reused_address_has_the_new_pods_identity",
        address_reused,
    )
    .needs(&["nginx", "curl"]),
];

fn labelled(cluster: Cluster<'_>) -> Result<()> {
    let town = Town::on(cluster, &[MEMBER])?;
    town.wait_enrolled()?;
    let mark = town.nodes[1].log_mark();
    assert_eq!(town.fetch()?.success()?, "server");
    let access = town.nodes[1].wait_access(mark, |access| access.inbound())?;
    assert_eq!(
        access.text("src.identity"),
        town.client.pod.spec().identity()
    );
    assert_eq!(
        access.text("dst.identity"),
        town.server.pod.spec().identity()
    );
    assert_eq!(access.text("dst.service"), "web.shop.svc.cluster.local");
    Ok(())
}

fn joins_under_traffic(bed: &Testbed) -> Result<()> {
    let town = Town::new(bed, &[])?;
    // Nobody else answers for the service's address here, so the pod's own is asked.
    let ip = town.server.pod.ip(Family::V4);
    let fetch = || town.client.pod.curl(ip, apps::NGINX_PORT, "/name");
    assert_eq!(fetch()?.success()?, "server");
    let round = || {
        assert_eq!(fetch()?.success()?, "server");
        Ok(())
    };
    during(round, || {
        let label = json!({ "metadata": { "labels": { MEMBER.0: MEMBER.1 } } });
        town.cluster.api().patch("Namespace", "", SHOP, &label)?;
        town.wait_enrolled()
    })?;
    let mark = town.nodes[1].log_mark();
    assert_eq!(fetch()?.success()?, "server");
    let access = town.nodes[1].wait_access(mark, |access| access.inbound())?;
    assert_eq!(
        access.text("src.identity"),
        town.client.pod.spec().identity()
    );
    Ok(())
}

fn label_off(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    assert_eq!(town.fetch()?.success()?, "server");
    let label = json!({ "metadata": { "labels": { MEMBER.0: null } } });
    town.cluster.api().patch("Namespace", "", SHOP, &label)?;
    town.cluster.wait_released(&town.client)?;
    town.cluster.wait_released(&town.server)?;
    // The mark goes first, so that peers stop sending through the tunnel; the pod follows.
    for node in &town.nodes {
        poll("wait until the node has let its pod go", || {
            Ok(node.json(&["list"])?.as_array().is_some_and(Vec::is_empty))
        })?;
    }
    // Without a mesh nobody answers for the service, but the pod itself does.
    let ip = town.server.pod.ip(Family::V4);
    let page = town.client.pod.curl(ip, apps::NGINX_PORT, "/peer")?;
    assert_eq!(page.success()?, town.client.pod.ip(Family::V4).to_string());
    Ok(())
}

fn opted_out(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    let label = json!({ "metadata": { "labels": { MEMBER.0: "none" } } });
    town.cluster.api().patch("Pod", SHOP, "client", &label)?;
    town.cluster.wait_released(&town.client)?;
    let pods = town.nodes[1].json(&["list"])?;
    assert_eq!(pods[0]["name"], "server");
    Ok(())
}

fn pod_moves(bed: &Testbed) -> Result<()> {
    let mut town = Town::in_mesh(bed)?;
    assert_eq!(town.fetch()?.success()?, "server");
    let spec = PodSpec::new(SHOP, "server").behind("web");
    town.cluster.delete_pod(town.server)?;
    town.server = town.cluster.pod(&town.nodes[0], spec)?;
    let _nginx = apps::nginx(&town.server.pod)?;
    town.cluster.wait_enrolled(&town.server)?;
    poll("wait until the service leads to the moved pod", || {
        Ok(town.fetch()?.status.success())
    })?;
    let mark = town.nodes[0].log_mark();
    assert_eq!(town.fetch()?.success()?, "server");
    let access = town.nodes[0].wait_access(mark, |access| access.inbound())?;
    assert_eq!(
        access.text("dst.identity"),
        town.server.pod.spec().identity()
    );
    Ok(())
}

fn address_reused(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    let Town {
        cluster,
        nodes,
        client,
        server,
        ..
    } = town;
    let mark = nodes[1].log_mark();
    assert!(
        client
            .pod
            .curl(address().v4.into(), 80, "/name")?
            .status
            .success()
    );
    let first = nodes[1].wait_access(mark, |access| access.inbound())?;
    assert_eq!(first.text("src.identity"), client.pod.spec().identity());
    let addresses = client.pod.addresses();
    cluster.delete_pod(client)?;
    let thief = cluster.pod_at(&nodes[0], PodSpec::new(SHOP, "thief"), addresses)?;
    cluster.wait_enrolled(&thief)?;
    let mark = nodes[1].log_mark();
    let ip = server.pod.ip(Family::V4);
    poll("wait until the new pod is served", || {
        Ok(thief
            .pod
            .curl(ip, apps::NGINX_PORT, "/name")?
            .status
            .success())
    })?;
    let second = nodes[1].wait_access(mark, |access| access.inbound())?;
    assert_eq!(second.text("src.identity"), thief.pod.spec().identity());
    assert_eq!(second.text("src.workload"), "thief");
    Ok(())
}

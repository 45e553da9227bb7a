//! Istio's own ztunnel as a peer: our controller drives it, and it talks with our nodes over the wire.
use serde_json::json;
use undermesh_tests::agent::poll;
use undermesh_tests::cluster::{SYSTEM, namespace};
use undermesh_tests::{Family, PodSpec, Result, Testbed, apps, ztunnel};

use super::{MEMBER, SHOP, server};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "kubernetes_istio_ztunnel_runs_under_our_controller",
    ztunnel_as_a_peer,
)
.needs(&["nginx", "curl", "iptables-restore"])
.given(ztunnel::binary)];

/// ztunnel has the second node, with a client and a server of its own.
fn ztunnel_as_a_peer(bed: &Testbed) -> Result<()> {
    let cluster = server::own(bed)?;
    cluster.start_controller(&[])?;
    cluster.api().apply(&namespace(SHOP, &[MEMBER]))?;
    let (ours, theirs) = (cluster.node("n1")?, cluster.node("n2")?);
    cluster.start_agent(&ours, &[])?;
    let client = cluster.pod(&ours, PodSpec::new(SHOP, "client"))?;
    let far = cluster.pod(&theirs, PodSpec::new(SHOP, "far"))?;
    cluster.wait_enrolled(&client)?;
    let peer = ztunnel::Ztunnel::start(&cluster, &theirs, &[&far])?;
    let mark =
        json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": "enabled" } } });
    cluster.api().patch("Pod", SHOP, "far", &mark)?;

    // From our node into ztunnel: it sees the client's identity.
    let _nginx = apps::nginx(&far.pod)?;
    let ip = far.pod.ip(Family::V4);
    poll(
        "wait until our node sends to ztunnel through the tunnel",
        || {
            let log = ours.log_mark();
            let fetched = client.pod.curl(ip, apps::NGINX_PORT, "/name")?;
            if !fetched.status.success() {
                return Ok(false);
            }
            let access = ours.wait_access(log, |access| !access.inbound())?;
            Ok(access.text("dst.identity") == far.pod.spec().identity())
        },
    )?;
    peer.wait_line(|line| {
        line.contains("inbound") && line.contains(&client.pod.spec().identity())
    })?;

    // And back: ztunnel calls a pod of ours, which sees ztunnel's client under its identity.
    let _ours_nginx = apps::nginx(&client.pod)?;
    let ip = client.pod.ip(Family::V4);
    poll(
        "wait until ztunnel sends to our node through the tunnel",
        || {
            let log = ours.log_mark();
            let fetched = far.pod.curl(ip, apps::NGINX_PORT, "/peer")?;
            if !fetched.status.success() {
                return Ok(false);
            }
            assert_eq!(fetched.text(), far.pod.ip(Family::V4).to_string());
            let access = ours.wait_access(log, |access| access.inbound())?;
            Ok(access.text("src.identity") == far.pod.spec().identity())
        },
    )?;

    // A policy that our controller converts is ztunnel's to enforce.
    cluster.api().apply(&json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "closed", "namespace": SYSTEM },
        "spec": {},
    }))?;
    let ip = far.pod.ip(Family::V4);
    poll("wait until ztunnel refuses by policy", || {
        Ok(!client
            .pod
            .curl(ip, apps::NGINX_PORT, "/name")?
            .status
            .success())
    })
}

//! Roots change under load, tokens run out, and nobody gets a certificate that is not theirs.
use std::time::Duration;

use serde_json::json;
use tokio::runtime::Builder;
use undermesh_ca::client::{CaClient, ClientOptions, ServerRoots, TokenOwner, Trust};
use undermesh_identity::key::WorkloadKey;
use undermesh_identity::{CertificateRequest, IssueError, Issuer as _};
use undermesh_tests::agent::poll;
use undermesh_tests::cluster::{CONTROLLER_NAME, SYSTEM};
use undermesh_tests::{Context, Node, Result, Testbed};

use super::traffic::Traffic;
use super::{MEMBER, SHOP, Town, server};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "kubernetes_the_root_is_rotated_and_no_connection_fails",
        root_rotated,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_a_node_whose_token_ran_out_recovers_with_the_next",
        token_ran_out,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_a_node_gets_no_certificate_of_another_nodes_pod",
        forged,
    )
    .needs(&["nginx", "curl"]),
];

/// Lives of certificates that pass within a scenario. The granted maximum is twice that, and a rotation waits for
/// two and a half times that at each of its two steps.
const SHORT: [&str; 2] = ["--certificate-lifetime", "5s"];
/// Long enough to be used for a while after its renewal has failed.
const MEDIUM: [&str; 2] = ["--certificate-lifetime", "12s"];

/// The Secret of the root that the controller made.
const ROOT_SECRET: &str = "istio-ca-secret";
/// The annotation on it by which an operator asks for another root.
const ROTATE: &str = "undermesh.io/rotate-root";

fn root_rotated(bed: &Testbed) -> Result<()> {
    let cluster = server::own(bed)?;
    cluster.start_controller(&SHORT)?;
    let town = Town::under(cluster, &[MEMBER], &SHORT)?;
    town.wait_enrolled()?;
    let old = town.cluster.root_bundle(SHOP)?;
    assert_eq!(certificates(&old), 1);
    Traffic::start(&town)?.during(|| {
        let ask = json!({ "metadata": { "annotations": { ROTATE: "please" } } });
        let api = town.cluster.api();
        api.patch("Secret", SYSTEM, ROOT_SECRET, &ask)?;
        wait_roots(&town, "the next root is made known", |roots| {
            certificates(roots) == 2 && roots.starts_with(&old)
        })?;
        wait_roots(&town, "the next root signs", |roots| {
            certificates(roots) == 2 && !roots.starts_with(&old)
        })?;
        wait_roots(&town, "the old root is gone", |roots| {
            certificates(roots) == 1 && *roots != old
        })
    })?;
    for node in &town.nodes {
        poll("wait until no peer trusts the old root", || {
            let reports = node.json(&["certificates"])?;
            let reports = reports.as_array().context(|| "list the certificates")?;
            let forgot = |it: &serde_json::Value| {
                it["rootsPem"]
                    .as_str()
                    .is_some_and(|roots| !roots.contains(old.trim()))
            };
            Ok(!reports.is_empty() && reports.iter().all(forgot))
        })?;
    }
    town.fetch()?.success().map(drop)
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// Waits for a step of the rotation in the ConfigMap, and lets the nodes have it.
fn wait_roots(town: &Town<'_>, step: &str, wanted: impl Fn(&String) -> bool) -> Result<()> {
    poll(&format!("wait until {step}"), || {
        Ok(wanted(&town.cluster.root_bundle(SYSTEM)?))
    })?;
    let mut nodes = town.nodes.iter();
    nodes.try_for_each(|node| town.cluster.mount_roots(node))
}

fn token_ran_out(bed: &Testbed) -> Result<()> {
    let (cluster, api) = server::own_and_its_inside(bed)?;
    cluster.start_controller(&MEDIUM)?;
    let town = Town::under(cluster, &[MEMBER], &MEDIUM)?;
    town.wait_enrolled()?;
    assert_eq!(town.fetch()?.success()?, "server");
    let [client, server] = &town.nodes;
    let controller = town.cluster.controller();

    api.revoke_token(&town.cluster.token(client)?);
    // A stream that is open stays, and a review is remembered for some seconds; a new controller knows neither.
    town.cluster.kill_controller()?;
    town.cluster.start_controller(&MEDIUM)?;
    controller.wait_line(&["call refused", "service account token"])?;
    poll("wait until the node says what is wrong", || {
        let status = client.json(&["status"])?;
        let plane = &status["source"]["controlPlane"];
        let error = plane["error"].as_str().unwrap_or_default();
        Ok(plane["connected"] == false && error.contains("token"))
    })?;
    assert!(controller.metric("undermesh_discovery_refusals_total", &[])? >= 1.0);
    controller.wait_line(&["no certificate signed", "\"token\""])?;
    assert!(controller.metric("undermesh_ca_requests_total", &["result=\"token\""])? >= 1.0);
    // The other node goes on, and this one too, by what it still has.
    wait_connected(server)?;
    assert_eq!(town.fetch()?.success()?, "server");

    town.cluster.renew_token(client, 3600)?;
    wait_connected(client)?;
    poll("wait until the certificate is renewed", || {
        let reports = client.json(&["certificates"])?;
        Ok(reports[0]["state"] == "valid")
    })?;
    town.fetch()?.success().map(drop)
}

fn wait_connected(node: &Node) -> Result<()> {
    let wait = format!("wait until {} is connected", node.name());
    poll(&wait, || {
        let status = node.json(&["status"])?;
        Ok(status["source"]["controlPlane"]["connected"] == true)
    })
}

fn forged(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    let controller = town.cluster.controller();
    let ask = |whose: &str| {
        let roots = town.cluster.roots_file(&town.nodes[0]);
        let options = ClientOptions {
            address: town.cluster.discovery_url(),
            server_name: Some(CONTROLLER_NAME.to_owned()),
            trust: Trust::Files {
                roots: ServerRoots::File(roots),
                token: town.cluster.token_file(&town.nodes[0]),
            },
            token_owner: TokenOwner::Node,
            cluster: "Kubernetes".to_owned(),
            cert_signer: None,
            headers: Vec::new(),
        };
        town.nodes[0].run(|| request(options, whose))?
    };
    let signed = |count: &str| {
        let label = format!("result=\"{count}\"");
        controller.metric("undermesh_ca_requests_total", &[&label])
    };
    let before = signed("signed")?;
    ask(&town.client.pod.spec().identity())?.unwrap();
    assert_eq!(signed("signed")?, before + 1.0);

    let refused = ask(&town.server.pod.spec().identity())?.unwrap_err();
    let IssueError::Refused { reason, .. } = &refused else {
        panic!("{refused}");
    };
    // The caller learns nothing of what runs where; the log says it all.
    assert!(reason.contains("not entitled"), "{reason}");
    assert!(!reason.contains("n1"), "{reason}");
    let identity = town.server.pod.spec().identity();
    controller.wait_line(&["not_on_node", &identity, "n1"])?;
    assert_eq!(signed("not_on_node")?, 1.0);
    assert_eq!(signed("signed")?, before + 1.0);
    Ok(())
}

/// Asks the certificate service as a node would.
pub(super) fn request(
    options: ClientOptions,
    whose: &str,
) -> Result<std::result::Result<(), IssueError>> {
    let identity = whose.parse().context(|| format!("read {whose}"))?;
    let key = WorkloadKey::generate(&identity).context(|| "make a key")?;
    let csr = key.signing_request().context(|| "make a request")?;
    let request = CertificateRequest {
        identity,
        csr,
        lifetime: Duration::from_secs(3600),
    };
    let client = CaClient::new(options).context(|| "make a client")?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "make a runtime")?;
    Ok(runtime.block_on(client.issue(request)).map(drop))
}

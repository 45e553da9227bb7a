//! A bad manifest is reported with its place and disturbs no good one.

use std::ops::RangeInclusive;

use undermesh_tests::agent::poll;
use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Node, Result, Shop, Testbed, tcp};

use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "a_bad_manifest_is_reported_with_file_and_line",
        reported_with_place,
    ),
    Scenario::new("a_good_document_beside_a_bad_one_is_taken", good_beside_bad),
    Scenario::new(
        "a_manifest_gone_bad_keeps_its_last_good_version",
        last_good_version,
    ),
    Scenario::new(
        "a_policy_that_cannot_be_read_denies_what_it_selects",
        unreadable_policy,
    ),
];

/// A service whose port on line 7 is no number.
const WRONG_TYPE: &str = "apiVersion: v1
kind: Service
metadata:
  name: bad
  namespace: shop
spec:
  ports: [{port: many}]
";

/// A document that ends, on line 3, within a list.
const NO_YAML: &str = "apiVersion: v1
kind: Service
metadata: [not closed
";

/// A policy that denies the client.
const DENY_CLIENT: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: good
  namespace: shop
spec:
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/client]
";

fn reported_with_place(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    for (name, yaml, lines) in [
        ("wrong-type", WRONG_TYPE, 7..=7),
        ("no-yaml", NO_YAML, 3..=4),
    ] {
        bed.manifests().write(name, yaml)?;
        for node in [&shop.first, &shop.second] {
            wait_reported(node, &format!("{name}.yaml"), &lines)?;
        }
        require_echo(&shop)?;
    }
    bed.manifests().remove("wrong-type")?;
    poll("wait until the report is gone", || {
        Ok(!shop
            .first
            .cli(["status"])?
            .success()?
            .contains("wrong-type.yaml"))
    })
}

/// Waits until `node` reports an error in `file` at one of `lines`, with a remedy.
fn wait_reported(node: &Node, file: &str, lines: &RangeInclusive<u64>) -> Result<()> {
    poll(
        &format!("wait until {file} is reported at {lines:?}"),
        || {
            let status = node.json(&["status"])?;
            let reports = status["source"]["diagnostics"].as_array();
            Ok(reports.into_iter().flatten().any(|report| {
                report["file"] == file
                    && report["line"]
                        .as_u64()
                        .is_some_and(|line| lines.contains(&line))
                    && report["text"]
                        .as_str()
                        .is_some_and(|text| text.contains("; "))
            }))
        },
    )
}

fn good_beside_bad(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    require_echo(&shop)?;
    bed.apply("mixed", &format!("{WRONG_TYPE}---\n{DENY_CLIENT}"))?;
    let target = shop.far_service(Family::V4);
    let denied = shop
        .client
        .run(|| tcp::expect(target, b"hello", b"hello"))?;
    assert!(denied.is_err(), "the good policy is not in force");
    Ok(())
}

fn last_good_version(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    bed.apply("policy", DENY_CLIENT)?;
    let target = shop.far_service(Family::V4);
    bed.manifests().write(
        "policy",
        &DENY_CLIENT.replace("principals: [", "principals: {"),
    )?;
    poll("wait until the bad version is reported", || {
        Ok(shop
            .second
            .cli(["status"])?
            .success()?
            .contains("policy.yaml"))
    })?;
    let denied = shop
        .client
        .run(|| tcp::expect(target, b"hello", b"hello"))?;
    assert!(
        denied.is_err(),
        "the last good version of the policy is not in force"
    );
    Ok(())
}

fn unreadable_policy(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _servers = [
        tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?,
        tcp::Server::start(&shop.near, NGINX_PORT, tcp::echo)?,
    ];
    let unreadable = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: bad
  namespace: shop
spec:
  selector:
    matchLabels:
      app: far
  action: DENY
  rules: everyone
";
    bed.apply("policy", unreadable)?;
    for node in [&shop.first, &shop.second] {
        wait_reported(node, "policy.yaml", &(11..=11))?;
    }
    let reaches = |target| {
        shop.client
            .run(move || tcp::expect(target, b"hello", b"hello").is_ok())
    };
    assert!(
        !reaches(shop.far_service(Family::V4))?,
        "a policy was skipped"
    );
    assert!(reaches(shop.near_service(Family::V4))?);
    Ok(())
}

fn require_echo(shop: &Shop) -> Result<()> {
    let target = shop.far_service(Family::V4);
    shop.client
        .run(|| tcp::expect(target, b"hello", b"hello"))?
        .unwrap();
    Ok(())
}

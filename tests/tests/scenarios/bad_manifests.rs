//! A bad manifest is reported with its place and disturbs no good one.

use undermesh_tests::agent::poll;
use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Result, Shop, Testbed, tcp};

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
];

/// A policy with a field of the wrong type on line 8.
const WRONG_TYPE: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: bad
  namespace: shop
spec:
  action: DENY
  rules: everyone
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
    for (name, yaml, line) in [
        ("wrong-type", WRONG_TYPE, 8),
        ("no-yaml", "kind: Service\nmetadata: [not closed\n", 2),
    ] {
        bed.manifests().write(name, yaml)?;
        let file = format!("{name}.yaml");
        for node in [&shop.first, &shop.second] {
            poll(&format!("wait until {file} is reported"), || {
                let status = node.cli(["status"])?.success()?;
                let report = status.lines().find(|text| text.contains(&file));
                Ok(report.is_some_and(|text| text.contains(&format!(":{line}"))))
            })?;
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

fn require_echo(shop: &Shop) -> Result<()> {
    let target = shop.far_service(Family::V4);
    shop.client
        .run(|| tcp::expect(target, b"hello", b"hello"))?
        .unwrap();
    Ok(())
}

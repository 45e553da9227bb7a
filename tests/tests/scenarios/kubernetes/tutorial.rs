//! The manifests that a newcomer to a service mesh applies first work as they are, as far as they concern L4.
use std::net::IpAddr;

use serde::Deserialize as _;
use serde_json::{Value, json};
use undermesh_tests::agent::poll;
use undermesh_tests::{Cluster, Context, Family, PodSpec, Result, apps, shop};

use super::traffic::during;
use super::{ClusterPod, server};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kubernetes_the_manifests_of_the_tutorial_work", |bed| {
        tutorial(server::own(bed)?)
    })
    .needs(&["nginx", "curl"]),
    Scenario::new("kubernetes_by_kube_apiserver_the_tutorial_works", |bed| {
        tutorial(server::real_with_istio(bed)?)
    })
    .needs(&["nginx", "curl", "openssl"])
    .given(undermesh_tests::apiserver::assets),
];

const APPS: &str = include_str!("../../../tutorial/apps.yaml");
const MTLS_STRICT: &str = include_str!("../../../tutorial/mtls-strict.yaml");
/// What concerns HTTP: it is stored, and takes nothing away from what works without it.
const HTTP: [&str; 3] = [
    include_str!("../../../tutorial/gateway.yaml"),
    include_str!("../../../tutorial/canary.yaml"),
    include_str!("../../../tutorial/circuit-breaker.yaml"),
];

/// The namespace of the tutorial.
const NAMESPACE: &str = "default";

fn tutorial(cluster: Cluster<'_>) -> Result<()> {
    cluster.start_controller(&[])?;
    apply(&cluster, APPS)?;
    let nodes = [cluster.node("n1")?, cluster.node("n2")?];
    for node in &nodes {
        cluster.start_agent(node, &[])?;
    }
    let pod = |node, name: &str, account: &str| {
        let spec = PodSpec {
            service_account: account.to_owned(),
            ..PodSpec::new(NAMESPACE, name)
        };
        cluster.pod(node, spec)
    };
    let booking = pod(&nodes[0], "booking-service", "booking")?;
    let inventory = pod(&nodes[1], "inventory-service", "inventory")?;
    let shipping = pod(&nodes[1], "shipping-service", "shipping")?;
    let services = [&booking, &inventory, &shipping];
    let mut servers = Vec::new();
    for service in services {
        servers.push(apps::nginx(&service.pod)?);
        // The label of the namespace alone brings it into the mesh.
        cluster.wait_enrolled(service)?;
    }

    let address = |pod: &ClusterPod| service_address(&cluster, &pod.pod.spec().name);
    let calls = [
        (address(&inventory)?, 80, "inventory-service"),
        (address(&shipping)?, 80, "shipping-service"),
        (address(&booking)?, 8080, "booking-service"),
    ];
    let round = || {
        for (address, port, name) in calls {
            let called = booking.pod.curl(address, port, "/name")?;
            assert_eq!(called.success()?, name);
        }
        Ok(())
    };
    poll("wait until the services lead to their pods", || {
        Ok(calls.iter().all(|(address, port, _)| {
            let called = booking.pod.curl(*address, *port, "/name");
            called.is_ok_and(|it| it.status.success())
        }))
    })?;
    let mark = nodes[1].log_mark();
    round()?;
    let access = nodes[1].wait_access(mark, |it| it.inbound())?;
    assert_eq!(access.text("src.identity"), booking.pod.spec().identity());

    let outside = cluster.bed().outside("outside")?;
    let plain = |pod: &ClusterPod| {
        let fetched = outside
            .place
            .curl(pod.pod.ip(Family::V4), apps::NGINX_PORT, "/name")?;
        Ok(fetched.status.success())
    };
    for service in services {
        assert!(plain(service)?);
    }
    during(round, || {
        HTTP.iter().try_for_each(|text| apply(&cluster, text))?;
        apply(&cluster, MTLS_STRICT)?;
        for service in services {
            poll("wait until plain clients are refused", || {
                Ok(!plain(service)?)
            })?;
        }
        Ok(())
    })
}

/// Applies the documents of a file, in its order.
fn apply(cluster: &Cluster<'_>, text: &str) -> Result<()> {
    for document in serde_norway::Deserializer::from_str(text) {
        let object = Value::deserialize(document).context(|| "read a manifest")?;
        cluster.api().apply(&object)?;
    }
    Ok(())
}

/// The virtual address of a service: kube-apiserver has given it one; the one in the test process leaves that to the
/// test.
fn service_address(cluster: &Cluster<'_>, name: &str) -> Result<IpAddr> {
    let api = cluster.api();
    let found = api.get("Service", NAMESPACE, name)?;
    let address = match found["spec"]["clusterIP"].as_str() {
        Some(given) => given.to_owned(),
        None => {
            let number = name.bytes().fold(0_u8, u8::wrapping_add);
            let address = shop::service_addresses(number).v4;
            let spec = json!({ "clusterIP": address, "clusterIPs": [address] });
            api.patch("Service", NAMESPACE, name, &json!({ "spec": spec }))?;
            address.to_string()
        }
    };
    address.parse().context(|| format!("read {address}"))
}

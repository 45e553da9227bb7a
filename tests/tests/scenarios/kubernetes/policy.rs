//! Policies through the API: who may come in, and who may no longer.
use serde_json::json;
use undermesh_tests::agent::poll;
use undermesh_tests::{Family, Result, Testbed, apps};

use super::{SHOP, Town};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kubernetes_strict_mtls_refuses_plain_clients", strict).needs(&["nginx", "curl"]),
    Scenario::new("kubernetes_a_denied_principal_gets_no_answer", denied).needs(&["nginx", "curl"]),
];

fn strict(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    let outside = bed.outside("outside")?;
    let ip = town.server.pod.ip(Family::V4);
    let plain = || outside.place.curl(ip, apps::NGINX_PORT, "/name");
    assert_eq!(plain()?.success()?, "server");
    town.cluster.api().apply(&json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": SHOP },
        "spec": { "mtls": { "mode": "STRICT" } },
    }))?;
    poll("wait until a plain client is refused", || {
        Ok(!plain()?.status.success())
    })?;
    assert_eq!(town.fetch()?.success()?, "server");
    town.cluster
        .api()
        .delete("PeerAuthentication", SHOP, "default")?;
    poll("wait until a plain client is let in again", || {
        Ok(plain()?.status.success())
    })
}

fn denied(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    assert_eq!(town.fetch()?.success()?, "server");
    let policy = |principal: &str| {
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "doorman", "namespace": SHOP },
            "spec": {
                "selector": { "matchLabels": { "app": "server" } },
                "action": "DENY",
                "rules": [{ "from": [{ "source": { "principals": [principal] } }] }],
            },
        })
    };
    town.cluster
        .api()
        .apply(&policy("cluster.local/ns/shop/sa/client"))?;
    poll("wait until the client is denied", || {
        Ok(!town.fetch()?.status.success())
    })?;
    town.cluster
        .api()
        .apply(&policy("cluster.local/ns/shop/sa/somebody-else"))?;
    poll("wait until the client is let in again", || {
        Ok(town.fetch()?.status.success())
    })
}

//! Two writers change policies at the same time while connections run.
use std::thread;

use serde_json::Value;
use undermesh_tests::agent::poll;
use undermesh_tests::api::Api;
use undermesh_tests::{Error, PodSpec, Result, Testbed, apps};

use super::traffic::during;
use super::{ClusterPod, SHOP, Town, policy};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "kubernetes_policies_that_race_let_nobody_slip_through",
    racing_policies,
)
.needs(&["nginx", "curl"])];

/// How often each writer makes its policy and takes it away.
const ROUNDS: usize = 15;

/// `client` is always allowed, and `stranger` never: that holds in every order in which the two writers' changes can
/// be seen. Whether `guest` gets in depends on the moment.
fn racing_policies(bed: &Testbed) -> Result<()> {
    let town = Town::in_mesh(bed)?;
    let [stranger, guest] = ["stranger", "guest"]
        .map(|name| town.cluster.pod(&town.nodes[0], PodSpec::new(SHOP, name)));
    let (stranger, guest) = (stranger?, guest?);
    for pod in [&stranger, &guest] {
        town.cluster.wait_enrolled(pod)?;
    }
    let api = town.cluster.api();
    api.apply(&policy("regulars", "ALLOW", &["client"]))?;
    poll("wait until only the client is let in", || {
        Ok(gets_in(&town, &town.client)? && !gets_in(&town, &stranger)?)
    })?;
    let allow = policy("guests", "ALLOW", &["guest"]);
    let deny = policy("closed-to-guests", "DENY", &["guest", "stranger"]);

    during(
        || match (gets_in(&town, &town.client)?, gets_in(&town, &stranger)?) {
            (true, false) => gets_in(&town, &guest).map(drop),
            (client, stranger) => Err(Error::step(
                "connect while policies race",
                format!("the client got in: {client}; the stranger: {stranger}"),
            )),
        },
        || {
            thread::scope(|scope| {
                let writers = [&allow, &deny].map(|it| scope.spawn(|| toggle(api, it)));
                writers
                    .into_iter()
                    .try_for_each(|writer| writer.join().unwrap())
            })
        },
    )?;

    api.apply(&allow)?;
    wait_guest(&town, &guest, true)?;
    api.apply(&deny)?;
    wait_guest(&town, &guest, false)?;
    api.delete("AuthorizationPolicy", SHOP, "closed-to-guests")?;
    wait_guest(&town, &guest, true)?;
    assert!(gets_in(&town, &town.client)?);
    assert!(!gets_in(&town, &stranger)?);
    Ok(())
}

/// Makes a policy and takes it away, over and over; it is away at the end.
fn toggle(api: &Api, policy: &Value) -> Result<()> {
    let name = policy["metadata"]["name"].as_str().unwrap_or_default();
    for _ in 0..ROUNDS {
        api.apply(policy)?;
        api.delete("AuthorizationPolicy", SHOP, name)?;
    }
    Ok(())
}

fn gets_in(town: &Town<'_>, pod: &ClusterPod) -> Result<bool> {
    let server = town.server.pod.ip(undermesh_tests::Family::V4);
    let fetched = pod.pod.curl(server, apps::NGINX_PORT, "/name")?;
    Ok(fetched.status.success())
}

fn wait_guest(town: &Town<'_>, guest: &ClusterPod, allowed: bool) -> Result<()> {
    let wait = format!("wait until it holds of the guest that it gets in: {allowed}");
    poll(&wait, || Ok(gets_in(town, guest)? == allowed))
}

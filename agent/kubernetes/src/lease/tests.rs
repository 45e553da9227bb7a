//! Candidates against an API server.
use http::StatusCode;

use super::*;
use crate::testing::{ApiServer, Failure, PATIENCE};

const NAMESPACE: &str = "kube-system";

fn quick() -> Timing {
    Timing {
        lease: Duration::from_secs(2),
        renew_deadline: Duration::from_millis(600),
        retry: Duration::from_millis(50),
    }
}

fn candidate(api: &ApiServer, identity: &str) -> Candidate {
    let settings = LeaseSettings {
        namespace: NAMESPACE.to_owned(),
        name: "leader".to_owned(),
        identity: identity.to_owned(),
        timing: quick(),
    };
    Candidate::start(api.client(), settings)
}

async fn wait_for(candidate: &Candidate, wanted: impl FnMut(&Leadership) -> bool) -> Leadership {
    let mut leadership = candidate.leadership();
    let reached = timeout(PATIENCE, leadership.wait_for(wanted)).await;
    reached.expect("in time").expect("a live candidate").clone()
}

#[tokio::test]
async fn the_first_leads_and_the_second_knows_it() {
    let api = ApiServer::start().await;
    let first = candidate(&api, "a");
    wait_for(&first, Leadership::is_leader).await;
    let second = candidate(&api, "b");
    let known = Leadership::Follower {
        holder: Some("a".to_owned()),
    };
    wait_for(&second, |it| *it == known).await;
    let lease = api.get("Lease", NAMESPACE, "leader").unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 0);
    assert!(lease["spec"]["acquireTime"].is_string());
}

#[tokio::test]
async fn renewing_keeps_the_time_of_acquisition() {
    let api = ApiServer::start().await;
    let first = candidate(&api, "a");
    wait_for(&first, Leadership::is_leader).await;
    let before = api.get("Lease", NAMESPACE, "leader").unwrap();
    let renewed = |it: &serde_json::Value| it["spec"]["renewTime"] != before["spec"]["renewTime"];
    let after = api.wait_for("Lease", NAMESPACE, "leader", renewed).await;
    assert_eq!(after["spec"]["acquireTime"], before["spec"]["acquireTime"]);
}

#[tokio::test]
async fn a_released_lease_goes_to_the_next_at_once() {
    let api = ApiServer::start().await;
    let first = candidate(&api, "a");
    wait_for(&first, Leadership::is_leader).await;
    let second = candidate(&api, "b");
    let mut leadership = first.leadership();
    first.release().await;
    assert!(!leadership.borrow_and_update().is_leader());
    wait_for(&second, Leadership::is_leader).await;
    let lease = api.get("Lease", NAMESPACE, "leader").unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}

#[tokio::test]
async fn a_leader_without_an_api_server_stops_and_another_follows() {
    let api = ApiServer::start().await;
    let first = candidate(&api, "a");
    wait_for(&first, Leadership::is_leader).await;
    let fault = api.fault("/leases", Failure::Hang);
    wait_for(&first, |it| !it.is_leader()).await;
    drop(first);
    drop(fault);
    let second = candidate(&api, "b");
    wait_for(&second, Leadership::is_leader).await;
}

#[tokio::test]
async fn a_leader_outlives_a_short_outage() {
    let api = ApiServer::start().await;
    let first = candidate(&api, "a");
    wait_for(&first, Leadership::is_leader).await;
    let fault = api.fault(
        "/leases",
        Failure::Refuse(StatusCode::INTERNAL_SERVER_ERROR),
    );
    timeout(PATIENCE, fault.met(2)).await.unwrap();
    drop(fault);
    let count = api.requests("PUT").len();
    api.wait_for_requests("PUT", count + 1).await;
    assert!(first.leadership().borrow().is_leader());
}

#[tokio::test]
async fn a_deleted_lease_is_made_again() {
    let api = ApiServer::start().await;
    let first = candidate(&api, "a");
    wait_for(&first, Leadership::is_leader).await;
    api.delete("Lease", NAMESPACE, "leader");
    let held = |it: &serde_json::Value| it["spec"]["holderIdentity"] == "a";
    api.wait_for("Lease", NAMESPACE, "leader", held).await;
    wait_for(&first, Leadership::is_leader).await;
}

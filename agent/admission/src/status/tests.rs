//! Conditions on objects of an API server in the process.
use http::StatusCode;
use serde_json::{Value as Json, json};
use tokio::{sync::watch, task::JoinHandle};
use undermesh_control::{
    Change, Engine, Settings,
    resources::{decode_json, strings::Strings},
};
use undermesh_kubernetes::testing::{ApiServer, Failure};

use super::*;

const POLICY: &str = "AuthorizationPolicy";
/// 2026-01-31T12:00:00Z.
const NOON: i64 = 1_769_860_800;

struct Writing {
    api: ApiServer,
    reports: Reports,
    engine: Engine,
    leads: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn writing(is_leader: bool) -> Writing {
    let api = ApiServer::start().await;
    api.install_istio();
    api.put_namespace("shop", &[]);
    let settings = WriterSettings {
        settle: Duration::from_millis(5),
        pace: Duration::ZERO,
        first_retry: Duration::from_millis(5),
        ..WriterSettings::default()
    };
    let clock: Clock = Arc::new(|| Timestamp::from_second(NOON).unwrap());
    let (reports, writer) = writer(api.client(), settings, clock);
    let (leads, leadership) = watch::channel(is_leader);
    let task = tokio::spawn(async move { match writer.run(leadership).await {} });
    Writing {
        api,
        reports,
        engine: Engine::new(Settings::default()),
        leads,
        task,
    }
}

impl Writing {
    /// Puts an object, and translates it as the source would.
    fn put(&mut self, kind: Kind, object: Json) {
        let stored = self.api.put(object);
        let decoded = decode_json(kind, &stored, &Strings::default());
        self.engine.apply(Change::Applied(decoded));
        self.report();
    }

    fn report(&mut self) {
        self.reports.record(self.engine.commit().diagnostics);
    }

    async fn condition(&self, kind: &str, name: &str, wanted: &str) -> Json {
        let has = |it: &Json| condition(it, wanted).is_some();
        let object = self.api.wait_for(kind, "shop", name, has).await;
        condition(&object, wanted).unwrap().clone()
    }
}

fn condition<'a>(object: &'a Json, wanted: &str) -> Option<&'a Json> {
    let mut conditions = object["status"]["conditions"].as_array()?.iter();
    conditions.find(|it| it["type"] == wanted)
}

fn policy(name: &str, spec: Json) -> Json {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": POLICY,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    })
}

fn needing_http() -> Json {
    json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})
}

#[tokio::test]
async fn a_policy_in_order_is_accepted_as_istiod_says_it() {
    let mut writing = writing(true).await;
    writing.put(Kind::AuthorizationPolicy, policy("p", json!({})));
    let accepted = writing.condition(POLICY, "p", "ZtunnelAccepted").await;
    assert_eq!(
        accepted,
        json!({
            "type": "ZtunnelAccepted",
            "status": "True",
            "reason": "Accepted",
            "message": "attached to ztunnel",
            "observedGeneration": "1",
            "lastTransitionTime": "2026-01-31T12:00:00Z",
        })
    );
    let enforced = writing
        .condition(POLICY, "p", "undermesh.io/Enforced")
        .await;
    assert_eq!(enforced["status"], "True");
}

#[tokio::test]
async fn a_policy_says_which_part_of_it_is_not_enforced() {
    let mut writing = writing(true).await;
    writing.put(Kind::AuthorizationPolicy, policy("p", needing_http()));
    let accepted = writing.condition(POLICY, "p", "ZtunnelAccepted").await;
    assert_eq!(
        (&accepted["status"], &accepted["reason"]),
        (&json!("True"), &json!("UnsupportedValue"))
    );
    let enforced = writing
        .condition(POLICY, "p", "undermesh.io/Enforced")
        .await;
    assert_eq!(
        (&enforced["status"], &enforced["reason"]),
        (&json!("False"), &json!("PartlyEnforced"))
    );
    let message = enforced["message"].as_str().unwrap();
    assert!(
        message.contains("spec.rules[0]") && message.contains("needs a waypoint"),
        "{message}"
    );
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_is_invalid() {
    let mut writing = writing(true).await;
    writing.put(
        Kind::AuthorizationPolicy,
        policy("p", json!({"action": "DNEY"})),
    );
    let accepted = writing.condition(POLICY, "p", "ZtunnelAccepted").await;
    assert_eq!(
        (&accepted["status"], &accepted["reason"]),
        (&json!("False"), &json!("Invalid"))
    );
    assert!(
        accepted["message"]
            .as_str()
            .unwrap()
            .contains("spec.action"),
        "{accepted}"
    );
}

#[tokio::test]
async fn a_corrected_policy_is_accepted_again() {
    let mut writing = writing(true).await;
    writing.put(Kind::AuthorizationPolicy, policy("p", needing_http()));
    writing.condition(POLICY, "p", "ZtunnelAccepted").await;
    let mut corrected = writing.api.get(POLICY, "shop", "p").unwrap();
    corrected["spec"] = json!({});
    writing.put(Kind::AuthorizationPolicy, corrected);
    let is_well = |it: &Json| {
        condition(it, "undermesh.io/Enforced").is_some_and(|it| it["status"] == "True")
            && condition(it, "ZtunnelAccepted").is_some_and(|it| it["reason"] == "Accepted")
    };
    writing.api.wait_for(POLICY, "shop", "p", is_well).await;
}

#[tokio::test]
async fn every_kind_gets_its_conditions() {
    let mut writing = writing(true).await;
    let metadata =
        json!({"name": "x", "namespace": "shop", "labels": {"istio.io/use-waypoint": "w"}});
    for (kind, group, spec) in [
        (
            Kind::PeerAuthentication,
            "security",
            json!({"mtls": {"mode": "STRICT"}}),
        ),
        (
            Kind::WorkloadEntry,
            "networking",
            json!({"address": "10.0.0.7"}),
        ),
        (
            Kind::ServiceEntry,
            "networking",
            json!({"hosts": ["db.example.com"], "addresses": ["10.1.1.1"]}),
        ),
    ] {
        let object = json!({
            "apiVersion": format!("{group}.istio.io/v1"),
            "kind": kind.name(),
            "metadata": metadata,
            "spec": spec,
        });
        writing.put(kind, object);
        let accepted = writing
            .condition(kind.name(), "x", "undermesh.io/Accepted")
            .await;
        assert_eq!(accepted["status"], "True", "{accepted}");
    }
    let bound = writing
        .condition("ServiceEntry", "x", "istio.io/WaypointBound")
        .await;
    assert_eq!(bound["status"], "False");
    assert!(
        bound["message"]
            .as_str()
            .unwrap()
            .contains("Gateway shop/w"),
        "{bound}"
    );
}

#[tokio::test]
async fn a_policy_of_a_waypoint_is_left_to_it() {
    let mut writing = writing(true).await;
    let spec = json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}]});
    writing.put(Kind::AuthorizationPolicy, policy("p", spec));
    let enforced = writing
        .condition(POLICY, "p", "undermesh.io/Enforced")
        .await;
    assert_eq!(enforced["reason"], "NotEnforced");
    assert!(
        enforced["message"]
            .as_str()
            .unwrap()
            .contains("Service/web"),
        "{enforced}"
    );
    let object = writing.api.get(POLICY, "shop", "p").unwrap();
    assert_eq!(condition(&object, "ZtunnelAccepted"), None);
}

#[tokio::test]
async fn conditions_of_others_stay() {
    let mut writing = writing(true).await;
    let healthy =
        json!({"type": "Healthy", "status": "True", "lastProbeTime": "2026-01-31T11:00:00Z"});
    let entry = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "vm", "namespace": "shop"},
        "spec": {"address": "10.0.0.7"},
        "status": {"conditions": [healthy]},
    });
    writing.put(Kind::WorkloadEntry, entry);
    writing
        .condition("WorkloadEntry", "vm", "undermesh.io/Accepted")
        .await;
    let object = writing.api.get("WorkloadEntry", "shop", "vm").unwrap();
    assert_eq!(condition(&object, "Healthy"), Some(&healthy));
}

#[tokio::test]
async fn what_is_there_already_is_not_written_again() {
    let mut writing = writing(true).await;
    writing.put(Kind::AuthorizationPolicy, policy("first", json!({})));
    writing.condition(POLICY, "first", "ZtunnelAccepted").await;
    // Lose the lead and win it again: everything is looked at anew.
    writing.leads.send_replace(false);
    writing
        .api
        .wait_for_watches("authorizationpolicies", 0)
        .await;
    writing.leads.send_replace(true);
    writing.put(Kind::AuthorizationPolicy, policy("second", json!({})));
    writing.condition(POLICY, "second", "ZtunnelAccepted").await;
    assert_eq!(writing.api.requests("/first/status").len(), 1);
}

#[tokio::test]
async fn nothing_is_written_before_the_first_report_nor_by_a_follower() {
    let mut writing = writing(false).await;
    writing.put(Kind::AuthorizationPolicy, policy("p", needing_http()));
    assert_eq!(writing.api.watches("authorizationpolicies"), 0);
    writing.leads.send_replace(true);
    // The follower has kept what was reported while another one led.
    let enforced = writing
        .condition(POLICY, "p", "undermesh.io/Enforced")
        .await;
    assert_eq!(enforced["reason"], "PartlyEnforced");
    assert_eq!(writing.api.requests("/p/status").len(), 1);
}

#[tokio::test]
async fn a_refused_write_is_tried_again() {
    let mut writing = writing(true).await;
    let fault = writing
        .api
        .fault("/p/status", Failure::Refuse(StatusCode::TOO_MANY_REQUESTS));
    writing.put(Kind::AuthorizationPolicy, policy("p", json!({})));
    fault.met(2).await;
    drop(fault);
    writing.condition(POLICY, "p", "ZtunnelAccepted").await;
}

#[test]
fn the_time_of_a_condition_is_that_of_its_status() {
    let subject = conditions::Subject::read(Kind::AuthorizationPolicy, &policy("p", json!({})));
    let wanted = conditions::conditions(&subject, &[]);
    let first = conditions::merged(&[], &wanted, Some(1), "t1").unwrap();
    assert_eq!(conditions::merged(&first, &wanted, Some(1), "t2"), None);
    let second = conditions::merged(&first, &wanted, Some(2), "t2").unwrap();
    assert!(
        second
            .iter()
            .all(|it| it["lastTransitionTime"] == "t1" && it["observedGeneration"] == "2")
    );
    let mut turned = second.clone();
    turned[0]["status"] = json!("False");
    let third = conditions::merged(&turned, &wanted, Some(2), "t3").unwrap();
    assert_eq!(third[0]["lastTransitionTime"], "t3");
    assert_eq!(third[1]["lastTransitionTime"], "t1");
}

#[test]
fn a_schema_that_drops_the_generation_causes_no_endless_writing() {
    let subject = conditions::Subject::read(Kind::AuthorizationPolicy, &policy("p", json!({})));
    let wanted = conditions::conditions(&subject, &[]);
    let mut pruned = conditions::merged(&[], &wanted, Some(1), "t1").unwrap();
    for condition in &mut pruned {
        condition
            .as_object_mut()
            .unwrap()
            .remove("observedGeneration");
    }
    assert_eq!(conditions::merged(&pruned, &wanted, Some(1), "t2"), None);
}

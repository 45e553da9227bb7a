//! Tests of the protocol's rules, response by response.
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    client::{
        feed::MAX_VERSIONS_BYTES,
        fixture::{
            KEY, WEB, addresses, of_policy, of_service, of_workload, policies, policy, removal,
            service, workload,
        },
    },
    decode::Decoder,
    wire::discovery::{DeltaDiscoveryResponse, Resource},
};

fn session(subscription: Subscription) -> Session {
    Session::new(Node::default(), "node-1".into(), subscription)
}

fn receive(session: &mut Session, response: DeltaDiscoveryResponse) -> Outcome {
    session.apply(Batch::decode(response, &mut Decoder::new("".into())))
}

fn bad(name: &str) -> Resource {
    let mut wire = workload(name, [10, 0, 0, 1]);
    wire.tunnel_protocol = 9;
    of_workload("2", wire)
}

fn bad_policy(name: &str) -> Resource {
    let mut wire = policy(name);
    wire.scope = 1;
    wire.action = 9;
    of_policy(wire)
}

fn versions(request: &DeltaDiscoveryRequest) -> Vec<(&str, &str)> {
    let mut versions: Vec<_> = request
        .initial_resource_versions
        .iter()
        .map(|(name, version)| (name.as_str(), version.as_str()))
        .collect();
    versions.sort_unstable();
    versions
}

struct Names(&'static [&'static str]);

impl Asked for Names {
    fn name(&self, name: &str) -> bool {
        self.0.contains(&name)
    }

    fn range(&self, network: &str, range: IpNet) -> bool {
        self.0
            .contains(&format!("{network}/{}", range.addr()).as_str())
    }
}

#[test]
fn a_stream_starts_with_one_request_for_each_type_and_an_empty_subscription() {
    let node = Node {
        id: "ztunnel~x".into(),
        ..Node::default()
    };
    let mut session = Session::new(node.clone(), "".into(), Subscription::Wildcard);
    let requests = session.open(&[]);
    assert_eq!(
        requests.each_ref().map(|request| request.type_url.as_str()),
        [ADDRESS_TYPE, AUTHORIZATION_TYPE]
    );
    for request in requests {
        assert_eq!(request.node, Some(node.clone()));
        assert!(request.resource_names_subscribe.is_empty());
        assert!(request.resource_names_unsubscribe.is_empty());
        assert!(request.initial_resource_versions.is_empty());
    }
}

#[test]
fn on_demand_a_stream_starts_by_taking_the_wildcard_back() {
    let mut session = session(Subscription::OnDemand);
    let [addresses, policies] = session.open(&["/10.0.0.1".into()]);
    assert!(policies.resource_names_subscribe.is_empty());
    assert_eq!(addresses.resource_names_subscribe, ["*", "/10.0.0.1"]);
    assert_eq!(addresses.resource_names_unsubscribe, ["*"]);
    assert_eq!(versions(&addresses), [("/10.0.0.1", "")]);
}

#[test]
fn a_good_response_is_acknowledged_and_in_force() {
    let mut session = session(Subscription::Wildcard);
    let resources = vec![of_workload("1", workload("web", [10, 0, 0, 1]))];
    let outcome = receive(&mut session, addresses("n1", resources));
    assert_eq!(outcome.reply.response_nonce, "n1");
    assert_eq!(outcome.reply.type_url, ADDRESS_TYPE);
    assert_eq!(outcome.reply.error_detail, None);
    assert_eq!(session.store().counts().workloads, 1);
}

#[test]
fn the_bad_resources_of_a_response_are_named_and_the_good_ones_applied() {
    let mut session = session(Subscription::Wildcard);
    let resources = vec![
        bad("a"),
        of_workload("1", workload("web", [10, 0, 0, 1])),
        bad("b"),
    ];
    let outcome = receive(&mut session, addresses("n1", resources));
    let detail = outcome.reply.error_detail.unwrap();
    let texts: Vec<_> = detail.message.split("; c//").collect();
    assert!(
        texts[0].starts_with("c//Pod/shop/a: 'tunnel_protocol'"),
        "{texts:?}"
    );
    assert!(
        texts[1].starts_with("Pod/shop/b: 'tunnel_protocol'"),
        "{texts:?}"
    );
    assert_eq!(outcome.reply.response_nonce, "n1");
    assert_eq!(session.store().counts().workloads, 1);
    assert_eq!(session.rejected().count(), 2);
}

#[test]
fn the_last_version_of_a_rejected_resource_stays_until_a_good_one_comes() {
    let mut session = session(Subscription::Wildcard);
    let good = |version, last| {
        addresses(
            "n",
            vec![of_workload(version, workload("web", [10, 0, 0, last]))],
        )
    };
    receive(&mut session, good("1", 1));
    receive(&mut session, addresses("n", vec![bad("web")]));
    let address = session.store().workload(WEB).unwrap().addresses[0];
    assert_eq!(address.to_string(), "10.0.0.1");
    let [request, _] = session.open(&[]);
    assert_eq!(versions(&request), [(WEB, "1")]);
    receive(&mut session, good("3", 3));
    assert_eq!(session.rejected().count(), 0);
    let [request, _] = session.open(&[]);
    assert_eq!(versions(&request), [(WEB, "3")]);
}

#[test]
fn a_resource_with_too_long_a_name_is_rejected_until_it_goes() {
    let mut session = session(Subscription::Wildcard);
    let resource = of_workload("1", workload(&"w".repeat(4000), [10, 0, 0, 1]));
    let name = resource.name.clone();
    receive(&mut session, addresses("n1", vec![resource]));
    assert_eq!(session.rejected().count(), 1);
    receive(&mut session, removal(addresses("n2", vec![]), &[&name]));
    assert_eq!(session.rejected().count(), 0);
}

#[test]
fn a_rejected_resource_without_a_last_version_is_left_out_of_the_versions() {
    let mut session = session(Subscription::Wildcard);
    receive(&mut session, addresses("n", vec![bad("web")]));
    let [request, _] = session.open(&[]);
    assert_eq!(versions(&request), []);
}

#[test]
fn removals_come_after_resources() {
    let mut session = session(Subscription::Wildcard);
    let resources = vec![of_workload("1", workload("web", [10, 0, 0, 1]))];
    let response = removal(addresses("n", resources), &[WEB, "unknown"]);
    let outcome = receive(&mut session, response);
    assert_eq!(outcome.reply.error_detail, None);
    assert_eq!(session.store().counts().workloads, 0);
    let [request, _] = session.open(&[]);
    assert_eq!(versions(&request), []);
}

#[test]
fn it_is_complete_when_every_wildcard_type_was_answered() {
    let mut wildcard = session(Subscription::Wildcard);
    let mut on_demand = session(Subscription::OnDemand);
    for session in [&mut wildcard, &mut on_demand] {
        session.restore(Batch::decode(
            policies("", vec![]),
            &mut Decoder::new("".into()),
        ));
        assert!(!session.is_complete());
        receive(session, policies("n", vec![]));
    }
    assert!(on_demand.is_complete());
    assert!(!wildcard.is_complete());
    receive(&mut wildcard, addresses("n", vec![]));
    assert!(wildcard.is_complete());
}

#[test]
fn a_type_that_was_not_asked_for_is_refused() {
    let mut session = session(Subscription::Wildcard);
    let response = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/other".into(),
        nonce: "n".into(),
        ..DeltaDiscoveryResponse::default()
    };
    let outcome = receive(&mut session, response);
    assert_eq!(outcome.reply.type_url, "type.googleapis.com/other");
    assert!(outcome.reply.error_detail.is_some());
}

#[test]
fn a_policy_that_was_never_good_denies_its_namespace_until_it_is() {
    let mut session = session(Subscription::Wildcard);
    let outcome = receive(&mut session, policies("n", vec![bad_policy("lock")]));
    assert!(outcome.reply.error_detail.is_some());
    let delta = session.store().take_delta();
    assert_eq!(delta.policies[0].rules, [Default::default()]);
    // The server is told of it without a version, so that it sends it again or says that it is gone.
    let [_, request] = session.open(&[]);
    assert_eq!(versions(&request), [("shop/lock", "")]);
    let mut good = policy("lock");
    good.scope = 1;
    receive(&mut session, policies("n", vec![of_policy(good)]));
    assert_eq!(session.store().take_delta().policies[0].rules, []);
}

#[test]
fn a_policy_that_was_good_once_stays_as_it_was() {
    let mut session = session(Subscription::Wildcard);
    let mut good = policy("lock");
    good.scope = 1;
    receive(&mut session, policies("n", vec![of_policy(good)]));
    drop(session.store().take_delta());
    receive(&mut session, policies("n", vec![bad_policy("lock")]));
    assert!(session.store().take_delta().is_empty());
}

#[test]
fn a_stand_in_goes_with_the_policy() {
    let mut session = session(Subscription::Wildcard);
    receive(&mut session, policies("n", vec![bad_policy("lock")]));
    receive(&mut session, removal(policies("n", vec![]), &["shop/lock"]));
    assert_eq!(session.store().counts().policies, 0);
    assert_eq!(session.rejected().count(), 0);
}

#[test]
fn versions_that_would_not_fit_are_not_sent_and_what_is_gone_is_found_out() {
    let mut session = session(Subscription::Wildcard);
    let long = "v".repeat(MAX_VERSIONS_BYTES / 2);
    let web = || of_workload(&long, workload("web", [10, 0, 0, 1]));
    let cart = of_workload(&long, workload("cart", [10, 0, 0, 2]));
    receive(&mut session, addresses("n", vec![web(), cart]));
    let [request, _] = session.open(&[]);
    assert_eq!(versions(&request), []);
    // An answer of another type says nothing about it.
    receive(&mut session, policies("n", vec![]));
    session.sweep();
    assert!(!session.is_unconfirmed());
    assert_eq!(session.store().counts().workloads, 2);
    receive(&mut session, addresses("n", vec![web()]));
    assert!(session.is_unconfirmed());
    session.sweep();
    assert!(session.store().workload(WEB).is_some());
    assert_eq!(session.store().counts().workloads, 1);
    assert!(!session.is_unconfirmed());
}

#[test]
fn an_answer_is_known_by_name_alias_address_and_range() {
    let mut session = session(Subscription::OnDemand);
    let mut wide = service([10, 96, 0, 0]);
    wide.addresses[0].length = Some(16);
    let mut web = of_workload("1", workload("web", [10, 0, 0, 1]));
    web.aliases = vec!["n1/10.9.9.9".into()];
    let outcome = receive(
        &mut session,
        removal(
            addresses("n", vec![web, of_service("1", wide)]),
            &["/10.0.0.7"],
        ),
    );
    let name = |name: &str| Answer::Name(name.to_owned());
    assert_eq!(
        outcome.answers,
        [
            name(WEB),
            name("n1/10.9.9.9"),
            name("/10.0.0.1"),
            name(KEY),
            Answer::Range("".into(), "10.96.0.0/16".parse().unwrap()),
            name("/10.0.0.7"),
        ]
    );
}

#[test]
fn an_answer_that_cannot_be_taken_says_so_unless_an_earlier_one_is_in_force() {
    let mut session = session(Subscription::OnDemand);
    let outcome = receive(&mut session, addresses("n", vec![bad("web")]));
    assert_eq!(outcome.answers, [Answer::Rejected(WEB.into())]);
    receive(
        &mut session,
        addresses("n", vec![of_workload("1", workload("web", [10, 0, 0, 1]))]),
    );
    let outcome = receive(&mut session, addresses("n", vec![bad("web")]));
    assert_eq!(outcome.answers, []);
}

#[test]
fn what_nothing_asks_for_is_forgotten_and_unsubscribed_from() {
    let mut session = session(Subscription::OnDemand);
    let mut own = workload("own", [10, 0, 0, 3]);
    own.node = "node-1".into();
    own.services.clear();
    let mut lone = workload("lone", [10, 0, 0, 4]);
    lone.services.clear();
    let resources = vec![
        of_service("1", service([10, 96, 0, 1])),
        of_workload("1", workload("web", [10, 0, 0, 1])),
        of_workload("1", own),
        of_workload("1", lone),
    ];
    receive(&mut session, addresses("n", resources));
    let dropped = ["/10.0.0.4".into()];
    let asked = Names(&[KEY]);
    let request = session.ask(&["/10.0.0.5".into()], &dropped, &asked);
    assert_eq!(request.resource_names_subscribe, ["/10.0.0.5"]);
    assert_eq!(
        request.resource_names_unsubscribe,
        ["/10.0.0.4", "c//Pod/shop/lone"]
    );
    assert!(session.store().workload(WEB).is_some());
    assert!(session.store().workload("c//Pod/shop/own").is_some());
    let request = session.ask(&[], &[KEY.into()], &Names(&[]));
    assert_eq!(request.resource_names_unsubscribe.len(), 3);
    assert_eq!(session.store().counts().workloads, 1);
    assert_eq!(session.store().counts().services, 0);
}

#[test]
fn a_nack_of_many_resources_is_cut() {
    let mut session = session(Subscription::Wildcard);
    let resources = (0..1000).map(|number| bad(&number.to_string())).collect();
    let outcome = receive(&mut session, addresses("n", resources));
    let message = outcome.reply.error_detail.unwrap().message;
    assert!(message.len() <= MAX_NACK_BYTES + 100);
    assert!(message.contains("; and "), "{message}");
}

#[derive(Clone, Debug)]
enum Sent {
    Good(u8, u8),
    Bad(u8),
    Removed(u8),
}

fn sent() -> impl Strategy<Value = Vec<Vec<Sent>>> {
    let one = prop_oneof![
        3 => (0..5u8, 0..9u8).prop_map(|(name, version)| Sent::Good(name, version)),
        1 => (0..5u8).prop_map(Sent::Bad),
        1 => (0..5u8).prop_map(Sent::Removed),
    ];
    proptest::collection::vec(proptest::collection::vec(one, 0..6), 0..12)
}

proptest! {
    /// Whatever is sent, the versions that the next stream reports are those of the last good resources.
    #[test]
    fn the_versions_are_those_of_what_is_in_force(responses in sent()) {
        let mut session = session(Subscription::Wildcard);
        let mut expected = BTreeMap::new();
        for sent in responses {
            let (mut resources, mut removed, mut rejected) = (Vec::new(), Vec::new(), false);
            for one in &sent {
                match one {
                    Sent::Good(name, version) => {
                        let wire = workload(&name.to_string(), [10, 0, 0, *version]);
                        resources.push(of_workload(&version.to_string(), wire));
                        expected.insert(format!("c//Pod/shop/{name}"), *version);
                    }
                    Sent::Bad(name) => {
                        resources.push(bad(&name.to_string()));
                        rejected = true;
                    }
                    Sent::Removed(name) => removed.push(format!("c//Pod/shop/{name}")),
                }
            }
            let names: Vec<&str> = removed.iter().map(String::as_str).collect();
            let outcome = receive(&mut session, removal(addresses("n", resources), &names));
            prop_assert_eq!(outcome.reply.error_detail.is_some(), rejected);
            for name in &removed {
                expected.remove(name);
            }
        }
        let [request, _] = session.open(&[]);
        let reported: BTreeMap<_, u8> = request.initial_resource_versions.into_iter()
            .map(|(name, version)| (name, version.parse().unwrap()))
            .collect();
        prop_assert_eq!(&reported, &expected);
        for (uid, version) in expected {
            let address = session.store().workload(&uid).unwrap().addresses[0].to_string();
            prop_assert_eq!(address, format!("10.0.0.{version}"));
        }
    }
}

//! One client, one situation.
use std::{pin::pin, sync::Arc, time::Instant};

use futures::FutureExt;
use prost::Message;
use undermesh_identity::Caller;
use undermesh_model::{Delta, policy::Action};

use crate::{
    server::{
        Catalog, Hub, Kind, Limits, Node, Session, Violation,
        fixture::{Known, delta, node, on_demand, pod, policy, read, request, service},
        hub::Membership,
    },
    wire::{
        ADDRESS_TYPE, AUTHORIZATION_TYPE,
        discovery::{DeltaDiscoveryResponse, Status},
        security::Authorization,
        workload::{Address, Workload, address::Type},
    },
};

const WEB: &str = "Kubernetes//Pod/shop/web";
const CART: &str = "Kubernetes//Pod/shop/cart";
const SERVICE: &str = "shop/s.shop.svc.cluster.local";

fn hub(first: &Delta) -> Arc<Hub> {
    let hub = Hub::new(Limits::default());
    hub.publish(first);
    hub
}

fn join(hub: &Arc<Hub>) -> Membership {
    let caller = Caller {
        namespace: "istio-system".to_owned(),
        service_account: "ztunnel".to_owned(),
        pod: None,
    };
    let node = node("istio-system", "ztunnel-1", "n1");
    hub.join(Node::verify(Some(&node), &caller).unwrap())
        .unwrap()
}

fn all(client: &Membership) -> Vec<DeltaDiscoveryResponse> {
    let next = || client.take().unwrap();
    std::iter::from_fn(next)
        .map(|response| read(&response))
        .collect()
}

fn one(client: &Membership) -> DeltaDiscoveryResponse {
    let [response] = <[_; 1]>::try_from(all(client)).unwrap();
    response
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let names = response.resources.iter();
    names.map(|resource| &*resource.name).collect()
}

fn workload(response: &DeltaDiscoveryResponse, name: &str) -> Workload {
    let mut resources = response.resources.iter();
    let resource = resources.find(|resource| resource.name == name).unwrap();
    let any = resource.resource.as_ref().unwrap();
    assert_eq!(any.type_url, ADDRESS_TYPE);
    match Address::decode(any.value.as_slice()).unwrap().r#type {
        Some(Type::Workload(workload)) => workload,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_first_request_gets_everything_and_then_what_changes() {
    let web = pod("web", "10.0.0.1", "n2");
    let hub = hub(&delta(&[&web], &[&service("s", "10.96.0.1", &[&web])], &[]));
    let client = join(&hub);
    client.receive(request(ADDRESS_TYPE, &[], &[])).unwrap();
    let response = one(&client);
    assert_eq!(names(&response), [WEB, SERVICE]);
    assert!(
        response
            .resources
            .iter()
            .all(|resource| resource.aliases.is_empty())
    );
    let cart = pod("cart", "10.0.0.2", "n2");
    hub.publish(&delta(&[&cart], &[], &[]));
    assert_eq!(names(&one(&client)), [CART]);
    hub.publish(&Delta {
        removed_workloads: vec![CART.into()],
        ..Delta::default()
    });
    assert_eq!(one(&client).removed_resources, [CART]);
    assert_eq!(all(&client), []);
}

#[test]
fn an_answer_comes_even_when_there_is_nothing() {
    let hub = hub(&Delta::default());
    let client = join(&hub);
    client.receive(request(ADDRESS_TYPE, &[], &[])).unwrap();
    client
        .receive(request(AUTHORIZATION_TYPE, &[], &[]))
        .unwrap();
    let types: Vec<_> = all(&client)
        .into_iter()
        .map(|response| response.type_url)
        .collect();
    assert_eq!(types, [ADDRESS_TYPE, AUTHORIZATION_TYPE]);
}

#[test]
fn a_pod_that_becomes_an_endpoint_changes_the_workload_and_not_the_service() {
    let (web, cart) = (pod("web", "10.0.0.1", "n2"), pod("cart", "10.0.0.2", "n2"));
    let mut catalog = Catalog::default();
    let now = Instant::now();
    catalog.apply(
        &delta(&[&web, &cart], &[&service("s", "10.96.0.1", &[&web])], &[]),
        now,
    );
    let grown = delta(&[], &[&service("s", "10.96.0.1", &[&web, &cart])], &[]);
    let changes = catalog.apply(&grown, now);
    let names: Vec<_> = changes.into_iter().map(|change| change.name).collect();
    assert_eq!(names, [crate::server::Name::Workload(CART.into())]);
    assert_eq!(catalog.apply(&grown, now), []);
}

#[test]
fn a_client_on_demand_gets_its_own_node_and_their_services() {
    let (web, cart) = (pod("web", "10.0.0.1", "n1"), pod("cart", "10.0.0.2", "n2"));
    let other = pod("other", "10.0.0.3", "n2");
    let hub = hub(&delta(
        &[&web, &cart, &other],
        &[
            &service("s", "10.96.0.1", &[&web, &cart]),
            &service("t", "10.96.0.2", &[&other]),
        ],
        &[],
    ));
    let client = join(&hub);
    client.receive(on_demand()).unwrap();
    assert_eq!(names(&one(&client)), [CART, WEB, SERVICE]);
    let late = pod("late", "10.0.0.4", "n1");
    hub.publish(&delta(&[&late], &[], &[]));
    assert_eq!(names(&one(&client)), ["Kubernetes//Pod/shop/late"]);
    hub.publish(&delta(&[&pod("far", "10.0.0.5", "n2")], &[], &[]));
    assert_eq!(all(&client), []);
}

#[test]
fn a_service_comes_with_its_workloads_under_any_of_its_keys() {
    for key in [SERVICE, "/10.96.0.1"] {
        let web = pod("web", "10.0.0.1", "n2");
        let hub = hub(&delta(&[&web], &[&service("s", "10.96.0.1", &[&web])], &[]));
        let client = join(&hub);
        client.receive(on_demand()).unwrap();
        assert_eq!(names(&one(&client)), Vec::<&str>::new());
        client.receive(request(ADDRESS_TYPE, &[key], &[])).unwrap();
        let response = one(&client);
        assert_eq!(names(&response), [WEB, SERVICE]);
        assert_eq!(response.resources[0].aliases, ["/10.0.0.1"]);
        assert_eq!(response.resources[1].aliases, ["/10.96.0.1"]);
        let part = &workload(&response, WEB).services[SERVICE].ports[0];
        assert_eq!((part.service_port, part.target_port), (80, 8080));
    }
}

#[test]
fn a_key_that_leads_nowhere_is_said_to_be_gone_and_told_when_it_appears() {
    let hub = hub(&Delta::default());
    let client = join(&hub);
    client.receive(on_demand()).unwrap();
    all(&client);
    client
        .receive(request(ADDRESS_TYPE, &["/10.0.0.1"], &[]))
        .unwrap();
    assert_eq!(one(&client).removed_resources, ["/10.0.0.1"]);
    hub.publish(&delta(&[&pod("web", "10.0.0.1", "n2")], &[], &[]));
    assert_eq!(names(&one(&client)), [WEB]);
}

#[test]
fn an_address_that_moves_to_another_pod_takes_the_old_one_along() {
    let hub = hub(&delta(&[&pod("web", "10.0.0.1", "n2")], &[], &[]));
    let client = join(&hub);
    client.receive(on_demand()).unwrap();
    client
        .receive(request(ADDRESS_TYPE, &["/10.0.0.1"], &[]))
        .unwrap();
    assert_eq!(names(&one(&client)), [WEB]);
    let moved = delta(
        &[
            &pod("web", "10.0.0.9", "n2"),
            &pod("cart", "10.0.0.1", "n2"),
        ],
        &[],
        &[],
    );
    hub.publish(&moved);
    let response = one(&client);
    assert_eq!(names(&response), [CART]);
    assert_eq!(response.removed_resources, [WEB]);
}

#[test]
fn what_a_client_unsubscribes_from_is_no_longer_told() {
    let web = pod("web", "10.0.0.1", "n2");
    let hub = hub(&delta(&[&web], &[&service("s", "10.96.0.1", &[&web])], &[]));
    let client = join(&hub);
    client.receive(on_demand()).unwrap();
    client
        .receive(request(ADDRESS_TYPE, &[SERVICE], &[]))
        .unwrap();
    all(&client);
    client
        .receive(request(ADDRESS_TYPE, &[], &[SERVICE]))
        .unwrap();
    assert_eq!(one(&client).removed_resources, [WEB, SERVICE]);
    hub.publish(&delta(&[&pod("web", "10.0.0.2", "n2")], &[], &[]));
    assert_eq!(all(&client), []);
}

#[test]
fn a_removal_is_told_although_the_name_is_back_when_it_is_no_longer_asked_for() {
    let s = service("s", "10.96.0.1", &[]);
    let hub = hub(&Delta::default());
    let client = join(&hub);
    let mut first = on_demand();
    first.initial_resource_versions = [(SERVICE.to_owned(), "1".to_owned())].into();
    client.receive(first).unwrap();
    client
        .receive(request(ADDRESS_TYPE, &[], &[SERVICE]))
        .unwrap();
    hub.publish(&delta(&[], &[&s], &[]));
    assert_eq!(one(&client).removed_resources, [SERVICE]);
}

#[test]
fn a_client_that_comes_back_is_told_the_difference() {
    let (web, cart) = (pod("web", "10.0.0.1", "n2"), pod("cart", "10.0.0.2", "n2"));
    let hub = hub(&delta(&[&web, &cart], &[], &[]));
    let mut known = Known::default();
    let client = join(&hub);
    client.receive(request(ADDRESS_TYPE, &[], &[])).unwrap();
    known.take(one(&client));
    drop(client);
    let mut versions = known.versions();
    versions.insert("Kubernetes//Pod/shop/gone".to_owned(), "1".to_owned());
    versions.insert(CART.to_owned(), String::new());
    for first in [request(ADDRESS_TYPE, &[], &[]), on_demand()] {
        let client = join(&hub);
        let mut first = first;
        first.initial_resource_versions = versions.clone();
        client.receive(first).unwrap();
        let response = one(&client);
        assert_eq!(names(&response), [CART]);
        assert_eq!(response.removed_resources, ["Kubernetes//Pod/shop/gone"]);
    }
    assert!(hub.follows_nothing());
}

#[test]
fn policies_come_before_the_workloads_that_name_them_and_go_after() {
    let hub = hub(&Delta::default());
    let client = join(&hub);
    client.receive(request(ADDRESS_TYPE, &[], &[])).unwrap();
    client
        .receive(request(AUTHORIZATION_TYPE, &[], &[]))
        .unwrap();
    all(&client);
    let mut web = pod("web", "10.0.0.1", "n2");
    web.policies = vec!["shop/strict".into()];
    hub.publish(&delta(&[&web], &[], &[&policy("strict", Action::Deny)]));
    let told: Vec<_> = all(&client)
        .iter()
        .map(|told| names(told).concat())
        .collect();
    assert_eq!(told, ["shop/strict", WEB]);
    web.policies.clear();
    hub.publish(&Delta {
        removed_policies: vec!["shop/strict".into()],
        ..delta(&[&web], &[], &[])
    });
    let [change, removal] = <[_; 2]>::try_from(all(&client)).unwrap();
    assert_eq!(names(&change), [WEB]);
    assert_eq!(removal.removed_resources, ["shop/strict"]);
}

#[test]
fn a_client_that_begins_gets_its_policies_when_it_knows_every_workload() {
    let pods: Vec<_> = (0..20_000)
        .map(|number| {
            let [high, low] = u16::to_be_bytes(number);
            pod(
                &format!("pod-{number}"),
                &format!("10.0.{high}.{low}"),
                "n2",
            )
        })
        .collect();
    let pods: Vec<_> = pods.iter().collect();
    let hub = hub(&delta(&pods, &[], &[&policy("strict", Action::Deny)]));
    let client = join(&hub);
    client.receive(request(ADDRESS_TYPE, &[], &[])).unwrap();
    client
        .receive(request(AUTHORIZATION_TYPE, &[], &[]))
        .unwrap();
    let responses = all(&client);
    let (policies, addresses) = responses.split_last().unwrap();
    assert_eq!(policies.type_url, AUTHORIZATION_TYPE);
    assert!(addresses.len() > 1);
    assert!(addresses.iter().all(|part| part.encoded_len() < 3 << 20));
    let count: usize = addresses.iter().map(|part| part.resources.len()).sum();
    assert_eq!(count, pods.len());
}

#[test]
fn a_policy_that_a_workload_names_and_nobody_wrote_refuses_everything() {
    let mut web = pod("web", "10.0.0.1", "n2");
    web.policies = vec!["shop/strict".into()];
    let hub = hub(&delta(&[&web], &[], &[]));
    let client = join(&hub);
    client
        .receive(request(AUTHORIZATION_TYPE, &[], &[]))
        .unwrap();
    let read = |response: &DeltaDiscoveryResponse| {
        let any = response.resources[0].resource.as_ref().unwrap();
        Authorization::decode(any.value.as_slice()).unwrap()
    };
    let response = one(&client);
    assert_eq!(
        (names(&response), &*response.resources[0].version),
        (vec!["shop/strict"], "")
    );
    assert_eq!(read(&response), crate::encode::refusal("shop/strict"));
    let written = policy("strict", Action::Allow);
    hub.publish(&delta(&[], &[], &[&written]));
    assert_eq!(read(&one(&client)), crate::encode::policy(&written));
    hub.publish(&Delta {
        removed_policies: vec!["shop/strict".into()],
        ..Delta::default()
    });
    assert_eq!(read(&one(&client)), crate::encode::refusal("shop/strict"));
    hub.publish(&Delta {
        removed_workloads: vec![WEB.into()],
        ..Delta::default()
    });
    assert_eq!(one(&client).removed_resources, ["shop/strict"]);
}

#[test]
fn rejections_and_acknowledgements_are_shown() {
    let hub = hub(&delta(&[&pod("web", "10.0.0.1", "n2")], &[], &[]));
    let client = join(&hub);
    client.receive(request(ADDRESS_TYPE, &[], &[])).unwrap();
    let report = || hub.clients().remove(0).subscriptions.remove(0);
    assert_eq!((report().behind, report().everything), (1, true));
    let mut reply = request(ADDRESS_TYPE, &[], &[]);
    reply.response_nonce = one(&client).nonce;
    client.receive(reply.clone()).unwrap();
    assert_eq!(report().acknowledged.unwrap().nonce, report().sent);
    reply.error_detail = Some(Status {
        message: format!("{WEB}: no"),
        ..Status::default()
    });
    client.receive(reply).unwrap();
    assert_eq!(report().rejected.unwrap().names, [WEB]);
    assert_eq!((report().kind, report().behind), (Kind::Address, 0));
    let figures = hub.counters().read();
    assert_eq!(
        (figures.acknowledged, figures.rejected, figures.responses),
        (1, 1, 1)
    );
    assert_eq!(all(&client), []);
}

#[test]
fn a_client_cannot_ask_without_bounds() {
    let catalog = Catalog::default();
    let mut session = Session::new("n1".into());
    let long = "x".repeat(1025);
    let now = std::time::SystemTime::now();
    assert_eq!(
        session.receive(request(ADDRESS_TYPE, &[&long], &[]), &catalog, now),
        Err(Violation::LongName(1025))
    );
    let mut many = request(ADDRESS_TYPE, &[], &[]);
    many.resource_names_subscribe = (0..=100_000).map(|name: u32| name.to_string()).collect();
    assert_eq!(
        session.receive(many, &catalog, now),
        Err(Violation::ManyNames)
    );
}

#[test]
fn only_so_many_clients_are_taken() {
    let hub = Hub::new(Limits {
        clients: 3,
        of_one_proxy: 2,
        starting: 1,
    });
    let named = |pod: &str| {
        let caller = Caller {
            namespace: "istio-system".to_owned(),
            service_account: "ztunnel".to_owned(),
            pod: None,
        };
        let node = node("istio-system", pod, "n1");
        hub.join(Node::verify(Some(&node), &caller).unwrap())
    };
    let (one, _two) = (named("a").unwrap(), named("a").unwrap());
    assert!(named("a").is_err());
    let _three = named("b").unwrap();
    assert!(named("c").is_err());
    drop(one);
    assert!(named("c").is_ok());
}

#[test]
fn a_client_that_came_back_keeps_what_comes_with_its_services_without_naming_it() {
    let (web, cart) = (pod("web", "10.0.0.1", "n2"), pod("cart", "10.0.0.2", "n3"));
    let first = delta(&[&web, &cart], &[&service("s", "10.96.0.1", &[&web])], &[]);
    let hub = hub(&first);
    let client = join(&hub);
    let mut again = on_demand();
    again.initial_resource_versions = [WEB, CART, SERVICE]
        .map(|name| (name.to_owned(), "0".to_owned()))
        .into();
    client.receive(again).unwrap();
    let told = one(&client);
    assert_eq!(names(&told), [CART, WEB, SERVICE]);
    // The service, and the workload that is in none of its services.
    assert_eq!(hub.clients()[0].subscriptions[0].names, 2);
    hub.publish(&delta(
        &[&pod("web", "10.0.0.9", "n2")],
        &[&service("s", "10.96.0.1", &[&web])],
        &[],
    ));
    assert_eq!(names(&one(&client)), [WEB]);
}

#[test]
fn a_client_that_wants_single_workloads_only_still_hears_of_every_policy() {
    let hub = hub(&delta(&[], &[], &[]));
    let client = join(&hub);
    for first in [
        request(ADDRESS_TYPE, &[], &[]),
        request(AUTHORIZATION_TYPE, &[], &[]),
    ] {
        client.receive(first).unwrap();
    }
    assert_eq!(all(&client).len(), 2);
    client.receive(request(ADDRESS_TYPE, &[], &["*"])).unwrap();
    let mut news = pin!(client.next());
    assert!(news.as_mut().now_or_never().is_none());
    hub.publish(&delta(&[], &[], &[&policy("p", Action::Deny)]));
    let news = news.now_or_never().unwrap().unwrap();
    assert_eq!(names(&read(&news)), ["shop/p"]);
}

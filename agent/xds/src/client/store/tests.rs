//! Tests of the store: whatever the order of arrival, services have their endpoints, and deltas say what changed.
use proptest::prelude::*;
use prost_types::Any;
use undermesh_model::Mesh;

use super::*;
use crate::{client::fixture, decode::Decoder, wire::discovery::Resource};

fn decoded(resource: Resource) -> Address {
    let content: Any = resource.resource.unwrap();
    Decoder::new("".into())
        .address(&resource.name, &content)
        .unwrap()
}

fn workload(name: &str, last: u8) -> Address {
    decoded(fixture::of_workload(
        "1",
        fixture::workload(name, [10, 0, 0, last]),
    ))
}

fn service() -> Address {
    decoded(fixture::of_service("1", fixture::service([10, 96, 0, 1])))
}

fn naming(name: &str, policies: &[&str]) -> Address {
    let mut wire = fixture::workload(name, [10, 0, 0, 9]);
    wire.authorization_policies = policies.iter().map(|policy| (*policy).to_owned()).collect();
    decoded(fixture::of_workload("1", wire))
}

fn policy(name: &str) -> Policy {
    let resource = fixture::of_policy(fixture::policy(name));
    Decoder::new("".into())
        .policy(&resource.name, &resource.resource.unwrap())
        .unwrap()
}

fn endpoints(service: &Service) -> Vec<&str> {
    service
        .endpoints
        .iter()
        .map(|endpoint| &*endpoint.workload)
        .collect()
}

#[test]
fn an_endpoint_that_comes_before_its_service_is_kept_for_it() {
    let mut store = Store::default();
    store.put_address(workload("web", 1));
    assert_eq!(store.take_delta().services.len(), 0);
    store.put_address(service());
    let delta = store.take_delta();
    assert_eq!(endpoints(&delta.services[0]), [fixture::WEB]);
    assert_eq!(delta.services[0].endpoints[0].ports, [(80, 8080)]);
}

#[test]
fn a_service_that_comes_back_has_its_endpoints() {
    let mut store = Store::default();
    store.put_address(service());
    store.put_address(workload("web", 1));
    store.remove_address(fixture::KEY);
    assert_eq!(
        store.take_delta().removed_services,
        [Arc::from(fixture::KEY)]
    );
    store.put_address(service());
    assert_eq!(endpoints(&store.take_delta().services[0]), [fixture::WEB]);
}

#[test]
fn a_workload_that_only_moves_leaves_its_services_alone() {
    let mut store = Store::default();
    store.put_address(service());
    store.put_address(workload("web", 1));
    drop(store.take_delta());
    store.put_address(workload("web", 2));
    let delta = store.take_delta();
    assert_eq!((delta.workloads.len(), delta.services.len()), (1, 0));
}

#[test]
fn what_is_sent_again_is_no_change() {
    let mut store = Store::default();
    for _ in 0..2 {
        store.put_address(service());
        store.put_address(workload("web", 1));
        store.put_policy(policy("deny"));
    }
    assert!(!store.take_delta().is_empty());
    store.put_address(service());
    store.put_address(workload("web", 1));
    store.put_policy(policy("deny"));
    assert!(store.take_delta().is_empty());
}

#[test]
fn a_workload_that_goes_leaves_its_services() {
    let mut store = Store::default();
    store.put_address(service());
    store.put_address(workload("web", 1));
    store.put_address(workload("cart", 2));
    drop(store.take_delta());
    store.remove_address(fixture::WEB);
    let delta = store.take_delta();
    assert_eq!(delta.removed_workloads, [Arc::from(fixture::WEB)]);
    assert_eq!(endpoints(&delta.services[0]), ["c//Pod/shop/cart"]);
}

#[test]
fn the_state_is_torn_until_a_policy_that_is_named_has_come() {
    let mut store = Store::default();
    store.put_policy(policy("known"));
    store.put_address(naming("web", &["shop/known", "shop/new"]));
    assert!(store.is_torn());
    store.put_policy(policy("new"));
    assert!(!store.is_torn());
    store.remove_policy("shop/new");
    assert!(store.is_torn());
    store.put_address(naming("web", &["shop/known"]));
    assert!(!store.is_torn());
}

#[test]
fn a_policy_that_never_comes_holds_up_one_delta_only() {
    let mut store = Store::default();
    store.put_address(naming("web", &["shop/lost"]));
    drop(store.take_delta());
    store.put_address(naming("cart", &["shop/lost"]));
    assert!(!store.is_torn());
    store.remove_address(fixture::WEB);
    store.remove_address("c//Pod/shop/cart");
    store.put_address(naming("web", &["shop/lost"]));
    assert!(store.is_torn());
}

#[derive(Clone, Debug)]
enum Step {
    Workload(u8, u8),
    Service,
    Remove(u8),
    RemoveService,
    Delta,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4u8, 0..3u8).prop_map(|(name, last)| Step::Workload(name, last)),
        1 => Just(Step::Service),
        2 => (0..4u8).prop_map(Step::Remove),
        1 => Just(Step::RemoveService),
        1 => Just(Step::Delta),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    /// Whoever adds up the deltas has what the store has.
    #[test]
    fn deltas_add_up_to_the_whole(steps in steps()) {
        let mut store = Store::default();
        let mut workloads = BTreeMap::new();
        let mut services = BTreeMap::new();
        let mut follow = |delta: Delta| {
            for workload in delta.workloads {
                workloads.insert(workload.uid.to_string(), workload);
            }
            for service in delta.services {
                services.insert(service.key(), service);
            }
            for uid in delta.removed_workloads {
                workloads.remove(&*uid);
            }
            for key in delta.removed_services {
                services.remove(&*key);
            }
        };
        for step in steps {
            match step {
                Step::Workload(name, last) => {
                    store.put_address(workload(&name.to_string(), last));
                }
                Step::Service => store.put_address(service()),
                Step::Remove(name) => store.remove_address(&format!("c//Pod/shop/{name}")),
                Step::RemoveService => store.remove_address(fixture::KEY),
                Step::Delta => follow(store.take_delta()),
            }
        }
        follow(store.take_delta());
        let whole = store.builder().build(&Mesh::empty());
        prop_assert!(whole.workloads().eq(workloads.values()));
        prop_assert!(whole.services().eq(services.values()));
        for service in services.values() {
            let members: Vec<_> = workloads.keys().map(String::as_str).collect();
            prop_assert_eq!(endpoints(service), members);
        }
    }
}

//! Whatever happens, a client that is told everything ends up with what its subscription stands for.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*};
use prost::Message;
use undermesh_identity::Caller;
use undermesh_model::{Delta, Policy, Service, Workload, policy::Action};

use crate::{
    encode,
    server::{
        Hub, Limits, Node,
        fixture::{self, Known, node, read, request},
        hub::Membership,
    },
    wire::{
        ADDRESS_TYPE, AUTHORIZATION_TYPE,
        workload::{Address, PortList, address::Type},
    },
};

const PODS: usize = 5;
const SERVICES: usize = 3;
const POLICIES: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Workload {
        pod: usize,
        address: usize,
        node: usize,
        policy: Option<usize>,
    },
    NoWorkload(usize),
    Service {
        service: usize,
        address: usize,
        endpoints: Vec<usize>,
        port: u16,
    },
    NoService(usize),
    Policy {
        policy: usize,
        action: bool,
    },
    NoPolicy(usize),
    /// Several of them at once.
    Together(Vec<Step>),
    Subscribe(usize, Key),
    Unsubscribe(usize, Key),
    /// The client takes one response.
    Read(usize),
    /// The connection is lost, and with it what was under way; the client comes back with what it has.
    Reconnect(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Pod(usize),
    Address(usize),
    Service(usize),
}

impl Key {
    fn text(&self) -> String {
        match self {
            Self::Pod(pod) => uid(*pod),
            Self::Address(last) => format!("/10.0.0.{last}"),
            Self::Service(service) => key(*service),
        }
    }
}

fn uid(pod: usize) -> String {
    format!("Kubernetes//Pod/shop/p{pod}")
}

fn key(service: usize) -> String {
    format!("shop/s{service}.shop.svc.cluster.local")
}

fn keys() -> impl Strategy<Value = Key> {
    prop_oneof![
        (0..PODS).prop_map(Key::Pod),
        (0..6_usize).prop_map(Key::Address),
        (0..SERVICES).prop_map(Key::Service),
    ]
}

fn changes() -> impl Strategy<Value = Step> {
    let workload = (
        0..PODS,
        0..6_usize,
        0..3_usize,
        proptest::option::of(0..POLICIES),
    );
    let service = (0..SERVICES, 0..6_usize, vec(0..PODS, 0..4), 80..83_u16);
    prop_oneof![
        4 => workload.prop_map(|(pod, address, node, policy)| Step::Workload { pod, address, node, policy }),
        1 => (0..PODS).prop_map(Step::NoWorkload),
        4 => service.prop_map(|(service, address, endpoints, port)| Step::Service { service, address, endpoints, port }),
        1 => (0..SERVICES).prop_map(Step::NoService),
        1 => (0..POLICIES, any::<bool>()).prop_map(|(policy, action)| Step::Policy { policy, action }),
        1 => (0..POLICIES).prop_map(Step::NoPolicy),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => changes(),
        2 => vec(changes(), 1..4).prop_map(Step::Together),
        2 => (1..3_usize, keys()).prop_map(|(client, key)| Step::Subscribe(client, key)),
        1 => (1..3_usize, keys()).prop_map(|(client, key)| Step::Unsubscribe(client, key)),
        4 => (0..3_usize).prop_map(Step::Read),
        1 => (0..3_usize).prop_map(Step::Reconnect),
    ];
    vec(step, 1..50)
}

/// The mesh as plain maps, and its resources worked out from nothing.
#[derive(Default)]
struct Mesh {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, Service>,
    policies: BTreeMap<String, Policy>,
}

impl Mesh {
    fn step(&mut self, step: &Step, delta: &mut Delta) {
        match step {
            Step::Workload {
                pod,
                address,
                node,
                policy,
            } => {
                let address = format!("10.0.0.{address}");
                let node = ["n0", "n1", ""][*node];
                let mut workload = fixture::pod(&format!("p{pod}"), &address, node);
                workload.policies = policy
                    .iter()
                    .map(|name| format!("shop/x{name}").into())
                    .collect();
                delta.workloads.push(Arc::new(workload.clone()));
                self.workloads.insert(uid(*pod), workload);
            }
            Step::NoWorkload(pod) => {
                delta.removed_workloads.push(uid(*pod).into());
                self.workloads.remove(&uid(*pod));
            }
            Step::Service {
                service,
                address,
                endpoints,
                port,
            } => {
                let pods: Vec<_> = endpoints
                    .iter()
                    .map(|pod| fixture::pod(&format!("p{pod}"), "10.0.0.1", ""))
                    .collect();
                let pods: Vec<_> = pods.iter().collect();
                let address = format!("10.0.0.{address}");
                let mut model = fixture::service(&format!("s{service}"), &address, &pods);
                model.ports[0].port = *port;
                delta.services.push(Arc::new(model.clone()));
                self.services.insert(key(*service), model);
            }
            Step::NoService(service) => {
                delta.removed_services.push(key(*service).into());
                self.services.remove(&key(*service));
            }
            Step::Policy { policy, action } => {
                let action = if *action { Action::Allow } else { Action::Deny };
                let model = fixture::policy(&format!("x{policy}"), action);
                delta.policies.push(Arc::new(model.clone()));
                self.policies.insert(model.key(), model);
            }
            Step::NoPolicy(policy) => {
                let key = format!("shop/x{policy}");
                delta.removed_policies.push(key.as_str().into());
                self.policies.remove(&key);
            }
            other => panic!("{other:?} is no change of the mesh"),
        }
    }

    fn addresses(&self) -> BTreeMap<String, Address> {
        let mut addresses = BTreeMap::new();
        for (uid, workload) in &self.workloads {
            let mut wire = encode::workload(workload);
            wire.services = self.services_of(uid).into_iter().collect();
            let wire = Type::Workload(wire);
            addresses.insert(uid.clone(), Address { r#type: Some(wire) });
        }
        for (key, service) in &self.services {
            let wire = Type::Service(encode::service(service));
            addresses.insert(key.clone(), Address { r#type: Some(wire) });
        }
        addresses
    }

    fn services_of(&self, uid: &str) -> BTreeMap<String, PortList> {
        let parts = self.services.iter().filter_map(|(key, service)| {
            let mut endpoints = service.endpoints.iter();
            let endpoint = endpoints.find(|endpoint| *endpoint.workload == *uid)?;
            Some((key.clone(), encode::membership(service, endpoint)))
        });
        parts.collect()
    }

    fn policies(&self) -> BTreeMap<String, Vec<u8>> {
        let named = self
            .workloads
            .values()
            .flat_map(|workload| &workload.policies);
        let missing = named.map(|name| (name.to_string(), encode::refusal(name)));
        let mut wire: BTreeMap<_, _> = missing.collect();
        let written = self.policies.iter();
        wire.extend(written.map(|(key, policy)| (key.clone(), encode::policy(policy))));
        wire.into_iter()
            .map(|(key, policy)| (key, policy.encode_to_vec()))
            .collect()
    }

    fn leads_to(&self, key: &Key, uid: &str, workload: &Workload) -> bool {
        let text = key.text();
        text == uid
            || workload
                .addresses
                .iter()
                .any(|address| text == format!("/{address}"))
    }

    fn leads_to_service(&self, key: &Key, name: &str, service: &Service) -> bool {
        let text = key.text();
        text == name
            || service
                .addresses
                .iter()
                .any(|net| text == format!("/{}", net.addr()))
    }
}

/// A client: the first wants everything, the others ask on demand, the second of them with a node.
struct Client {
    number: usize,
    membership: Option<Membership>,
    addresses: Known,
    policies: Known,
    asked: BTreeSet<Key>,
}

impl Client {
    fn new(number: usize, hub: &Arc<Hub>) -> Self {
        let mut this = Self {
            number,
            membership: None,
            addresses: Known::default(),
            policies: Known::default(),
            asked: BTreeSet::new(),
        };
        this.connect(hub, &Mesh::default());
        this
    }

    fn node(&self) -> &'static str {
        ["n0", "", "n1"][self.number]
    }

    fn connect(&mut self, hub: &Arc<Hub>, mesh: &Mesh) {
        self.membership = None;
        let caller = Caller {
            namespace: "istio-system".to_owned(),
            service_account: "ztunnel".to_owned(),
            pod: None,
        };
        let node = node("istio-system", "ztunnel", self.node());
        let node = Node::verify(Some(&node), &caller).unwrap();
        let membership = hub.join(node).unwrap();
        let asked: Vec<_> = self.asked.iter().map(Key::text).collect();
        let mut names = vec!["*"];
        names.extend(asked.iter().map(String::as_str));
        let mut first = match self.number {
            0 => request(ADDRESS_TYPE, &[], &[]),
            _ => request(ADDRESS_TYPE, &names, &["*"]),
        };
        first.initial_resource_versions = self.addresses.versions();
        // What a client has counts as asked for, but for workloads that come with its services and its node.
        if self.number > 0 {
            let has = |key: &Key| self.addresses.0.contains_key(&key.text());
            self.asked
                .extend((0..SERVICES).map(Key::Service).filter(has));
            let covered = self.wanted(mesh, &BTreeMap::new());
            let comes_by_itself = |key: &Key| covered.contains(&key.text());
            let pods = (0..PODS).map(Key::Pod).filter(has);
            self.asked.extend(pods.filter(|key| !comes_by_itself(key)));
        }
        membership.receive(first).unwrap();
        let mut first = request(AUTHORIZATION_TYPE, &[], &[]);
        first.initial_resource_versions = self.policies.versions();
        membership.receive(first).unwrap();
        self.membership = Some(membership);
    }

    fn ask(&mut self, subscribe: &[&str], unsubscribe: &[&str]) {
        let membership = self.membership.as_ref().unwrap();
        membership
            .receive(request(ADDRESS_TYPE, subscribe, unsubscribe))
            .unwrap();
    }

    /// Whether there was something to read.
    fn read(&mut self) -> bool {
        let Some(response) = self.membership.as_ref().unwrap().take().unwrap() else {
            return false;
        };
        match &*response.type_url {
            ADDRESS_TYPE => self.addresses.take(read(&response)),
            _ => self.policies.take(read(&response)),
        }
        true
    }

    fn check(&self, mesh: &Mesh) -> Result<(), TestCaseError> {
        let told: BTreeMap<String, Address> = self
            .addresses
            .0
            .iter()
            .map(|(name, resource)| {
                let any = resource.resource.as_ref().unwrap();
                (name.clone(), Address::decode(any.value.as_slice()).unwrap())
            })
            .collect();
        let mut expected = mesh.addresses();
        if self.number > 0 {
            let wanted = self.wanted(mesh, &told);
            expected.retain(|name, _| wanted.contains(name));
        }
        prop_assert_eq!(told, expected);
        let policies: BTreeMap<String, Vec<u8>> = self
            .policies
            .0
            .iter()
            .map(|(name, resource)| (name.clone(), resource.resource.clone().unwrap().value))
            .collect();
        prop_assert_eq!(policies, mesh.policies());
        Ok(())
    }

    /// A service that it was told once stays; every workload that it has must have a reason.
    fn wanted(&self, mesh: &Mesh, told: &BTreeMap<String, Address>) -> BTreeSet<String> {
        let local = |workload: &Workload| !self.node().is_empty() && &*workload.node == self.node();
        let serves_node = |service: &Service| {
            let mut endpoints = service.endpoints.iter();
            endpoints.any(|endpoint| mesh.workloads.get(&*endpoint.workload).is_some_and(local))
        };
        let services: BTreeSet<String> = mesh
            .services
            .iter()
            .filter(|(name, service)| {
                let asked = self
                    .asked
                    .iter()
                    .any(|key| mesh.leads_to_service(key, name, service));
                asked || serves_node(service) || told.contains_key(*name)
            })
            .map(|(name, _)| name.clone())
            .collect();
        let workloads = mesh.workloads.iter().filter(|(uid, workload)| {
            let asked = self
                .asked
                .iter()
                .any(|key| mesh.leads_to(key, uid, workload));
            let serves = mesh
                .services_of(uid)
                .keys()
                .any(|name| services.contains(name));
            asked || local(workload) || serves
        });
        let workloads: BTreeSet<String> = workloads.map(|(uid, _)| uid.clone()).collect();
        &workloads | &services
    }
}

proptest! {
    #[test]
    fn clients_end_up_with_what_their_subscriptions_stand_for(steps in steps()) {
        let hub = Hub::new(Limits::default());
        let mut mesh = Mesh::default();
        let mut clients: Vec<_> = (0..3).map(|number| Client::new(number, &hub)).collect();
        for step in &steps {
            match step {
                Step::Together(changes) => {
                    let mut delta = Delta::default();
                    // A part is changed or removed, not both: removal wins in a delta.
                    let mut seen = BTreeSet::new();
                    for change in changes.iter().filter(|change| seen.insert(part(change))) {
                        mesh.step(change, &mut delta);
                    }
                    hub.publish(&delta);
                }
                Step::Subscribe(client, key) => {
                    clients[*client].asked.insert(key.clone());
                    clients[*client].ask(&[&key.text()], &[]);
                }
                Step::Unsubscribe(client, key) => {
                    clients[*client].asked.remove(key);
                    clients[*client].ask(&[], &[&key.text()]);
                }
                Step::Read(client) => drop(clients[*client].read()),
                Step::Reconnect(client) => clients[*client].connect(&hub, &mesh),
                change => {
                    let mut delta = Delta::default();
                    mesh.step(change, &mut delta);
                    hub.publish(&delta);
                }
            }
        }
        for client in &mut clients {
            while client.read() {}
            client.check(&mesh)?;
        }
        drop(clients);
        prop_assert!(hub.follows_nothing());
    }
}

fn part(step: &Step) -> (u8, usize) {
    match step {
        Step::Workload { pod, .. } | Step::NoWorkload(pod) => (0, *pod),
        Step::Service { service, .. } | Step::NoService(service) => (1, *service),
        Step::Policy { policy, .. } | Step::NoPolicy(policy) => (2, *policy),
        other => panic!("{other:?} is no change of the mesh"),
    }
}

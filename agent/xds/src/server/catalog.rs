//! The resources as they are served, each encoded once, and what can be looked up.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use undermesh_model::{Delta, Policy, Service, Workload};

use super::{
    frame::Encoded,
    index::Index,
    interests::Topic,
    kind::Kind,
    shelf::{Shelf, Stamp},
};
use crate::{
    encode,
    wire::workload::{Port, PortList},
};

/// The name of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// [`Workload::uid`].
    Workload(Arc<str>),
    /// [`Service::key`].
    Service(Arc<str>),
    /// [`Policy::key`].
    Policy(Arc<str>),
}

impl Name {
    /// The type of the resource.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Workload(_) | Self::Service(_) => Kind::Address,
            Self::Policy(_) => Kind::Authorization,
        }
    }
}

/// A resource that differs on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which one.
    pub name: Name,
    /// By what it was known before, and is known now.
    pub topics: Vec<Topic>,
}

/// What a key of an Address leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) workloads: Vec<Arc<str>>,
    pub(crate) services: Vec<Arc<str>>,
}

impl Found {
    pub(crate) fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.services.is_empty()
    }
}

/// All resources. The cost of a change depends on what changes, not on what there is.
#[derive(Debug, Default)]
pub struct Catalog {
    revision: u64,
    pub(crate) addresses: Shelf,
    pub(crate) policies: Shelf,
    members: HashMap<Arc<str>, Member>,
    fronts: HashMap<Arc<str>, Front>,
    workloads_at: Index,
    services_at: Index,
    nodes: Index,
    rules: HashMap<Arc<str>, Arc<Policy>>,
    /// How many workloads name a policy.
    named: HashMap<Arc<str>, usize>,
}

/// A workload with its services. It may be an endpoint before it is known itself.
#[derive(Debug, Default)]
pub(crate) struct Member {
    pub(crate) workload: Option<Arc<Workload>>,
    /// `network/ip` of its addresses.
    pub(crate) keys: Vec<Arc<str>>,
    /// In the order of the services' keys.
    parts: Vec<(Arc<str>, Arc<PortList>)>,
}

impl Member {
    /// Keys of its services.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts.iter().map(|(service, _)| service)
    }

    /// Whether it is known and runs on a node.
    pub(crate) fn is_on(&self, node: &str) -> bool {
        let own = self.workload.as_ref().map(|workload| &*workload.node);
        !node.is_empty() && own == Some(node)
    }

    fn part(&self, service: &str) -> Result<usize, usize> {
        self.parts.binary_search_by(|(key, _)| (**key).cmp(service))
    }

    fn topics(&self, uid: &Arc<str>) -> Vec<Topic> {
        let mut topics = vec![Topic::Key(Arc::clone(uid))];
        topics.extend(self.keys.iter().cloned().map(Topic::Key));
        topics.extend(self.services().cloned().map(Topic::Key));
        let node = self.workload.as_ref().map(|workload| &workload.node);
        topics.extend(
            node.filter(|node| !node.is_empty())
                .cloned()
                .map(Topic::Node),
        );
        topics
    }
}

/// A service and the keys of its addresses.
#[derive(Debug)]
pub(crate) struct Front {
    service: Arc<Service>,
    pub(crate) keys: Vec<Arc<str>>,
}

/// What an apply has touched, with the topics from before.
#[derive(Default)]
struct Touched {
    workloads: BTreeMap<Arc<str>, Vec<Topic>>,
    services: BTreeMap<Arc<str>, Vec<Topic>>,
    policies: BTreeSet<Arc<str>>,
}

impl Catalog {
    /// The place of the last change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many workloads and services there are.
    pub fn addresses(&self) -> usize {
        self.addresses.len()
    }

    /// How many policies there are.
    pub fn policies(&self) -> usize {
        self.policies.len()
    }

    /// Takes changes of the mesh over. Returns the resources that differ on the wire for them: a workload that
    /// becomes an endpoint of a service is another resource, the service stays the same.
    pub fn apply(&mut self, delta: &Delta, now: Instant) -> Vec<Change> {
        let mut touched = Touched::default();
        self.take_services(delta, &mut touched);
        self.take_workloads(delta, &mut touched);
        self.take_policies(delta, &mut touched);
        let mut changes = Vec::new();
        self.encode_policies(&touched, now, &mut changes);
        // Workloads before services: a service that is new to a client comes when its endpoints are there.
        self.encode_workloads(touched.workloads, now, &mut changes);
        self.encode_services(touched.services, now, &mut changes);
        changes
    }

    /// The workload with a uid, if it is known by more than its name.
    pub(crate) fn member(&self, uid: &str) -> Option<&Member> {
        self.members
            .get(uid)
            .filter(|member| member.workload.is_some())
    }

    pub(crate) fn front(&self, key: &str) -> Option<&Front> {
        self.fronts.get(key)
    }

    /// Uids of a service's workloads.
    pub(crate) fn members_of(&self, service: &str) -> impl Iterator<Item = &Arc<str>> {
        let endpoints = self.fronts.get(service).into_iter();
        let uids = endpoints.flat_map(|front| &front.service.endpoints);
        uids.map(|endpoint| &endpoint.workload)
            .filter(|uid| self.member(uid).is_some())
    }

    /// Uids of a node's workloads.
    pub(crate) fn workloads_on(&self, node: &str) -> &[Arc<str>] {
        self.nodes.get(node)
    }

    /// What a key of an Address leads to: uid, `network/ip`, `network/ip/length` or `namespace/hostname`.
    pub(crate) fn find(&self, key: &str) -> Found {
        let mut found = Found::default();
        if let Some((uid, _)) = self.members.get_key_value(key)
            && self.member(uid).is_some()
        {
            found.workloads.push(Arc::clone(uid));
        }
        if let Some((service, _)) = self.fronts.get_key_value(key) {
            found.services.push(Arc::clone(service));
        }
        found
            .workloads
            .extend(self.workloads_at.get(key).iter().cloned());
        found
            .services
            .extend(self.services_at.get(key).iter().cloned());
        found
    }

    fn take_services(&mut self, delta: &Delta, touched: &mut Touched) {
        let removed: HashSet<&str> = delta.removed_services.iter().map(|key| &**key).collect();
        for service in &delta.services {
            let key: Arc<str> = service.key().into();
            if !removed.contains(&*key) {
                self.set_service(&key, Some(Arc::clone(service)), touched);
            }
        }
        for key in &delta.removed_services {
            self.set_service(key, None, touched);
        }
    }

    fn take_workloads(&mut self, delta: &Delta, touched: &mut Touched) {
        let removed: HashSet<&str> = delta.removed_workloads.iter().map(|uid| &**uid).collect();
        for workload in &delta.workloads {
            if !removed.contains(&*workload.uid) {
                self.set_workload(&workload.uid, Some(Arc::clone(workload)), touched);
            }
        }
        for uid in &delta.removed_workloads {
            self.set_workload(uid, None, touched);
        }
    }

    fn take_policies(&mut self, delta: &Delta, touched: &mut Touched) {
        for policy in &delta.policies {
            let key: Arc<str> = policy.key().into();
            touched.policies.insert(Arc::clone(&key));
            self.rules.insert(key, Arc::clone(policy));
        }
        for key in &delta.removed_policies {
            touched.policies.insert(Arc::clone(key));
            self.rules.remove(key);
        }
    }

    fn set_service(
        &mut self,
        key: &Arc<str>,
        service: Option<Arc<Service>>,
        touched: &mut Touched,
    ) {
        let former = self.fronts.remove(key);
        let topics = touched.services.entry(Arc::clone(key));
        topics.or_insert_with(|| service_topics(key, former.as_ref()));
        let mut before = former.as_ref().map(|front| parts(&front.service));
        let after = service.as_ref().map(|service| parts(service));
        for (uid, ports) in after.unwrap_or_default() {
            let known = before.as_mut().and_then(|before| before.remove(&uid));
            if known.as_ref() != Some(&ports) {
                self.set_part(&uid, key, Some(ports), touched);
            }
        }
        for uid in before.unwrap_or_default().into_keys() {
            self.set_part(&uid, key, None, touched);
        }
        for address in former.iter().flat_map(|front| &front.keys) {
            self.services_at.remove(address, key);
        }
        let Some(service) = service else { return };
        let keys = virtual_keys(&service);
        for address in &keys {
            self.services_at.add(address, key);
        }
        self.fronts.insert(Arc::clone(key), Front { service, keys });
    }

    fn set_part(
        &mut self,
        uid: &Arc<str>,
        service: &Arc<str>,
        ports: Option<Arc<PortList>>,
        touched: &mut Touched,
    ) {
        let member = self.touch(uid, touched);
        match (member.part(service), ports) {
            (Ok(place), Some(ports)) => member.parts[place].1 = ports,
            (Err(place), Some(ports)) => member.parts.insert(place, (Arc::clone(service), ports)),
            (Ok(place), None) => drop(member.parts.remove(place)),
            (Err(_), None) => {}
        }
    }

    fn set_workload(
        &mut self,
        uid: &Arc<str>,
        workload: Option<Arc<Workload>>,
        touched: &mut Touched,
    ) {
        let member = self.touch(uid, touched);
        let keys = workload.as_deref().map(own_keys).unwrap_or_default();
        let former_keys = std::mem::replace(&mut member.keys, keys.clone());
        let former = std::mem::replace(&mut member.workload, workload.clone());
        for address in &former_keys {
            self.workloads_at.remove(address, uid);
        }
        for address in &keys {
            self.workloads_at.add(address, uid);
        }
        if let Some(former) = former {
            self.nodes.remove(&former.node, uid);
            former.policies.iter().for_each(|policy| {
                self.unname(policy);
            });
            touched.policies.extend(former.policies.iter().cloned());
        }
        if let Some(workload) = workload {
            self.nodes.add(&workload.node, uid);
            for policy in &workload.policies {
                *self.named.entry(Arc::clone(policy)).or_default() += 1;
            }
            touched.policies.extend(workload.policies.iter().cloned());
        }
    }

    fn unname(&mut self, policy: &Arc<str>) {
        if let Some(count) = self.named.get_mut(policy) {
            *count -= 1;
            if *count == 0 {
                self.named.remove(policy);
            }
        }
    }

    fn touch(&mut self, uid: &Arc<str>, touched: &mut Touched) -> &mut Member {
        let member = self.members.entry(Arc::clone(uid)).or_default();
        let topics = touched.workloads.entry(Arc::clone(uid));
        topics.or_insert_with(|| member.topics(uid));
        member
    }

    fn stamp(&mut self, time: Instant) -> Stamp {
        self.revision += 1;
        Stamp {
            revision: self.revision,
            time,
        }
    }

    fn encode_policies(&mut self, touched: &Touched, now: Instant, changes: &mut Vec<Change>) {
        for key in &touched.policies {
            let message = match self.rules.get(key) {
                Some(policy) => Some(encode::policy(policy)),
                None if self.named.contains_key(key) => Some(encode::refusal(key)),
                None => None,
            };
            let stamp = self.stamp(now);
            let differs = match message {
                Some(message) => {
                    let encoded = Encoded::policy(key, &message);
                    self.policies.put(key, encoded, stamp)
                }
                None => self.policies.remove(key, stamp.revision),
            };
            if differs {
                changes.push(Change {
                    name: Name::Policy(Arc::clone(key)),
                    topics: vec![Topic::Policy(Arc::clone(key))],
                });
            }
        }
    }

    fn encode_workloads(
        &mut self,
        touched: BTreeMap<Arc<str>, Vec<Topic>>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        for (uid, mut topics) in touched {
            let stamp = self.stamp(now);
            let Some(member) = self.members.get(&uid) else {
                continue;
            };
            let differs = match &member.workload {
                Some(workload) => {
                    topics.extend(member.topics(&uid));
                    let encoded = encoded(&uid, workload, member);
                    self.addresses.put(&uid, encoded, stamp)
                }
                None => self.addresses.remove(&uid, stamp.revision),
            };
            if member.workload.is_none() && member.parts.is_empty() {
                self.members.remove(&uid);
            }
            if differs {
                topics.sort_unstable();
                topics.dedup();
                changes.push(Change {
                    name: Name::Workload(uid),
                    topics,
                });
            }
        }
    }

    fn encode_services(
        &mut self,
        touched: BTreeMap<Arc<str>, Vec<Topic>>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        for (key, mut topics) in touched {
            let stamp = self.stamp(now);
            let front = self.fronts.get(&key);
            topics.extend(service_topics(&key, front));
            let differs = match front {
                Some(front) => {
                    let encoded = Encoded::service(&key, encode::service(&front.service));
                    self.addresses.put(&key, encoded, stamp)
                }
                None => self.addresses.remove(&key, stamp.revision),
            };
            if differs {
                topics.sort_unstable();
                topics.dedup();
                changes.push(Change {
                    name: Name::Service(key),
                    topics,
                });
            }
        }
    }
}

fn encoded(uid: &str, workload: &Workload, member: &Member) -> Encoded {
    let services = member
        .parts
        .iter()
        .map(|(service, ports)| (&**service, (**ports).clone()));
    Encoded::workload(uid, &encode::workload(workload), services)
}

fn service_topics(key: &Arc<str>, front: Option<&Front>) -> Vec<Topic> {
    let addresses = front.into_iter().flat_map(|front| &front.keys);
    let keys = std::iter::once(key).chain(addresses);
    keys.cloned().map(Topic::Key).collect()
}

/// `network/ip` of a workload's addresses.
fn own_keys(workload: &Workload) -> Vec<Arc<str>> {
    let addresses = workload.addresses.iter();
    addresses
        .map(|address| format!("{}/{}", workload.network, address.to_canonical()).into())
        .collect()
}

/// `network/ip` of a service's addresses, `network/ip/length` of its ranges.
fn virtual_keys(service: &Service) -> Vec<Arc<str>> {
    let nets = service.addresses.iter().copied().map(encode::canonical);
    let key = |net: IpNet| match net.prefix_len() == net.max_prefix_len() {
        true => format!("{}/{}", service.network, net.addr()),
        false => format!("{}/{net}", service.network),
    };
    nets.map(|net| key(net).into()).collect()
}

/// The parts of a service's endpoints in it. Endpoints with equal ports share them, and two entries of one
/// workload count as one, in which the first says what a port leads to.
fn parts(service: &Service) -> HashMap<Arc<str>, Arc<PortList>> {
    let mut shared: HashMap<&[(u16, u16)], Arc<PortList>> = HashMap::new();
    let mut parts: HashMap<Arc<str>, Arc<PortList>> = HashMap::new();
    for endpoint in &service.endpoints {
        let ports = shared
            .entry(&endpoint.ports)
            .or_insert_with(|| Arc::new(encode::membership(service, endpoint)));
        parts
            .entry(Arc::clone(&endpoint.workload))
            .and_modify(|first| add_missing(Arc::make_mut(first), ports))
            .or_insert_with(|| Arc::clone(ports));
    }
    parts
}

fn add_missing(ports: &mut PortList, others: &PortList) {
    let is_new = |port: &&Port| {
        let same = |known: &Port| known.service_port == port.service_port;
        !ports.ports.iter().any(same)
    };
    let missing: Vec<Port> = others.ports.iter().filter(is_new).cloned().collect();
    ports.ports.extend(missing);
}

//! What a client wants of one type, and what of it the client has still to be told.
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    batch::Batch,
    catalog::{Catalog, Name},
    interests::{Follow, Topic},
    kind::Kind,
    scan::Scan,
    session::Violation,
    shelf::Lagging,
};

/// Most names that a client may ask for, of one type.
pub(crate) const MAX_NAMES: usize = 100_000;
/// Longest name that a client may ask for, in bytes: three parts of up to 253 (RFC 1123) and room for a kind.
pub(crate) const MAX_NAME_BYTES: usize = 1024;
/// The name that stands for every resource of a type.
const WILDCARD: &str = "*";

/// What a request says about a subscription.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) subscribe: Vec<String>,
    pub(crate) unsubscribe: Vec<String>,
    pub(crate) versions: HashMap<String, String>,
}

/// What is to be told. Workloads come before services: a service is of use when its endpoints are there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Resource(Name),
    /// A key that led to nothing when it was asked for.
    Nothing(Arc<str>),
}

/// One client's subscription to one type.
///
/// A client that asks on demand is told what its keys lead to, the workloads of its own node, and with a service,
/// however it came to it, all of its workloads: a client that knows a service must know every endpoint. A
/// service stays with the client until it is gone or unsubscribed from, a workload as long as one of these holds.
#[derive(Debug)]
pub(crate) struct Subscription {
    kind: Kind,
    /// The client's node; empty when it does not say.
    node: Arc<str>,
    everything: Option<Scan>,
    asked: HashSet<Arc<str>>,
    services: HashSet<Arc<str>>,
    due: BTreeSet<Due>,
    /// Changes after this place are news.
    answered: u64,
    /// Whether the client waits for an answer, be it empty.
    owes: bool,
    /// Whether a client that came with nothing lacks part of what it is told first.
    incomplete: bool,
}

impl Subscription {
    /// Begins with the first request of a type.
    pub(crate) fn begin(
        kind: Kind,
        node: &Arc<str>,
        wishes: Wishes,
        catalog: &Catalog,
        follows: &mut Vec<Follow>,
    ) -> Result<Self, Violation> {
        let mut this = Self {
            kind,
            node: Arc::clone(node),
            everything: None,
            asked: HashSet::new(),
            services: HashSet::new(),
            due: BTreeSet::new(),
            answered: catalog.revision(),
            owes: true,
            incomplete: wishes.versions.is_empty(),
        };
        // No names at all are the old way to ask for everything. To ask for nothing, a client subscribes to the
        // wildcard and unsubscribes from it at once.
        let legacy = wishes.subscribe.is_empty();
        if legacy || this.ends_with_wildcard(&wishes) {
            this.scan(catalog, wishes.versions, follows);
            this.ask(&wishes.subscribe, catalog, follows)?;
        } else {
            this.ask(&wishes.subscribe, catalog, follows)?;
            this.drop_keys(&wishes.unsubscribe, catalog, follows);
            this.serve_node(catalog, follows);
            this.resume(wishes.versions, catalog, follows)?;
        }
        Ok(this)
    }

    /// Takes a later request.
    pub(crate) fn change(
        &mut self,
        wishes: Wishes,
        catalog: &Catalog,
        follows: &mut Vec<Follow>,
    ) -> Result<(), Violation> {
        self.owes |= !wishes.subscribe.is_empty();
        self.answered = catalog.revision();
        let unsubscribes = wishes.unsubscribe.iter().any(|name| name == WILDCARD);
        if self.ends_with_wildcard(&wishes) && self.everything.is_none() {
            self.scan(catalog, HashMap::new(), follows);
        }
        if unsubscribes && self.everything.take().is_some() {
            follows.push(Follow::End(Topic::All(self.kind)));
            self.serve_node(catalog, follows);
        }
        self.ask(&wishes.subscribe, catalog, follows)?;
        self.drop_keys(&wishes.unsubscribe, catalog, follows);
        Ok(())
    }

    /// A resource that it follows has changed.
    pub(crate) fn note(&mut self, name: &Name, catalog: &Catalog, follows: &mut Vec<Follow>) {
        match name {
            Name::Workload(uid) => {
                self.adopt_services_of(uid, catalog, follows);
                self.due.insert(Due::Resource(name.clone()));
            }
            Name::Service(key) => self.note_service(key, catalog, follows),
            Name::Policy(_) => {
                self.due.insert(Due::Resource(name.clone()));
            }
        }
    }

    /// The next part of what is to be told; `None` when the client knows everything. A client that wants
    /// everything hears only of removals up to `removals`, a place in the order of changes.
    ///
    /// # Errors
    /// When removals that the client has not been told of are no longer remembered.
    pub(crate) fn take(
        &mut self,
        removals: u64,
        catalog: &Catalog,
    ) -> Result<Option<Batch>, Lagging> {
        let mut batch = Batch::default();
        let shelf = self.kind.shelf(catalog);
        if let Some(scan) = &mut self.everything {
            scan.add_changes(shelf, catalog.revision(), &mut batch);
            scan.add_removals(shelf, removals, &mut batch)?;
        }
        while !batch.is_full()
            && let Some(due) = self.due.pop_first()
        {
            self.tell(due, catalog, &mut batch);
        }
        let scan = self.everything.as_ref();
        self.incomplete &= scan.map_or(batch.is_full(), Scan::is_incomplete);
        let answers = std::mem::take(&mut self.owes);
        Ok((answers || !batch.is_empty()).then_some(batch))
    }

    /// Whether a client that came with nothing lacks part of what it is told first.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The place up to which the client knows everything that it wants.
    pub(crate) fn told(&self) -> u64 {
        match &self.everything {
            _ if !self.due.is_empty() => 0,
            Some(scan) => scan.told(),
            None => u64::MAX,
        }
    }

    /// Whether it wants everything.
    pub(crate) fn wants_everything(&self) -> bool {
        self.everything.is_some()
    }

    /// How many keys it asks for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// How many resources the client has not in their present form.
    pub(crate) fn behind(&self, catalog: &Catalog) -> usize {
        let shelf = self.kind.shelf(catalog);
        let scan = self.everything.as_ref();
        self.due.len() + scan.map_or(0, |scan| scan.behind(shelf))
    }

    /// All that it follows.
    pub(crate) fn topics(&self) -> Vec<Topic> {
        let keys = self.asked.iter().map(|key| self.kind.topic(key));
        let services = self.services.iter().cloned().map(Topic::Key);
        let others = [Topic::All(self.kind), Topic::Node(Arc::clone(&self.node))];
        keys.chain(services).chain(others).collect()
    }

    fn ends_with_wildcard(&self, wishes: &Wishes) -> bool {
        let names = |names: &[String]| names.iter().any(|name| name == WILDCARD);
        names(&wishes.subscribe) && !names(&wishes.unsubscribe)
    }

    fn scan(
        &mut self,
        catalog: &Catalog,
        versions: HashMap<String, String>,
        follows: &mut Vec<Follow>,
    ) {
        let shelf = self.kind.shelf(catalog);
        self.everything = Some(Scan::begin(shelf, catalog.revision(), versions));
        follows.push(Follow::Begin(Topic::All(self.kind)));
    }

    fn ask(
        &mut self,
        names: &[String],
        catalog: &Catalog,
        follows: &mut Vec<Follow>,
    ) -> Result<(), Violation> {
        for name in names.iter().filter(|name| *name != WILDCARD) {
            let key = self.remember(name, follows)?;
            self.answer(&key, catalog, follows);
        }
        Ok(())
    }

    fn remember(&mut self, name: &str, follows: &mut Vec<Follow>) -> Result<Arc<str>, Violation> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Violation::LongName(name.len()));
        }
        if let Some(known) = self.asked.get(name) {
            return Ok(Arc::clone(known));
        }
        if self.asked.len() >= MAX_NAMES {
            return Err(Violation::ManyNames);
        }
        let key: Arc<str> = Arc::from(name);
        self.asked.insert(Arc::clone(&key));
        follows.push(Follow::Begin(self.kind.topic(&key)));
        Ok(key)
    }

    fn answer(&mut self, key: &Arc<str>, catalog: &Catalog, follows: &mut Vec<Follow>) {
        match self.kind {
            Kind::Authorization => {
                let name = Name::Policy(Arc::clone(key));
                self.due.insert(Due::Resource(name));
            }
            Kind::Address => {
                let found = catalog.find(key);
                if found.is_empty() {
                    self.due.insert(Due::Nothing(Arc::clone(key)));
                }
                for uid in found.workloads {
                    self.due.insert(Due::Resource(Name::Workload(uid)));
                }
                for service in &found.services {
                    self.hold(service, catalog, follows);
                }
            }
        }
    }

    /// A client that came back: what it has counts as asked for (as in istiod), and is left out where it is current.
    ///
    /// A workload that comes with a service or with the node needs no name of its own. A thousand clients that come
    /// back with a thousand workloads each would otherwise leave a million names here.
    fn resume(
        &mut self,
        versions: HashMap<String, String>,
        catalog: &Catalog,
        follows: &mut Vec<Follow>,
    ) -> Result<(), Violation> {
        let is_workload = |name: &str| self.kind == Kind::Address && catalog.member(name).is_some();
        let (workloads, others): (Vec<&String>, Vec<&String>) =
            versions.keys().partition(|name| is_workload(name));
        for name in others {
            let key = self.remember(name, follows)?;
            self.answer(&key, catalog, follows);
        }
        for name in workloads {
            if !self.covers(&Name::Workload(Arc::from(&**name)), catalog) {
                let key = self.remember(name, follows)?;
                self.answer(&key, catalog, follows);
            }
        }
        let shelf = self.kind.shelf(catalog);
        for (name, version) in &versions {
            let item = shelf.get(name);
            if item.is_some_and(|item| item.encoded.is(version)) {
                let key: Arc<str> = Arc::from(&**name);
                self.due
                    .remove(&Due::Resource(Name::Workload(Arc::clone(&key))));
                self.due.remove(&Due::Resource(Name::Service(key)));
            }
        }
        Ok(())
    }

    /// Takes in the workloads of the client's own node, with their services.
    fn serve_node(&mut self, catalog: &Catalog, follows: &mut Vec<Follow>) {
        if self.kind != Kind::Address || self.node.is_empty() {
            return;
        }
        follows.push(Follow::Begin(Topic::Node(Arc::clone(&self.node))));
        for uid in catalog.workloads_on(&self.node) {
            self.due
                .insert(Due::Resource(Name::Workload(Arc::clone(uid))));
            self.adopt_services_of(uid, catalog, follows);
        }
    }

    /// Takes in the services of a workload, if it runs on the client's own node.
    fn adopt_services_of(&mut self, uid: &str, catalog: &Catalog, follows: &mut Vec<Follow>) {
        let member = catalog.member(uid);
        let local = member.filter(|member| member.is_on(&self.node));
        for service in local.into_iter().flat_map(|member| member.services()) {
            if !self.services.contains(service) {
                self.hold(service, catalog, follows);
            }
        }
    }

    /// Takes in a service with all its workloads.
    fn hold(&mut self, service: &Arc<str>, catalog: &Catalog, follows: &mut Vec<Follow>) {
        if self.services.insert(Arc::clone(service)) {
            follows.push(Follow::Begin(Topic::Key(Arc::clone(service))));
        }
        self.due
            .insert(Due::Resource(Name::Service(Arc::clone(service))));
        let uids = catalog.members_of(service).cloned();
        self.due
            .extend(uids.map(|uid| Due::Resource(Name::Workload(uid))));
    }

    fn note_service(&mut self, key: &Arc<str>, catalog: &Catalog, follows: &mut Vec<Follow>) {
        let front = catalog.front(key);
        let held = self.services.contains(key);
        let asked = |front: &super::catalog::Front| {
            let mut keys = std::iter::once(key).chain(&front.keys);
            keys.any(|key| self.asked.contains(key))
        };
        match front {
            Some(_) if held => {}
            Some(front) if asked(front) => return self.hold(key, catalog, follows),
            Some(_) => return,
            None => self.release(key, follows),
        }
        self.due
            .insert(Due::Resource(Name::Service(Arc::clone(key))));
    }

    fn release(&mut self, service: &Arc<str>, follows: &mut Vec<Follow>) {
        if self.services.remove(service) && !self.asked.contains(service) {
            follows.push(Follow::End(Topic::Key(Arc::clone(service))));
        }
    }

    /// Unsubscribes. What nothing else holds is told as removed, so that both ends agree on what is left.
    fn drop_keys(&mut self, names: &[String], catalog: &Catalog, follows: &mut Vec<Follow>) {
        for name in names {
            let Some(key) = self.asked.take(&**name) else {
                continue;
            };
            if !self.services.contains(&key) {
                follows.push(Follow::End(self.kind.topic(&key)));
            }
            match self.kind {
                Kind::Authorization => self.drop_resource(Name::Policy(key), catalog),
                Kind::Address => self.drop_found(&key, catalog, follows),
            }
        }
    }

    fn drop_found(&mut self, key: &str, catalog: &Catalog, follows: &mut Vec<Follow>) {
        let found = catalog.find(key);
        for service in found.services {
            if self.is_wanted(&service, catalog) {
                continue;
            }
            self.release(&service, follows);
            self.drop_resource(Name::Service(Arc::clone(&service)), catalog);
            for uid in catalog.members_of(&service) {
                self.drop_resource(Name::Workload(Arc::clone(uid)), catalog);
            }
        }
        for uid in found.workloads {
            self.drop_resource(Name::Workload(uid), catalog);
        }
    }

    fn drop_resource(&mut self, name: Name, catalog: &Catalog) {
        if !self.covers(&name, catalog) {
            self.due.insert(Due::Resource(name));
        }
    }

    /// Whether a key that is asked for, or a workload on the node, leads to a service.
    fn is_wanted(&self, service: &Arc<str>, catalog: &Catalog) -> bool {
        let keys = catalog.front(service).into_iter();
        let mut keys = keys.flat_map(|front| &front.keys).chain([service]);
        let serves_node = |uid: &Arc<str>| {
            let member = catalog.member(uid);
            member.is_some_and(|member| member.is_on(&self.node))
        };
        keys.any(|key| self.asked.contains(key)) || catalog.members_of(service).any(serves_node)
    }

    /// Whether the client is to have a resource.
    fn covers(&self, name: &Name, catalog: &Catalog) -> bool {
        if self.everything.is_some() {
            return true;
        }
        match name {
            Name::Workload(uid) => catalog.member(uid).is_some_and(|member| {
                self.asked.contains(uid)
                    || member.is_on(&self.node)
                    || member.keys.iter().any(|key| self.asked.contains(key))
                    || member.services().any(|key| self.services.contains(key))
            }),
            Name::Service(key) => self.services.contains(key),
            Name::Policy(key) => self.asked.contains(key),
        }
    }

    /// Whether a key leads to a resource that the client is to have.
    fn leads_to_anything(&self, key: &str, catalog: &Catalog) -> bool {
        let found = catalog.find(key);
        let workloads = found.workloads.into_iter().map(Name::Workload);
        let services = found.services.into_iter().map(Name::Service);
        let mut names = workloads.chain(services);
        names.any(|name| self.covers(&name, catalog))
    }

    fn tell(&self, due: Due, catalog: &Catalog, batch: &mut Batch) {
        let name = match due {
            Due::Resource(name) => name,
            // It may lead somewhere by now; then that is told by itself, if it is still asked for.
            Due::Nothing(key) if self.leads_to_anything(&key, catalog) => return,
            Due::Nothing(key) => return batch.remove(&key),
        };
        let (Name::Workload(key) | Name::Service(key) | Name::Policy(key)) = &name;
        match self.kind.shelf(catalog).get(key) {
            Some(item) if self.covers(&name, catalog) => {
                let news = item.changed.revision > self.answered;
                let bytes = item.encoded.with_aliases(aliases(&name, catalog));
                batch.add(bytes, news.then_some(item.changed.time));
            }
            _ => batch.remove(key),
        }
    }
}

/// The other keys of a resource: `network/ip`, and `network/ip/length` for ranges.
fn aliases(name: &Name, catalog: &Catalog) -> Vec<String> {
    let keys = match name {
        Name::Workload(uid) => catalog.member(uid).map(|member| &member.keys),
        Name::Service(key) => catalog.front(key).map(|front| &front.keys),
        Name::Policy(_) => None,
    };
    let keys = keys.into_iter().flatten();
    keys.map(ToString::to_string).collect()
}

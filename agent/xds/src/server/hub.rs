//! Where changes of the mesh meet the clients.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError, RwLock, RwLockReadGuard},
    time::{Instant, SystemTime},
};

use prost::Message;
use tokio::sync::{Notify, Semaphore};
use undermesh_model::Delta;

use super::{
    catalog::{Catalog, Change},
    clients::ClientReport,
    counters::Counters,
    frame::Response,
    interests::{Follow, Interests, Topic},
    kind::Kind,
    node::Node,
    session::{Receipt, Session, Violation},
    shelf::Lagging,
};
use crate::wire::discovery::DeltaDiscoveryRequest;

/// How many clients are served.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most clients at a time.
    pub clients: usize,
    /// Most connections of one node proxy at a time: an old one may not be known to be dead yet.
    pub of_one_proxy: usize,
    /// Most clients whose first request is read at a time. It names everything that the client has, so it can be
    /// large; the others wait in their flow control.
    pub starting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 5000,
            of_one_proxy: 8,
            starting: 16,
        }
    }
}

/// Why a client is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("{0} clients are connected and no more are served; connect to another replica")]
    Clients(usize),
    #[error("this proxy is connected {0} times; end the other connections")]
    Proxy(usize),
}

/// Number of a connection.
pub(crate) type ClientId = u64;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    id: ClientId,
    node: Node,
    connected: SystemTime,
    session: Mutex<Session>,
    news: Notify,
}

/// The catalog and the clients that follow it.
///
/// Locks are taken in the order of the fields. What a client follows is put down while the catalog is locked
/// for reading, so that no change falls between what the client is told and what it follows.
#[derive(Debug)]
pub struct Hub {
    catalog: RwLock<Catalog>,
    interests: Mutex<Interests>,
    clients: Mutex<Clients>,
    limits: Limits,
    counters: Counters,
    /// Permits to start; none before the first publication. A client that came back to an empty catalog would be
    /// told that all it has is gone.
    pub(crate) starting: Semaphore,
    opened: Once,
}

#[derive(Debug, Default)]
struct Clients {
    last: ClientId,
    connected: BTreeMap<ClientId, Arc<Client>>,
}

impl Hub {
    /// An empty catalog without clients. Clients wait until something is published, be it empty.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            catalog: RwLock::default(),
            interests: Mutex::default(),
            clients: Mutex::default(),
            limits,
            counters: Counters::default(),
            starting: Semaphore::new(0),
            opened: Once::new(),
        })
    }

    /// Takes changes of the mesh over and wakes the clients that they concern. It never waits for a client.
    pub fn publish(&self, delta: &Delta) {
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        let changes = catalog.apply(delta, Instant::now());
        self.opened
            .call_once(|| self.starting.add_permits(self.limits.starting));
        if changes.is_empty() {
            return;
        }
        let mut interests = lock(&self.interests);
        // Whom each change concerns is found before any client changes what it follows.
        let calls: Vec<(&Change, Vec<Arc<Client>>)> = changes
            .iter()
            .map(|change| (change, self.connected(&interests.audience(&change.topics))))
            .collect();
        for (change, clients) in calls {
            for client in clients {
                let mut session = lock(&client.session);
                session.note(&change.name, &catalog);
                interests.update(client.id, session.follows());
                client.news.notify_one();
            }
        }
        // Each of them would be woken for nothing by changes of the other type: nearly all follow all policies.
        let kinds: BTreeSet<Kind> = changes.iter().map(|change| change.name.kind()).collect();
        let topics: Vec<Topic> = kinds.into_iter().map(Topic::All).collect();
        for client in self.connected(&interests.audience(&topics)) {
            client.news.notify_one();
        }
    }

    /// Everybody who is connected.
    pub fn clients(&self) -> Vec<ClientReport> {
        let catalog = self.catalog();
        let connected: Vec<_> = lock(&self.clients).connected.values().cloned().collect();
        let report = |client: Arc<Client>| ClientReport {
            node: client.node.clone(),
            connected: client.connected,
            subscriptions: lock(&client.session).report(&catalog),
        };
        connected.into_iter().map(report).collect()
    }

    /// Names of the workloads and services that have an address on a network.
    pub fn holders(&self, network: &str, address: IpAddr) -> Vec<Arc<str>> {
        let mut found = self.catalog().find(&format!("{network}/{address}"));
        found.workloads.append(&mut found.services);
        found.workloads
    }

    /// What has been done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The resources.
    pub fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a client in.
    pub(crate) fn join(self: &Arc<Self>, node: Node) -> Result<Membership, Full> {
        let mut clients = lock(&self.clients);
        if clients.connected.len() >= self.limits.clients {
            return Err(Full::Clients(self.limits.clients));
        }
        let same = |client: &&Arc<Client>| client.node.id == node.id;
        if clients.connected.values().filter(same).count() >= self.limits.of_one_proxy {
            return Err(Full::Proxy(self.limits.of_one_proxy));
        }
        clients.last += 1;
        let client = Arc::new(Client {
            id: clients.last,
            session: Mutex::new(Session::new(Arc::clone(&node.name))),
            node,
            connected: SystemTime::now(),
            news: Notify::new(),
        });
        clients.connected.insert(client.id, Arc::clone(&client));
        Counters::count(&self.counters.connections, 1);
        Ok(Membership {
            hub: Arc::clone(self),
            client,
        })
    }

    #[cfg(test)]
    pub(crate) fn follows_nothing(&self) -> bool {
        lock(&self.interests).is_empty()
    }

    fn connected(&self, ids: &BTreeSet<ClientId>) -> Vec<Arc<Client>> {
        let clients = lock(&self.clients);
        let found = ids.iter().filter_map(|id| clients.connected.get(id));
        found.cloned().collect()
    }
}

/// A client's place in the hub; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Membership {
    hub: Arc<Hub>,
    client: Arc<Client>,
}

impl Membership {
    /// Takes a request.
    pub(crate) fn receive(&self, request: DeltaDiscoveryRequest) -> Result<Receipt, Violation> {
        let catalog = self.hub.catalog();
        let (receipt, follows) = {
            let mut session = lock(&self.client.session);
            let receipt = session.receive(request, &catalog, SystemTime::now());
            (receipt?, session.follows())
        };
        if !follows.is_empty() {
            lock(&self.hub.interests).update(self.client.id, follows);
        }
        let counters = &self.hub.counters;
        match receipt {
            Receipt::Acknowledged => Counters::count(&counters.acknowledged, 1),
            Receipt::Rejected => Counters::count(&counters.rejected, 1),
            Receipt::Subscribed | Receipt::Ignored => {}
        }
        Ok(receipt)
    }

    /// The next response; waits until there is something to tell. Nothing is lost when it is dropped meanwhile.
    pub(crate) async fn next(&self) -> Result<Response, Lagging> {
        loop {
            if let Some(response) = self.take()? {
                return Ok(response);
            }
            self.client.news.notified().await;
        }
    }

    /// Who it is.
    pub(crate) fn node(&self) -> &Node {
        &self.client.node
    }

    /// The next response, if there is something to tell.
    pub(crate) fn take(&self) -> Result<Option<Response>, Lagging> {
        let catalog = self.hub.catalog();
        let Some(outgoing) = lock(&self.client.session).take(&catalog)? else {
            return Ok(None);
        };
        drop(catalog);
        let (counters, response) = (&self.hub.counters, outgoing.response);
        Counters::count(&counters.responses, 1);
        Counters::count(&counters.resources, response.resources.len());
        Counters::count(&counters.removals, response.removed_resources.len());
        Counters::count(&counters.bytes, response.encoded_len());
        if let Some(oldest) = outgoing.oldest {
            counters.delayed(oldest.elapsed());
        }
        Ok(Some(response))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // With the catalog locked no change is being told, so that nothing is followed anew.
        let _catalog = self.hub.catalog();
        lock(&self.hub.clients).connected.remove(&self.client.id);
        let topics = lock(&self.client.session).topics();
        let ends = topics.into_iter().map(Follow::End);
        lock(&self.hub.interests).update(self.client.id, ends);
    }
}

/// A panic elsewhere must not end the service: the data are whole after every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

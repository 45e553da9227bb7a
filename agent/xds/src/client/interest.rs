//! What was asked for on demand: each name once, whether its answer has come, and who still needs it.
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use ipnet::IpNet;
use tokio::sync::{Notify, watch};

/// Most names that are asked for at a time.
pub const MAX_INTERESTS: usize = 4096;
/// How many unused names are given up at once to make room: one in so many.
const EVICTED_SHARE: usize = 16;

/// How far a name has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The server has not answered.
    Asked,
    /// The mesh holds the answer, if there is any.
    Answered,
    /// The server answered what cannot be taken.
    Rejected,
}

/// A name that was asked for. Who keeps it, keeps the subscription: an answer that is in use stays current.
#[derive(Clone, Debug)]
pub struct Interest(Arc<Entry>);

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    address: Option<(Arc<str>, IpAddr)>,
    phase: watch::Sender<Phase>,
    used: AtomicU64,
}

impl Interest {
    /// `<network>/<address>` or `<namespace>/<hostname>`.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    pub(super) fn reach(&self, phase: Phase) {
        self.0.phase.send_replace(phase);
    }
}

/// A new name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Whatever has an address on a network.
    Address(Arc<str>, IpAddr),
    /// The service with a hostname in a namespace.
    Host(Arc<str>, Arc<str>),
}

impl Key {
    /// The name on the wire.
    pub fn name(&self) -> String {
        match self {
            Self::Address(network, address) => format!("{network}/{}", address.to_canonical()),
            Self::Host(namespace, hostname) => format!("{namespace}/{hostname}"),
        }
    }
}

/// All names that are in use or were not long ago.
#[derive(Debug)]
pub struct Interests {
    limit: usize,
    entries: RwLock<HashMap<Arc<str>, Interest>>,
    clock: AtomicU64,
    news: Mutex<News>,
    changed: Notify,
}

/// What the server is yet to be told.
#[derive(Debug, Default)]
pub struct News {
    /// Names to subscribe to.
    pub added: Vec<Arc<str>>,
    /// Names to unsubscribe from.
    pub dropped: Vec<Arc<str>>,
}

impl News {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.dropped.is_empty()
    }
}

/// All names are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Interests {
    /// Room for so many names.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            entries: RwLock::default(),
            clock: AtomicU64::new(0),
            news: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Takes an interest in a name. The first to do so has it asked for.
    ///
    /// # Errors
    /// When there is no room, and every name is in use.
    pub fn take(&self, key: &Key) -> Result<Interest, Full> {
        let name = key.name();
        let known = self.read().get(name.as_str()).cloned();
        let interest = match known {
            Some(interest) => interest,
            None => self.add(&name, key)?,
        };
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        interest.0.used.store(now, Ordering::Relaxed);
        Ok(interest)
    }

    /// Takes up a name of an earlier run, whose answer is known. Without room it is left out.
    pub fn restore(&self, name: &str) {
        let key = match name.split_once('/') {
            Some((place, rest)) => match rest.parse() {
                Ok(address) => Key::Address(Arc::from(place), address),
                Err(_) => Key::Host(Arc::from(place), Arc::from(rest)),
            },
            None => return,
        };
        if let Ok(interest) = self.take(&key) {
            interest.reach(Phase::Answered);
        }
    }

    fn add(&self, name: &str, key: &Key) -> Result<Interest, Full> {
        let mut entries = self.write();
        if let Some(known) = entries.get(name) {
            return Ok(known.clone());
        }
        let dropped = match entries.len() < self.limit {
            true => Vec::new(),
            false => evict(&mut entries, self.limit),
        };
        if entries.len() >= self.limit {
            return Err(Full);
        }
        let name: Arc<str> = Arc::from(name);
        let interest = Interest(Arc::new(Entry {
            name: Arc::clone(&name),
            address: match key {
                Key::Address(network, address) => {
                    Some((Arc::clone(network), address.to_canonical()))
                }
                Key::Host(..) => None,
            },
            phase: watch::Sender::new(Phase::Asked),
            used: AtomicU64::new(0),
        }));
        entries.insert(Arc::clone(&name), interest.clone());
        self.tell(name, dropped);
        Ok(interest)
    }

    /// Under the lock of the entries, so that news come in the order of what happened.
    fn tell(&self, added: Arc<str>, dropped: Vec<Arc<str>>) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.added.push(added);
        news.dropped.extend(dropped);
        drop(news);
        self.changed.notify_one();
    }

    /// Waits for news. Cancel safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The news since the last call. A name that came and went is gone.
    pub fn news(&self) -> News {
        let entries = self.read();
        let mut news = {
            let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *news)
        };
        news.added.retain(|name| entries.contains_key(name));
        news.dropped.retain(|name| !entries.contains_key(name));
        news
    }

    /// Whether a name is in it.
    pub fn contains(&self, name: &str) -> bool {
        self.read().contains_key(name)
    }

    /// Whether any address on `network` within `range` is in it.
    pub fn contains_within(&self, network: &str, range: IpNet) -> bool {
        self.read()
            .values()
            .any(|interest| interest.within(network, range))
    }

    /// The interest in a name.
    pub fn get(&self, name: &str) -> Option<Interest> {
        self.read().get(name).cloned()
    }

    /// The interests in addresses on `network` within `range`.
    pub fn within(&self, network: &str, range: IpNet) -> Vec<Interest> {
        let entries = self.read();
        let within = entries
            .values()
            .filter(|interest| interest.within(network, range));
        within.cloned().collect()
    }

    /// All names.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.read().keys().cloned().collect()
    }

    /// How many names there are.
    pub fn count(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Interest>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Arc<str>, Interest>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interest {
    fn within(&self, network: &str, range: IpNet) -> bool {
        let address = self.0.address.as_ref();
        address.is_some_and(|(on, address)| &**on == network && range.contains(address))
    }

    fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Gives up the names that were not used for the longest time, and are not in use. Several at once, so that a full
/// table is not searched for every new name.
fn evict(entries: &mut HashMap<Arc<str>, Interest>, limit: usize) -> Vec<Arc<str>> {
    let mut unused: Vec<_> = entries
        .iter()
        .filter(|(_, interest)| !interest.is_used())
        .map(|(name, interest)| (interest.0.used.load(Ordering::Relaxed), Arc::clone(name)))
        .collect();
    unused.sort();
    unused.truncate((limit / EVICTED_SHARE).max(1));
    let names: Vec<_> = unused.into_iter().map(|(_, name)| name).collect();
    for name in &names {
        entries.remove(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Key {
        Key::Host("shop".into(), name.into())
    }

    #[test]
    fn a_name_is_asked_for_once() {
        let interests = Interests::new(8);
        let key = Key::Address("".into(), "::ffff:10.0.0.1".parse().unwrap());
        let (one, other) = (interests.take(&key).unwrap(), interests.take(&key).unwrap());
        assert_eq!((&**one.name(), &**other.name()), ("/10.0.0.1", "/10.0.0.1"));
        assert_eq!(interests.news().added, ["/10.0.0.1".into()]);
        assert!(interests.news().is_empty());
    }

    #[test]
    fn the_name_unused_for_longest_makes_room_and_one_in_use_stays() {
        let interests = Interests::new(3);
        let kept = interests.take(&host("kept")).unwrap();
        for name in ["old", "new", "old"] {
            interests.take(&host(name)).unwrap();
        }
        interests.news();
        interests.take(&host("more")).unwrap();
        let news = interests.news();
        assert_eq!(news.dropped, ["shop/new".into()]);
        assert_eq!(news.added, ["shop/more".into()]);
        assert!(interests.contains(kept.name()));
    }

    #[test]
    fn when_every_name_is_in_use_no_more_is_taken() {
        let interests = Interests::new(2);
        let _one = interests.take(&host("a")).unwrap();
        let other = interests.take(&host("b")).unwrap();
        assert_eq!(interests.take(&host("c")).unwrap_err(), Full);
        drop(other);
        interests.take(&host("c")).unwrap();
    }

    #[test]
    fn a_name_that_came_back_before_the_server_heard_is_only_asked_for() {
        let interests = Interests::new(1);
        for name in ["a", "b", "a"] {
            interests.take(&host(name)).unwrap();
        }
        let news = interests.news();
        assert!(news.added.contains(&"shop/a".into()));
        assert_eq!(news.dropped, ["shop/b".into()]);
    }

    #[test]
    fn finds_addresses_within_a_range_on_their_network() {
        let interests = Interests::new(8);
        interests
            .take(&Key::Address("n1".into(), "10.1.2.3".parse().unwrap()))
            .unwrap();
        let range = "10.1.0.0/16".parse().unwrap();
        assert!(interests.contains_within("n1", range));
        assert!(!interests.contains_within("n2", range));
        assert_eq!(interests.within("n1", range).len(), 1);
    }
}

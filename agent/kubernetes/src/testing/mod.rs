//! An API server in the process, for tests: real HTTP, real resource versions, failures on demand.
//!
//! ```text
//! let api = ApiServer::start().await;
//! api.install_istio();                                   // CRDs, as a chart would bring them
//! api.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {…}, …}));   // as the cluster would
//! let pods: kube::Api<Pod> = kube::Api::all(api.client());
//! let lease = api.wait_for("Lease", "istio-system", "leader", |it| it["spec"]["holderIdentity"] == "a").await;
//! let fault = api.fault("/pods", Failure::Refuse(StatusCode::TOO_MANY_REQUESTS));    // until dropped
//! ```
//!
//! It knows Kubernetes's own kinds and what CustomResourceDefinitions add; a kind nobody defined is answered
//! with 404. It differs from a real one in this: schemas are not checked, lists in applied objects are atomic
//! but for a few, strategic merge patches, JSON patches and deletion of collections are refused, pods are deleted
//! without a grace period, a deleted namespace takes its objects along at once, and callers are not authorized.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a fixture that cannot be made fails the test at once"
)]
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};

mod apply;
mod fault;
mod kinds;
mod record;
mod request;
mod selector;
mod serve;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod tokens;
mod upkeep;
mod view;
mod watch_stream;

pub use fault::{Failure, Fault};
pub use kinds::{definition, gateway_definitions, istio_definitions};
pub use tokens::TokenOwner;

use self::{
    fault::Rules,
    record::{Key, key_of},
    store::Store,
    tokens::Tokens,
};

/// How long the waits here last at most.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What the connections share.
struct Shared {
    store: Mutex<Store>,
    tokens: Mutex<Tokens>,
    rules: Arc<Rules>,
    /// The newest version; tells watches of changes.
    revision: watch::Sender<u64>,
    /// Counts the calls of [`ApiServer::disconnect_watches`].
    cut: watch::Sender<u64>,
    /// Counts the calls of [`ApiServer::send_bookmarks`].
    bookmark: watch::Sender<u64>,
    /// Open watches, by plural.
    watches: watch::Sender<BTreeMap<String, usize>>,
    /// Method and URI of every request.
    requests: watch::Sender<Vec<String>>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the store and tells the watches.
    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let outcome = change(&mut store);
        self.revision.send_replace(store.revision());
        outcome
    }
}

/// An API server on the loopback interface; it ends when the last clone is dropped.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    _task: Arc<JoinSet<()>>,
}

impl ApiServer {
    /// Starts a server with the four namespaces of every cluster and no other objects.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        Self::serve(listener)
    }

    /// Starts such a server on a listener of the caller's. Must be called inside a tokio runtime.
    pub fn serve(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new()),
            tokens: Mutex::default(),
            rules: Arc::default(),
            revision: watch::Sender::default(),
            cut: watch::Sender::default(),
            bookmark: watch::Sender::default(),
            watches: watch::Sender::default(),
            requests: watch::Sender::default(),
        });
        let mut task = JoinSet::new();
        task.spawn(accept(listener, shared.clone()));
        Self {
            shared,
            address,
            _task: Arc::new(task),
        }
    }

    /// Its address, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How to reach it. Refused requests are not repeated behind the caller's back.
    pub fn config(&self) -> kube::Config {
        let mut config = kube::Config::new(self.url().parse().expect("a URL"));
        config.default_retry = false;
        config
    }

    /// A kubeconfig for it, as text.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": self.url() } }],
            "users": [{ "name": "test", "user": {} }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        })
        .to_string()
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        kube::Client::try_from(self.config()).expect("a client")
    }

    /// Puts an object as it is, with its status, new or not: what a component of the cluster would do. An object
    /// with another uid than the one in place takes its place.
    pub fn put(&self, object: Value) -> Value {
        let put = self.shared.change(|store| store.put(object));
        (*put).clone()
    }

    /// Puts several objects.
    pub fn put_all(&self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            self.put(object);
        }
    }

    /// Puts a namespace with these labels.
    pub fn put_namespace(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        self.put(json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        }));
    }

    /// Defines Istio's networking and security resources.
    pub fn install_istio(&self) {
        self.put_all(istio_definitions());
    }

    /// Defines the Gateway API's resources.
    pub fn install_gateway_api(&self) {
        self.put_all(gateway_definitions());
    }

    /// An object. `kind` is a name like `Pod`, or with its group, as `Gateway.gateway.networking.k8s.io`.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = self.key(kind, namespace, name)?;
        let found = self.shared.store().get(&key);
        found.map(|object| (*object).clone())
    }

    /// All objects of a kind in all namespaces.
    pub fn list(&self, kind: &str) -> Vec<Value> {
        let store = self.shared.store();
        let found = kind_named(&store, kind).map(|kind| store.list(&kind, None));
        let objects = found.unwrap_or_default();
        objects.iter().map(|object| (**object).clone()).collect()
    }

    /// Removes an object at once, whatever finalizers it has; says whether it was there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let Some(key) = self.key(kind, namespace, name) else {
            return false;
        };
        self.shared.change(|store| {
            let there = store.get(&key).is_some();
            if there {
                store.remove(&key);
            }
            there
        })
    }

    /// Waits until the object is there and as wanted.
    ///
    /// # Panics
    /// When that does not happen within [`PATIENCE`].
    pub async fn wait_for(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let look = || self.get(kind, namespace, name).filter(&wanted);
        match self.until(look).await {
            Some(object) => object,
            None => panic!(
                "{kind} {namespace}/{name} is not as wanted: {:?}",
                self.get(kind, namespace, name)
            ),
        }
    }

    /// Waits until the object is gone.
    ///
    /// # Panics
    /// When that does not happen within [`PATIENCE`].
    pub async fn wait_gone(&self, kind: &str, namespace: &str, name: &str) {
        let look = || self.get(kind, namespace, name).is_none().then_some(());
        let gone = self.until(look).await;
        assert!(gone.is_some(), "{kind} {namespace}/{name} is still there");
    }

    async fn until<T>(&self, look: impl Fn() -> Option<T>) -> Option<T> {
        let mut revision = self.shared.revision.subscribe();
        let found = async {
            loop {
                revision.mark_unchanged();
                if let Some(found) = look() {
                    return found;
                }
                // The sender lives in `self`.
                let _ = revision.changed().await;
            }
        };
        timeout(PATIENCE, found).await.ok()
    }

    /// The newest resource version.
    pub fn revision(&self) -> u64 {
        self.shared.store().revision()
    }

    /// Forgets all changes so far: further pages of lists are gone, and so is every watch that begins at an
    /// earlier version. Watches that are open and up to date go on.
    pub fn compact(&self) {
        self.shared.change(Store::compact);
    }

    /// Breaks the connections of all watches.
    pub fn disconnect_watches(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Sends a bookmark on all watches that asked for bookmarks.
    pub fn send_bookmarks(&self) {
        self.shared.bookmark.send_modify(|count| *count += 1);
    }

    /// Lets requests fail whose line, such as `GET /api/v1/pods?watch=true`, contains `matching`, until the fault
    /// is dropped. The latest fault that matches counts.
    pub fn fault(&self, matching: &str, failure: Failure) -> Fault {
        self.shared.rules.add(matching, failure)
    }

    /// How many watches of a resource (`pods`) are open.
    pub fn watches(&self, plural: &str) -> usize {
        let open = self.shared.watches.borrow();
        open.get(plural).copied().unwrap_or_default()
    }

    /// Waits until this many watches of a resource are open.
    ///
    /// # Panics
    /// When that does not happen within [`PATIENCE`].
    pub async fn wait_for_watches(&self, plural: &str, count: usize) {
        let mut open = self.shared.watches.subscribe();
        let reached = open.wait_for(|open| open.get(plural).copied().unwrap_or_default() == count);
        let outcome = timeout(PATIENCE, reached).await.is_ok();
        assert!(outcome, "{} watches of {plural}", self.watches(plural));
    }

    /// Method and URI of every request whose line contains a text, in order.
    pub fn requests(&self, containing: &str) -> Vec<String> {
        let lines = self.shared.requests.borrow();
        let found = lines.iter().filter(|line| line.contains(containing));
        found.cloned().collect()
    }

    /// Waits until this many requests were made whose line contains a text.
    ///
    /// # Panics
    /// When that does not happen within [`PATIENCE`].
    pub async fn wait_for_requests(&self, containing: &str, count: usize) {
        let enough = |lines: &Vec<String>| {
            lines
                .iter()
                .filter(|line| line.contains(containing))
                .count()
                >= count
        };
        let mut lines = self.shared.requests.subscribe();
        let outcome = timeout(PATIENCE, lines.wait_for(enough)).await.is_ok();
        assert!(outcome, "{:?}", self.requests(containing));
    }

    /// Makes a bearer token valid for an hour.
    pub fn register_token(&self, token: &str, owner: TokenOwner) {
        self.register_token_for(token, owner, Duration::from_secs(3600));
    }

    /// Makes a bearer token valid for some time.
    pub fn register_token_for(&self, token: &str, owner: TokenOwner, lifetime: Duration) {
        self.shared.tokens().register(token, owner, lifetime);
    }

    /// Makes a bearer token invalid.
    pub fn revoke_token(&self, token: &str) {
        self.shared.tokens().revoke(token);
    }

    fn key(&self, kind: &str, namespace: &str, name: &str) -> Option<Key> {
        let kind = kind_named(&self.shared.store(), kind)?;
        Some(key_of(&kind, namespace, name))
    }
}

fn kind_named(store: &Store, text: &str) -> Option<Arc<kinds::KindInfo>> {
    match text.split_once('.') {
        Some((name, group)) => store.kind_named(name, Some(group)),
        None => store.kind_named(text, None),
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // A failure here shows in the test as a slow stream, not as a wrong answer.
                let _ = stream.set_nodelay(true);
                let shared = shared.clone();
                let service = service_fn(move |request| serve::serve(shared.clone(), request));
                connections.spawn(async move {
                    // The client sees how its connection ends.
                    let _ = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

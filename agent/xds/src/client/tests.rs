//! Tests of the whole client against a server that speaks the protocol over TLS.
use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status as Refusal, Streaming,
    metadata::MetadataMap,
    transport::{Identity, Server, ServerTlsConfig},
};
use undermesh_model::Mesh;

use super::{
    fixture::{
        KEY, WEB, addresses, of_policy, of_service, of_workload, policies, policy, removal,
        service, workload,
    },
    options::{Address, NodeOptions, Roots, Token},
    *,
};
use crate::wire::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
};

mod machine;
mod on_demand;

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, wait).await {
        Ok(done) => done,
        Err(_) => panic!("{what} took too long"),
    }
}

/// One stream, seen from the server.
struct Conversation {
    metadata: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Refusal>>,
}

impl Conversation {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let message = soon("a request", self.requests.message()).await;
        message.unwrap().unwrap()
    }

    /// The first requests: addresses, policies.
    async fn first(&mut self) -> [DeltaDiscoveryRequest; 2] {
        [self.request().await, self.request().await]
    }

    /// Sends a response and returns the ACK or NACK.
    async fn tell(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let (url, nonce) = (response.type_url.clone(), response.nonce.clone());
        self.responses.send(Ok(response)).await.unwrap();
        let reply = self.request().await;
        assert_eq!(
            (reply.type_url.clone(), &reply.response_nonce),
            (url, &nonce)
        );
        reply
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.metadata.get(name)?.to_str().ok()
    }
}

type Responses = ReceiverStream<Result<DeltaDiscoveryResponse, Refusal>>;

struct Service(mpsc::Sender<Conversation>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Refusal> {
        let (responses, sent) = mpsc::channel(16);
        if request.metadata().get("authorization").is_none() {
            return Err(Refusal::unauthenticated("no token"));
        }
        let conversation = Conversation {
            metadata: request.metadata().clone(),
            requests: request.into_inner(),
            responses,
        };
        self.0.send(conversation).await.unwrap();
        Ok(Response::new(ReceiverStream::new(sent)))
    }
}

/// A certificate authority, a server with a certificate of it, and the client's files.
struct World {
    files: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

struct Running {
    address: SocketAddr,
    conversations: mpsc::Receiver<Conversation>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("roots.pem"), ca.pem()).unwrap();
        std::fs::write(files.path().join("token"), "first-token\n").unwrap();
        Self { files, ca }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.files.path().join(name)
    }

    fn options(&self, address: SocketAddr, subscription: Subscription) -> Options {
        Options {
            address: Address::new(&format!("https://{address}")).unwrap(),
            roots: Roots::File(self.path("roots.pem")),
            verified_name: Some("istiod.test".to_owned()),
            token: Token::File(self.path("token")),
            headers: vec![("x-extra".parse().unwrap(), "1".parse().unwrap())],
            cluster: "east".into(),
            network: "".into(),
            node: NodeOptions {
                name: "node-1".into(),
                ..NodeOptions::default()
            },
            subscription,
            cache: Some(self.path("state")),
        }
    }

    async fn serve(&self) -> Running {
        self.serve_at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn serve_at(&self, address: SocketAddr) -> Running {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["istiod.test".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, conversations) = mpsc::channel(4);
        let (stop, stopped) = oneshot::channel();
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(AggregatedDiscoveryServiceServer::new(Service(heard)));
        let incoming = TcpListenerStream::new(listener);
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            server
                .serve_with_incoming_shutdown(incoming, stopped)
                .await
                .unwrap();
        });
        Running {
            address,
            conversations,
            stop,
            task,
        }
    }
}

impl Running {
    async fn conversation(&mut self) -> Conversation {
        soon("a stream", self.conversations.recv()).await.unwrap()
    }

    async fn stop(self) {
        drop(self.conversations);
        self.stop.send(()).unwrap();
        soon("the server's end", self.task).await.unwrap();
    }
}

fn start(options: Options) -> (Client, Updates) {
    Client::start(options, &Handle::current())
}

async fn update(updates: &mut Updates) -> Update {
    soon("an update", updates.next()).await.unwrap()
}

fn mesh(client: &Client) -> Mesh {
    client.builder().build(&Mesh::empty())
}

fn web() -> crate::wire::discovery::Resource {
    of_workload("7", workload("web", [10, 0, 0, 1]))
}

#[tokio::test]
async fn a_node_follows_the_control_plane() {
    let world = World::new();
    let mut server = world.serve().await;
    let (client, mut updates) = start(world.options(server.address, Subscription::Wildcard));
    let mut stream = server.conversation().await;
    assert_eq!(stream.header("authorization"), Some("Bearer first-token"));
    assert_eq!(stream.header("clusterid"), Some("east"));
    assert_eq!(stream.header("x-extra"), Some("1"));
    let [first, second] = stream.first().await;
    assert_eq!(first.type_url, ADDRESS_TYPE);
    assert_eq!(second.type_url, AUTHORIZATION_TYPE);
    assert!(second.node.unwrap().id.starts_with("ztunnel~"));

    stream.tell(policies("p1", vec![])).await;
    let endpoint_first = addresses("a1", vec![web()]);
    assert_eq!(stream.tell(endpoint_first).await.error_detail, None);
    stream
        .tell(addresses(
            "a2",
            vec![of_service("1", service([10, 96, 0, 1]))],
        ))
        .await;
    soon("readiness", client.ready()).await;
    drop(update(&mut updates).await);
    let mesh = mesh(&client);
    let service = mesh.service_named("web.shop.svc.cluster.local").unwrap();
    assert_eq!(&*service.endpoints[0].workload, WEB);

    stream.tell(removal(addresses("a3", vec![]), &[WEB])).await;
    let gone = update(&mut updates).await;
    assert_eq!(gone.delta.removed_workloads, [Arc::from(WEB)]);
    let status = client.status();
    assert!(status.connected && status.complete && !status.restored);
    assert_eq!((status.counts.workloads, status.counts.services), (0, 1));
    let [(_, addresses), _] = client.counters().types();
    assert_eq!(addresses.messages(), 3);
    assert!(addresses.bytes() > 0);
    soon("the end", client.stop()).await;
    assert!(updates.next().await.is_none());
}

#[tokio::test]
async fn a_rejected_resource_is_named_to_the_server_and_in_the_status() {
    let world = World::new();
    let mut server = world.serve().await;
    let (client, mut updates) = start(world.options(server.address, Subscription::Wildcard));
    let mut stream = server.conversation().await;
    stream.first().await;
    let mut bad = workload("bad", [10, 0, 0, 2]);
    bad.tunnel_protocol = 2;
    let nack = stream
        .tell(addresses("a1", vec![of_workload("1", bad), web()]))
        .await;
    let message = nack.error_detail.unwrap().message;
    assert!(
        message.starts_with("c//Pod/shop/bad: it wants LEGACY_ISTIO_MTLS"),
        "{message}"
    );
    assert_eq!(update(&mut updates).await.delta.workloads.len(), 1);
    assert_eq!(client.status().rejected, [message]);
    assert_eq!(client.counters().rejections(), 1);
}

#[tokio::test]
async fn after_a_lost_stream_the_server_hears_what_is_known() {
    let world = World::new();
    let mut server = world.serve().await;
    let (client, mut updates) = start(world.options(server.address, Subscription::Wildcard));
    let mut stream = server.conversation().await;
    stream.first().await;
    stream.tell(addresses("a1", vec![web()])).await;
    drop(update(&mut updates).await);
    std::fs::write(world.path("token"), "second-token").unwrap();
    stream
        .responses
        .send(Err(Refusal::unavailable("going away")))
        .await
        .unwrap();
    let mut stream = server.conversation().await;
    assert_eq!(stream.header("authorization"), Some("Bearer second-token"));
    let [request, _] = stream.first().await;
    let versions = [(WEB.to_owned(), "7".to_owned())];
    assert_eq!(request.initial_resource_versions, versions.into());
    assert_eq!(client.counters().terminations(Termination::Reconnect), 1);
    assert!(mesh(&client).workload(WEB).is_some());

    drop(stream);
    server.conversation().await;
    assert_eq!(client.counters().terminations(Termination::Complete), 1);
}

#[tokio::test]
async fn the_last_known_state_outlives_server_and_agent() {
    let world = World::new();
    let mut server = world.serve().await;
    let address = server.address;
    let (client, _updates) = start(world.options(address, Subscription::Wildcard));
    let mut stream = server.conversation().await;
    stream.first().await;
    stream
        .tell(policies("p1", vec![of_policy(policy("deny"))]))
        .await;
    let service = of_service("1", service([10, 96, 0, 1]));
    stream.tell(addresses("a1", vec![web(), service])).await;
    drop(stream);
    soon("the end", client.stop()).await;
    server.stop().await;

    let (client, mut updates) = start(world.options(address, Subscription::Wildcard));
    soon("readiness", client.ready()).await;
    drop(update(&mut updates).await);
    let known = mesh(&client);
    assert!(known.workload(WEB).is_some() && known.policy("shop/deny").is_some());
    assert!(known.service_named("web.shop.svc.cluster.local").is_some());
    let status = client.status();
    assert!(status.restored && !status.complete && !status.connected);

    let mut server = world.serve_at(address).await;
    let mut stream = server.conversation().await;
    let [addresses, policies] = stream.first().await;
    assert!(policies.initial_resource_versions.contains_key("shop/deny"));
    assert_eq!(addresses.initial_resource_versions[WEB], "7");
}

#[tokio::test]
async fn a_damaged_cache_is_reported_and_ignored() {
    let world = World::new();
    let mut server = world.serve().await;
    std::fs::write(world.path("state"), "not a state").unwrap();
    let (client, _updates) = start(world.options(server.address, Subscription::Wildcard));
    let mut stream = server.conversation().await;
    let [request, _] = stream.first().await;
    assert!(request.initial_resource_versions.is_empty());
    let status = client.status();
    assert!(!status.restored);
    assert!(status.cache_error.unwrap().contains("damaged"));
}

#[tokio::test]
async fn a_server_that_the_roots_do_not_know_gets_no_token() {
    let (world, stranger) = (World::new(), World::new());
    let mut server = stranger.serve().await;
    let (client, _updates) = start(world.options(server.address, Subscription::Wildcard));
    let failed = failure(&client).await;
    assert!(failed.contains("certificate"), "{failed}");
    assert!(server.conversations.try_recv().is_err());
    let terminations = client.counters().terminations(Termination::ConnectionError);
    assert!(terminations > 0);

    // New roots are taken up by themselves.
    std::fs::copy(stranger.path("roots.pem"), world.path("roots.pem")).unwrap();
    server.conversation().await;
}

#[tokio::test]
async fn a_server_under_another_name_is_refused() {
    let world = World::new();
    let server = world.serve().await;
    let mut options = world.options(server.address, Subscription::Wildcard);
    options.verified_name = Some("other.test".to_owned());
    let (client, _updates) = start(options);
    let failed = failure(&client).await;
    assert!(failed.contains("certificate"), "{failed}");
}

#[tokio::test]
async fn a_refusal_and_a_missing_file_are_told() {
    let world = World::new();
    let server = world.serve().await;
    let mut options = world.options(server.address, Subscription::Wildcard);
    options.token = Token::None;
    let (client, _updates) = start(options);
    let failed = failure(&client).await;
    assert!(failed.contains("no token"), "{failed}");

    std::fs::remove_file(world.path("token")).unwrap();
    let (client, _updates) = start(world.options(server.address, Subscription::Wildcard));
    let failed = failure(&client).await;
    assert!(failed.contains("cannot read the token"), "{failed}");
}

/// Waits for the first failed attempt.
async fn failure(client: &Client) -> String {
    let failed = async {
        loop {
            if let Some(error) = client.status().last_error {
                return error;
            }
            tokio::task::yield_now().await;
        }
    };
    soon("a failure", failed).await
}

#[tokio::test]
async fn a_torn_state_waits_for_its_other_half() {
    let world = World::new();
    let mut server = world.serve().await;
    let (_client, mut updates) = start(world.options(server.address, Subscription::Wildcard));
    let mut stream = server.conversation().await;
    stream.first().await;
    let mut strict = workload("web", [10, 0, 0, 1]);
    strict.authorization_policies = vec!["shop/strict".into()];
    stream
        .tell(addresses("a1", vec![of_workload("1", strict)]))
        .await;
    stream
        .tell(policies("p1", vec![of_policy(policy("strict"))]))
        .await;
    let whole = update(&mut updates).await;
    assert_eq!(
        (whole.delta.workloads.len(), whole.delta.policies.len()),
        (1, 1)
    );
}

#[tokio::test]
async fn a_state_whose_other_half_never_comes_is_published_all_the_same() {
    let world = World::new();
    let mut server = world.serve().await;
    let (_client, mut updates) = start(world.options(server.address, Subscription::Wildcard));
    let mut stream = server.conversation().await;
    stream.first().await;
    let mut strict = workload("web", [10, 0, 0, 1]);
    strict.authorization_policies = vec!["shop/strict".into()];
    let told = Instant::now();
    stream
        .tell(addresses("a1", vec![of_workload("1", strict)]))
        .await;
    assert_eq!(update(&mut updates).await.delta.workloads.len(), 1);
    assert!(told.elapsed() >= TORN_GRACE);
}

#[tokio::test]
async fn the_token_is_in_no_text() {
    let world = World::new();
    let server = world.serve().await;
    let mut options = world.options(server.address, Subscription::Wildcard);
    options.token = Token::Text("aaa.secret.ccc".into());
    assert!(!format!("{options:?}").contains("secret"));
    options.cluster = "no\nheader".into();
    let (client, _updates) = start(options);
    let failed = failure(&client).await;
    assert!(!failed.contains("secret"), "{failed}");
    assert!(!format!("{client:?}").contains("secret"));
}

/// The driver publishes under the state's lock, so nothing that reads the state may hold the channel's.
#[test]
fn readiness_is_asked_for_while_changes_are_published() {
    const ROUNDS: usize = 20_000;
    let world = World::new();
    let client = idle(&world.options("127.0.0.1:1".parse().unwrap(), Subscription::Wildcard));
    let shared = Arc::clone(&client.shared);
    let published = in_thread(move || {
        for _ in 0..ROUNDS {
            let _state = shared.state();
            shared.publish();
        }
    });
    let asked = in_thread(move || {
        for _ in 0..ROUNDS {
            assert_eq!(client.ready().now_or_never(), None);
        }
    });
    published.recv_timeout(PATIENCE).expect("all is published");
    asked.recv_timeout(PATIENCE).expect("all is asked");
}

/// A client that nothing drives.
fn idle(options: &Options) -> Client {
    let node_name = Arc::clone(&options.node.name);
    let session = Session::new(options.wire_node(), node_name, options.subscription);
    Client {
        address: Arc::from(options.address.to_string()),
        shared: Arc::new(Shared::new(session)),
        interests: None,
        stop: watch::channel(false).0,
        ended: watch::channel(()).1,
    }
}

/// Runs `work`, and tells when it is done. A thread that is stuck does not hold back the test's end.
fn in_thread(work: impl FnOnce() + Send + 'static) -> std::sync::mpsc::Receiver<()> {
    let (done, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    told
}

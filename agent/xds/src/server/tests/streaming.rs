//! Real streams: over a socket, slow ones, many at once.
use std::{collections::BTreeSet, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Server},
};
use undermesh_identity::{Authenticator, Caller, CallerError};
use undermesh_model::{Delta, Workload};

use crate::{
    server::{
        self, Hub, Limits,
        conversation::converse,
        fixture::{Known, delta, node, on_demand, pod, read, request, service},
    },
    wire::{
        ADDRESS_TYPE,
        discovery::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
};

/// Nothing here takes this long unless it hangs.
const HANGS: Duration = Duration::from_secs(60);
const WEB: &str = "Kubernetes//Pod/shop/web";

struct Tokens;

impl Authenticator for Tokens {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        cluster: &'a str,
    ) -> BoxFuture<'a, Result<Caller, CallerError>> {
        let known = match (token, cluster) {
            ("good", "c1") => Ok(caller("istio-system")),
            ("else", _) => Ok(caller("shop")),
            ("later", _) => Err(CallerError::Unavailable("no API server".to_owned())),
            _ => Err(CallerError::Invalid("unknown".to_owned())),
        };
        std::future::ready(known).boxed()
    }
}

fn caller(namespace: &str) -> Caller {
    Caller {
        namespace: namespace.to_owned(),
        service_account: "ztunnel".to_owned(),
        pod: None,
    }
}

async fn serve(hub: &Arc<Hub>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = server::service(Arc::clone(hub), Arc::new(Tokens));
    let incoming = TcpListenerStream::new(listener);
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    tokio::spawn(serving);
    address
}

type Requests = mpsc::Sender<DeltaDiscoveryRequest>;

async fn call(
    address: SocketAddr,
    token: &str,
    first: DeltaDiscoveryRequest,
) -> Result<(Requests, Streaming<DeltaDiscoveryResponse>), Status> {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint
        .initial_stream_window_size(65_535)
        .connect()
        .await
        .unwrap();
    let (requests, outbound) = mpsc::channel(8);
    requests.send(first).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(outbound));
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
        .metadata_mut()
        .insert("clusterid", "c1".parse().unwrap());
    let client = AggregatedDiscoveryServiceClient::new(channel);
    let mut client = client.max_decoding_message_size(16 << 20);
    let responses = client.delta_aggregated_resources(request).await?;
    Ok((requests, responses.into_inner()))
}

async fn next(responses: &mut Streaming<DeltaDiscoveryResponse>) -> DeltaDiscoveryResponse {
    let message = timeout(HANGS, responses.message()).await;
    message.unwrap().unwrap().unwrap()
}

fn pods(count: u16) -> Vec<Workload> {
    let pods = (0..count).map(|number| {
        let [high, low] = number.to_be_bytes();
        pod(
            &format!("pod-{number}"),
            &format!("10.1.{high}.{low}"),
            "n2",
        )
    });
    pods.collect()
}

#[tokio::test]
async fn a_client_over_a_socket_is_told_what_it_asks_for_and_what_changes() {
    let hub = Hub::new(Limits::default());
    let web = pod("web", "10.0.0.1", "n2");
    hub.publish(&delta(&[&web], &[&service("s", "10.96.0.1", &[&web])], &[]));
    let address = serve(&hub).await;
    let (requests, mut responses) = call(address, "good", on_demand()).await.unwrap();
    assert_eq!(next(&mut responses).await.resources, []);
    requests
        .send(request(ADDRESS_TYPE, &["/10.96.0.1"], &[]))
        .await
        .unwrap();
    let response = next(&mut responses).await;
    assert_eq!(response.resources.len(), 2);
    assert_eq!(response.resources[1].aliases, ["/10.96.0.1"]);
    hub.publish(&delta(&[&pod("web", "10.0.0.2", "n2")], &[], &[]));
    let response = next(&mut responses).await;
    assert_eq!(response.resources[0].name, WEB);
    assert_eq!(response.resources[0].aliases, ["/10.0.0.2"]);
    assert_eq!(hub.counters().read().latency.iter().sum::<u64>(), 1);
    drop(requests);
    let end = timeout(HANGS, responses.message()).await.unwrap();
    assert_eq!(end.unwrap(), None);
    assert_eq!(hub.clients().len(), 0);
}

#[tokio::test]
async fn a_stranger_is_not_served() {
    let hub = Hub::new(Limits::default());
    hub.publish(&Delta::default());
    let address = serve(&hub).await;
    for (token, code) in [("bad", Code::Unauthenticated), ("later", Code::Unavailable)] {
        let refused = call(address, token, on_demand()).await.unwrap_err();
        assert_eq!(refused.code(), code);
    }
    let (_requests, mut responses) = call(address, "else", on_demand()).await.unwrap();
    let refused = timeout(HANGS, responses.message()).await.unwrap();
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(hub.counters().read().refused, 3);
    assert_eq!(hub.clients().len(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_nobody_and_piles_nothing_up() {
    const CHANGES: usize = 200;
    let hub = Hub::new(Limits::default());
    let pods = pods(20_000);
    hub.publish(&delta(&pods.iter().collect::<Vec<_>>(), &[], &[]));
    let address = serve(&hub).await;
    let mut slow_node = request(ADDRESS_TYPE, &[], &[]);
    slow_node.node = Some(node("istio-system", "slow", "n1"));
    let (_keep, mut slow) = call(address, "good", slow_node).await.unwrap();
    let mut known = Known::default();
    known.take(next(&mut slow).await);

    let (_requests, mut fast) = call(address, "good", on_demand()).await.unwrap();
    next(&mut fast).await;
    let latest = |last: usize| pod("web", &format!("10.0.0.{last}"), "n1");
    for change in 0..CHANGES {
        hub.publish(&delta(&[&latest(change)], &[], &[]));
        assert_eq!(next(&mut fast).await.resources[0].name, WEB);
    }
    let reports = hub.clients();
    let report = reports
        .iter()
        .find(|report| &*report.node.pod == "slow")
        .unwrap();
    // One read, one under way, one that the transport has taken meanwhile.
    assert!(report.subscriptions[0].sent <= 4, "{report:?}");
    assert!(
        report.subscriptions[0].behind <= pods.len() + 1,
        "{report:?}"
    );

    while known.0.len() <= pods.len() {
        known.take(next(&mut slow).await);
    }
    let web = &known.0[WEB];
    let (_, mut fresh) = call(address, "good", request(ADDRESS_TYPE, &[WEB], &["*"]))
        .await
        .unwrap();
    assert_eq!(next(&mut fresh).await.resources[0].version, web.version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_come_back_at_once() {
    const CLIENTS: usize = 1000;
    let hub = Hub::new(Limits::default());
    let pods = pods(300);
    hub.publish(&delta(&pods.iter().collect::<Vec<_>>(), &[], &[]));
    let known = told(&hub, request(ADDRESS_TYPE, &[], &[])).await;
    assert_eq!(known.0.len(), pods.len());
    let web = pod("web", "10.0.0.1", "n2");
    hub.publish(&delta(&[&web], &[], &[]));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut first = request(ADDRESS_TYPE, &[], &[]);
        first.node = Some(node("istio-system", &format!("ztunnel-{number}"), "n1"));
        first.initial_resource_versions = known.versions();
        let hub = Arc::clone(&hub);
        clients.spawn(async move { told(&hub, first).await });
    }
    let told = timeout(HANGS, clients.join_all()).await.unwrap();
    assert_eq!(told.len(), CLIENTS);
    assert!(told.iter().all(|known| known.names() == [WEB]));
    assert_eq!(
        hub.counters().read().resources as usize,
        pods.len() + CLIENTS
    );
    assert!(hub.follows_nothing());
}

/// What the first response to a client holds.
async fn told(hub: &Arc<Hub>, first: DeltaDiscoveryRequest) -> Known {
    let requests = stream::iter([Ok(first)]).chain(stream::pending());
    let responses = converse(Arc::clone(hub), caller("istio-system"), Box::pin(requests));
    let mut known = Known::default();
    let response = Box::pin(responses).next().await.unwrap().unwrap();
    known.take(read(&response));
    known
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_makes_room_for_others() {
    let limits = Limits {
        starting: 1,
        ..Limits::default()
    };
    let hub = Hub::new(limits);
    hub.publish(&Delta::default());
    let silent = converse(Arc::clone(&hub), caller("istio-system"), stream::pending());
    let other = told(&hub, request(ADDRESS_TYPE, &[], &[]));
    let (silent, _) = tokio::join!(Box::pin(silent).into_future(), other);
    let refused = silent.0.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_client_that_comes_back_to_a_server_that_has_just_started_forgets_nothing() {
    let web = pod("web", "10.0.0.1", "n2");
    let published = delta(&[&web], &[], &[]);
    let before = Hub::new(Limits::default());
    before.publish(&published);
    let asking = request(ADDRESS_TYPE, &["/10.0.0.1"], &["*"]);
    let known = told(&before, asking.clone()).await;
    assert_eq!(known.names(), [WEB]);

    let started = Hub::new(Limits::default());
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: known.versions(),
        ..asking
    };
    let mut answer = pin!(told(&started, again));
    assert!(answer.as_mut().now_or_never().is_none());
    started.publish(&published);
    // Its first answer is empty: nothing is new, and nothing is gone.
    let answer = timeout(HANGS, answer).await.unwrap();
    assert_eq!(answer.names(), [""; 0]);
    assert_eq!(started.counters().read().removals, 0);
}

#[tokio::test]
async fn every_follower_hears_of_a_change() {
    let hub = Hub::new(Limits::default());
    hub.publish(&delta(&[&pod("web", "10.0.0.1", "n2")], &[], &[]));
    let mut streams = Vec::new();
    for number in 0..20 {
        let mut first = request(ADDRESS_TYPE, &["/10.0.0.1"], &["*"]);
        first.node = Some(node("istio-system", &format!("ztunnel-{number}"), "n1"));
        let requests = stream::iter([Ok(first)]).chain(stream::pending());
        let responses = converse(Arc::clone(&hub), caller("istio-system"), Box::pin(requests));
        let mut responses = Box::pin(responses);
        responses.next().await.unwrap().unwrap();
        streams.push(responses);
    }
    let mut moved = pod("web", "10.0.0.1", "n2");
    moved.node = "n3".into();
    hub.publish(&delta(&[&moved], &[], &[]));
    let mut versions = BTreeSet::new();
    for responses in &mut streams {
        let response = timeout(HANGS, responses.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        versions.insert(read(&response).resources[0].version.clone());
    }
    assert_eq!(versions.len(), 1);
}

//! The client against our service and against services that answer wrongly.
use std::{fs, net::SocketAddr};

use tempfile::NamedTempFile;
use tokio::{net::TcpListener, sync::mpsc, task::AbortHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Response,
    transport::{Server, ServerTlsConfig},
};

use super::*;
use crate::{
    fixtures::{Cluster, client, file, live_authority, options, request, serve, server_identity},
    live::Lifetimes,
    wire::citadel::{
        IstioCertificateResponse,
        istio_certificate_service_server::{
            IstioCertificateService, IstioCertificateServiceServer,
        },
    },
};

const CART: &str = "ns/shop/sa/cart";

/// What a scripted service saw of a call.
struct Seen {
    headers: Vec<(String, String)>,
    call: IstioCertificateRequest,
}

type Script = Box<dyn Fn() -> Result<Vec<String>, Status> + Send + Sync>;

/// Answers what it is told to, and hands on what it saw.
struct Scripted {
    seen: mpsc::UnboundedSender<Seen>,
    answer: Script,
}

#[tonic::async_trait]
impl IstioCertificateService for Scripted {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (headers, _, call) = request.into_parts();
        let headers = headers.into_headers();
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let _ = self.seen.send(Seen { headers, call });
        let cert_chain = (self.answer)()?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

struct Bench {
    address: SocketAddr,
    roots: NamedTempFile,
    token: NamedTempFile,
    seen: mpsc::UnboundedReceiver<Seen>,
    task: AbortHandle,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bench {
    async fn new(answer: impl Fn() -> Result<Vec<String>, Status> + Send + Sync + 'static) -> Self {
        let (identity, roots) = server_identity();
        let (sender, seen) = mpsc::unbounded_channel();
        let service = Scripted {
            seen: sender,
            answer: Box::new(answer),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(IstioCertificateServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        Self {
            address,
            roots,
            token: file("secret-token\n"),
            seen,
            task: tokio::spawn(server).abort_handle(),
        }
    }

    fn options(&self) -> ClientOptions {
        ClientOptions {
            address: format!("https://127.0.0.1:{}", self.address.port()),
            server_name: Some("localhost".to_owned()),
            trust: Trust::Files {
                roots: ServerRoots::File(self.roots.path().to_owned()),
                token: self.token.path().to_owned(),
            },
            token_owner: TokenOwner::Node,
            cluster: "east".to_owned(),
            cert_signer: Some("signer.example/mesh".to_owned()),
            headers: vec![("X-Tenant".to_owned(), "blue".to_owned())],
        }
    }

    async fn failure(&self) -> IssueError {
        let client = CaClient::new(self.options()).unwrap();
        client.issue(request(CART)).await.unwrap_err()
    }
}

fn certificates(identity: &str) -> Vec<String> {
    let issued = live_authority(Lifetimes::default())
        .sign(request(identity))
        .unwrap();
    vec![
        certificate::to_pem([&issued.leaf]),
        certificate::to_pem(&issued.roots),
    ]
}

#[tokio::test]
async fn a_call_carries_what_istiod_asks_for() {
    let mut bench = Bench::new(|| Err(Status::unavailable("later"))).await;
    bench.failure().await;
    let seen = bench.seen.recv().await.unwrap();
    let header = |name: &str| {
        let mut values = seen.headers.iter().filter(|(key, _)| key == name);
        values.next().map(|(_, value)| value.as_str())
    };
    assert_eq!(header("authorization"), Some("Bearer secret-token"));
    assert_eq!(header("clusterid"), Some("east"));
    assert_eq!(header("x-tenant"), Some("blue"));
    assert!(header("grpc-timeout").is_some());
    assert_eq!(seen.call.validity_duration, 3600);
    assert!(
        seen.call
            .csr
            .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
    );
    let entry = |key: &str| {
        seen.call.metadata.as_ref().unwrap().fields[key]
            .kind
            .clone()
    };
    let text = |text: &str| Some(prost_types::value::Kind::StringValue(text.to_owned()));
    assert_eq!(
        entry(IMPERSONATED_IDENTITY),
        text("spiffe://cluster.local/ns/shop/sa/cart")
    );
    assert_eq!(entry(CERT_SIGNER), text("signer.example/mesh"));
}

#[tokio::test]
async fn a_workloads_own_token_speaks_for_itself() {
    let mut bench = Bench::new(|| Err(Status::unavailable("later"))).await;
    let options = ClientOptions {
        token_owner: TokenOwner::Workload,
        ..bench.options()
    };
    let client = CaClient::new(options).unwrap();
    client.issue(request(CART)).await.unwrap_err();
    let seen = bench.seen.recv().await.unwrap();
    let fields = seen.call.metadata.unwrap().fields;
    assert!(!fields.contains_key(IMPERSONATED_IDENTITY));
}

#[tokio::test]
async fn certificates_for_another_key_or_identity_are_refused() {
    let answer = certificates(CART);
    let bench = Bench::new(move || Ok(answer.clone())).await;
    let error = bench.failure().await.to_string();
    assert!(error.contains("certified another key"), "{error}");
    let answer = certificates("ns/shop/sa/bank");
    let bench = Bench::new(move || Ok(answer.clone())).await;
    let error = bench.failure().await.to_string();
    assert!(error.contains("ns/shop/sa/bank instead"), "{error}");
}

#[tokio::test]
async fn answers_of_the_wrong_shape_are_refused() {
    let good = certificates(CART);
    let shapes = [
        Vec::new(),
        vec![good[0].clone()],
        vec![good[0].clone(); answer::MAX_TEXTS + 1],
        vec!["nonsense".to_owned(), good[1].clone()],
        vec![String::new(), good[1].clone()],
    ];
    for shape in shapes {
        let bench = Bench::new(move || Ok(shape.clone())).await;
        assert!(matches!(bench.failure().await, IssueError::Refused { .. }));
    }
    let bench = Bench::new(|| Ok(vec!["x".repeat(MAX_ANSWER_BYTES + 1)])).await;
    let error = bench.failure().await.to_string();
    assert!(error.contains("message length too large"), "{error}");
}

#[tokio::test]
async fn what_fails_again_is_told_apart_from_what_may_pass() {
    for (code, refused) in [
        (Code::Unauthenticated, true),
        (Code::InvalidArgument, true),
        (Code::Unavailable, false),
        (Code::ResourceExhausted, false),
    ] {
        let bench = Bench::new(move || Err(Status::new(code, "because"))).await;
        let error = bench.failure().await;
        assert!(error.to_string().contains("because"), "{error}");
        assert_eq!(matches!(error, IssueError::Refused { .. }), refused);
    }
}

#[tokio::test]
async fn a_renewed_token_is_used_for_the_next_request() {
    let cluster = Cluster::new();
    let served = serve(&cluster, Lifetimes::default()).await;
    let token = file("expired");
    let client = client(&served, &token, TokenOwner::Node);
    client.issue(request(CART)).await.unwrap_err();
    fs::write(token.path(), "agent-1").unwrap();
    client.issue(request(CART)).await.unwrap();
    fs::write(token.path(), " \n").unwrap();
    let error = client.issue(request(CART)).await.unwrap_err().to_string();
    assert!(error.contains("is empty"), "{error}");
    assert!(!error.contains("agent-1"));
}

#[tokio::test]
async fn new_roots_in_the_file_are_followed() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let token = file("agent-1");
    let (_, other) = server_identity();
    let right = fs::read_to_string(served.roots.path()).unwrap();
    fs::write(served.roots.path(), fs::read(other.path()).unwrap()).unwrap();
    let client = client(&served, &token, TokenOwner::Node);
    let error = client.issue(request(CART)).await.unwrap_err();
    assert!(matches!(error, IssueError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    fs::write(served.roots.path(), right).unwrap();
    client.issue(request(CART)).await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_not_there_is_named() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let token = file("agent-1");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("localhost:{}", free.local_addr().unwrap().port());
    drop(free);
    let options = ClientOptions {
        address: address.clone(),
        ..options(&served, &token)
    };
    let client = CaClient::new(options).unwrap();
    let error = client.issue(request(CART)).await.unwrap_err().to_string();
    assert!(
        error.contains(&address) && error.contains("refused"),
        "{error}"
    );
}

#[test]
fn addresses_and_headers_are_checked_at_the_start() {
    let with = |address: &str, header: (&str, &str)| {
        CaClient::new(ClientOptions {
            address: address.to_owned(),
            server_name: None,
            trust: Trust::Files {
                roots: ServerRoots::System,
                token: PathBuf::from("token"),
            },
            token_owner: TokenOwner::Node,
            cluster: "Kubernetes".to_owned(),
            cert_signer: None,
            headers: vec![(header.0.to_owned(), header.1.to_owned())],
        })
    };
    let fine = ("x-a", "b");
    for wrong in ["http://istiod:15012", "istiod", "", "https://", "a b:1"] {
        assert!(
            matches!(with(wrong, fine), Err(ClientError::Address { .. })),
            "{wrong}"
        );
    }
    assert!(with("istiod.istio-system.svc:15012", fine).is_ok());
    assert!(with("[::1]:15012", fine).is_ok());
    for wrong in [("x a", "b"), ("x-a", "b\n")] {
        assert!(with("istiod:15012", wrong).is_err());
    }
}

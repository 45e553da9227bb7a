//! Both of SPIRE's APIs, served on a Unix socket in the test.
use std::{path::PathBuf, sync::Mutex};

use futures::{StreamExt, stream::BoxStream};
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::AbortHandle};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Response, transport::Server};
use undermesh_identity::{SystemClock, WorkloadCertificate, testing::TestMesh};

use super::*;
use crate::{
    fixtures::{id, request},
    wire::{
        spire::api::{
            agent::delegatedidentity::v1::delegated_identity_server::{
                DelegatedIdentity, DelegatedIdentityServer,
            },
            types::{Spiffeid, X509svid as DelegatedSvid},
        },
        workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
};

const CART: &str = "ns/shop/sa/cart";

/// An SVID as SPIRE holds it.
#[derive(Clone)]
struct Svid {
    identity: Identity,
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
}

impl Svid {
    fn new(mesh: &TestMesh, identity: &str) -> Self {
        let pair = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&pair)
            .unwrap();
        let issued = mesh.authority().sign(&CertificateRequest {
            csr: csr.into(),
            ..request(identity)
        });
        Self {
            identity: id(identity),
            chain: vec![issued.unwrap().leaf.to_vec()],
            key: pair.serialize_der(),
        }
    }

    fn delegated(&self) -> X509svidWithKey {
        let Identity {
            trust_domain,
            namespace,
            service_account,
        } = &self.identity;
        X509svidWithKey {
            x509_svid: Some(DelegatedSvid {
                cert_chain: self.chain.clone(),
                id: Some(Spiffeid {
                    trust_domain: trust_domain.to_string(),
                    path: format!("/ns/{namespace}/sa/{service_account}"),
                }),
                ..DelegatedSvid::default()
            }),
            x509_svid_key: self.key.clone(),
        }
    }

    fn own(&self, roots: &[u8]) -> X509svid {
        X509svid {
            spiffe_id: self.identity.to_string(),
            x509_svid: self.chain.concat(),
            x509_svid_key: self.key.clone(),
            bundle: roots.to_vec(),
            hint: String::new(),
        }
    }
}

/// What the agent knows; the streams follow it.
#[derive(Clone)]
struct Agent {
    svids: watch::Sender<Vec<Svid>>,
    roots: watch::Sender<Vec<u8>>,
    selectors: Arc<Mutex<Vec<Vec<String>>>>,
}

#[tonic::async_trait]
impl DelegatedIdentity for Agent {
    type SubscribeToX509SVIDsStream =
        BoxStream<'static, Result<SubscribeToX509sviDsResponse, Status>>;
    type SubscribeToX509BundlesStream =
        BoxStream<'static, Result<SubscribeToX509BundlesResponse, Status>>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let selectors = request.into_inner().selectors.into_iter();
        let selectors = selectors.map(|one| format!("{}:{}", one.r#type, one.value));
        self.selectors.lock().unwrap().push(selectors.collect());
        let messages = WatchStream::new(self.svids.subscribe()).map(|svids| {
            Ok(SubscribeToX509sviDsResponse {
                x509_svids: svids.iter().map(Svid::delegated).collect(),
                federates_with: Vec::new(),
            })
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _request: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let messages = WatchStream::new(self.roots.subscribe()).map(|roots| {
            let own = ("spiffe://cluster.local".to_owned(), roots);
            let other = ("spiffe://other.example".to_owned(), b"nonsense".to_vec());
            Ok(SubscribeToX509BundlesResponse {
                ca_certificates: [own, other].into(),
            })
        });
        Ok(Response::new(messages.boxed()))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Agent {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing"));
        }
        let roots = self.roots.clone();
        let messages = WatchStream::new(self.svids.subscribe()).map(move |svids| {
            let roots = roots.borrow().clone();
            Ok(X509svidResponse {
                svids: svids.iter().map(|svid| svid.own(&roots)).collect(),
                ..X509svidResponse::default()
            })
        });
        Ok(Response::new(messages.boxed()))
    }
}

struct Bench {
    directory: TempDir,
    mesh: TestMesh,
    agent: Agent,
    server: Option<AbortHandle>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Bench {
    fn new() -> Self {
        let mesh = TestMesh::new("cluster.local");
        let agent = Agent {
            svids: watch::Sender::new(Vec::new()),
            roots: watch::Sender::new(mesh.roots()[0].to_vec()),
            selectors: Arc::default(),
        };
        Self {
            directory: TempDir::new().unwrap(),
            mesh,
            agent,
            server: None,
        }
    }

    fn started() -> Self {
        let mut bench = Self::new();
        bench.start();
        bench
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn start(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let server = Server::builder()
            .add_service(DelegatedIdentityServer::new(self.agent.clone()))
            .add_service(SpiffeWorkloadApiServer::new(self.agent.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        self.server = Some(tokio::spawn(server).abort_handle());
    }

    fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }

    fn register(&self, identity: &str) -> Svid {
        let svid = Svid::new(&self.mesh, identity);
        self.agent
            .svids
            .send_modify(|svids| svids.push(svid.clone()));
        svid
    }

    fn delegated(&self) -> SpireDelegated {
        SpireDelegated::start(&self.socket(), &Handle::current()).unwrap()
    }

    fn workload(&self) -> SpireWorkload {
        SpireWorkload::start(&self.socket(), &Handle::current()).unwrap()
    }
}

/// What the cache does with an answer.
fn usable(issued: IssuedCertificate) -> WorkloadCertificate {
    let unused = WorkloadKey::generate(&id(CART)).unwrap();
    WorkloadCertificate::new(id(CART), &unused, issued, Arc::new(SystemClock)).unwrap()
}

#[tokio::test]
async fn a_pods_certificate_comes_with_spires_key_and_roots() {
    let bench = Bench::started();
    bench.register("ns/shop/sa/bank");
    let svid = bench.register(CART);
    let issued = bench.delegated().issue(request(CART)).await.unwrap();
    assert_eq!(issued.leaf.as_ref(), svid.chain[0]);
    assert_eq!(usable(issued).roots(), bench.mesh.roots());
    assert_eq!(
        *bench.agent.selectors.lock().unwrap(),
        [["k8s:ns:shop", "k8s:sa:cart"]]
    );
}

#[tokio::test]
async fn a_process_gets_its_own_certificate() {
    let bench = Bench::started();
    bench.register("ns/shop/sa/bank");
    bench.register(CART);
    let issued = bench.workload().issue(request(CART)).await.unwrap();
    assert_eq!(usable(issued).identity(), &id(CART));
}

#[tokio::test]
async fn an_entry_that_is_registered_late_is_waited_for() {
    let bench = Bench::started();
    let (delegated, workload) = (bench.delegated(), bench.workload());
    let register = async {
        bench.register(CART);
    };
    let (one, two, ()) = tokio::join!(
        delegated.issue(request(CART)),
        workload.issue(request(CART)),
        register
    );
    usable(one.unwrap());
    usable(two.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_is_not_registered_is_refused_in_time() {
    let bench = Bench::started();
    bench.register("ns/shop/sa/bank");
    for issuer in [&bench.delegated() as &dyn Issuer, &bench.workload()] {
        let error = issuer.issue(request(CART)).await.unwrap_err();
        assert!(error.to_string().contains("is registered"), "{error}");
    }
}

#[tokio::test]
async fn other_roots_call_for_new_certificates() {
    let bench = Bench::started();
    bench.register(CART);
    let (delegated, workload) = (bench.delegated(), bench.workload());
    for issuer in [&delegated as &dyn Issuer, &workload] {
        issuer.issue(request(CART)).await.unwrap();
    }
    let mut told = [&delegated as &dyn Issuer, &workload].map(|it| it.renewals().unwrap());
    let other = TestMesh::new("cluster.local");
    let both = [&bench.mesh, &other]
        .map(|mesh| mesh.roots()[0].to_vec())
        .concat();
    bench.agent.roots.send_replace(both);
    bench.agent.svids.send_modify(|_| {});
    for renewals in &mut told {
        timeout(ISSUE_TIMEOUT, renewals.changed())
            .await
            .unwrap()
            .unwrap();
    }
    for issuer in [&delegated as &dyn Issuer, &workload] {
        let issued = issuer.issue(request(CART)).await.unwrap();
        assert_eq!(usable(issued).roots().len(), 2);
    }
}

#[tokio::test]
async fn an_agent_that_comes_later_or_comes_back_is_found() {
    let mut bench = Bench::new();
    let delegated = bench.delegated();
    bench.start();
    bench.register(CART);
    delegated.issue(request(CART)).await.unwrap();
    bench.stop();
    std::fs::remove_file(bench.socket()).unwrap();
    bench.start();
    let again = async {
        while delegated.issue(request(CART)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(ISSUE_TIMEOUT, again).await.unwrap();
}

#[tokio::test]
async fn certificates_keys_and_bundles_that_do_not_fit_are_refused() {
    let bench = Bench::started();
    let good = Svid::new(&bench.mesh, CART);
    let wrong_leaf = Svid {
        identity: id(CART),
        ..Svid::new(&bench.mesh, "ns/shop/sa/bank")
    };
    let no_chain = Svid {
        chain: Vec::new(),
        ..good.clone()
    };
    let no_key = Svid {
        key: b"nonsense".to_vec(),
        ..good
    };
    for svid in [wrong_leaf, no_chain, no_key] {
        bench.agent.svids.send_replace(vec![svid]);
        let error = bench.delegated().issue(request(CART)).await.unwrap_err();
        assert!(matches!(error, IssueError::Refused { .. }), "{error}");
        let error = bench.workload().issue(request(CART)).await.unwrap_err();
        assert!(matches!(error, IssueError::Refused { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_relative_socket_is_refused() {
    let started = SpireDelegated::start(Path::new("agent.sock"), &Handle::current());
    let error = started.err().unwrap().to_string();
    assert!(error.contains("absolute path"), "{error}");
}

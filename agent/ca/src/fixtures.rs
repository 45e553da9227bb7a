//! What the tests share: a cluster of pods and tokens, and the real service on a loopback port.
use std::{
    collections::{HashMap, HashSet},
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use tempfile::NamedTempFile;
use tokio::{net::TcpListener, task::AbortHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity as TlsIdentity, Server, ServerTlsConfig};
use undermesh_identity::{
    Authenticator, Authority, BoundPod, Caller, CallerError, CertificateRequest, SystemClock,
    key::WorkloadKey,
};
use undermesh_model::{Identity, TrustDomain};

use crate::{
    access::{Access, Machines, PodPlace, Pods},
    client::{CaClient, ClientOptions, ServerRoots, TokenOwner, Trust},
    live::{Lifetimes, LiveAuthority},
    refusal::Counters,
    service::CertificateService,
};

pub(crate) fn id(text: &str) -> Identity {
    format!("spiffe://cluster.local/{text}").parse().unwrap()
}

pub(crate) fn request(identity: &str) -> CertificateRequest {
    let identity = id(identity);
    CertificateRequest {
        csr: WorkloadKey::generate(&identity)
            .unwrap()
            .signing_request()
            .unwrap(),
        identity,
        lifetime: Duration::from_secs(3600),
    }
}

/// Two nodes: the node agent `agent-1` and a cart on the first, a bank on the second; a cart of its own token.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) tokens: Mutex<HashMap<String, Caller>>,
    pub(crate) pods: Mutex<HashMap<String, PodPlace>>,
    /// Accounts of machines that are registered, as `namespace/name`.
    pub(crate) machines: Mutex<HashSet<String>>,
}

impl Cluster {
    pub(crate) fn new() -> Arc<Self> {
        let cluster = Self::default();
        cluster.add_pod("agent-1", "undermesh-system/undermesh-node", "one");
        cluster.add_pod("agent-2", "undermesh-system/undermesh-node", "two");
        cluster.add_pod("cart-1", "shop/cart", "one");
        cluster.add_pod("bank-1", "shop/bank", "two");
        for pod in ["agent-1", "agent-2"] {
            cluster.add_token(pod, "undermesh-system/undermesh-node", Some(pod));
        }
        cluster.add_token("cart-1", "shop/cart", Some("cart-1"));
        Arc::new(cluster)
    }

    pub(crate) fn add_pod(&self, uid: &str, account: &str, node: &str) {
        let (namespace, name) = account.split_once('/').unwrap();
        let place = PodPlace {
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
            node: node.to_owned(),
        };
        self.pods.lock().unwrap().insert(uid.to_owned(), place);
    }

    pub(crate) fn add_token(&self, token: &str, account: &str, uid: Option<&str>) {
        let (namespace, name) = account.split_once('/').unwrap();
        let caller = Caller {
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
            pod: uid.map(|uid| BoundPod {
                name: uid.to_owned(),
                uid: uid.to_owned(),
            }),
        };
        self.tokens.lock().unwrap().insert(token.to_owned(), caller);
    }
}

impl Pods for Cluster {
    fn pod(&self, uid: &str) -> Option<PodPlace> {
        self.pods.lock().unwrap().get(uid).cloned()
    }

    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let wanted = PodPlace {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            node: node.to_owned(),
        };
        self.pods.lock().unwrap().values().any(|pod| *pod == wanted)
    }
}

impl Machines for Cluster {
    fn is_registered<'a>(
        &'a self,
        namespace: &'a str,
        service_account: &'a str,
    ) -> BoxFuture<'a, Result<bool, String>> {
        let account = format!("{namespace}/{service_account}");
        let registered = self.machines.lock().unwrap().contains(&account);
        std::future::ready(Ok(registered)).boxed()
    }
}

impl Authenticator for Cluster {
    fn certified<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Caller, CallerError>> {
        let answer = match &*identity.service_account {
            "revoked" => Err(CallerError::Invalid("the account is gone".to_owned())),
            account => Ok(Caller {
                namespace: identity.namespace.to_string(),
                service_account: account.to_owned(),
                pod: None,
            }),
        };
        std::future::ready(answer).boxed()
    }

    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        cluster: &'a str,
    ) -> BoxFuture<'a, Result<Caller, CallerError>> {
        let answer = match self.tokens.lock().unwrap().get(token) {
            _ if token == "api-server-down" => Err(CallerError::Unavailable(
                "the API server is down".to_owned(),
            )),
            _ if cluster != "Kubernetes" => {
                Err(CallerError::Invalid(format!("no cluster {cluster}")))
            }
            Some(caller) => Ok(caller.clone()),
            None => Err(CallerError::Invalid("it has expired".to_owned())),
        };
        std::future::ready(answer).boxed()
    }
}

pub(crate) fn live_authority(lifetimes: Lifetimes) -> Arc<LiveAuthority> {
    let authority = Authority::ephemeral(TrustDomain::cluster_local(), Arc::new(SystemClock));
    LiveAuthority::new(authority.unwrap(), lifetimes)
}

/// A gRPC server on a loopback port, ended with the test.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) roots: NamedTempFile,
    pub(crate) counters: Arc<Counters>,
    pub(crate) authority: Arc<LiveAuthority>,
    task: AbortHandle,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The key and certificate of a server, and the file by which it is trusted.
pub(crate) fn server_identity() -> (TlsIdentity, NamedTempFile) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let identity = TlsIdentity::from_pem(own.cert.pem(), own.signing_key.serialize_pem());
    (identity, file(&own.cert.pem()))
}

pub(crate) fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

/// The certificate service for `cluster`, over TLS.
pub(crate) async fn serve(cluster: &Arc<Cluster>, lifetimes: Lifetimes) -> Served {
    let authority = live_authority(lifetimes);
    let access = Access {
        trust_domain: TrustDomain::cluster_local(),
        node_accounts: ["undermesh-system/undermesh-node".parse().unwrap()].into(),
        authenticator: Arc::clone(cluster) as _,
        pods: Arc::clone(cluster) as _,
        machines: Arc::clone(cluster) as _,
    };
    let service = CertificateService::new(access, Arc::clone(&authority));
    let counters = service.counters();
    let (identity, roots) = server_identity();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(service.into_server())
        .serve_with_incoming(TcpListenerStream::new(listener));
    Served {
        address,
        roots,
        counters,
        authority,
        task: tokio::spawn(server).abort_handle(),
    }
}

/// A client of `served` with the given token.
pub(crate) fn options(served: &Served, token: &NamedTempFile) -> ClientOptions {
    ClientOptions {
        address: format!("localhost:{}", served.address.port()),
        server_name: None,
        trust: Trust::Files {
            roots: ServerRoots::File(served.roots.path().to_owned()),
            token: token.path().to_owned(),
        },
        token_owner: TokenOwner::Node,
        cluster: "Kubernetes".to_owned(),
        cert_signer: None,
        headers: Vec::new(),
    }
}

pub(crate) fn client(served: &Served, token: &NamedTempFile, owner: TokenOwner) -> CaClient {
    let options = ClientOptions {
        token_owner: owner,
        ..options(served, token)
    };
    CaClient::new(options).unwrap()
}

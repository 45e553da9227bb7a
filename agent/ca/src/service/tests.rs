//! The service on a real loopback connection, as nodes and as those who would like to be nodes.
use tonic::{Code, transport::Channel};
use undermesh_identity::{Certificate, Issuer, key::WorkloadKey};

use super::*;
use crate::{
    client::{CaClient, TokenOwner},
    fixtures::{Cluster, Served, client, file, id, request, serve},
    refusal::{OPAQUE, Reason},
    wire::citadel::istio_certificate_service_client::IstioCertificateServiceClient,
};

const CART: &str = "ns/shop/sa/cart";
const BANK: &str = "ns/shop/sa/bank";

/// Speaks the wire itself, to send what no honest client sends.
struct Raw {
    client: IstioCertificateServiceClient<Channel>,
    token: &'static str,
}

impl Raw {
    async fn new(served: &Served, token: &'static str) -> Self {
        let pem = std::fs::read(served.roots.path()).unwrap();
        let tls = tonic::transport::ClientTlsConfig::new()
            .ca_certificate(tonic::transport::Certificate::from_pem(pem));
        let address = format!("https://localhost:{}", served.address.port());
        let endpoint = Channel::from_shared(address).unwrap().tls_config(tls);
        let channel = endpoint.unwrap().connect().await.unwrap();
        Self {
            client: IstioCertificateServiceClient::new(channel),
            token,
        }
    }

    async fn call(
        &mut self,
        call: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let mut call = Request::new(call);
        let headers = call.metadata_mut();
        headers.insert(
            "authorization",
            format!("Bearer {}", self.token).parse().unwrap(),
        );
        headers.insert(CLUSTER_HEADER, "Kubernetes".parse().unwrap());
        let answer = self.client.create_certificate(call).await;
        answer.map(Response::into_inner)
    }
}

fn call_for(identity: &str) -> IstioCertificateRequest {
    IstioCertificateRequest {
        csr: request(identity).csr_pem(),
        validity_duration: 3600,
        metadata: Some(metadata([(
            IMPERSONATED_IDENTITY,
            format!("spiffe://cluster.local/{identity}"),
        )])),
    }
}

async fn refusal(cluster: &Arc<Cluster>, token: &'static str, identity: &str) -> Reason {
    let served = serve(cluster, Lifetimes::default()).await;
    let mut raw = Raw::new(&served, token).await;
    let status = raw.call(call_for(identity)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, OPAQUE)
    );
    assert_eq!(served.counters.signed(), 0);
    let mut refused = Reason::ALL
        .into_iter()
        .filter(|reason| served.counters.refused(*reason) == 1);
    refused.next().unwrap()
}

fn lifetime_of(leaf: &str) -> u64 {
    let leaf = certificate::parse_pem(leaf.as_bytes()).unwrap().remove(0);
    let leaf = Certificate::parse(leaf).unwrap();
    let life = leaf.not_after().duration_since(leaf.not_before()).unwrap();
    life.as_secs() - 60
}

#[tokio::test]
async fn a_node_gets_the_certificates_of_its_own_pods() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let token = file("agent-1\n");
    let client = client(&served, &token, TokenOwner::Node);
    let issued = client.issue(request(CART)).await.unwrap();
    let leaf = Certificate::parse(issued.leaf).unwrap();
    assert_eq!(leaf.identities(), [id(CART)]);
    assert_eq!(issued.roots, served.authority.current().roots());
    assert_eq!(served.counters.signed(), 1);
}

#[tokio::test]
async fn a_node_does_not_get_the_certificate_of_another_nodes_pod() {
    let cluster = Cluster::new();
    assert_eq!(refusal(&cluster, "agent-1", BANK).await, Reason::NotOnNode);
    assert_eq!(refusal(&cluster, "agent-2", CART).await, Reason::NotOnNode);
    assert_eq!(
        refusal(&cluster, "agent-1", "ns/kube-system/sa/admin").await,
        Reason::NotOnNode
    );
}

#[tokio::test]
async fn a_workload_gets_its_own_certificate_and_nobody_elses() {
    let cluster = Cluster::new();
    let served = serve(&cluster, Lifetimes::default()).await;
    let token = file("cart-1");
    let own = client(&served, &token, TokenOwner::Workload);
    own.issue(request(CART)).await.unwrap();
    // The name in the request counts for nothing: the token's account is certified, and the client notices.
    let error = own.issue(request(BANK)).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("certified spiffe://cluster.local/ns/shop/sa/cart instead"),
        "{error}"
    );
    assert_eq!(
        refusal(&cluster, "cart-1", BANK).await,
        Reason::NotNodeAgent
    );
}

#[tokio::test]
async fn expired_and_invalid_tokens_are_refused() {
    let cluster = Cluster::new();
    assert_eq!(refusal(&cluster, "expired", CART).await, Reason::Token);
    let served = serve(&cluster, Lifetimes::default()).await;
    let mut raw = Raw::new(&served, "agent-1").await;
    let bare = raw.client.create_certificate(call_for(CART)).await;
    assert_eq!(bare.unwrap_err().message(), OPAQUE);
    for wrong in ["Basic agent-1", "Bearer ", "agent-1", "Bearer"] {
        let mut call = Request::new(call_for(CART));
        call.metadata_mut()
            .insert("authorization", wrong.parse().unwrap());
        let status = raw.client.create_certificate(call).await.unwrap_err();
        assert_eq!(status.message(), OPAQUE, "{wrong}");
    }
    let mut twice = Request::new(call_for(CART));
    for _ in 0..2 {
        twice
            .metadata_mut()
            .append("authorization", "Bearer agent-1".parse().unwrap());
    }
    assert!(raw.client.create_certificate(twice).await.is_err());
    assert_eq!(served.counters.refused(Reason::Token), 6);
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let mut raw = Raw::new(&served, "agent-1").await;
    let mut call = Request::new(call_for(CART));
    let headers = call.metadata_mut();
    headers.insert("authorization", "Bearer agent-1".parse().unwrap());
    headers.insert(CLUSTER_HEADER, "elsewhere".parse().unwrap());
    assert!(raw.client.create_certificate(call).await.is_err());
    assert_eq!(served.counters.refused(Reason::Token), 1);
}

#[tokio::test]
async fn a_node_token_must_be_bound_to_a_pod_that_exists_and_fits() {
    let cluster = Cluster::new();
    let account = "undermesh-system/undermesh-node";
    cluster.add_token("gone", account, Some("agent-0"));
    cluster.add_token("unbound", account, None);
    cluster.add_token("somebody-elses-pod", account, Some("cart-1"));
    cluster.add_pod("agent-3", account, "");
    cluster.add_token("unscheduled", account, Some("agent-3"));
    for token in ["gone", "unbound", "somebody-elses-pod", "unscheduled"] {
        assert_eq!(refusal(&cluster, token, CART).await, Reason::Pod, "{token}");
    }
}

#[tokio::test]
async fn when_the_last_pod_leaves_the_node_its_identity_leaves_too() {
    let cluster = Cluster::new();
    let served = serve(&cluster, Lifetimes::default()).await;
    let mut raw = Raw::new(&served, "agent-1").await;
    raw.call(call_for(CART)).await.unwrap();
    cluster.pods.lock().unwrap().remove("cart-1");
    assert!(raw.call(call_for(CART)).await.is_err());
}

#[tokio::test]
async fn identities_of_other_meshes_and_nonsense_are_refused() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let mut raw = Raw::new(&served, "agent-1").await;
    for wrong in [
        "spiffe://other.example/ns/shop/sa/cart",
        "cart",
        "spiffe://cluster.local/",
    ] {
        let call = IstioCertificateRequest {
            metadata: Some(metadata([(IMPERSONATED_IDENTITY, wrong.to_owned())])),
            ..call_for(CART)
        };
        assert_eq!(
            raw.call(call).await.unwrap_err().message(),
            OPAQUE,
            "{wrong}"
        );
    }
    let mut call = call_for(CART);
    for value in call.metadata.as_mut().unwrap().fields.values_mut() {
        value.kind = Some(Kind::NumberValue(1.0));
    }
    assert_eq!(raw.call(call).await.unwrap_err().message(), OPAQUE);
    assert_eq!(served.counters.refused(Reason::Identity), 4);
}

#[tokio::test]
async fn an_unreachable_api_server_is_told_apart_from_a_wrong_token() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let mut raw = Raw::new(&served, "api-server-down").await;
    let status = raw.call(call_for(CART)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(served.counters.refused(Reason::Unchecked), 1);
}

#[tokio::test]
async fn a_request_whose_key_is_not_proved_is_refused() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let mut raw = Raw::new(&served, "agent-1").await;
    let mut der = request(CART).csr.to_vec();
    *der.last_mut().unwrap() ^= 1;
    let forged = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
    for csr in [forged, "nonsense".to_owned(), String::new()] {
        let call = IstioCertificateRequest {
            csr,
            ..call_for(CART)
        };
        let status = raw.call(call).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    assert_eq!(served.counters.refused(Reason::Csr), 3);
}

#[tokio::test]
async fn oversize_calls_are_cut_off() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let mut raw = Raw::new(&served, "agent-1").await;
    let large = |bytes: usize| IstioCertificateRequest {
        csr: "x".repeat(bytes),
        ..call_for(CART)
    };
    let status = raw.call(large(MAX_CALL_BYTES)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "not even read");
    let status = raw
        .call(large(MAX_REQUEST_PEM_BYTES + 1))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn lifetimes_are_what_is_configured_at_most() {
    let lifetimes = Lifetimes {
        default: Duration::from_secs(100),
        max: Duration::from_secs(1000),
    };
    let served = serve(&Cluster::new(), lifetimes).await;
    let mut raw = Raw::new(&served, "agent-1").await;
    for (asked, granted) in [
        (0, 100),
        (-5, 100),
        (500, 500),
        (5000, 1000),
        (i64::MAX, 1000),
    ] {
        let call = IstioCertificateRequest {
            validity_duration: asked,
            ..call_for(CART)
        };
        let answer = raw.call(call).await.unwrap();
        let life = lifetime_of(&answer.cert_chain[0]);
        assert!((granted - 2..=granted).contains(&life), "{asked}: {life}");
    }
}

#[tokio::test]
async fn the_answer_ends_with_all_roots_in_one_text() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let mut raw = Raw::new(&served, "agent-1").await;
    let answer = raw.call(call_for(CART)).await.unwrap();
    assert_eq!(answer.cert_chain.len(), 2);
    assert_eq!(answer.cert_chain[1], served.authority.roots_pem());
}

#[tokio::test]
async fn nobody_may_ask_for_others_without_node_accounts() {
    let cluster = Cluster::new();
    let access = Access {
        trust_domain: undermesh_model::TrustDomain::cluster_local(),
        node_accounts: Default::default(),
        authenticator: Arc::clone(&cluster) as _,
        pods: Arc::clone(&cluster) as _,
        machines: Arc::clone(&cluster) as _,
    };
    let caller = access.caller("agent-1", "Kubernetes").await.unwrap();
    let asked = id(CART).to_string();
    assert_eq!(
        access.grant(&caller, Some(&asked)).unwrap_err().reason(),
        Reason::NotNodeAgent
    );
    assert_eq!(
        access.grant(&caller, None).unwrap(),
        id("ns/undermesh-system/sa/undermesh-node")
    );
}

#[tokio::test]
async fn a_registered_machine_gets_its_own_identity_by_its_certificate_and_no_other() {
    let cluster = Cluster::new();
    let access = Access {
        trust_domain: undermesh_model::TrustDomain::cluster_local(),
        // Its account is trusted as a node agent's, which a machine must gain nothing from.
        node_accounts: ["shop/vm".parse().unwrap()].into(),
        authenticator: Arc::clone(&cluster) as _,
        pods: Arc::clone(&cluster) as _,
        machines: Arc::clone(&cluster) as _,
    };
    let machine = id("ns/shop/sa/vm");
    let unknown = access.machine(&machine).await.unwrap_err();
    assert_eq!(unknown.reason(), Reason::Unregistered);
    cluster
        .machines
        .lock()
        .unwrap()
        .insert("shop/vm".to_owned());
    let caller = access.machine(&machine).await.unwrap();
    assert_eq!(access.grant(&caller, None).unwrap(), machine);
    let other = access.grant(&caller, Some(&id(CART).to_string()));
    assert_eq!(other.unwrap_err().reason(), Reason::Pod);
    let revoked = access.machine(&id("ns/shop/sa/revoked")).await.unwrap_err();
    assert_eq!(revoked.reason(), Reason::Token);
}

#[tokio::test]
async fn many_nodes_at_once_are_all_served() {
    let served = serve(&Cluster::new(), Lifetimes::default()).await;
    let token = file("agent-1");
    let clients: Vec<CaClient> = (0..8)
        .map(|_| client(&served, &token, TokenOwner::Node))
        .collect();
    let calls = clients
        .iter()
        .flat_map(|client| (0..16).map(|_| client.issue(request(CART))));
    let answers = futures::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(served.counters.signed(), 128);
}

#[test]
fn the_key_in_the_certificate_is_the_one_that_was_sent() {
    let authority = crate::fixtures::live_authority(Lifetimes::default());
    let identity = id(CART);
    let key = WorkloadKey::generate(&identity).unwrap();
    let csr = key.signing_request().unwrap();
    let issued = authority
        .sign(CertificateRequest {
            csr: csr.clone(),
            ..request(CART)
        })
        .unwrap();
    assert_eq!(
        certificate::public_key_of(&issued.leaf).unwrap(),
        csr::public_key_of(&csr).unwrap()
    );
}

//! The server over TLS, as the API server asks it, and the CA in its configuration.
use std::net::SocketAddr;

use hyper::client::conn::http1 as client;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use serde_json::{Value as Json, json};
use tokio::{sync::watch, task::JoinHandle};
use undermesh_kubernetes::testing::{ApiServer, Failure};

use super::*;

struct Running {
    address: SocketAddr,
    connector: tokio_rustls::TlsConnector,
    task: JoinHandle<Infallible>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn started() -> Running {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made =
        rcgen::generate_simple_self_signed(vec!["undermesh.istio-system.svc".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let webhook = Webhook::new(Settings::default(), server);
    Running {
        address,
        connector: Arc::new(client).into(),
        task: tokio::spawn(webhook.serve(listener)),
    }
}

impl Running {
    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("undermesh.istio-system.svc").unwrap();
        let stream = self.connector.connect(name, stream).await.unwrap();
        let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "undermesh.istio-system.svc")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        (status, body.to_vec())
    }
}

fn review(action: &str) -> Vec<u8> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5",
            "operation": "CREATE",
            "kind": {"group": "security.istio.io", "version": "v1", "kind": "AuthorizationPolicy"},
            "object": {
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "shop"},
                "spec": {"action": action},
            },
        },
    });
    review.to_string().into_bytes()
}

#[tokio::test]
async fn the_api_server_gets_its_answer_over_tls() {
    let webhook = started().await;
    for (action, allowed) in [("DENY", true), ("DNEY", false)] {
        let (status, body) = webhook
            .ask(Method::POST, "/validate?timeout=5s", review(action))
            .await;
        assert_eq!(status, StatusCode::OK);
        let answer: Json = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["response"]["uid"], "705ab4f5");
        assert_eq!(answer["response"]["allowed"], allowed, "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_review_is_refused() {
    let webhook = started().await;
    let status = async |method, path, body| webhook.ask(method, path, body).await.0;
    assert_eq!(
        status(Method::POST, "/other", review("DENY")).await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        status(Method::GET, PATH, Vec::new()).await,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(
        status(Method::POST, PATH, b"{}".to_vec()).await,
        StatusCode::BAD_REQUEST
    );
    let large = vec![b' '; MAX_BODY_BYTES + 1];
    assert_eq!(
        status(Method::POST, PATH, large).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
}

#[tokio::test]
async fn plain_http_does_not_disturb_others() {
    let webhook = started().await;
    let mut stream = TcpStream::connect(webhook.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let (status, _) = webhook.ask(Method::POST, PATH, review("DENY")).await;
    assert_eq!(status, StatusCode::OK);
}

const NAME: &str = "undermesh";
const CONFIGURATION: &str = "ValidatingWebhookConfiguration";

fn configuration() -> Json {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": CONFIGURATION,
        "metadata": {"name": NAME},
        "webhooks": [{
            "name": "validation.undermesh.io",
            "clientConfig": {"service": {"name": "undermesh", "namespace": "istio-system", "path": PATH}},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 5,
        }],
    })
}

fn bundle_of(object: &Json) -> Option<&str> {
    object["webhooks"][0]["clientConfig"]["caBundle"].as_str()
}

/// "roots 1" and "roots 2" in base64.
const FIRST: &str = "cm9vdHMgMQ==";
const SECOND: &str = "cm9vdHMgMg==";

struct Kept {
    api: ApiServer,
    roots: watch::Sender<String>,
    leads: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn kept(is_leader: bool) -> Kept {
    let api = ApiServer::start().await;
    let (roots, root_changes) = watch::channel(String::new());
    let (leads, leadership) = watch::channel(is_leader);
    let client = api.client();
    let inputs = authority::Inputs {
        roots: root_changes,
        leads: leadership,
    };
    let task = tokio::spawn(async move { match authority::keep(client, NAME, inputs).await {} });
    Kept {
        api,
        roots,
        leads,
        task,
    }
}

impl Kept {
    async fn wait_for(&self, bundle: &str) -> Json {
        let holds = |it: &Json| bundle_of(it) == Some(bundle);
        self.api.wait_for(CONFIGURATION, "", NAME, holds).await
    }
}

#[tokio::test]
async fn the_bundle_follows_the_roots_and_leaves_the_rest_alone() {
    let kept = kept(true).await;
    kept.roots.send_replace("roots 1".to_owned());
    kept.api.put(configuration());
    let written = kept.wait_for(FIRST).await;
    assert_eq!(written["webhooks"][0]["timeoutSeconds"], 5);
    assert_eq!(
        written["webhooks"][0]["clientConfig"]["service"]["name"],
        "undermesh"
    );
    kept.roots.send_replace("roots 2".to_owned());
    kept.wait_for(SECOND).await;
}

#[tokio::test]
async fn an_installation_that_takes_the_bundle_away_gets_it_again() {
    let kept = kept(true).await;
    kept.roots.send_replace("roots 1".to_owned());
    kept.api.put(configuration());
    kept.wait_for(FIRST).await;
    kept.api.put(configuration());
    kept.wait_for(FIRST).await;
}

#[tokio::test]
async fn only_the_leader_writes_the_bundle() {
    let kept = kept(false).await;
    kept.roots.send_replace("roots 1".to_owned());
    kept.api.put(configuration());
    // A follower does not even look.
    assert_eq!(kept.api.watches("validatingwebhookconfigurations"), 0);
    kept.leads.send_replace(true);
    kept.wait_for(FIRST).await;
    kept.leads.send_replace(false);
    kept.api
        .wait_for_watches("validatingwebhookconfigurations", 0)
        .await;
}

#[tokio::test]
async fn a_refused_write_is_tried_again() {
    let kept = kept(true).await;
    let fault = kept
        .api
        .fault("PATCH ", Failure::Refuse(StatusCode::INTERNAL_SERVER_ERROR));
    kept.roots.send_replace("roots 1".to_owned());
    kept.api.put(configuration());
    fault.met(2).await;
    drop(fault);
    kept.wait_for(FIRST).await;
}

//! The API from end to end: the client, a real socket, the server, and a node that only keeps a list.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::future::ready;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    client::{Client, ClientError},
    server::Api,
    socket::{self, RunDirectory},
    types::{Kernel, PodCounts, PodState, Source},
    *,
};

/// Keeps pods and the log level in memory; releases take as long as they are told.
#[derive(Default)]
pub struct Double {
    pods: Mutex<Vec<Pod>>,
    level: Mutex<String>,
}

impl Node for Double {
    fn enroll(&self, enrollment: Enrollment) -> BoxFuture<'_, Result<Pod, Refusal>> {
        let mut pods = self.pods.lock().unwrap();
        let new = pod(&enrollment);
        if let Some(held) = pods.iter().find(|held| held.netns == new.netns) {
            let same = held.name == new.name;
            let conflict = Refusal::new(StatusCode::CONFLICT, "taken", "release it first");
            return Box::pin(ready(if same {
                Ok(held.clone())
            } else {
                Err(conflict)
            }));
        }
        pods.push(new.clone());
        Box::pin(ready(Ok(new)))
    }

    fn release(&self, key: PodKey, drain: Option<Duration>) -> BoxFuture<'_, Result<Pod, Refusal>> {
        Box::pin(async move {
            tokio::time::sleep(drain.unwrap_or_default()).await;
            let mut pods = self.pods.lock().unwrap();
            let found = pods.iter().position(|pod| *pod.name == *key.name);
            let missing = || {
                Refusal::new(
                    StatusCode::NOT_FOUND,
                    format!("{key} is not enrolled"),
                    "list the pods",
                )
            };
            Ok(pods.remove(found.ok_or_else(missing)?))
        })
    }

    fn pods(&self) -> Vec<Pod> {
        self.pods.lock().unwrap().clone()
    }

    fn status(&self) -> Status {
        Status {
            version: "1.2.3".to_owned(),
            node: "n1".to_owned(),
            kernel: Kernel::default(),
            uptime_ms: 5000,
            waiting_for: Vec::new(),
            source: Source::default(),
            pods: PodCounts::default(),
            connections: 0,
            certificates: BTreeMap::new(),
            capture: BTreeMap::new(),
        }
    }

    fn connections(&self) -> Vec<ConnectionView> {
        Vec::new()
    }

    fn certificates(&self) -> Vec<CertificateReport> {
        Vec::new()
    }

    fn config(&self) -> Result<String, Refusal> {
        Ok(r#"{"workloads":[{}]}"#.to_owned())
    }

    fn log_level(&self) -> String {
        self.level.lock().unwrap().clone()
    }

    fn set_log_level(&self, directives: &str) -> Result<(), Refusal> {
        if directives == "loud" {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "no such level",
                "use info",
            ));
        }
        directives.clone_into(&mut self.level.lock().unwrap());
        Ok(())
    }
}

fn pod(enrollment: &Enrollment) -> Pod {
    Pod {
        namespace: enrollment.namespace().to_owned(),
        name: enrollment.name().to_owned(),
        service_account: enrollment.service_account().to_owned(),
        identity: "spiffe://cluster.local/ns/shop/sa/cart".to_owned(),
        netns: enrollment.netns().to_owned(),
        netns_cookie: u64::MAX,
        addresses: vec!["10.8.1.23".parse().unwrap()],
        state: PodState::Active,
        connections: 0,
    }
}

/// A served double and the path of its socket.
pub struct Served {
    pub socket: PathBuf,
    _directory: TempDir,
    _run: RunDirectory,
}

pub fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let (run, listener) = socket::bind(directory.path()).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let api = Api(Arc::new(Double::default()));
    tokio::spawn(undermesh_telemetry::http::serve(listener, Arc::new(api)));
    Served {
        socket: directory.path().join(socket::SOCKET),
        _directory: directory,
        _run: run,
    }
}

async fn send(
    served: &Served,
    method: Method,
    target: &str,
    body: &Value,
) -> Result<Value, ClientError> {
    let body = if body.is_null() {
        Bytes::new()
    } else {
        Bytes::from(body.to_string())
    };
    Client::new(&served.socket)
        .ask(method, target, body, Duration::ZERO)
        .await
}

fn cart() -> Value {
    json!({"netns": "/n/cart", "namespace": "shop", "name": "cart-0", "serviceAccount": "cart"})
}

#[tokio::test]
async fn a_pod_is_enrolled_listed_and_released() {
    let served = serve();
    let first = send(&served, Method::POST, "/v1/pods", &cart())
        .await
        .unwrap();
    assert_eq!(first["netnsCookie"], json!(u64::MAX));
    assert_eq!(first["state"], "active");
    let again = send(&served, Method::POST, "/v1/pods", &cart())
        .await
        .unwrap();
    assert_eq!(first, again);
    assert_eq!(
        send(&served, Method::GET, "/v1/pods", &Value::Null)
            .await
            .unwrap(),
        json!([first])
    );
    let released = send(
        &served,
        Method::DELETE,
        "/v1/pods/shop/cart-0?timeout=10ms",
        &Value::Null,
    )
    .await;
    assert_eq!(released.unwrap()["name"], "cart-0");
    let pods = send(&served, Method::GET, "/v1/pods", &Value::Null)
        .await
        .unwrap();
    assert_eq!(pods, json!([]));
}

#[tokio::test]
async fn refusals_carry_the_reason_and_the_remedy() {
    let served = serve();
    send(&served, Method::POST, "/v1/pods", &cart())
        .await
        .unwrap();
    let mut other = cart();
    other["name"] = json!("other-0");
    let cases = [
        (Method::POST, "/v1/pods", other, "taken; release it first"),
        (
            Method::POST,
            "/v1/pods",
            json!({"netns": "/n"}),
            "not an enrollment",
        ),
        (
            Method::POST,
            "/v1/pods",
            json!({"netns": "n", "namespace": "a", "name": "b", "serviceAccount": "c"}),
            "absolute path",
        ),
        (
            Method::DELETE,
            "/v1/pods/shop/none",
            Value::Null,
            "shop/none is not enrolled",
        ),
        (
            Method::DELETE,
            "/v1/pods/shop/cart-0?timeout=soon",
            Value::Null,
            "'soon' is not a duration",
        ),
        (Method::PUT, "/v1/pods", Value::Null, "use GET or POST"),
        (Method::GET, "/v1/nothing", Value::Null, "no such path"),
        (Method::GET, "/", Value::Null, "no such path"),
        (
            Method::POST,
            "/v1/log?level=loud",
            Value::Null,
            "no such level",
        ),
        (
            Method::GET,
            "/v1/log?level=debug",
            Value::Null,
            "POST to change",
        ),
    ];
    for (method, target, body, expected) in cases {
        let refused = send(&served, method, target, &body).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
        assert!(
            refused.to_string().contains(expected),
            "{target}: {refused}"
        );
    }
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused() {
    let served = serve();
    let body = json!({"netns": "a".repeat(70_000)});
    let refused = send(&served, Method::POST, "/v1/pods", &body)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("too large"), "{refused}");
}

#[tokio::test]
async fn the_log_level_is_shown_and_changed() {
    let served = serve();
    let changed = send(
        &served,
        Method::POST,
        "/v1/log?level=info%2Ctunnel%3Ddebug",
        &Value::Null,
    )
    .await;
    assert_eq!(changed.unwrap(), json!({"level": "info,tunnel=debug"}));
    let shown = send(&served, Method::GET, "/v1/log", &Value::Null)
        .await
        .unwrap();
    assert_eq!(shown, json!({"level": "info,tunnel=debug"}));
}

#[tokio::test]
async fn a_release_goes_on_when_the_client_has_gone() {
    let served = serve();
    send(&served, Method::POST, "/v1/pods", &cart())
        .await
        .unwrap();
    let target = "/v1/pods/shop/cart-0?timeout=50ms";
    let leaving = send(&served, Method::DELETE, target, &Value::Null);
    assert!(
        tokio::time::timeout(Duration::from_millis(20), leaving)
            .await
            .is_err()
    );
    let gone = async {
        while send(&served, Method::GET, "/v1/pods", &Value::Null)
            .await
            .unwrap()
            != json!([])
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_missing_agent_is_named_with_what_to_do() {
    let refused = Client::new("/nowhere/api.sock".as_ref())
        .get("/v1/pods")
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("start 'undermesh node'"),
        "{refused}"
    );
}

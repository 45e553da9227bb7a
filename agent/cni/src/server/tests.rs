//! The socket as a client sees it: the plugin's own, and bad ones.
use std::os::unix::net::UnixListener as StdListener;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
};

use super::*;

/// Takes in pods of one name, and no others.
struct Strict;

impl Desk for Strict {
    async fn handle(&self, verb: Verb, sandbox: Sandbox) -> Result<Answer, Failure> {
        match (verb, &*sandbox.name) {
            (Verb::Add, "web") => Ok(Answer::Enrolled),
            (Verb::Del, _) => Ok(Answer::Released),
            (_, name) => Err(Failure {
                error: format!("not {name}"),
            }),
        }
    }
}

fn start() -> (TempDir, PathBuf, JoinHandle<Infallible>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/cni.sock");
    let server = Server::bind(&path).unwrap();
    let task = tokio::spawn(server.run(Arc::new(Strict)));
    (folder, path, task)
}

async fn exchange(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn the_plugin_gets_answers() {
    let (_folder, path, _task) = start();
    let web = r#"{"namespace":"shop","name":"web"}"#;
    let answer = exchange(&path, &post("/v1/add", web)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(r#"{"outcome":"enrolled"}"#), "{answer}");
    let answer = exchange(&path, &post("/v1/check", web)).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with(r#"{"error":"not web"}"#), "{answer}");
}

#[tokio::test]
async fn what_is_not_a_question_is_refused() {
    let (_folder, path, _task) = start();
    let get = "GET /v1/add HTTP/1.1\r\nHost: a\r\n\r\n".to_owned();
    let long = format!(
        "POST /v1/add HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        MAX_BODY + 1
    );
    for (request, status) in [
        (get, "405"),
        (post("/v1/gc", "{}"), "404"),
        (post("/v1/add", "{}"), "400"),
        (post("/v1/add", "{"), "400"),
        (
            post("/v1/add", r#"{"namespace":"a","name":"b","more":1}"#),
            "400",
        ),
        (long, "413"),
    ] {
        let answer = exchange(&path, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {answer}"
        );
    }
}

#[tokio::test]
async fn only_root_may_open_the_socket_and_nothing_else_is_replaced() {
    let (_folder, path, _task) = start();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A second agent, as in an upgrade, takes the name over.
    assert!(Server::bind(&path).is_ok());
    let file = path.with_file_name("precious");
    fs::write(&file, "a").unwrap();
    assert!(matches!(Server::bind(&file), Err(ServerError::Occupied(_))));
}

#[tokio::test]
async fn what_a_killed_agent_left_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cni.sock");
    drop(StdListener::bind(&path).unwrap());
    assert!(Server::bind(&path).is_ok());
}

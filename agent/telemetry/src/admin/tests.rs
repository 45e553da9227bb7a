use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{http::serve, output::Output};

/// Sends `request` to a server that answers with `handler`, and reads until it closes.
async fn exchange(handler: impl Handler, request: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, Arc::new(handler)));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    server.abort();
    answer
}

fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

fn telemetry() -> Telemetry {
    Telemetry::new(Output::discard(), "1.2.3").unwrap()
}

#[tokio::test]
async fn readiness_names_what_it_waits_for() {
    let readiness = Readiness::new();
    let guard = readiness.block("manifests");
    let answer = exchange(Ready(readiness.clone()), &request("GET", "/healthz/ready")).await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(
        answer.ends_with("not ready, waiting for: manifests\n"),
        "{answer}"
    );
    guard.done();
    let answer = exchange(Ready(readiness), &request("GET", "/healthz/ready")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn metrics_are_served_under_both_paths() {
    for path in ["/metrics", "/stats/prometheus"] {
        let answer = exchange(Stats(telemetry()), &request("GET", path)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(
            answer.contains("content-type: text/plain; version=0.0.4"),
            "{answer}"
        );
        assert!(
            answer.contains("istio_build{component=\"undermesh\",tag=\"1.2.3\"} 1"),
            "{answer}"
        );
        assert!(answer.contains("process_open_fds "), "{answer}");
    }
}

#[tokio::test]
async fn wrong_methods_and_paths_are_told_what_there_is() {
    let answer = exchange(Stats(telemetry()), &request("POST", "/metrics")).await;
    assert!(
        answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET"),
        "{answer}"
    );
    let answer = exchange(Stats(telemetry()), &request("GET", "/other")).await;
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.contains("/stats/prometheus"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_head_or_body_beyond_the_bound_is_refused() {
    let long = format!(
        "GET /metrics HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "a".repeat(20_000)
    );
    let answer = exchange(Stats(telemetry()), &long).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let body = "a".repeat(70_000);
    let head = format!(
        "POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let answer = exchange(Stats(telemetry()), &(head + &body)).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

//! Probes against real listeners and commands.
use std::net::Ipv4Addr;

use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    task::spawn_blocking,
};

use super::*;
use crate::probe::Pace;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LIMIT: Duration = Duration::from_secs(10);

/// Answers every connection with `answer` and sends what it was asked.
async fn server(answer: &'static str) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, questions) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = vec![0; 4096];
            let read = stream.read(&mut question).await.unwrap_or(0);
            let question = String::from_utf8_lossy(&question[..read]).into_owned();
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = asked.send(question).await;
        }
    });
    (port, questions)
}

fn get(port: u16, scheme: Scheme) -> Check {
    Check::Http(HttpCheck {
        target: Target { host: None, port },
        scheme,
        path: "/healthz?full".parse().unwrap(),
        headers: vec![("x-probe".parse().unwrap(), "yes".parse().unwrap())],
    })
}

#[tokio::test]
async fn a_status_below_400_is_success() {
    let (port, mut questions) = server("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n").await;
    once(&get(port, Scheme::Http), HERE, LIMIT).await.unwrap();
    let question = questions.recv().await.unwrap();
    assert!(
        question.starts_with("GET /healthz?full HTTP/1.1\r\n"),
        "{question}"
    );
    assert!(question.contains("x-probe: yes\r\n"), "{question}");
    assert!(
        question.contains(&format!("host: 127.0.0.1:{port}\r\n")),
        "{question}"
    );
}

#[tokio::test]
async fn other_answers_are_failures_and_say_why() {
    for (answer, why) in [
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
        ("SSH-2.0-OpenSSH\r\n", "no answer over HTTP"),
        ("", "no answer over HTTP"),
    ] {
        let (port, _questions) = server(answer).await;
        let error = once(&get(port, Scheme::Http), HERE, LIMIT)
            .await
            .unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let (port, _questions) = server("no TLS").await;
    let error = once(&get(port, Scheme::Https), HERE, LIMIT)
        .await
        .unwrap_err();
    assert!(error.contains("no TLS"), "{error}");
}

#[tokio::test]
async fn a_port_is_open_or_not() {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let check = Check::Tcp(Target { host: None, port });
    once(&check, HERE, LIMIT).await.unwrap();
    drop(listener);
    let error = once(&check, HERE, LIMIT).await.unwrap_err();
    assert!(error.contains("cannot connect"), "{error}");
}

fn shell(script: &str) -> Check {
    Check::Exec(["sh", "-c", script].map(str::to_owned).into())
}

#[tokio::test]
async fn a_command_counts_by_its_end() {
    once(&shell("exit 0"), HERE, LIMIT).await.unwrap();
    let error = once(&shell("exit 3"), HERE, LIMIT).await.unwrap_err();
    assert!(error.contains("3"), "{error}");
    let missing = Check::Exec(vec!["/nonexistent/probe".to_owned()]);
    let error = once(&missing, HERE, LIMIT).await.unwrap_err();
    assert!(error.contains("cannot run /nonexistent/probe"), "{error}");
}

#[tokio::test]
async fn a_command_that_hangs_is_ended_with_all_that_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let held = directory.path().join("held");
    mkfifo(&held, Mode::S_IRWXU).unwrap();
    let script = format!("exec 3> {}; sleep 600 & wait", held.display());
    // Its end comes when nobody holds the other side any more.
    let ended = spawn_blocking(move || std::fs::read(held));
    let error = once(&shell(&script), HERE, Duration::from_secs(1)).await;
    assert!(error.unwrap_err().contains("within 1 s"));
    let held = timeout(LIMIT, ended).await.expect("all of it ends");
    assert_eq!(held.unwrap().unwrap(), b"");
}

#[tokio::test]
async fn what_changes_is_reported() {
    let (port, _questions) = server("HTTP/1.1 200 OK\r\n\r\n").await;
    let probe = Probe {
        check: get(port, Scheme::Http),
        pace: Pace::default(),
    };
    let (told, mut verdicts) = mpsc::channel(1);
    let running = tokio::spawn(run(probe, HERE, move |verdict| {
        told.try_send(verdict).unwrap();
    }));
    let verdict = timeout(LIMIT, verdicts.recv()).await.unwrap();
    assert_eq!(verdict, Some(Verdict::Healthy));
    running.abort();
}

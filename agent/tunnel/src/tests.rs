//! Sessions and copying over real TLS and HTTP/2 on loopback.
use std::{future::Future, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::Request;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{Notify, mpsc},
    task::spawn_local,
    time::timeout,
};
use undermesh_identity::{WorkloadCertificate, testing::TestMesh};
use undermesh_model::Identity;
use undermesh_telemetry::{Connection, Direction, Opening, Output, Peer, Security, Telemetry};

use crate::{
    copy::{self, Side},
    session::{self, Incoming, SessionError},
};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
const PATIENCE: Duration = Duration::from_secs(30);

fn run(test: impl Future<Output = ()>) {
    Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .unwrap()
        .block_on(async { timeout(PATIENCE, test).await.expect("the test hangs") });
}

async fn pair() -> (TcpStream, TcpStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0, address)
}

fn connection() -> Connection {
    let address = "127.0.0.1:1".parse().unwrap();
    let peer = Peer {
        address,
        workload: None,
        identity: None,
    };
    Telemetry::new(Output::discard(), "test")
        .unwrap()
        .opened(Opening {
            direction: Direction::Outbound,
            source: peer.clone(),
            destination: peer,
            hbone_authority: None,
            service: None,
            security: Security::Unknown,
            id: 1,
        })
}

/// A tunnel with an application's socket at both ends: client app, tunnel, server app.
struct Path {
    client: TcpStream,
    server: TcpStream,
    /// What each end's copying came to.
    results: mpsc::UnboundedReceiver<Result<(), String>>,
    /// Ends the server's side in order.
    drain: Rc<Notify>,
}

async fn path(client: Arc<WorkloadCertificate>, server: Arc<WorkloadCertificate>) -> Path {
    let (near, far, address) = pair().await;
    let (client_app, mut client_end, _) = pair().await;
    let (server_app, server_end, _) = pair().await;
    let (report, results) = mpsc::unbounded_channel();
    let drain = Rc::new(Notify::new());
    let (draining, server_report) = (Rc::clone(&drain), report.clone());
    let expected = [server.identity().clone()];
    spawn_local(async move {
        let session = session::accept(far, address, &server).await.unwrap();
        assert_eq!(session.peer.to_string(), CLIENT);
        let mut ends = vec![server_end];
        let serve = |(request, mut respond): Incoming| {
            let mut end = ends.pop().expect("one stream");
            let report = server_report.clone();
            spawn_local(async move {
                let send = respond
                    .send_response(crate::hbone::accepted(""), false)
                    .unwrap();
                let connection = connection();
                let body = request.into_body();
                let copied = copy::tunnel(&mut end, Side::Upstream, send, body, &connection).await;
                if copied.is_err() {
                    crate::socket::reset_on_close(&end);
                }
                report
                    .send(copied.map_err(|error| error.to_string()))
                    .unwrap();
            });
        };
        let _ = session
            .run(async move { draining.notified().await }, serve)
            .await;
    });
    let session = session::connect(near, address, &client, &expected)
        .await
        .unwrap();
    spawn_local(session.driver);
    let mut requests = session.requests.ready().await.unwrap();
    let connect = Request::connect("10.0.0.1:80").body(()).unwrap();
    let (answer, send) = requests.send_request(connect, false).unwrap();
    let body = answer.await.unwrap().into_body();
    spawn_local(async move {
        let connection = connection();
        let copied = copy::tunnel(&mut client_end, Side::Downstream, send, body, &connection).await;
        if copied.is_err() {
            crate::socket::reset_on_close(&client_end);
        }
        report
            .send(copied.map_err(|error| error.to_string()))
            .unwrap();
        drop(requests);
    });
    Path {
        client: client_app,
        server: server_app,
        results,
        drain,
    }
}

async fn mesh_path() -> Path {
    let mesh = TestMesh::new("cluster.local");
    path(mesh.certificate(CLIENT), mesh.certificate(SERVER)).await
}

/// Bytes that differ from each other over a long period.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn data_of_every_size_arrives_whole_both_ways() {
    run(async {
        let mut path = mesh_path().await;
        for length in [
            1, 9, 255, 1024, 16_383, 16_384, 16_385, 65_536, 1_000_003, 9_000_001,
        ] {
            let data = pattern(length);
            let (mut read, mut write) = path.client.split();
            let (mut far_read, mut far_write) = path.server.split();
            let mut there = vec![0; length];
            let mut back = vec![0; length];
            let (a, b, c, d) = tokio::join!(
                write.write_all(&data),
                far_read.read_exact(&mut there),
                far_write.write_all(&data),
                read.read_exact(&mut back),
            );
            a.unwrap();
            b.unwrap();
            c.unwrap();
            d.unwrap();
            assert!(
                there == data && back == data,
                "{length} bytes changed on the way"
            );
        }
    });
}

#[test]
fn each_side_may_stop_sending_and_still_receive() {
    run(async {
        for client_first in [true, false] {
            let mut path = mesh_path().await;
            let (mut first, mut second) = (path.client, path.server);
            if !client_first {
                std::mem::swap(&mut first, &mut second);
            }
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            let mut question = Vec::new();
            second.read_to_end(&mut question).await.unwrap();
            assert_eq!(question, b"question");
            let answer = pattern(300_000);
            let (sent, received) = tokio::join!(
                async {
                    second.write_all(&answer).await.unwrap();
                    second.shutdown().await
                },
                async {
                    let mut received = Vec::new();
                    first.read_to_end(&mut received).await.unwrap();
                    received
                }
            );
            sent.unwrap();
            assert!(received == answer);
            assert_eq!(path.results.recv().await.unwrap(), Ok(()));
            assert_eq!(path.results.recv().await.unwrap(), Ok(()));
        }
    });
}

#[test]
fn a_reset_is_not_taken_for_an_end_of_data() {
    run(async {
        let mut path = mesh_path().await;
        path.server.write_all(b"half of it").await.unwrap();
        let mut half = [0; 10];
        path.client.read_exact(&mut half).await.unwrap();
        crate::socket::reset_on_close(&path.server);
        drop(path.server);
        let error = path
            .client
            .read(&mut half)
            .await
            .expect_err("a reset, not an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(path.results.recv().await.unwrap().is_err());
    });
}

#[test]
fn a_reader_that_stops_stops_the_writer() {
    run(async {
        let path = mesh_path().await;
        let chunk = pattern(64 * 1024);
        let mut sent = 0;
        // What socket buffers and windows hold is bounded, so the writer must come to a stop.
        while let Ok(result) = timeout(Duration::from_millis(500), path.client.writable()).await {
            result.unwrap();
            match path.client.try_write(&chunk) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            assert!(
                sent < 64 << 20,
                "{sent} bytes were taken with nobody reading"
            );
        }
        let mut server = path.server;
        let mut received = vec![0; sent];
        server.read_exact(&mut received).await.unwrap();
    });
}

#[test]
fn open_streams_outlive_a_graceful_shutdown() {
    run(async {
        let mut path = mesh_path().await;
        path.drain.notify_one();
        tokio::task::yield_now().await;
        path.client.write_all(b"still here").await.unwrap();
        let mut text = [0; 10];
        path.server.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"still here");
    });
}

async fn refused(client: &WorkloadCertificate, server: Arc<WorkloadCertificate>, expected: &str) {
    let (near, far, address) = pair().await;
    let expected: Identity = expected.parse().unwrap();
    let accepting = spawn_local(async move { session::accept(far, address, &server).await.err() });
    let result = session::connect(near, address, client, &[expected]).await;
    match result {
        Err(SessionError::Tls { .. }) => {}
        Err(error) => panic!("refused for another reason: {error}"),
        // TLS 1.3 tells the client of its refusal after its own handshake: the first use fails.
        Ok(session) => {
            let driver = spawn_local(session.driver);
            assert!(driver.await.unwrap().is_err(), "the session lives");
        }
    }
    assert!(
        accepting.await.unwrap().is_some(),
        "the server took the session"
    );
}

#[test]
fn a_peer_of_another_identity_is_refused() {
    run(async {
        let mesh = TestMesh::new("cluster.local");
        let server = mesh.certificate("spiffe://cluster.local/ns/shop/sa/impostor");
        refused(&mesh.certificate(CLIENT), server, SERVER).await;
    });
}

#[test]
fn a_client_of_another_root_is_refused() {
    run(async {
        let mesh = TestMesh::new("cluster.local");
        let stranger = TestMesh::new("cluster.local");
        let client = stranger.certificate_trusting(CLIENT, &mesh);
        refused(&client, mesh.certificate(SERVER), SERVER).await;
    });
}

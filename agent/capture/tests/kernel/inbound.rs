//! Connections that others make to a pod.
use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
};

use socket2::{Domain, Protocol, Socket, Type};
use undermesh_abi::INBOUND_MARK;
use undermesh_capture::Capture;

use crate::{
    Test,
    agent::accept,
    bed::{Bed, Namespace, PATIENCE, enroll, ip},
};

pub const TESTS: &[Test] = &[
    (
        "inbound::plain_connections_reach_the_agent",
        plain_connections_reach_the_agent,
    ),
    (
        "inbound::hbone_reaches_its_own_listener",
        hbone_reaches_its_own_listener,
    ),
    (
        "inbound::no_listener_means_refused",
        no_listener_means_refused,
    ),
    (
        "inbound::workers_share_the_connections",
        workers_share_the_connections,
    ),
    (
        "inbound::the_agent_reaches_the_application_as_the_client",
        as_the_client,
    ),
];

fn plain_connections_reach_the_agent() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    // Whether the application listens there or not makes no difference.
    let _application = pod.run(|| TcpListener::bind("0.0.0.0:9090").unwrap());
    for target in [
        "10.88.0.2:8080",
        "[fd88::2]:8080",
        "10.88.0.2:9090",
        "10.88.0.2:15006",
    ] {
        let target: SocketAddr = target.parse().unwrap();
        let client = peer.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        let (accepted, source) = served.accept_plaintext();
        assert_eq!(accepted.local_addr().unwrap(), target);
        assert_eq!(source, client.local_addr().unwrap());
    }
    assert_eq!(capture.counters().unwrap().inbound_assigned, 4);
}

fn hbone_reaches_its_own_listener() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    for target in ["10.88.0.2:15008", "[fd88::2]:15008"] {
        let target: SocketAddr = target.parse().unwrap();
        let _client = peer.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        assert_eq!(served.accept_hbone().0.local_addr().unwrap(), target);
    }
}

fn no_listener_means_refused() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let application = pod.run(|| TcpListener::bind("[::]:8080").unwrap());
    application.set_nonblocking(true).unwrap();
    drop(served.listeners);
    for target in ["10.88.0.2:8080", "[fd88::2]:8080", "10.88.0.2:15008"] {
        let target: SocketAddr = target.parse().unwrap();
        let error = peer.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{target}");
    }
    assert_eq!(
        application.accept().unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert!(capture.counters().unwrap().inbound_refused >= 2);
}

fn workers_share_the_connections() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let target = SocketAddr::new(ip("10.88.0.2"), 8080);
    let clients: Vec<TcpStream> = peer.run(|| {
        (0..64)
            .map(|_| TcpStream::connect_timeout(&target, PATIENCE).unwrap())
            .collect()
    });
    let mut total = 0;
    for worker in &served.listeners {
        let accepted = worker
            .plaintext
            .iter()
            .filter_map(|listener| listener.accept().ok())
            .count();
        assert_ne!(accepted, 0, "a worker got no connection");
        total += accepted;
    }
    assert!(total <= clients.len());
}

fn as_the_client() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let _served = enroll(&capture, &pod, "web");
    reach_as_the_client(&capture, &pod);
}

/// Connects to applications as the agent does, under the addresses of clients that are elsewhere.
pub fn reach_as_the_client(capture: &Capture, pod: &Namespace) {
    for (client, own) in [
        ("192.0.2.55:0", "10.88.0.2:8080"),
        ("[2001:db8::55]:0", "[fd88::2]:8080"),
    ] {
        let (client, own): (SocketAddr, SocketAddr) =
            (client.parse().unwrap(), own.parse().unwrap());
        let application = pod.run(|| TcpListener::bind(own).unwrap());
        let upstream = pod.run(|| client_socket(client));
        let source = upstream.local_addr().unwrap().as_socket().unwrap();
        if let Some(announcements) = capture.announcements() {
            announcements.announce(source, own).unwrap();
        }
        upstream.connect_timeout(&own.into(), PATIENCE).unwrap();
        if let Some(announcements) = capture.announcements() {
            announcements.withdraw(source, own);
        }
        assert_eq!(accept([&application]).1, source);
    }
}

/// A socket of the agent's for a connection to an application.
pub fn client_socket(client: SocketAddr) -> Socket {
    let socket = Socket::new(
        Domain::for_address(client),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .unwrap();
    socket.set_mark(INBOUND_MARK).unwrap();
    socket.bind_device(Some(b"lo")).unwrap();
    match client {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true).unwrap(),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true).unwrap(),
    }
    socket.bind(&client.into()).unwrap();
    socket
}

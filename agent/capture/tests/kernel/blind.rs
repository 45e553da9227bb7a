//! Capture as on kernels before 5.17, which do not tell `sk_lookup` the device that a connection came through.
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::{
    Test,
    agent::accept,
    bed::{Bed, PATIENCE, enroll},
    inbound::{client_socket, reach_as_the_client},
};

pub const TESTS: &[Test] = &[
    (
        "blind::connections_are_captured_both_ways",
        connections_are_captured_both_ways,
    ),
    (
        "blind::the_agent_reaches_the_application_as_the_client",
        as_the_client,
    ),
    (
        "blind::what_is_not_announced_reaches_the_agent",
        what_is_not_announced,
    ),
    (
        "blind::loopback_is_left_to_the_pod",
        loopback_is_left_to_the_pod,
    ),
];

fn connections_are_captured_both_ways() {
    let bed = Bed::blind();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    for (inside, outside) in [
        ("10.88.0.2:8080", "203.0.113.7:80"),
        ("[fd88::2]:8080", "[2001:db8::7]:80"),
    ] {
        let (inside, outside): (SocketAddr, SocketAddr) =
            (inside.parse().unwrap(), outside.parse().unwrap());
        let _client = peer.run(|| TcpStream::connect_timeout(&inside, PATIENCE).unwrap());
        assert_eq!(served.accept_plaintext().0.local_addr().unwrap(), inside);
        let _client = pod.run(|| TcpStream::connect_timeout(&outside, PATIENCE).unwrap());
        let (_, source) = served.accept_outbound();
        let asked = capture.destinations().take(served.cookie, source);
        assert_eq!(asked, Some(outside));
    }
}

fn as_the_client() {
    let bed = Bed::blind();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let _served = enroll(&capture, &pod, "web");
    reach_as_the_client(&capture, &pod);
}

fn what_is_not_announced() {
    let bed = Bed::blind();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let own: SocketAddr = "10.88.0.2:8080".parse().unwrap();
    let _application = pod.run(|| TcpListener::bind(own).unwrap());
    let announcements = capture.announcements().unwrap();
    let upstream = pod.run(|| client_socket("192.0.2.55:0".parse().unwrap()));
    let source = upstream.local_addr().unwrap().as_socket().unwrap();
    announcements.announce(source, own).unwrap();
    announcements.withdraw(source, own);
    // The announcements of an agent that crashed are not its successor's.
    announcements.announce(source, own).unwrap();
    drop(capture);
    let _capture = bed.capture();
    upstream.connect_timeout(&own.into(), PATIENCE).unwrap();
    assert_eq!(served.accept_plaintext().1, source);
}

fn loopback_is_left_to_the_pod() {
    let bed = Bed::blind();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let _served = enroll(&capture, &pod, "web");
    let application = pod.run(|| TcpListener::bind("[::]:8080").unwrap());
    for target in ["127.0.0.1:8080", "[::1]:8080", "10.88.0.2:8080"] {
        let target: SocketAddr = target.parse().unwrap();
        let client = pod.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        let source = accept([&application]).1;
        assert_eq!(source.port(), client.local_addr().unwrap().port());
    }
}

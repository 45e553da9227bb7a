//! Connections that applications make.
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Test,
    agent::accept,
    bed::{Bed, PATIENCE, enroll, ip},
};

pub const TESTS: &[Test] = &[
    ("outbound::ipv4_is_captured", ipv4_is_captured),
    ("outbound::ipv6_is_captured", ipv6_is_captured),
    ("outbound::v4_mapped_is_captured", v4_mapped_is_captured),
    (
        "outbound::a_non_blocking_connect_is_captured",
        a_non_blocking_connect_is_captured,
    ),
    ("outbound::fast_open_is_captured", fast_open_is_captured),
    ("outbound::a_bound_source_is_kept", a_bound_source_is_kept),
    (
        "outbound::a_destination_is_taken_once",
        a_destination_is_taken_once,
    ),
    (
        "outbound::local_and_marked_connections_are_left_alone",
        local_and_marked_are_left_alone,
    ),
    (
        "outbound::other_namespaces_are_left_alone",
        other_namespaces_are_left_alone,
    ),
    ("outbound::udp_is_left_alone", udp_is_left_alone),
    (
        "outbound::no_listener_means_refused",
        no_listener_means_refused,
    ),
    (
        "outbound::a_socket_bound_to_a_device_does_not_leak",
        a_socket_bound_to_a_device_does_not_leak,
    ),
    ("outbound::mptcp_is_refused", mptcp_is_refused),
    (
        "outbound::a_reused_socket_forgets_its_capture",
        a_reused_socket_forgets_its_capture,
    ),
];

/// Connects from the pod to an address that nobody has, and checks both ends.
fn is_captured(asked: SocketAddr, own: IpAddr, seen: SocketAddr) {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let client = pod.run(|| TcpStream::connect_timeout(&asked, PATIENCE).unwrap());
    let (_accepted, source) = served.accept_outbound();
    assert_eq!(
        capture.destinations().take(served.cookie, source),
        Some(seen)
    );
    assert_eq!(client.peer_addr().unwrap(), asked, "getpeername");
    assert_eq!(client.local_addr().unwrap().ip(), own, "getsockname");
    assert_eq!(capture.counters().unwrap().captured, 1);
}

fn ipv4_is_captured() {
    let asked = SocketAddr::new(ip("203.0.113.7"), 8080);
    is_captured(asked, ip("10.88.0.2"), asked);
}

fn ipv6_is_captured() {
    let asked = SocketAddr::new(ip("2001:db8::7"), 8080);
    is_captured(asked, ip("fd88::2"), asked);
}

fn v4_mapped_is_captured() {
    let asked = SocketAddr::new(ip("::ffff:203.0.113.7"), 8080);
    is_captured(
        asked,
        ip("::ffff:10.88.0.2"),
        SocketAddr::new(ip("203.0.113.7"), 8080),
    );
}

fn a_non_blocking_connect_is_captured() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let asked = SocketAddr::new(ip("203.0.113.7"), 8080);
    let _client = pod.run(|| {
        let socket = stream(Domain::IPV4);
        socket.set_nonblocking(true).unwrap();
        let error = socket.connect(&asked.into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        socket
    });
    let (_accepted, source) = served.accept_outbound();
    assert_eq!(
        capture.destinations().take(served.cookie, source),
        Some(asked)
    );
}

fn fast_open_is_captured() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let asked = SocketAddr::new(ip("203.0.113.7"), 8080);
    let _client = pod.run(|| {
        let socket = stream(Domain::IPV4);
        socket
            .send_to_with_flags(b"early", &asked.into(), libc::MSG_FASTOPEN)
            .unwrap();
        socket
    });
    let (_accepted, source) = served.accept_outbound();
    assert_eq!(
        capture.destinations().take(served.cookie, source),
        Some(asked)
    );
}

fn a_bound_source_is_kept() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let asked = SocketAddr::new(ip("203.0.113.7"), 8080);
    let own = SocketAddr::new(ip("10.88.0.2"), 4711);
    let client = pod.run(|| {
        let socket = stream(Domain::IPV4);
        socket.bind(&own.into()).unwrap();
        socket.connect(&asked.into()).unwrap();
        TcpStream::from(socket)
    });
    let (_accepted, source) = served.accept_outbound();
    assert_eq!((source, client.local_addr().unwrap()), (own, own));
    assert_eq!(
        capture.destinations().take(served.cookie, source),
        Some(asked)
    );
}

fn a_destination_is_taken_once() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let asked = SocketAddr::new(ip("203.0.113.7"), 8080);
    let _client = pod.run(|| TcpStream::connect(asked).unwrap());
    let (_accepted, source) = served.accept_outbound();
    let destinations = capture.destinations();
    assert_eq!(destinations.take(served.cookie + 1, source), None);
    assert_eq!(destinations.take(served.cookie, source), Some(asked));
    assert_eq!(destinations.take(served.cookie, source), None);
}

fn local_and_marked_are_left_alone() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let prepared = capture.prepare(&pod.enrollment("web")).unwrap();
    let mark = prepared.pod().outbound_mark();
    let _served = crate::bed::activate(&capture, prepared);
    for local in [
        "127.0.0.1",
        "127.9.9.9",
        "10.88.0.2",
        "::1",
        "fd88::2",
        "::ffff:127.0.0.1",
    ] {
        pod.run(|| {
            let any = if local.contains('.') {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let listener = TcpListener::bind(any).unwrap();
            let target = SocketAddr::new(ip(local), listener.local_addr().unwrap().port());
            let client = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
            assert_eq!(client.peer_addr().unwrap(), target);
            accept([&listener]);
        });
    }
    let outside = peer.run(|| TcpListener::bind("10.88.0.1:0").unwrap());
    let target = outside.local_addr().unwrap();
    pod.run(|| {
        let socket = stream(Domain::IPV4);
        socket.set_mark(mark).unwrap();
        socket.connect_timeout(&target.into(), PATIENCE).unwrap();
    });
    assert_eq!(accept([&outside]).1.ip(), ip("10.88.0.2"));
    let counters = capture.counters().unwrap();
    assert_eq!((counters.captured, counters.skipped), (0, 7));
}

fn other_namespaces_are_left_alone() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let (other, outside) = bed.pair("other");
    let capture = bed.capture();
    let _served = enroll(&capture, &pod, "web");
    let listener = outside.run(|| TcpListener::bind("10.88.0.1:0").unwrap());
    let target = listener.local_addr().unwrap();
    other.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
    assert_eq!(accept([&listener]).1.ip(), ip("10.88.0.2"));
    assert_eq!(capture.counters().unwrap().captured, 0);
}

fn udp_is_left_alone() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let _served = enroll(&capture, &pod, "web");
    let there = peer.run(|| UdpSocket::bind("10.88.0.1:0").unwrap());
    there.set_read_timeout(Some(PATIENCE)).unwrap();
    let here = pod.run(|| {
        let here = UdpSocket::bind("10.88.0.2:0").unwrap();
        here.connect(there.local_addr().unwrap()).unwrap();
        here
    });
    here.send(b"ping").unwrap();
    let mut buffer = [0; 8];
    let (length, source) = there.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"ping");
    here.set_read_timeout(Some(PATIENCE)).unwrap();
    there.send_to(b"pong", source).unwrap();
    assert_eq!(here.recv(&mut buffer).unwrap(), 4);
}

fn no_listener_means_refused() {
    let bed = Bed::new();
    let (pod, peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let outside = peer.run(|| TcpListener::bind("[::]:8080").unwrap());
    outside.set_nonblocking(true).unwrap();
    drop(served.listeners);
    for target in ["10.88.0.1", "fd88::1", "::ffff:10.88.0.1"] {
        let target = SocketAddr::new(ip(target), 8080);
        let error = pod.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{target}");
    }
    assert_eq!(
        outside.accept().unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
}

fn a_socket_bound_to_a_device_does_not_leak() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    for (domain, asked) in [(Domain::IPV4, "203.0.113.7"), (Domain::IPV6, "2001:db8::7")] {
        let asked = SocketAddr::new(ip(asked), 8080);
        let _client = pod.run(|| {
            let socket = stream(domain);
            socket.bind_device(Some(b"eth0")).unwrap();
            socket.connect_timeout(&asked.into(), PATIENCE).unwrap();
            socket
        });
        let (_accepted, source) = served.accept_outbound();
        assert_eq!(
            capture.destinations().take(served.cookie, source),
            Some(asked)
        );
    }
}

fn mptcp_is_refused() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let multipath = || {
        let protocol = Some(Protocol::from(libc::IPPROTO_MPTCP));
        Socket::new(Domain::IPV4, Type::STREAM, protocol).map(drop)
    };
    if pod.run(multipath).is_err() {
        eprintln!("note: this kernel has no MPTCP; nothing to refuse");
        return;
    }
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    assert!(
        pod.run(multipath).is_err(),
        "an MPTCP socket was made in an enrolled pod"
    );
    capture.forget(served.cookie).unwrap();
    assert!(pod.run(multipath).is_ok(), "MPTCP was not given back");
}

fn a_reused_socket_forgets_its_capture() {
    let bed = Bed::new();
    let (pod, _peer) = bed.pair("pod");
    let capture = bed.capture();
    let served = enroll(&capture, &pod, "web");
    let asked = SocketAddr::new(ip("203.0.113.7"), 8080);
    pod.run(|| {
        let socket = stream(Domain::IPV4);
        socket.connect(&asked.into()).unwrap();
        let (_accepted, source) = served.accept_outbound();
        assert_eq!(
            capture.destinations().take(served.cookie, source),
            Some(asked)
        );
        disconnect(&socket);
        // Straight to the agent's listener: nothing of the first attempt may be found.
        let direct = SocketAddr::new(ip("127.0.0.1"), 15001);
        socket.connect(&direct.into()).unwrap();
        let (_accepted, source) = served.accept_outbound();
        assert_eq!(capture.destinations().take(served.cookie, source), None);
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(direct));
    });
}

fn stream(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

/// `connect()` with `AF_UNSPEC`, which ends a connection and keeps the socket (`connect(2)`).
fn disconnect(socket: &Socket) {
    use std::os::fd::AsRawFd as _;
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: the address lives for the call and its length is exact.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const unspecified,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

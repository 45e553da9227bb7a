//! What is captured of a machine: the connections of its slice, and no others.
use std::{
    fs, io,
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Test,
    agent::accept,
    bed::{Bed, PATIENCE, eventually, ip},
    machine::{Machine, OUTSIDE, is_refused, listen, share, stream},
};

pub const TESTS: &[Test] = &[
    (
        "slice::the_slice_is_captured_and_other_processes_are_not",
        outbound,
    ),
    (
        "slice::connections_to_the_slice_reach_the_agent_and_others_their_owners",
        inbound,
    ),
    (
        "slice::one_port_on_two_addresses_has_two_owners",
        two_owners_of_a_port,
    ),
    (
        "slice::a_listener_from_before_is_found",
        a_listener_from_before_is_found,
    ),
    (
        "slice::a_port_is_forgotten_with_its_last_listener",
        a_port_is_forgotten_with_its_last_listener,
    ),
    (
        "slice::a_port_that_the_kernel_chose_is_noted",
        a_port_that_the_kernel_chose_is_noted,
    ),
    (
        "slice::a_client_that_binds_leaves_no_note",
        a_client_that_binds_leaves_no_note,
    ),
    (
        "slice::a_container_of_the_slice_is_none_of_the_machine",
        a_container_is_left_alone,
    ),
    (
        "slice::what_cannot_be_noted_is_refused",
        what_cannot_be_noted_is_refused,
    ),
    (
        "slice::what_stays_on_the_machine_is_left_alone",
        what_stays_is_left_alone,
    ),
    ("slice::many_threads_are_counted", many_threads_are_counted),
    (
        "slice::a_multipath_listener_from_before_is_found",
        a_multipath_listener,
    ),
];

fn outbound() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    machine.is_captured(&capture, &served);
    machine.others_go_out();
    assert_eq!(capture.counters().unwrap().captured, 2);
}

fn inbound() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    let _ipv4 = machine.in_slice(|| listen("0.0.0.0:8080"));
    machine.is_taken_at(&served, machine.targets(8080)[0]);
    let _dual = machine.in_slice(|| listen("[::]:8081"));
    machine.is_taken(&served, 8081);
    let _each = machine.in_slice(|| ["10.88.0.2:8082", "[fd88::2]:8082"].map(listen));
    machine.is_taken(&served, 8082);
    assert_eq!(capture.counters().unwrap().inbound_assigned, 5);
    let _loopback = machine.in_slice(|| listen("127.0.0.1:2222"));
    let ssh = machine.beside(|| ["10.88.0.2:2222", "[fd88::2]:2222"].map(listen));
    for target in machine.targets(2222) {
        let _client = machine.connect(target).unwrap();
        assert_eq!(accept(&ssh).0.local_addr().unwrap(), target);
    }
    is_refused(machine.connect(machine.targets(7)[0]).unwrap_err());
    assert_eq!(capture.counters().unwrap().inbound_assigned, 5);
    for target in machine.targets(15008) {
        let _client = machine.connect(target).unwrap();
        assert_eq!(served.accept_hbone().0.local_addr().unwrap(), target);
    }
}

fn two_owners_of_a_port() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    machine.own.ip("addr add 10.88.0.3/24 dev eth0");
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    let _git = machine.in_slice(|| listen("10.88.0.2:2222"));
    let ssh = machine.beside(|| listen("10.88.0.3:2222"));
    machine.is_taken_at(&served, "10.88.0.2:2222".parse().unwrap());
    let _client = machine.connect("10.88.0.3:2222".parse().unwrap()).unwrap();
    accept([&ssh]);
}

fn a_listener_from_before_is_found() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let old = machine.in_slice(|| [listen("0.0.0.0:8080"), listen("[fd88::2]:8080")]);
    let deep = machine.slice.join("web.service");
    fs::create_dir(&deep).unwrap();
    let below = bed.within(&deep, || machine.own.run(|| listen("[::]:8081")));
    let bound = machine.in_slice(|| {
        let socket = stream(Domain::IPV6);
        let every: SocketAddr = "[::]:8082".parse().unwrap();
        socket.bind(&every.into()).unwrap();
        socket
    });
    let ssh = machine.beside(|| listen("10.88.0.2:2222"));
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    machine.is_taken(&served, 8080);
    machine.is_taken(&served, 8081);
    bound.listen(16).unwrap();
    machine.is_taken(&served, 8082);
    let _client = machine.connect(machine.targets(2222)[0]).unwrap();
    accept([&ssh]);
    drop((old, below, bound));
    machine.is_free(8080);
    assert_eq!(machine.notes(), 0);
    eventually(|| fs::remove_dir(&deep).is_ok());
}

fn a_port_is_forgotten_with_its_last_listener() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let before = machine.in_slice(|| share("[::]:8080"));
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    let after = machine.in_slice(|| share("[::]:8080"));
    drop(before);
    machine.is_taken(&served, 8080);
    let last = machine.in_slice(|| share("[::]:8080"));
    drop(after);
    machine.is_taken(&served, 8080);
    drop(last);
    machine.is_free(8080);
    assert_eq!(machine.notes(), 0);
}

fn a_port_that_the_kernel_chose_is_noted() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    let socket = machine.in_slice(|| {
        let socket = stream(Domain::IPV6);
        socket.listen(16).unwrap();
        socket
    });
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    machine.is_taken(&served, port);
    // This gives the port back while the socket stays open.
    socket.shutdown(Shutdown::Both).unwrap();
    machine.is_free(port);
    assert_eq!(machine.notes(), 0);
}

fn a_client_that_binds_leaves_no_note() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    let asked: SocketAddr = OUTSIDE[0].parse().unwrap();
    let _client = machine.in_slice(|| {
        let socket = stream(Domain::IPV4);
        let own: SocketAddr = "10.88.0.2:4711".parse().unwrap();
        socket.bind(&own.into()).unwrap();
        assert_eq!(machine.notes(), 1);
        socket.connect_timeout(&asked.into(), PATIENCE).unwrap();
        socket
    });
    served.accept_outbound();
    assert_eq!(machine.notes(), 0);
}

fn a_container_is_left_alone() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let (container, there) = bed.pair("container");
    let capture = machine.agent();
    let _served = machine.enroll(&capture);
    let (server, outside) = (
        bed.within(&machine.slice, || {
            container.run(|| listen("10.88.0.2:8080"))
        }),
        there.run(|| listen("10.88.0.1:8080")),
    );
    assert_eq!(machine.notes(), 0);
    for (from, listener) in [(&there, &server), (&container, &outside)] {
        let target = listener.local_addr().unwrap();
        let _client = bed.within(&machine.slice, || {
            from.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap())
        });
        accept([listener]);
    }
}

fn what_cannot_be_noted_is_refused() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let _served = machine.enroll(&capture);
    let bind = |number: usize, port: u16| {
        let socket = stream(Domain::IPV4);
        socket.set_freebind_v4(true).unwrap();
        let address: SocketAddr = format!("192.0.2.{number}:{port}").parse().unwrap();
        socket.bind(&address.into()).map(|()| socket)
    };
    machine.in_slice(|| {
        let bound: Vec<Socket> = (1..=undermesh_abi::MAX_ADDRESSES)
            .map(|number| bind(number, 8080).unwrap())
            .collect();
        let error = bind(100, 8080).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        bind(100, 8081).unwrap();
        drop(bound);
        bind(100, 8080).unwrap();
    });
    assert_eq!(capture.counters().unwrap().unnoted, 1);
    assert_eq!(machine.notes(), 0);
}

fn what_stays_is_left_alone() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let _served = machine.enroll(&capture);
    let server = machine.in_slice(|| listen("[::]:8080"));
    for local in ["127.0.0.1", "10.88.0.2", "::1", "fd88::2"] {
        let target = SocketAddr::new(ip(local), 8080);
        for client in [
            machine.in_slice(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap()),
            machine.beside(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap()),
        ] {
            assert_eq!(client.peer_addr().unwrap(), target);
            accept([&server]);
        }
    }
    let counters = capture.counters().unwrap();
    assert_eq!((counters.captured, counters.inbound_assigned), (0, 0));
}

fn many_threads_are_counted() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    let kept = machine.in_slice(|| {
        let churn = || (0..200).for_each(|_| drop(share("[::]:8080")));
        thread::scope(|scope| {
            let busy: Vec<_> = (0..4).map(|_| scope.spawn(churn)).collect();
            let kept = share("[::]:8080");
            for thread in busy {
                thread.join().unwrap();
            }
            kept
        })
    });
    machine.is_taken(&served, 8080);
    assert_eq!(machine.notes(), 1);
    drop(kept);
    machine.is_free(8080);
}

/// The kernel closes the TCP socket inside one of MPTCP's itself, and no hook sees it.
fn a_multipath_listener() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let multipath = machine.in_slice(|| {
        let protocol = Some(Protocol::from(libc::IPPROTO_MPTCP));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, protocol)?;
        let every: SocketAddr = "0.0.0.0:8080".parse().unwrap();
        socket.bind(&every.into()).unwrap();
        socket.listen(16).unwrap();
        io::Result::Ok(socket)
    });
    let Ok(server) = multipath else {
        eprintln!("note: this kernel has no MPTCP; nothing to find");
        return;
    };
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    machine.is_taken_at(&served, machine.targets(8080)[0]);
    drop(server);
    capture.follow_cgroup().unwrap();
    machine.is_free(8080);
    assert_eq!(machine.notes(), 0);
}

//! A machine from its enrollment to its release, and the place that the tests of it work in.
use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
};

use aya::maps::{Map, MapData};
use socket2::{Domain, Protocol, Socket, Type};
use undermesh_abi::Binding;
use undermesh_capture::{Capture, CaptureError, Enrollment, Prepared, Settings, SliceError};

use crate::{
    Test,
    agent::accept,
    bed::{Bed, Namespace, PATIENCE, Served, activate, eventually, ip},
};

pub const TESTS: &[Test] = &[
    (
        "machine::without_the_agent_the_slice_alone_is_refused",
        without_the_agent,
    ),
    (
        "machine::a_restarted_agent_adopts",
        a_restarted_agent_adopts,
    ),
    (
        "machine::release_gives_everything_back",
        release_gives_everything_back,
    ),
    (
        "machine::a_crash_while_releasing_is_undone",
        a_crash_while_releasing,
    ),
    (
        "machine::a_slice_made_anew_is_followed",
        a_slice_made_anew_is_followed,
    ),
    (
        "machine::an_agent_in_the_slice_is_refused",
        an_agent_in_the_slice_is_refused,
    ),
    (
        "machine::a_foreign_address_or_a_used_table_is_refused",
        a_foreign_address_or_a_used_table,
    ),
];

/// Addresses that nobody has.
pub const OUTSIDE: [&str; 2] = ["203.0.113.7:8080", "[2001:db8::7]:8080"];
/// The wildcards.
const EVERY: [&str; 2] = ["0.0.0.0", "[::]"];

/// A namespace that stands for the machine's own, a peer, and a slice.
pub struct Machine<'a> {
    pub bed: &'a Bed,
    pub own: Namespace,
    pub peer: Namespace,
    pub slice: PathBuf,
}

impl<'a> Machine<'a> {
    pub fn new(bed: &'a Bed) -> Self {
        let (own, peer) = bed.pair("machine");
        let slice = bed.other_cgroup();
        Self {
            bed,
            own,
            peer,
            slice,
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            cgroup: self.slice.clone(),
            ..self.bed.settings()
        }
    }

    /// An agent in the machine's namespace and outside the slice.
    pub fn agent(&self) -> Capture {
        self.own.run(|| Capture::open(self.settings()).unwrap())
    }

    pub fn prepare(&self, capture: &Capture) -> Result<Prepared, CaptureError> {
        capture.prepare(&machine([ip("10.88.0.2"), ip("fd88::2")]))
    }

    pub fn enroll(&self, capture: &Capture) -> Served {
        activate(capture, self.prepare(capture).unwrap())
    }

    /// Runs `work` as a process of the slice. A socket that it makes is the slice's for good.
    pub fn in_slice<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.bed.within(&self.slice, || self.own.run(work))
    }

    /// Runs `work` as any other process of the machine.
    pub fn beside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.own.run(work)
    }

    pub fn connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        self.peer
            .run(|| TcpStream::connect_timeout(&target, PATIENCE))
    }

    /// Both addresses of the machine with this port.
    pub fn targets(&self, port: u16) -> [SocketAddr; 2] {
        ["10.88.0.2", "fd88::2"].map(|address| SocketAddr::new(ip(address), port))
    }

    /// Whether connections from outside to this port come to the agent.
    pub fn is_taken(&self, served: &Served, port: u16) {
        for target in self.targets(port) {
            self.is_taken_at(served, target);
        }
    }

    pub fn is_taken_at(&self, served: &Served, target: SocketAddr) {
        let client = self.connect(target).unwrap();
        let (accepted, source) = served.accept_plaintext();
        assert_eq!(accepted.local_addr().unwrap(), target);
        assert_eq!(source, client.local_addr().unwrap());
    }

    /// Whether another process can have this port now, and what comes to it.
    pub fn is_free(&self, port: u16) {
        for (every, target) in EVERY.into_iter().zip(self.targets(port)) {
            let other = self.beside(|| TcpListener::bind(format!("{every}:{port}")).unwrap());
            let _client = self.connect(target).unwrap();
            assert_eq!(accept([&other]).0.local_addr().unwrap(), target);
        }
    }

    /// Whether the slice's connections are captured and served.
    pub fn is_captured(&self, capture: &Capture, served: &Served) {
        for asked in OUTSIDE {
            let asked: SocketAddr = asked.parse().unwrap();
            let client = self.in_slice(|| TcpStream::connect_timeout(&asked, PATIENCE).unwrap());
            let (_accepted, source) = served.accept_outbound();
            let filed = capture.destinations().take(served.cookie, source);
            assert_eq!(filed, Some(asked));
            assert_eq!(client.peer_addr().unwrap(), asked);
            let own = if asked.is_ipv4() {
                "10.88.0.2"
            } else {
                "fd88::2"
            };
            assert_eq!(client.local_addr().unwrap().ip(), ip(own));
        }
    }

    /// Whether another process of the machine reaches the peer past the agent.
    pub fn others_go_out(&self) {
        let outside = self.peer.run(|| TcpListener::bind("10.88.0.1:0").unwrap());
        let target = outside.local_addr().unwrap();
        let _client = self.beside(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        assert_eq!(accept([&outside]).1.ip(), ip("10.88.0.2"));
    }

    /// How many sockets are noted.
    pub fn notes(&self) -> usize {
        let pin = self.bed.settings().bpffs.join("undermesh/maps/BOUND");
        let map = Map::HashMap(MapData::from_pin(pin).unwrap());
        let map = aya::maps::HashMap::<_, u64, Binding>::try_from(map).unwrap();
        map.keys().map(Result::unwrap).count()
    }
}

fn machine(addresses: impl IntoIterator<Item = IpAddr>) -> Enrollment {
    Enrollment::machine(addresses, "vms", "db-0", "db").unwrap()
}

pub fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).unwrap()
}

/// A listener that shares its port.
pub fn share(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let socket = stream(Domain::for_address(address));
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

pub fn stream(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

pub fn is_refused(error: io::Error) {
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}

/// The slice's traffic is refused both ways, and other processes go on.
fn slice_alone_is_refused(machine: &Machine<'_>, port: u16) {
    for asked in OUTSIDE {
        let asked = asked.parse().unwrap();
        is_refused(machine.in_slice(|| TcpStream::connect_timeout(&asked, PATIENCE).unwrap_err()));
    }
    for target in machine.targets(port) {
        is_refused(machine.connect(target).unwrap_err());
    }
    machine.others_go_out();
    machine.is_free(2222);
}

fn without_the_agent() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let server = machine.in_slice(|| listen("[::]:8080"));
    server.set_nonblocking(true).unwrap();
    drop({
        let capture = machine.agent();
        (machine.enroll(&capture), capture)
    });
    slice_alone_is_refused(&machine, 8080);
    // What begins to listen meanwhile is as closed.
    let late = machine.in_slice(|| listen("[::]:8081"));
    late.set_nonblocking(true).unwrap();
    slice_alone_is_refused(&machine, 8081);
    for listener in [server, late] {
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}

fn a_restarted_agent_adopts() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let before = machine.in_slice(|| listen("[::]:8080"));
    drop({
        let capture = machine.agent();
        (machine.enroll(&capture), capture)
    });
    let meanwhile = machine.in_slice(|| listen("[::]:8081"));
    let capture = machine.agent();
    slice_alone_is_refused(&machine, 8080);
    let mut recovery = capture.recover().unwrap();
    assert!(recovery.problems.is_empty(), "{:?}", recovery.problems);
    let served = activate(&capture, recovery.prepared.pop().unwrap());
    machine.is_captured(&capture, &served);
    for port in [8080, 8081] {
        machine.is_taken(&served, port);
    }
    assert_eq!(machine.notes(), 2, "nothing is noted twice");
    drop((before, meanwhile));
    machine.is_free(8080);
    capture.forget(served.cookie).unwrap();
    assert_eq!(machine.own.sysctl("net/ipv4/tcp_fwmark_accept"), "0");
}

fn release_gives_everything_back() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    // What an administrator has chosen is not what the kernel begins with.
    machine.own.set_sysctl("net/mptcp/enabled", "1");
    machine.own.ip("rule add fwmark 0x111 lookup 100 pref 200");
    machine.own.ip("route add local default dev lo table 100");
    let before = machine.own.network();
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    let server = machine.in_slice(|| listen("[::]:8080"));
    assert_ne!(machine.own.network(), before);
    machine.is_taken(&served, 8080);
    capture.deactivate(served.cookie).unwrap();
    let _client = machine.connect(machine.targets(8080)[0]).unwrap();
    accept([&server]);
    capture.forget(served.cookie).unwrap();
    assert_eq!(machine.own.network(), before);
    assert_eq!((bed.states_left(), bed.pins_left()), (0, 0));
    assert_eq!(machine.notes(), 0);
    drop(served);
    let served = machine.enroll(&capture);
    machine.is_taken(&served, 8080);
    machine.is_captured(&capture, &served);
}

fn a_crash_while_releasing() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let server = machine.in_slice(|| listen("[::]:8080"));
    let before = machine.own.network();
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    capture.deactivate(served.cookie).unwrap();
    drop((capture, served));
    let capture = machine.agent();
    let recovery = capture.recover().unwrap();
    assert!(
        recovery.prepared.is_empty() && recovery.problems.is_empty(),
        "{recovery:?}"
    );
    assert_eq!(machine.own.network(), before);
    assert_eq!((bed.states_left(), bed.pins_left()), (0, 0));
    let _client = machine.connect(machine.targets(8080)[1]).unwrap();
    accept([&server]);
}

fn a_slice_made_anew_is_followed() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let served = machine.enroll(&capture);
    drop(machine.in_slice(|| listen("[::]:8080")));
    eventually(|| fs::remove_dir(&machine.slice).is_ok());
    fs::create_dir(&machine.slice).unwrap();
    let server = machine.in_slice(|| listen("[::]:8081"));
    capture.follow_cgroup().unwrap();
    machine.is_taken(&served, 8081);
    machine.is_captured(&capture, &served);
    capture.follow_cgroup().unwrap();
    machine.is_taken(&served, 8081);
    drop(server);
    assert_eq!(machine.notes(), 0);
}

fn an_agent_in_the_slice_is_refused() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let error = bed.within(&machine.slice, || machine.prepare(&capture).unwrap_err());
    assert!(
        matches!(error, CaptureError::Slice(SliceError::HoldsAgent(_))),
        "{error}"
    );
    assert_eq!(bed.states_left(), 0);
}

fn a_foreign_address_or_a_used_table() {
    let bed = Bed::new();
    let machine = Machine::new(&bed);
    let capture = machine.agent();
    let before = machine.own.network();
    let error = capture.prepare(&self::machine([ip("10.88.0.9")]));
    let error = error.unwrap_err();
    assert!(matches!(error, CaptureError::ForeignAddress(_)), "{error}");
    assert_eq!(machine.own.network(), before);
    machine
        .own
        .ip("route add default via 10.88.0.1 table 15006");
    let before = machine.own.network();
    let error = machine.prepare(&capture).unwrap_err();
    assert!(matches!(error, CaptureError::TableInUse), "{error}");
    assert_eq!(machine.own.network(), before);
    assert_eq!(bed.states_left(), 0);
}

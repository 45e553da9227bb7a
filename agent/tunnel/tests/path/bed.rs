//! A node's workers in a network namespace of the test's own, with pods that differ by their addresses.
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    panic::resume_unwind,
    process::Command,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use tokio::{runtime::Runtime, sync::watch};
use undermesh_identity::{CertificateCache, testing::TestMesh};
use undermesh_model::{
    Baggage, Gateway, GatewayDestination, HBONE_PORT, Mesh, MeshBuilder, Service, ServicePort,
    SharedMesh, Tunnel, Workload,
    service::{AppProtocol, HealthPolicy, IpFamilies, Preference, ServiceEndpoint, Visibility},
};
use undermesh_telemetry::{ConnectionView, Direction, Output, Telemetry};
use undermesh_tunnel::{
    OriginalDestinations, PodConfig, Resolve, WorkerListeners, Workers, WorkersConfig,
};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Mark of the agent's own connections; nothing captures here.
const MARK: u32 = 0x2a;

/// Runs a test on a thread with a network namespace of its own; threads that it starts are in there too.
pub fn in_namespace(test: fn()) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        for host in 1..10 {
            ip(&format!("address add 10.0.0.{host}/32 dev lo"));
        }
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// Destinations that the test says connections were meant for.
#[derive(Default)]
struct Wanted(Mutex<HashMap<SocketAddr, SocketAddr>>);

impl OriginalDestinations for Wanted {
    fn take(&self, _: u64, source: SocketAddr) -> Option<SocketAddr> {
        self.0.lock().unwrap().remove(&source)
    }
}

/// The mesh, and the means to change it.
#[derive(Clone)]
pub struct World {
    pub mesh: SharedMesh,
    changed: watch::Sender<u64>,
}

impl World {
    pub fn new() -> Self {
        Self {
            mesh: SharedMesh::new(Mesh::empty()),
            changed: watch::Sender::new(0),
        }
    }

    /// Adds to the mesh; a part that is there already is replaced.
    pub fn learn(&self, workloads: &[&Workload], services: &[&Service]) {
        let mesh = self.mesh.snapshot();
        let mut builder = MeshBuilder {
            workloads: mesh.workloads().cloned().collect(),
            services: mesh.services().cloned().collect(),
            policies: Vec::new(),
        };
        let workloads = workloads.iter().copied().cloned();
        builder.workloads.extend(workloads.map(Arc::new));
        let services = services.iter().copied().cloned();
        builder.services.extend(services.map(Arc::new));
        self.mesh.replace(builder.build(&mesh));
        self.changed.send_replace(self.mesh.generation());
    }
}

/// A node.
pub struct Bed {
    runtime: Runtime,
    certificates: CertificateCache,
    workers: Workers,
    wanted: Arc<Wanted>,
    telemetry: Telemetry,
}

impl Bed {
    pub fn new(world: &World, resolver: Option<Arc<dyn Resolve>>) -> Self {
        let runtime = Runtime::new().unwrap();
        let certificates = TestMesh::new("cluster.local").cache(runtime.handle().clone());
        let telemetry = Telemetry::new(Output::discard(), "test").unwrap();
        let wanted = Arc::new(Wanted::default());
        let workers = Workers::start(WorkersConfig {
            workers: 1,
            mesh: world.mesh.clone(),
            changed: world.changed.subscribe(),
            telemetry: telemetry.clone(),
            destinations: Arc::clone(&wanted) as Arc<dyn OriginalDestinations>,
            announce: None,
            resolver,
            runtime: runtime.handle().clone(),
        });
        Self {
            runtime,
            certificates,
            workers: workers.unwrap(),
            wanted,
            telemetry,
        }
    }

    /// Serves a pod; tells where its captured connections are taken.
    pub fn serve(&self, workload: &Workload) -> SocketAddr {
        let outbound = TcpListener::bind("127.0.0.1:0").unwrap();
        let captured = outbound.local_addr().unwrap();
        let address = workload.addresses[0];
        let certificate = self.certificates.acquire(&workload.identity);
        let config = PodConfig {
            id: captured.port().into(),
            namespace: Arc::clone(&workload.namespace),
            name: Arc::clone(&workload.name),
            identity: workload.identity.clone(),
            certificate: certificate.clone(),
            netns: Arc::new(File::open("/proc/thread-self/ns/net").unwrap().into()),
            outbound_mark: MARK,
            listeners: vec![WorkerListeners {
                outbound: vec![outbound],
                plaintext: Vec::new(),
                hbone: vec![TcpListener::bind((address, HBONE_PORT)).unwrap()],
            }],
        };
        self.runtime.block_on(async {
            certificate.ready().await;
            self.workers.add_pod(config).await.unwrap();
        });
        captured
    }

    /// A connection of the pod's application to `target`.
    pub fn connect(&self, captured: SocketAddr, target: &str) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let near = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&near.into()).unwrap();
        let near = socket.local_addr().unwrap().as_socket().unwrap();
        let target = target.parse().unwrap();
        self.wanted.0.lock().unwrap().insert(near, target);
        socket.connect(&captured.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Waits until the node carries nothing.
    pub fn wait_until_closed(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.telemetry.open_connections() > 0 {
            assert!(Instant::now() < deadline, "connections stay open");
            thread::yield_now();
        }
    }

    /// The connection of a direction that is open now.
    pub fn open(&self, direction: Direction) -> ConnectionView {
        let open = self.telemetry.connections();
        let mut open = open.into_iter().filter(|it| it.direction == direction);
        let found = open.next().expect("a connection");
        assert!(open.next().is_none(), "one connection");
        found
    }
}

/// An application: answers the first bytes of each connection with `seen`, and keeps them.
pub struct Application(mpsc::Receiver<Vec<u8>>);

impl Application {
    pub fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (keep, kept) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut bytes = vec![0; 1024];
                let Ok(count) = stream.read(&mut bytes) else {
                    continue;
                };
                bytes.truncate(count);
                if keep.send(bytes).is_err() {
                    return;
                }
                // The client may be gone by now, if its test is over.
                let _ = stream.write_all(b"seen");
                let _ = io::copy(&mut stream, &mut io::sink());
            }
        });
        Self(kept)
    }

    /// The bytes of the next connection.
    pub fn received(&self) -> Vec<u8> {
        self.0.recv_timeout(PATIENCE).unwrap()
    }

    /// Whether no connection has come.
    pub fn was_left_alone(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }
}

/// Says hello and hears the answer.
pub fn talk(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"hello")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"seen");
    Ok(())
}

/// Ends a conversation; the application goes on to the next.
pub fn hang_up(stream: TcpStream) {
    stream.shutdown(Shutdown::Both).unwrap();
}

/// A mesh pod in namespace `shop`.
pub fn workload(name: &str, address: &str) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
    Workload {
        uid: format!("c//Pod/shop/{name}").into(),
        name: name.into(),
        workload_name: name.into(),
        addresses: vec![address.parse::<IpAddr>().unwrap()],
        ..Baggage::default().into_workload(&identity.parse().unwrap(), "")
    }
}

/// A workload outside the mesh that only a name tells the address of.
pub fn named(name: &str, hostname: &str) -> Workload {
    Workload {
        addresses: Vec::new(),
        hostname: hostname.into(),
        tunnel: Tunnel::None,
        ..workload(name, "0.0.0.0")
    }
}

/// A service in namespace `shop` with one port.
pub fn service(name: &str, address: &str, port: (u16, u16), endpoint: &Workload) -> Service {
    Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop").into(),
        network: "".into(),
        addresses: vec![address.parse::<IpAddr>().unwrap().into()],
        ports: vec![ServicePort {
            port: port.0,
            target_port: Some(port.1),
            name: "".into(),
            protocol: AppProtocol::Unknown,
        }],
        preference: Preference::None,
        health_policy: HealthPolicy::OnlyHealthy,
        subject_alt_names: Vec::new(),
        canonical: true,
        visibility: Visibility::Public,
        ip_families: IpFamilies::Automatic,
        waypoint: None,
        weighted_waypoints: Vec::new(),
        ingress_use_waypoint: false,
        endpoints: vec![ServiceEndpoint {
            workload: Arc::clone(&endpoint.uid),
            ports: Vec::new(),
        }],
    }
}

/// The gateway that is known by the service `<name>.shop`.
pub fn gateway(name: &str) -> Gateway {
    Gateway {
        destination: GatewayDestination::Hostname {
            namespace: "shop".into(),
            hostname: format!("{name}.shop").into(),
        },
        port: HBONE_PORT,
    }
}

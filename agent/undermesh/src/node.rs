//! The one place where the rooms are wired together: a node from its start to its end.
mod agent;
mod dump;
mod fault;
mod gauges;
mod place;
mod pods;
mod source;
mod turns;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::{AbortHandle, JoinError, spawn_blocking},
};
use undermesh_capture::{Capture, CaptureError, Recovery, Watch};
use undermesh_control::{DirectorySource, Snapshot, SourceError};
use undermesh_identity::{Authority, AuthorityError, CacheOptions, CertificateCache, SystemClock};
use undermesh_model::{Mesh, SharedMesh};
use undermesh_telemetry::{
    Logging, Output, Readiness, Telemetry,
    admin::{Admin, Ready, Stats},
    http::{Handler, serve},
    logging::LoggingError,
    metrics::MetricsError,
};
use undermesh_tunnel::{Workers, WorkersConfig, WorkersError};

use crate::{
    api::{server::Api, socket},
    command::NodeOptions,
    duration,
};
use agent::Agent;
use place::PlaceError;
use pods::{Filed, Parts, Pods};
use source::Source;

/// Threads for everything but the data path.
const ADMIN_THREADS: usize = 2;
/// How often series and other leftovers are looked through.
const MAINTENANCE: Duration = Duration::from_secs(30);
/// The running version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The run directory or socket.
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    /// The cgroup or the node's name.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The log's directives.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// A metric.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The manifests.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The data plane.
    #[error(transparent)]
    Workers(#[from] WorkersError),
    /// An address is taken.
    #[error(
        "{what} cannot be served on {address}: {error}; free the address, or give another with --{what}-address"
    )]
    Listen {
        /// Which server.
        what: &'static str,
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The system has no more of something.
    #[error("{what} could not be set up: {error}; check the limits of the agent's process")]
    System {
        /// What.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A task of the start panicked.
    #[error("a step of the start broke off: {0}; see the log")]
    Broken(#[from] JoinError),
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// When it cannot start; the error names what is missing and what to do.
pub fn run(options: NodeOptions) -> Result<(), NodeError> {
    let (output, output_thread) =
        Output::start(options.log_format, io::stdout()).map_err(|error| NodeError::System {
            what: "the log",
            error,
        })?;
    let logging = Logging::start(output.clone(), options.log_format, &options.log_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ADMIN_THREADS)
        .thread_name("admin")
        .enable_all()
        .build()
        .map_err(|error| NodeError::System {
            what: "the administration",
            error,
        })?;
    let result = runtime.block_on(live(options, output, logging));
    runtime.shutdown_background();
    drop(output_thread);
    result
}

/// Starts everything, waits for a signal, stops everything.
async fn live(options: NodeOptions, output: Output, logging: Logging) -> Result<(), NodeError> {
    let started = Instant::now();
    place::raise_open_files();
    let mut stop = Stop::listen()?;
    let (run_directory, api) = socket::bind(&options.run_dir)?;
    let api = UnixListener::from_std(api).map_err(|error| NodeError::System {
        what: "the API",
        error,
    })?;
    let telemetry = Telemetry::new(output, VERSION)?;
    let readiness = Readiness::new();
    let starting = readiness.block("the start");
    let ready = Arc::new(Ready(readiness.clone()));
    let stats = Arc::new(Stats(telemetry.clone()));
    let _readiness = Server::start("readiness", options.readiness_address, ready).await?;
    let _stats = Server::start("stats", options.stats_address, stats).await?;

    let (agent, recovery) = start(&options, telemetry, logging, readiness.clone(), started).await?;
    let admin = Admin {
        config: agent.config_dump(),
        logging: agent.logging.clone(),
        readiness: readiness.clone(),
        telemetry: agent.telemetry.clone(),
    };
    let _admin = Server::start("admin", options.admin_address, Arc::new(admin)).await?;
    agent.pods.recover(recovery).await;
    let api = Server(tokio::spawn(serve(api, Arc::new(Api(agent.clone())))).abort_handle());
    starting.done();
    tracing::info!(version = VERSION, node = %agent.name, pods = agent.pods.len(), "the node is ready");

    stop.wait().await;
    let _stopping = readiness.block("the end");
    let drain = options.drain_timeout;
    tracing::info!(drain = %duration::written(drain), "stopping; enrolled pods stay enrolled, their new connections are refused");
    drop(api);
    tokio::select! {
        () = agent.pods.stop(drain) => {}
        () = stop.wait() => tracing::warn!("told to stop again; open connections are cut"),
    }
    drop(run_directory);
    tracing::info!("stopped");
    Ok(())
}

/// Opens the rooms in the order in which they depend on each other.
async fn start(
    options: &NodeOptions,
    telemetry: Telemetry,
    logging: Logging,
    readiness: Readiness,
    started: Instant,
) -> Result<(Arc<Agent>, Recovery), NodeError> {
    let name = place::node_name(options)?;
    let (directory, snapshot) = open_source(options).await?;
    let certificates = open_certificates(options).await?;
    let count = place::workers(options);
    let settings = place::capture(options, count)?;
    let (capture, recovery) = spawn_blocking(move || {
        let capture = Capture::open(settings)?;
        let recovery = capture.recover()?;
        Ok::<_, CaptureError>((Arc::new(capture), recovery))
    })
    .await??;
    if let Some(log) = capture.take_log() {
        tokio::spawn(async {
            if let Err(error) = log.run().await {
                tracing::warn!(%error, "messages of the kernel programs are no longer logged");
            }
        });
    }

    let mesh = SharedMesh::new(Mesh::empty());
    let (changed, changes) = watch::channel(0);
    let source = Arc::new(Source::new(options.config.clone(), mesh.clone(), changed));
    source.apply(snapshot);
    let workers = Workers::start(WorkersConfig {
        workers: count,
        mesh: mesh.clone(),
        changed: changes.clone(),
        telemetry: telemetry.clone(),
        destinations: Arc::new(Filed(capture.destinations())),
    })?;
    let (watch, vanished) = Watch::start().map_err(|error| NodeError::System {
        what: "the watch of pods",
        error,
    })?;
    let pods = Arc::new(Pods::new(Parts {
        capture,
        workers,
        certificates,
        mesh,
        telemetry: telemetry.clone(),
        watch,
        trust_domain: options.trust_domain.clone(),
        drain: options.drain_timeout,
    }));
    let agent = Arc::new(Agent {
        name,
        started,
        options: options.clone(),
        pods: Arc::clone(&pods),
        source: Arc::clone(&source),
        telemetry: telemetry.clone(),
        logging,
        readiness,
    });
    gauges::add(&agent)?;
    tokio::spawn(source.follow(directory));
    tokio::spawn(Arc::clone(&pods).follow_vanished(vanished));
    tokio::spawn(pods.follow_mesh(changes));
    tokio::spawn(maintain(telemetry));
    Ok((agent, recovery))
}

async fn open_source(options: &NodeOptions) -> Result<(DirectorySource, Snapshot), NodeError> {
    let (config, settings) = (options.config.clone(), place::mesh(options));
    Ok(spawn_blocking(move || DirectorySource::open(config, settings)).await??)
}

async fn open_certificates(options: &NodeOptions) -> Result<CertificateCache, NodeError> {
    let directory = options
        .ca_dir
        .clone()
        .unwrap_or_else(|| options.run_dir.join("ca"));
    let trust_domain = options.trust_domain.clone();
    let open = move || Authority::open(&directory, trust_domain, Arc::new(SystemClock));
    let authority = spawn_blocking(open).await??;
    let cache = CacheOptions {
        lifetime: options.certificate_lifetime,
        ..CacheOptions::default()
    };
    let runtime = tokio::runtime::Handle::current();
    Ok(CertificateCache::new(Arc::new(authority), cache, runtime))
}

async fn maintain(telemetry: Telemetry) {
    let mut ticks = tokio::time::interval(MAINTENANCE);
    loop {
        ticks.tick().await;
        telemetry.maintain(Instant::now());
    }
}

/// A server that ends when this is dropped.
struct Server(AbortHandle);

impl Server {
    async fn start(
        what: &'static str,
        address: SocketAddr,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, NodeError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| NodeError::Listen {
                what,
                address,
                error,
            })?;
        Ok(Self(tokio::spawn(serve(listener, handler)).abort_handle()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The signals that end the node.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self, NodeError> {
        let listen = |kind| {
            signal(kind).map_err(|error| NodeError::System {
                what: "the signal handler",
                error,
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

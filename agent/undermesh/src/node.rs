//! The one place where the rooms are wired together: a node from its start to its end.
mod agent;
mod dump;
mod enroller;
mod fault;
mod feed;
mod gauges;
mod machine;
mod place;
mod pods;
mod roster;
mod source;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::UnixListener,
    runtime::Handle,
    sync::watch,
    task::{JoinError, spawn_blocking},
};
use undermesh_capture::{Capture, CaptureError, Recovery, Watch};
use undermesh_cni::node::Turns;
use undermesh_identity::{CacheOptions, CertificateCache};
use undermesh_model::{Mesh, SharedMesh};
use undermesh_telemetry::{
    Logging, Output, Readiness, Telemetry,
    admin::{Admin, Ready, Stats},
    http::serve,
    logging::LoggingError,
    metrics::MetricsError,
};
use undermesh_tunnel::{Announce, Workers, WorkersConfig, WorkersError};

use crate::{
    api::{server::Api, socket},
    command::NodeOptions,
    duration,
    process::{self, ProcessError, Server, Stop, VERSION},
};
use agent::Agent;
use feed::{Feed, FeedError};
use machine::{Machine, MachineError};
use place::PlaceError;
use pods::{Announced, Filed, Pods};
use roster::{Roster, RosterError};
use source::Source;

/// Threads for everything but the data path.
const ADMIN_THREADS: usize = 2;
/// How often series and other leftovers are looked through.
const MAINTENANCE: Duration = Duration::from_secs(30);

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
    /// What a machine joins with.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Where configuration and certificates come from.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// Where the pods of this node are learnt.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// Capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The data plane.
    #[error(transparent)]
    Workers(#[from] WorkersError),
    /// An address is taken, or the system has no more of something.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A task of the start panicked.
    #[error("a step of the start broke off: {0}; see the log")]
    Broken(#[from] JoinError),
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// When it cannot start; the error names what is missing and what to do.
pub fn run(options: NodeOptions) -> Result<(), NodeError> {
    let (output, output_thread) = Output::start(options.log_format, io::stdout())
        .map_err(|error| ProcessError::system("the log", error))?;
    let logging = Logging::start(output.clone(), options.log_format, &options.log_level)?;
    let runtime = process::runtime("admin", ADMIN_THREADS)?;
    let result = runtime.block_on(live(options, output, logging));
    runtime.shutdown_background();
    drop(output_thread);
    result
}

/// Starts everything, waits for a signal, stops everything.
async fn live(options: NodeOptions, output: Output, logging: Logging) -> Result<(), NodeError> {
    let started = Instant::now();
    let (options, machine) = Machine::open(options).await?;
    place::raise_open_files();
    let mut stop = Stop::listen()?;
    let (run_directory, api) = socket::bind(&options.run_dir)?;
    let api =
        UnixListener::from_std(api).map_err(|error| ProcessError::system("the API", error))?;
    let telemetry = Telemetry::new(output, VERSION)?;
    let readiness = Readiness::new();
    let starting = readiness.block("the start");
    let ready = Arc::new(Ready(readiness.clone()));
    let stats = Arc::new(Stats(telemetry.clone()));
    let _readiness = Server::start("readiness", options.readiness_address, ready).await?;
    let _stats = Server::start("stats", options.stats_address, stats).await?;

    let parts = Parts {
        telemetry,
        logging,
        readiness: readiness.clone(),
        started,
    };
    let (agent, recovery) = start(&options, machine.as_deref(), parts).await?;
    let admin = Admin {
        config: agent.config_dump(),
        logging: agent.logging.clone(),
        readiness: readiness.clone(),
        telemetry: agent.telemetry.clone(),
    };
    let _admin = Server::start("admin", options.admin_address, Arc::new(admin)).await?;
    agent.pods.recover(recovery).await;
    if let (Some(machine), Some(client)) = (&machine, agent.source.client()) {
        let first = readiness.block("the machine's enrollment");
        let (pods, client) = (Arc::clone(&agent.pods), client.clone());
        tokio::spawn(Arc::clone(machine).serve(pods, client, first));
    }
    let roster = Roster::start(&options, &agent.name, Arc::clone(&agent.pods), &readiness).await?;
    let api = Server(tokio::spawn(serve(api, Arc::new(Api(agent.clone())))).abort_handle());
    starting.done();
    tracing::info!(version = VERSION, node = %agent.name, pods = agent.pods.len(), "the node serves");

    stop.wait().await;
    let _stopping = readiness.block("the end");
    let drain = options.drain_timeout;
    tracing::info!(drain = %duration::written(drain), "stopping");
    drop(api);
    if let Some(roster) = roster {
        roster.end().await;
    }
    if let (Some(machine), Some(client)) = (&machine, agent.source.client()) {
        tokio::select! {
            () = machine.end(&agent.pods, client) => {}
            () = stop.wait() => tracing::warn!("told to stop again; the machine stays captured"),
        }
    }
    if agent.pods.len() > 0 {
        tracing::info!("what is enrolled stays enrolled; its new connections are refused");
    }
    tokio::select! {
        () = agent.pods.stop(drain) => {}
        () = stop.wait() => tracing::warn!("told to stop again; open connections are cut"),
    }
    agent.source.stop().await;
    drop(run_directory);
    tracing::info!("stopped");
    Ok(())
}

/// What is there before the rooms are opened.
struct Parts {
    telemetry: Telemetry,
    logging: Logging,
    readiness: Readiness,
    started: Instant,
}

/// Opens the rooms in the order in which they depend on each other.
async fn start(
    options: &NodeOptions,
    machine: Option<&Machine>,
    parts: Parts,
) -> Result<(Arc<Agent>, Recovery), NodeError> {
    let Parts {
        telemetry,
        logging,
        readiness,
        started,
    } = parts;
    let name = place::node_name(options)?;
    let Feed {
        follow,
        issuer,
        resolver,
    } = Feed::open(options, &name, machine).await?;
    let cache = CacheOptions {
        lifetime: options.certificate_lifetime,
        ..CacheOptions::default()
    };
    let certificates = CertificateCache::new(issuer, cache, Handle::current());
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
    let (source, following) = Source::start(follow, mesh.clone(), changed, &readiness);
    let workers = Workers::start(WorkersConfig {
        workers: count,
        mesh: mesh.clone(),
        changed: changes.clone(),
        telemetry: telemetry.clone(),
        destinations: Arc::new(Filed(capture.destinations())),
        announce: capture
            .announcements()
            .map(|announcements| Arc::new(Announced(announcements)) as Arc<dyn Announce>),
        resolver,
        runtime: Handle::current(),
    })?;
    let (watch, vanished) =
        Watch::start().map_err(|error| ProcessError::system("the watch of pods", error))?;
    let pods = Arc::new(Pods {
        capture,
        workers,
        certificates,
        mesh,
        telemetry: telemetry.clone(),
        watch,
        trust_domain: options.trust_domain.clone(),
        drain: options.drain_timeout,
        turns: Turns::default(),
    });
    let agent = Arc::new(Agent {
        name,
        started,
        options: options.clone(),
        pods: Arc::clone(&pods),
        source,
        telemetry: telemetry.clone(),
        logging,
        readiness,
    });
    gauges::add(&agent)?;
    tokio::spawn(following);
    tokio::spawn(Arc::clone(&pods).follow_vanished(vanished));
    tokio::spawn(pods.follow_mesh(changes));
    tokio::spawn(maintain(telemetry));
    Ok((agent, recovery))
}

async fn maintain(telemetry: Telemetry) {
    let mut ticks = tokio::time::interval(MAINTENANCE);
    loop {
        ticks.tick().await;
        telemetry.maintain(Instant::now());
    }
}

//! The control plane of a cluster: what it watches, what it serves, and the order in which that starts.
mod gauges;
mod identity;
mod machines;
mod publish;

use std::{io, net::SocketAddr, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tonic::service::Routes;
use undermesh_admission::{
    status::{self, WriterSettings},
    webhook::{
        Webhook,
        authority::{self, Inputs},
    },
};
use undermesh_ca::{
    access::Access,
    bundle,
    callers::OptionalCallers,
    keeper::{Keeper, KeeperError, KeeperOptions},
    live::{Lifetimes, LiveAuthority},
    role::Role,
    service::CertificateService,
    serving::{self, Serving},
};
use undermesh_control::Settings;
use undermesh_identity::{ServingError, SystemClock, tls::provider};
use undermesh_kubernetes::{
    connect::{self, ConnectError},
    lease::{Candidate, Leadership, LeaseSettings, Timing},
    source::{Source, SourceSettings},
    tokens::{ReviewSettings, TokenReviewer},
};
use undermesh_machine::{
    cluster::Cluster,
    ledger::Times,
    registrar::{self, Registrar},
};
use undermesh_telemetry::{
    Logging, Output, Readiness, Telemetry,
    admin::{Ready, Stats},
    logging::LoggingError,
    metrics::MetricsError,
};
use undermesh_xds::server::{self as discovery, Hub, Limits};

use crate::{command::ControllerOptions, grpc, process};
use identity::KnownPods;
use machines::{Callers, Desk, Known, Registered};
use publish::Publisher;

/// The Lease that replicas share.
const LEASE: &str = "undermesh-controller";
/// The webhook configuration that the chart makes.
const WEBHOOK: &str = "undermesh";
/// Threads of the runtime: watching and pushing are light, signing and TLS are what takes time.
const THREADS: usize = 2;

/// Why a controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The log's directives.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// A metric.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The CA's Secrets.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The controller's own certificate.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The certificate cannot be served.
    #[error("the TLS of the controller cannot be set up: {0}; report this as a bug")]
    Tls(#[from] rustls::Error),
    /// An address is taken, or the system has no more of something.
    #[error(transparent)]
    Process(#[from] process::ProcessError),
}

/// Runs a controller until it is told to stop.
///
/// # Errors
/// When it cannot start; the error names what is missing and what to do.
pub fn run(options: ControllerOptions) -> Result<(), ControllerError> {
    let (output, output_thread) = Output::start(options.log_format, io::stdout())
        .map_err(|error| process::ProcessError::system("the log", error))?;
    let _logging = Logging::start(output.clone(), options.log_format, &options.log_level)?;
    let runtime = process::runtime("controller", THREADS)?;
    let result = runtime.block_on(live(options, output));
    runtime.shutdown_background();
    drop(output_thread);
    result
}

/// Starts everything, waits for a signal, stops everything.
async fn live(options: ControllerOptions, output: Output) -> Result<(), ControllerError> {
    let mut stop = process::Stop::listen()?;
    let telemetry = Telemetry::new(output, process::VERSION)?;
    let readiness = Readiness::new();
    let starting = readiness.block("the start");
    let synced = readiness.block("the first listing of the cluster");
    let ready = Arc::new(Ready(readiness.clone()));
    let stats = Arc::new(Stats(telemetry.clone()));
    let _readiness = process::Server::start("readiness", options.readiness_address, ready).await?;
    let _stats = process::Server::start("stats", options.stats_address, stats).await?;

    let client = connect::connect_checked(&access(&options)).await?;
    let source = Source::start(client.clone(), SourceSettings::new(settings(&options)));
    let candidate = Candidate::start(client.clone(), lease(&options));
    let leads = derived(candidate.leadership(), Leadership::is_leader);
    let role = derived(leads.clone(), role);
    let keeper = Keeper::open(client.clone(), keeper_options(&options)).await?;
    let live = keeper.authority();
    let names = serving::names(&options.namespace);
    let serving = Serving::new(Arc::clone(&live), &names, Arc::new(SystemClock))?;
    let hub = Hub::new(Limits::default());
    let cluster = Cluster::new(client.clone());
    let authenticator = Arc::new(Callers {
        tokens: TokenReviewer::new(client.clone(), ReviewSettings::default()),
        cluster: cluster.clone(),
    });
    let (list, listed) = watch::channel(false);
    let known = Known {
        hub: Arc::clone(&hub),
        listed,
    };
    let registrar = Registrar::new(cluster.clone(), Arc::new(known), registrar(&options));
    let access = Access {
        trust_domain: options.trust_domain.clone(),
        node_accounts: identity::node_accounts(&options),
        authenticator: authenticator.clone(),
        pods: Arc::new(KnownPods(source.pods())),
        machines: Arc::new(Registered(cluster)),
    };
    let certificates = CertificateService::new(access, Arc::clone(&live));
    gauges::add(
        &telemetry,
        &hub,
        &certificates.counters(),
        source.health(),
        candidate.leadership(),
    )?;

    let webhook_tls = tls(&serving)?;
    let discovery_tls = tls_with_callers(&serving, &live)?;
    let discovery = discovery::service(Arc::clone(&hub), authenticator)
        .with_machines(Arc::new(Desk(Arc::clone(&registrar))));
    let routes = Routes::new(discovery).add_service(certificates.into_server());
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&registrar).run());
    tasks.spawn(Arc::clone(&registrar).sweep(leads.clone()));
    tasks.spawn(serving.run());
    tasks.spawn(keeper.run(role.clone()));
    tasks.spawn(bundle::publish(client.clone(), Arc::clone(&live), role));
    let (reports, writer) = status::writer(
        client.clone(),
        WriterSettings::default(),
        Arc::new(Timestamp::now),
    );
    let writing = writer.run(leads.clone());
    tasks.spawn(async move {
        writing.await;
    });
    let publisher = Publisher {
        hub,
        reports,
        registrar,
        listed: list,
    };
    tasks.spawn(publisher.follow(source, synced));
    let webhook = Webhook::new(settings(&options), webhook_tls);
    let webhook_listener = listen("webhook", options.webhook_address).await?;
    tasks.spawn(async move {
        webhook.serve(webhook_listener).await;
    });
    let inputs = Inputs {
        roots: derived(live.subscribe(), move |_| live.roots_pem()),
        leads,
    };
    let client_of_webhook = client.clone();
    tasks.spawn(async move {
        authority::keep(client_of_webhook, WEBHOOK, inputs).await;
    });
    let listener = listen("discovery", options.discovery_address).await?;
    tasks.spawn(grpc::serve(listener, discovery_tls, routes));
    starting.done();
    tracing::info!(version = process::VERSION, address = %options.discovery_address, "the controller serves");

    tokio::select! {
        () = stop.wait() => {}
        // Each of them runs for ever; one that ends has broken off, and a new process is what helps.
        Some(ended) = tasks.join_next() => {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the controller broke off");
            }
        }
    }
    let _stopping = readiness.block("the end");
    drop(tasks);
    candidate.release().await;
    tracing::info!("stopped");
    Ok(())
}

fn access(options: &ControllerOptions) -> connect::Access {
    match &options.kubeconfig {
        Some(path) => connect::Access::Kubeconfig {
            path: Some(path.clone()),
            context: None,
        },
        None => connect::Access::Automatic,
    }
}

fn settings(options: &ControllerOptions) -> Settings {
    Settings {
        trust_domain: options.trust_domain.clone(),
        cluster: Arc::from(options.cluster_id.as_str()),
        network: Arc::from(options.network.as_str()),
        root_namespace: Arc::from(options.namespace.as_str()),
        ..Settings::default()
    }
}

fn lease(options: &ControllerOptions) -> LeaseSettings {
    LeaseSettings {
        namespace: options.namespace.clone(),
        name: LEASE.to_owned(),
        identity: identity::replica(options),
        timing: Timing::default(),
    }
}

fn keeper_options(options: &ControllerOptions) -> KeeperOptions {
    let default = options.certificate_lifetime;
    KeeperOptions {
        namespace: options.namespace.clone(),
        trust_domain: options.trust_domain.clone(),
        lifetimes: Lifetimes {
            default,
            max: default * 2,
        },
        clock: Arc::new(SystemClock),
    }
}

/// What follows from another value, kept up with it until nobody reads it any more.
fn derived<A, B>(
    mut source: watch::Receiver<A>,
    derive: impl Fn(&A) -> B + Send + 'static,
) -> watch::Receiver<B>
where
    A: Send + Sync + 'static,
    B: PartialEq + Send + Sync + 'static,
{
    let (sender, derived) = watch::channel(derive(&source.borrow_and_update()));
    tokio::spawn(async move {
        while source.changed().await.is_ok() && !sender.is_closed() {
            let now = derive(&source.borrow_and_update());
            sender.send_if_modified(|value| {
                let differs = *value != now;
                *value = now;
                differs
            });
        }
    });
    derived
}

fn role(leads: &bool) -> Role {
    match leads {
        true => Role::Leader,
        false => Role::Follower,
    }
}

fn registrar(options: &ControllerOptions) -> registrar::Settings {
    registrar::Settings {
        replica: identity::replica(options),
        cluster: options.cluster_id.clone(),
        network: options.network.clone(),
        times: Times::default(),
        clock: Arc::new(SystemClock),
    }
}

/// TLS of a server that asks nobody for a certificate.
fn tls(serving: &Serving) -> Result<ServerConfig, rustls::Error> {
    let config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(serving.certificate());
    Ok(config)
}

/// TLS of the server for nodes, which prove themselves by tokens, and for machines, which have a certificate too.
fn tls_with_callers(
    serving: &Serving,
    authority: &Arc<LiveAuthority>,
) -> Result<ServerConfig, rustls::Error> {
    let config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(OptionalCallers::new(Arc::clone(authority)))
        .with_cert_resolver(serving.certificate());
    Ok(config)
}

async fn listen(
    what: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, process::ProcessError> {
    let listening = TcpListener::bind(address).await;
    listening.map_err(|error| process::ProcessError::Listen {
        what,
        address,
        error,
    })
}

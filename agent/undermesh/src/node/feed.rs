//! Where configuration and certificates come from: a directory with an authority of its own, or a control plane.
use std::{
    env,
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    runtime::Handle,
    task::{JoinError, spawn_blocking},
    time::Instant,
};
use undermesh_ca::{
    client::{CaClient, ClientError, ClientOptions, ServerRoots, TokenOwner, Trust},
    spire::{SocketError, SpireDelegated},
};
use undermesh_control::{DirectorySource, Snapshot, SourceError};
use undermesh_identity::{Authority, AuthorityError, Issuer, SystemClock};
use undermesh_tunnel::{Resolve, Unanswered};
use undermesh_xds::client::{
    Client, Options, OptionsError, Resolution, Resolver, Subscription, Updates,
    options::{Address, NodeOptions as DiscoveryNode, Roots, Token},
};

use super::{machine::Machine, place};
use crate::{
    command::{ControlOptions, NodeOptions, Subscribe},
    process::VERSION,
};

/// How long a connection waits for the control plane to say what its destination is.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The file of the last known state, in the run directory.
const CACHE: &str = "discovery.cache";
/// What stands for the system's roots in Istio's variables.
const SYSTEM_ROOTS: &str = "SYSTEM";
/// The metadata by which a machine registers, as in Istio: its WorkloadGroup and its network.
const GROUP: &str = "AUTO_REGISTER_GROUP";
const NETWORK: &str = "NETWORK";

/// Why there is neither configuration nor a certificate.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The manifests.
    #[error(transparent)]
    Directory(#[from] SourceError),
    /// The authority beside them.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The control plane.
    #[error(transparent)]
    Discovery(#[from] OptionsError),
    /// The certificate service.
    #[error(transparent)]
    Certificates(#[from] ClientError),
    /// SPIRE.
    #[error(transparent)]
    Spire(#[from] SocketError),
    /// Neither a directory nor a control plane.
    #[error(
        "nothing says where the configuration comes from; give --standalone --config DIR, or --control-plane URL"
    )]
    Nothing,
    /// A task of the start panicked.
    #[error("a step of the start broke off: {0}; see the log")]
    Broken(#[from] JoinError),
}

/// What the node lives on.
pub struct Feed {
    /// The configuration.
    pub follow: Follow,
    /// Who signs certificates.
    pub issuer: Arc<dyn Issuer>,
    /// Who is asked about unknown destinations; nobody when the whole mesh is known.
    pub resolver: Option<Arc<dyn Resolve>>,
}

/// A source of configuration that is ready to be followed.
pub enum Follow {
    /// A directory, and what it says now.
    Directory(PathBuf, DirectorySource, Snapshot),
    /// A control plane.
    ControlPlane(Client, Updates),
}

impl Feed {
    /// Opens what the options name.
    ///
    /// # Errors
    /// When it cannot be used; a control plane that does not answer is no error.
    pub async fn open(
        options: &NodeOptions,
        node: &str,
        machine: Option<&Machine>,
    ) -> Result<Self, FeedError> {
        if let Some(url) = &options.control.control_plane {
            return control_plane(options, url, node, machine);
        }
        let directory = options.config.clone().ok_or(FeedError::Nothing)?;
        let (config, settings) = (directory.clone(), place::mesh(options));
        let (source, snapshot) =
            spawn_blocking(move || DirectorySource::open(config, settings)).await??;
        Ok(Self {
            follow: Follow::Directory(directory, source, snapshot),
            issuer: Arc::new(own_authority(options).await?),
            resolver: None,
        })
    }
}

async fn own_authority(options: &NodeOptions) -> Result<Authority, FeedError> {
    let directory = options
        .ca_dir
        .clone()
        .unwrap_or_else(|| options.run_dir.join("ca"));
    let trust_domain = options.trust_domain.clone();
    let open = move || Authority::open(&directory, trust_domain, Arc::new(SystemClock));
    Ok(spawn_blocking(open).await??)
}

fn control_plane(
    options: &NodeOptions,
    url: &str,
    node: &str,
    machine: Option<&Machine>,
) -> Result<Feed, FeedError> {
    let mut told = discovery(options, url, node)?;
    let issuer = match machine {
        Some(machine) => {
            register(&mut told, machine);
            Arc::new(CaClient::new(of_machine(options, machine))?)
        }
        None => issuer(options, url)?,
    };
    let (client, updates) = Client::start(told, &Handle::current());
    let resolver = client
        .resolver()
        .map(|resolver| Arc::new(OnDemand(resolver)) as Arc<dyn Resolve>);
    Ok(Feed {
        follow: Follow::ControlPlane(client, updates),
        issuer,
        resolver,
    })
}

/// What the environment says of more headers and metadata, under what the command line says of the rest.
fn discovery(options: &NodeOptions, url: &str, node: &str) -> Result<Options, FeedError> {
    let control = &options.control;
    let address = Address::new(url)?;
    let from_environment = Options::from_environment(variables())?;
    let mut metadata = from_environment.node.metadata;
    metadata
        .entry("UNDERMESH_VERSION".to_owned())
        .or_insert_with(|| VERSION.to_owned().into());
    Ok(Options {
        address,
        roots: if is_system(&control.roots) {
            Roots::System
        } else {
            Roots::File(control.roots.clone())
        },
        verified_name: control.control_plane_name.clone(),
        token: Token::File(control.token_file.clone()),
        headers: from_environment.headers,
        cluster: options.cluster_id.as_str().into(),
        network: options.network.as_str().into(),
        node: DiscoveryNode {
            name: node.into(),
            pod: control.pod_name.clone(),
            namespace: control.pod_namespace.clone(),
            address: control.instance_ip,
            metadata,
        },
        subscription: match control.subscribe {
            Subscribe::OnDemand => Subscription::OnDemand,
            Subscribe::All => Subscription::Wildcard,
        },
        cache: Some(options.run_dir.join(CACHE)),
    })
}

/// What makes a machine of a node: whom it registers with, and what it proves itself with.
fn register(options: &mut Options, machine: &Machine) {
    options.roots = Roots::Pem(machine.roots.clone());
    options.token = Token::Held(Arc::clone(&machine.credentials) as _);
    let metadata = &mut options.node.metadata;
    metadata.insert(GROUP.to_owned(), machine.group.clone().into());
    metadata.insert(NETWORK.to_owned(), options.network.to_string().into());
}

/// The controller as a machine's issuer.
fn of_machine(options: &NodeOptions, machine: &Machine) -> ClientOptions {
    ClientOptions {
        address: machine.controller.clone(),
        server_name: options.control.control_plane_name.clone(),
        trust: Trust::Held(Arc::clone(&machine.credentials) as _),
        token_owner: TokenOwner::Workload,
        cluster: options.cluster_id.clone(),
        cert_signer: None,
        headers: Vec::new(),
    }
}

fn issuer(options: &NodeOptions, url: &str) -> Result<Arc<dyn Issuer>, FeedError> {
    let control = &options.control;
    if let Some(socket) = &control.spire {
        return Ok(Arc::new(SpireDelegated::start(socket, &Handle::current())?));
    }
    Ok(Arc::new(CaClient::new(certificate_service(
        options, control, url,
    ))?))
}

fn certificate_service(
    options: &NodeOptions,
    control: &ControlOptions,
    url: &str,
) -> ClientOptions {
    let roots = control.ca_roots.as_ref().unwrap_or(&control.roots);
    // Another service has another name, unless it is told.
    let server_name = match control.ca {
        Some(_) => control.ca_name.clone(),
        None => control
            .ca_name
            .clone()
            .or(control.control_plane_name.clone()),
    };
    ClientOptions {
        address: control.ca.clone().unwrap_or_else(|| url.to_owned()),
        server_name,
        trust: Trust::Files {
            roots: if is_system(roots) {
                ServerRoots::System
            } else {
                ServerRoots::File(roots.clone())
            },
            token: control.token_file.clone(),
        },
        token_owner: TokenOwner::Node,
        cluster: options.cluster_id.clone(),
        cert_signer: None,
        headers: Vec::new(),
    }
}

/// The environment, without what is no text: none of it is ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| {
        let text = |it: OsString| it.into_string().ok();
        Some((text(name)?, text(value)?))
    })
}

fn is_system(roots: &Path) -> bool {
    roots.as_os_str() == SYSTEM_ROOTS
}

/// Asks the control plane about destinations that are not known.
struct OnDemand(Resolver);

impl Resolve for OnDemand {
    fn resolve_address<'a>(
        &'a self,
        network: &'a str,
        address: IpAddr,
    ) -> BoxFuture<'a, Result<(), Unanswered>> {
        Box::pin(async move {
            let network = Arc::from(network);
            answered(self.0.resolve(&network, address, deadline()).await)
        })
    }

    fn resolve_host<'a>(
        &'a self,
        namespace: &'a str,
        hostname: &'a str,
    ) -> BoxFuture<'a, Result<(), Unanswered>> {
        Box::pin(async move {
            let (namespace, hostname) = (Arc::from(namespace), Arc::from(hostname));
            answered(self.0.resolve_host(&namespace, &hostname, deadline()).await)
        })
    }
}

fn deadline() -> Instant {
    Instant::now() + RESOLVE_TIMEOUT
}

fn answered(resolution: Resolution) -> Result<(), Unanswered> {
    let reason = match resolution {
        Resolution::Answered(_) => return Ok(()),
        Resolution::Rejected(_) => {
            "the control plane's answer could not be taken; see `undermesh status`"
        }
        Resolution::Disconnected(_) => "the control plane is not connected",
        Resolution::Late(_) => "the control plane did not answer in time",
        Resolution::Full => "more destinations are in use than this node keeps",
    };
    Err(Unanswered(reason.to_owned()))
}

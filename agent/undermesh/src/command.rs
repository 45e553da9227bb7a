//! The command line.
use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use undermesh_model::TrustDomain;
use undermesh_telemetry::Format as LogFormat;

use crate::duration;

/// A sidecar-free service mesh for Linux nodes.
#[derive(Debug, Parser)]
#[command(name = "undermesh", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the agent of this node until SIGTERM or SIGINT.
    Node(Box<NodeOptions>),
    #[command(flatten)]
    Talk(TalkVerb),
}

/// Options of `undermesh node`.
#[derive(Clone, Debug, Args)]
pub struct NodeOptions {
    /// Take the configuration from a directory of manifests, with no control plane.
    #[arg(long, required = true, env = "UNDERMESH_STANDALONE")]
    pub standalone: bool,
    /// Directory of Kubernetes manifests; changes take effect at once.
    #[arg(long, value_name = "DIR", env = "UNDERMESH_CONFIG")]
    pub config: PathBuf,
    /// Name of this node [default: the host's name].
    #[arg(long, value_name = "NAME", env = "UNDERMESH_NODE_NAME")]
    pub node_name: Option<String>,
    /// Where the certificate authority keeps its root [default: <run-dir>/ca].
    #[arg(long, value_name = "DIR", env = "UNDERMESH_CA_DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Where the agent keeps its socket and state.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR, env = "UNDERMESH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// A mounted BPF file system.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/sys/fs/bpf",
        env = "UNDERMESH_BPFFS"
    )]
    pub bpffs: PathBuf,
    /// Control group above the pods [default: kubepods.slice or kubepods under the cgroup v2 mount].
    #[arg(long, value_name = "DIR", env = "UNDERMESH_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// Worker threads [default: one a CPU, at most 4].
    #[arg(long, value_name = "N", value_parser = workers, env = "UNDERMESH_WORKERS")]
    pub workers: Option<usize>,
    /// Where administration is served; a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000", value_parser = loopback, env = "UNDERMESH_ADMIN_ADDRESS")]
    pub admin_address: SocketAddr,
    /// Where metrics are served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:15020",
        env = "UNDERMESH_STATS_ADDRESS"
    )]
    pub stats_address: SocketAddr,
    /// Where readiness is served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:15021",
        env = "UNDERMESH_READINESS_ADDRESS"
    )]
    pub readiness_address: SocketAddr,
    /// Trust domain of the mesh's identities.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cluster.local",
        env = "UNDERMESH_TRUST_DOMAIN"
    )]
    pub trust_domain: TrustDomain,
    /// Name of the cluster.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "Kubernetes",
        env = "UNDERMESH_CLUSTER_ID"
    )]
    pub cluster_id: String,
    /// Network that the pods' addresses belong to.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        env = "UNDERMESH_NETWORK"
    )]
    pub network: String,
    /// Lifetime of certificates; they are renewed at half of it.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse, env = "UNDERMESH_CERTIFICATE_LIFETIME")]
    pub certificate_lifetime: Duration,
    /// How long connections may take to end when a pod is released or the agent stops.
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = duration::parse, env = "UNDERMESH_DRAIN_TIMEOUT")]
    pub drain_timeout: Duration,
    /// Form of the log: text or json.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        env = "UNDERMESH_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
    /// What is logged: a level, or target=level joined by commas.
    #[arg(
        long,
        value_name = "DIRECTIVES",
        default_value = "info",
        env = "UNDERMESH_LOG_LEVEL"
    )]
    pub log_level: String,
}

/// Where the agent keeps its socket unless told otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/undermesh";
/// Most worker threads.
pub const MAX_WORKERS: usize = 128;

/// Verbs that ask the agent of this node.
#[derive(Debug, Subcommand)]
pub enum TalkVerb {
    /// Take a pod into the mesh.
    Enroll(EnrollArgs),
    /// Take a pod out of the mesh, after its connections have drained.
    Release(ReleaseArgs),
    /// List the enrolled pods.
    List(Talk),
    /// Show how the agent is doing.
    Status(Talk),
    /// List the open connections.
    Connections(Talk),
    /// Show the configuration in force.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// List the certificates of the identities in use.
    Certificates(Talk),
    /// Show what is logged, or change it until the next start.
    Log(LogArgs),
}

/// Verbs of `undermesh config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Show workloads, services and policies in force (as JSON unless told otherwise).
    Dump(Talk),
}

/// What every verb that asks the agent takes.
#[derive(Clone, Debug, Args)]
pub struct Talk {
    /// The agent's socket.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/undermesh/api.sock",
        env = "UNDERMESH_SOCKET"
    )]
    pub socket: PathBuf,
    /// Form of the answer [default: table].
    #[arg(short, long, value_name = "FORM")]
    pub output: Option<Form>,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// Arguments of `undermesh enroll`.
#[derive(Debug, Args)]
pub struct EnrollArgs {
    /// The pod's network namespace, for example /var/run/netns/NAME.
    #[arg(long, value_name = "PATH")]
    pub netns: PathBuf,
    /// The pod's Kubernetes namespace.
    #[arg(long, value_name = "NS")]
    pub namespace: String,
    /// The pod's name.
    #[arg(long, value_name = "POD")]
    pub name: String,
    /// The pod's service account.
    #[arg(long, value_name = "SA")]
    pub service_account: String,
    #[command(flatten)]
    pub talk: Talk,
}

/// Arguments of `undermesh release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The pod's network namespace.
    #[arg(long, value_name = "PATH", required_unless_present = "name", conflicts_with_all = ["namespace", "name"])]
    pub netns: Option<PathBuf>,
    /// The pod's Kubernetes namespace.
    #[arg(long, value_name = "NS", requires = "name")]
    pub namespace: Option<String>,
    /// The pod's name.
    #[arg(long, value_name = "POD", requires = "namespace")]
    pub name: Option<String>,
    /// How long its connections may take to end.
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = duration::parse)]
    pub timeout: Duration,
    #[command(flatten)]
    pub talk: Talk,
}

/// Arguments of `undermesh log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The new directives, for example info,tunnel=debug,access=off.
    #[arg(long, value_name = "DIRECTIVES")]
    pub level: Option<String>,
    #[command(flatten)]
    pub talk: Talk,
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MAX_WORKERS).contains(&count) => Ok(count),
        _ => Err(format!("write a number from 1 to {MAX_WORKERS}")),
    }
}

/// Administration changes log levels and shows everything, so it stays on the machine.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "write address:port, for example 127.0.0.1:15000".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(
            "administration is served on loopback only; write for example 127.0.0.1:15000"
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_node_starts_with_a_directory_alone() {
        let cli = parsed("undermesh node --standalone --config /etc/mesh").unwrap();
        let Verb::Node(options) = cli.verb else {
            panic!("{cli:?}")
        };
        assert_eq!(options.run_dir, PathBuf::from("/run/undermesh"));
        assert_eq!(options.certificate_lifetime, Duration::from_secs(86_400));
        assert_eq!(options.trust_domain, TrustDomain::cluster_local());
    }

    #[test]
    fn administration_off_loopback_is_refused() {
        let line = "undermesh node --standalone --config /etc/mesh --admin-address 0.0.0.0:15000";
        assert!(
            parsed(line)
                .unwrap_err()
                .to_string()
                .contains("loopback only")
        );
    }

    #[test]
    fn release_takes_a_netns_or_a_name_and_not_half_a_name() {
        assert!(parsed("undermesh release --netns /n").is_ok());
        assert!(parsed("undermesh release --namespace a --name b --timeout 1s").is_ok());
        for line in [
            "undermesh release",
            "undermesh release --name b",
            "undermesh release --namespace a",
            "undermesh release --netns /n --name b --namespace a",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_form_is_offered_everywhere() {
        for verb in [
            "list",
            "status",
            "connections",
            "certificates",
            "config dump",
            "log",
        ] {
            assert!(
                parsed(&format!("undermesh {verb} -o yaml --socket /s")).is_ok(),
                "{verb}"
            );
        }
    }
}

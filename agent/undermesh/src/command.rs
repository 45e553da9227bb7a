//! The command line.
mod cluster;
mod controller;
mod machine;
mod node;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::duration;
pub use cluster::{ClusterVerb, WithAccess, WithConsent};
pub use controller::ControllerOptions;
pub use machine::{AtStop, MachineOptions, TokenArgs, TokenForm, TokenVerb};
pub use node::{Absent, ControlOptions, NodeOptions, Subscribe};

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
    /// Run the control plane of a Kubernetes cluster until SIGTERM or SIGINT.
    Controller(Box<ControllerOptions>),
    /// Answer a container runtime as its CNI plugin; the call is in the environment and on standard input.
    Cni,
    /// Let machines outside Kubernetes join.
    #[command(subcommand)]
    Token(TokenVerb),
    #[command(flatten)]
    Cluster(ClusterVerb),
    #[command(flatten)]
    Talk(TalkVerb),
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
    use undermesh_model::TrustDomain;

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
    fn a_machine_joins_by_a_token_and_a_cgroup() {
        let line = "undermesh node --join - --cgroup /sys/fs/cgroup/mesh.slice";
        let Verb::Node(options) = parsed(line).unwrap().verb else {
            panic!("{line}")
        };
        assert_eq!(options.machine.at_stop, AtStop::Release);
        for line in [
            "undermesh node --join -".to_owned(),
            format!("{line} --control-plane https://a:1"),
            format!("{line} --standalone --config /m"),
            format!("{line} --cni"),
            "undermesh node --control-plane https://a:1 --address 10.0.0.1".to_owned(),
        ] {
            assert!(parsed(&line).is_err(), "{line}");
        }
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

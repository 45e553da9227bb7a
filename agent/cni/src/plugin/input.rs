//! What the container runtime says: environment variables and the network configuration.
use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    VERSIONS,
    failure::{Code, Failure},
};
use crate::wire::{DEFAULT_SOCKET, Verb};

/// How long the plugin waits for the agent, which waits for the pod's first certificate.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a pod's end waits for the agent, which learns of it by itself too.
const DEL_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest value of an environment variable that is looked at.
const MAX_VALUE: usize = 64 * 1024;

/// What is to be done (CNI specification, "CNI operations").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Join a container to the network.
    Add,
    /// Take a container off the network.
    Del,
    /// Check a container's network.
    Check,
    /// Tell whether the plugin can take containers.
    Status,
    /// Tell the versions.
    Version,
    /// Clean up.
    Gc,
}

/// The environment variables of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_NETNS`.
    pub netns: Option<PathBuf>,
    /// The pod that `CNI_ARGS` names; `None` for a container that Kubernetes does not know.
    pub pod: Option<PodArguments>,
}

/// What container runtimes tell of a pod in `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodArguments {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, from runtimes that give it.
    pub uid: Option<String>,
}

impl Call {
    /// Reads the variables by `variable`.
    pub fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let command = match set("CNI_COMMAND").as_deref() {
            Some("ADD") => Command::Add,
            Some("DEL") => Command::Del,
            Some("CHECK") => Command::Check,
            Some("STATUS") => Command::Status,
            Some("VERSION") => Command::Version,
            Some("GC") => Command::Gc,
            other => {
                return Err(Failure::new(
                    Code::InvalidEnvironment,
                    "CNI_COMMAND is not a command of CNI",
                    format!("it is {other:?}; this program is started by a container runtime"),
                ));
            }
        };
        Ok(Self {
            command,
            netns: set("CNI_NETNS").map(PathBuf::from),
            pod: set("CNI_ARGS").as_deref().and_then(PodArguments::parse),
        })
    }

    /// The namespace path, which these commands cannot do without.
    pub fn needed_netns(&self) -> Result<PathBuf, Failure> {
        let wanted = "give the absolute path of the container's network namespace";
        let failed = |what| Err(Failure::new(Code::InvalidEnvironment, what, wanted));
        match &self.netns {
            Some(path) if path.is_absolute() => Ok(path.clone()),
            Some(_) => failed("CNI_NETNS is not an absolute path"),
            None => failed("CNI_NETNS is not set"),
        }
    }
}

impl PodArguments {
    fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_VALUE {
            return None;
        }
        let value = |key: &str| {
            text.split(';')
                .filter_map(|pair| pair.split_once('='))
                .find(|(name, value)| *name == key && !value.is_empty())
                .map(|(_, value)| value.to_owned())
        };
        Some(Self {
            namespace: value("K8S_POD_NAMESPACE")?,
            name: value("K8S_POD_NAME")?,
            uid: value("K8S_POD_UID"),
        })
    }
}

/// What becomes of a pod that could be a member while the agent does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhenAway {
    /// It waits: kubelet tries again until the agent is back.
    #[default]
    Refuse,
    /// It starts outside the mesh; the agent takes it in when it is back.
    Admit,
}

/// The plugin's own fields of a network configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Options {
    /// The agent's socket.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// How long to wait for it, in milliseconds.
    #[serde(default = "default_timeout")]
    pub timeout_ms: u64,
    /// What becomes of pods meanwhile.
    #[serde(default)]
    pub when_agent_is_away: WhenAway,
    /// Namespaces whose pods never wait for the agent.
    #[serde(default)]
    pub exclude_namespaces: BTreeSet<String>,
}

/// A network configuration, as far as the plugin reads it.
#[derive(Debug)]
pub struct Config {
    /// `cniVersion`.
    pub version: String,
    /// The result of the plugins before ours, as it was given.
    pub previous: Option<Box<RawValue>>,
    /// The agent's socket.
    pub socket: PathBuf,
    timeout: Duration,
    /// What becomes of pods while the agent is away.
    pub when_agent_is_away: WhenAway,
    /// Namespaces whose pods never wait for the agent.
    pub exclude_namespaces: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Form {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    prev_result: Option<Box<RawValue>>,
}

impl Config {
    /// Reads a network configuration; fields of other parties are left alone.
    pub fn parse(text: &[u8]) -> Result<Self, Failure> {
        let undecodable = |error: serde_json::Error| {
            Failure::new(
                Code::Undecodable,
                "the network configuration cannot be decoded",
                error.to_string(),
            )
        };
        let form: Form = serde_json::from_slice(text).map_err(undecodable)?;
        let options: Options = serde_json::from_slice(text).map_err(undecodable)?;
        if !options.socket.is_absolute() {
            return Err(Failure::new(
                Code::InvalidConfig,
                "the agent's socket is not an absolute path",
                format!(
                    "socket is {:?}; give a path like {DEFAULT_SOCKET}",
                    options.socket
                ),
            ));
        }
        Ok(Self {
            version: form.cni_version,
            previous: form.prev_result,
            socket: options.socket,
            timeout: Duration::from_millis(options.timeout_ms),
            when_agent_is_away: options.when_agent_is_away,
            exclude_namespaces: options.exclude_namespaces,
        })
    }

    /// Refuses versions of the specification that the plugin does not speak.
    pub fn check_version(&self) -> Result<(), Failure> {
        if VERSIONS.contains(&self.version.as_str()) {
            return Ok(());
        }
        Err(Failure::new(
            Code::IncompatibleVersion,
            "the network configuration asks for another version of CNI",
            format!(
                "cniVersion is {:?}; set it to one of {}",
                self.version,
                VERSIONS.join(", ")
            ),
        ))
    }

    /// How long to wait for the agent's answer.
    pub fn patience(&self, verb: Verb) -> Duration {
        match verb {
            Verb::Add | Verb::Check => self.timeout,
            Verb::Del => self.timeout.min(DEL_TIMEOUT),
        }
    }

    /// The result of the plugins before ours, which these commands cannot do without.
    pub fn needed_previous(&self) -> Result<&RawValue, Failure> {
        self.previous.as_deref().ok_or_else(|| {
            Failure::new(
                Code::InvalidConfig,
                "there is no prevResult",
                "put this plugin behind the one that makes the pod's network, in a list of plugins",
            )
        })
    }

    /// The addresses in the result of the plugins before ours.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        #[derive(Deserialize)]
        struct Previous {
            #[serde(default)]
            ips: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            address: String,
        }
        let invalid =
            |details: String| Failure::new(Code::InvalidConfig, "prevResult is not one", details);
        let Some(previous) = &self.previous else {
            return Ok(Vec::new());
        };
        let result: Previous =
            serde_json::from_str(previous.get()).map_err(|error| invalid(error.to_string()))?;
        let address = |entry: Entry| {
            let (address, _) = entry
                .address
                .split_once('/')
                .unwrap_or((&entry.address, ""));
            address
                .parse()
                .map_err(|_| invalid(format!("{:?} is not an address", entry.address)))
        };
        result.ips.into_iter().map(address).collect()
    }
}

/// The version to answer in, whatever else is wrong with a configuration.
pub fn version(text: &[u8]) -> String {
    let form = serde_json::from_slice(text).ok();
    form.map(|form: Form| form.cni_version)
        .filter(|version| VERSIONS.contains(&version.as_str()))
        .unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned())
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

fn default_timeout() -> u64 {
    DEFAULT_TIMEOUT.as_secs() * 1000
}

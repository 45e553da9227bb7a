//! What the CNI plugin and the node agent say to each other: JSON over HTTP/1.1 on a unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/add` | [`Sandbox`] | [`Answer`], once capture stands |
//! | `POST /v1/check` | [`Sandbox`] | [`Answer`] |
//! | `POST /v1/del` | [`Sandbox`] | [`Answer`] |
//!
//! A status other than 200 carries a [`Failure`].
use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Where the agent listens unless it is told otherwise; on the host, so that the plugin finds it.
pub const DEFAULT_SOCKET: &str = "/run/undermesh/cni.sock";
/// Longest body of either side.
pub const MAX_BODY: usize = 64 * 1024;

/// What the plugin asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A sandbox was made.
    Add,
    /// Is it as it should be?
    Check,
    /// A sandbox is going.
    Del,
}

impl Verb {
    /// The path of its requests.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Add => "/v1/add",
            Self::Check => "/v1/check",
            Self::Del => "/v1/del",
        }
    }

    /// The verb of a path.
    pub fn of(path: &str) -> Option<Self> {
        [Self::Add, Self::Check, Self::Del]
            .into_iter()
            .find(|verb| verb.path() == path)
    }
}

/// The network sandbox of a pod, as the container runtime describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sandbox {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid, from runtimes that tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The path of its network namespace; a sandbox that is going may have none left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// The addresses that the plugins before ours gave it.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase", deny_unknown_fields)]
pub enum Answer {
    /// The pod's traffic is captured.
    Enrolled,
    /// The pod is not in the mesh.
    NotMember {
        /// Why.
        reason: String,
    },
    /// The agent has let go of the sandbox, or never held it.
    Released,
}

/// Why the agent could not do what was asked. Trying again later is always right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// What went wrong, where, and the remedy.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_their_verbs() {
        for verb in [Verb::Add, Verb::Check, Verb::Del] {
            assert_eq!(Verb::of(verb.path()), Some(verb));
        }
        assert_eq!(Verb::of("/v1/gc"), None);
    }

    #[test]
    fn the_form_on_the_socket_stays() {
        let sandbox = Sandbox {
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: None,
            netns: Some("/run/netns/a".into()),
            addresses: vec!["10.88.0.2".parse().unwrap()],
        };
        let text = r#"{"namespace":"shop","name":"web-0","netns":"/run/netns/a","addresses":["10.88.0.2"]}"#;
        assert_eq!(serde_json::to_string(&sandbox).unwrap(), text);
        assert_eq!(serde_json::from_str::<Sandbox>(text).unwrap(), sandbox);
        let answer = Answer::NotMember {
            reason: "so".into(),
        };
        let text = r#"{"outcome":"notMember","reason":"so"}"#;
        assert_eq!(serde_json::to_string(&answer).unwrap(), text);
        assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer);
    }
}

//! L4 authorization: policies and their evaluation, with the exact semantics of `istio.security`.
use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// Which workloads a policy governs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that name it in [`crate::Workload::policies`].
    WorkloadSelector,
}

/// What a match does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets the connection through, unless a DENY policy matches.
    Allow,
    /// Refuses the connection.
    Deny,
}

/// Whether a policy is enforced or only reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Decides.
    #[default]
    Enforced,
    /// `istio.io/dry-run`: reported and never decides.
    DryRun,
}

/// A comparison with a text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StringMatch {
    /// The same text.
    Exact(Arc<str>),
    /// Begins with the text.
    Prefix(Arc<str>),
    /// Ends with the text.
    Suffix(Arc<str>),
    /// Any text but the empty one.
    Presence,
}

/// A namespace and a service account in it, whatever the trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountMatch {
    /// Namespace of the account.
    pub namespace: Arc<str>,
    /// Name of the account.
    pub service_account: Arc<str>,
}

/// Families joined by AND; a family that is not set is true; a match with none set is never true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    /// Namespace of the peer's identity; empty without one.
    pub namespaces: Vec<StringMatch>,
    /// As above, none of them.
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's SPIFFE id without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// As above, none of them.
    pub not_principals: Vec<StringMatch>,
    /// Address of the peer.
    pub source_ips: Vec<IpNet>,
    /// As above, none of them.
    pub not_source_ips: Vec<IpNet>,
    /// The pod's own address.
    pub destination_ips: Vec<IpNet>,
    /// As above, none of them.
    pub not_destination_ips: Vec<IpNet>,
    /// The port of the application.
    pub destination_ports: Vec<u16>,
    /// As above, none of them.
    pub not_destination_ports: Vec<u16>,
    /// Namespace and account of the peer's identity.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// As above, none of them.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// Matches joined by OR; without matches it is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Clause {
    /// The alternatives.
    pub matches: Vec<Match>,
}

/// Clauses joined by AND; without clauses it is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Rule {
    /// The conditions.
    pub clauses: Vec<Clause>,
}

/// One authorization policy (`istio.security.Authorization`); rules are joined by OR, none never matches.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Name of the object.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Which workloads it governs.
    pub scope: Scope,
    /// What a match does.
    pub action: Action,
    /// Whether it decides.
    pub enforcement: Enforcement,
    /// The alternatives.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// Key under which workloads, xDS and logs know it: `<namespace>/<name>`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What a policy is asked about: one new inbound connection.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The peer, known from its certificate alone; `None` on plain connections.
    pub identity: Option<&'a Identity>,
    /// The peer's address.
    pub source: IpAddr,
    /// The pod's own address.
    pub destination: IpAddr,
    /// The application's port.
    pub port: u16,
}

/// The answer, with the policy that gave it (`<namespace>/<name>`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Decision {
    /// Let through; by an ALLOW policy, or because there is none.
    Allow {
        /// The ALLOW policy that matched.
        policy: Option<Arc<str>>,
    },
    /// A DENY policy matched.
    Denied {
        /// Its name.
        policy: Arc<str>,
    },
    /// There are ALLOW policies and none matched.
    NotAllowed {
        /// Their names.
        policies: Vec<Arc<str>>,
    },
    /// The workload names a policy that the mesh does not hold, so what it asks for cannot be known.
    ///
    /// ztunnel skips such a policy, which opens the workload. Here the source of the mesh delivers a
    /// workload and its policies together, so a gap is a fault and the connection is refused.
    Unenforceable {
        /// The name that leads nowhere.
        policy: Arc<str>,
    },
}

impl Decision {
    /// Whether the connection may go on.
    pub fn allows(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// The policy that decided, if it was one in particular.
    pub fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::Allow { policy } => policy.as_ref(),
            Self::Denied { policy } | Self::Unenforceable { policy } => Some(policy),
            Self::NotAllowed { .. } => None,
        }
    }
}

/// A decision, and what policies under trial would have made of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// What is done.
    pub decision: Decision,
    /// The dry-run policies that would have refused the connection, had they been enforced: DENY
    /// policies that match, and ALLOW policies that do not where no enforced policy allows it by name.
    pub dry_run: Vec<Arc<str>>,
}

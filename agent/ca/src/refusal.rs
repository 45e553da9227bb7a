//! Why a caller gets no certificate: in full for our own log, counted by reason, and told to the caller in one opaque
//! text, so that nobody can feel out which pods, accounts or tokens exist.
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::Status;
use undermesh_identity::csr::CsrError;
use undermesh_model::{Identity, IdentityError};

/// What a caller who is not entitled is told, whatever the cause.
pub const OPAQUE: &str =
    "request authenticate failure: the caller is not entitled to this certificate";

/// Why a request for a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No bearer token, or not exactly one.
    #[error("the call carries no bearer token, or not exactly one of usable form")]
    Token,
    /// The token proves nothing.
    #[error("{0}")]
    Caller(String),
    /// The token names an account that no identity can hold.
    #[error("the token's account is no identity: {0}")]
    Account(IdentityError),
    /// The caller asks for another's certificate in a form that is not understood.
    #[error("the caller asks for somebody who is no identity: {0}")]
    Impersonated(String),
    /// The identity belongs to another mesh.
    #[error("{0} is not of this trust domain")]
    TrustDomain(Identity),
    /// The caller asks for another's certificate and is no node agent.
    #[error(
        "{caller} asks for {identity}, but is not among the node accounts; add it there if it is a node agent"
    )]
    NotNodeAgent {
        /// Whose token it is, as `namespace/name`.
        caller: String,
        /// Who is asked for.
        identity: Identity,
    },
    /// The token is bound to no pod that exists, or to the pod of another account.
    #[error("the token of {caller} is not bound to a pod of that account that exists: {detail}")]
    Pod {
        /// Whose token it is, as `namespace/name`.
        caller: String,
        /// What is wrong about the pod.
        detail: String,
    },
    /// No pod of that account runs on the caller's node.
    #[error("no pod of {identity} runs on the node {node} of the caller")]
    NotOnNode {
        /// Who is asked for.
        identity: Identity,
        /// Where the caller runs.
        node: String,
    },
    /// The caller's certificate is that of no machine that is registered.
    #[error(
        "no machine of {0} is registered; connect for configuration first, which registers it again"
    )]
    Unregistered(Identity),
    /// The token could not be checked.
    #[error("{0}")]
    Unchecked(String),
    /// Too many calls at once.
    #[error("too many calls at once")]
    Busy,
    /// The signing request is wrong.
    #[error("the signing request of {identity} is refused: {error}")]
    Csr {
        /// For whom.
        identity: Identity,
        /// What is wrong with it.
        error: CsrError,
    },
    /// The CA cannot sign.
    #[error("{0}")]
    Sign(String),
}

impl Refusal {
    /// Its short name, the label of its counter.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Token | Self::Caller(_) | Self::Account(_) => Reason::Token,
            Self::Impersonated(_) | Self::TrustDomain(_) => Reason::Identity,
            Self::NotNodeAgent { .. } => Reason::NotNodeAgent,
            Self::Pod { .. } => Reason::Pod,
            Self::NotOnNode { .. } => Reason::NotOnNode,
            Self::Unregistered(_) => Reason::Unregistered,
            Self::Unchecked(_) => Reason::Unchecked,
            Self::Busy => Reason::Busy,
            Self::Csr { .. } => Reason::Csr,
            Self::Sign(_) => Reason::Sign,
        }
    }

    /// What the caller is told.
    pub fn status(&self) -> Status {
        match self {
            Self::Unchecked(_) => {
                Status::unavailable("the token cannot be checked at present; try again")
            }
            Self::Busy => Status::resource_exhausted("too many calls at once; try again"),
            Self::Csr { error, .. } => {
                Status::invalid_argument(format!("the signing request is refused: {error}"))
            }
            Self::Sign(_) => Status::unavailable("the CA cannot sign at present; try again"),
            _ => Status::unauthenticated(OPAQUE),
        }
    }
}

/// The kinds of refusal that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The token is missing, malformed or not valid.
    Token,
    /// The identity asked for is none, or of another mesh.
    Identity,
    /// The caller may not ask for others.
    NotNodeAgent,
    /// The token is not bound to a fitting pod.
    Pod,
    /// The identity does not run on the caller's node.
    NotOnNode,
    /// The certificate is that of no registered machine.
    Unregistered,
    /// The token could not be checked.
    Unchecked,
    /// Too many calls at once.
    Busy,
    /// The signing request is wrong.
    Csr,
    /// The CA could not sign.
    Sign,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Token,
        Self::Identity,
        Self::NotNodeAgent,
        Self::Pod,
        Self::NotOnNode,
        Self::Unregistered,
        Self::Unchecked,
        Self::Busy,
        Self::Csr,
        Self::Sign,
    ];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Identity => "identity",
            Self::NotNodeAgent => "not_node_agent",
            Self::Pod => "pod",
            Self::NotOnNode => "not_on_node",
            Self::Unregistered => "unregistered",
            Self::Unchecked => "unchecked",
            Self::Busy => "busy",
            Self::Csr => "csr",
            Self::Sign => "sign",
        }
    }
}

/// How many certificates were signed and refused since the start.
#[derive(Debug, Default)]
pub struct Counters {
    signed: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
}

impl Counters {
    /// Certificates signed.
    pub fn signed(&self) -> u64 {
        self.signed.load(Ordering::Relaxed)
    }

    /// Requests refused for `reason`.
    pub fn refused(&self, reason: Reason) -> u64 {
        self.refused[reason as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count_signed(&self) {
        self.signed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refused(&self, reason: Reason) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

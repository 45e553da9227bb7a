//! The seam to whoever can be asked for what the mesh does not hold yet, and how a connection asks.
use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use undermesh_model::{GatewayDestination, Refusal, Route, Workload};
use undermesh_telemetry::ResponseFlag;

use crate::outbound::Asked;

/// How long one connection waits for all answers together. Istio's node proxy waits as long for a pod's own workload.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Fetches parts of the mesh on demand, where not all of it is kept here.
///
/// `Ok` means that the control plane has answered and that the answer, whatever it is, is in the mesh
/// snapshot by then; what it says nothing of is outside the mesh. Answers, negative ones too, are for the
/// implementation to remember: what it knows already is to be ready at once.
pub trait Resolve: Send + Sync {
    /// Makes known which workload or service has an address on a network.
    fn resolve_address<'a>(
        &'a self,
        network: &'a str,
        address: IpAddr,
    ) -> BoxFuture<'a, Result<(), Unanswered>>;

    /// Makes known the service with a hostname in a namespace, with its workloads.
    fn resolve_host<'a>(
        &'a self,
        namespace: &'a str,
        hostname: &'a str,
    ) -> BoxFuture<'a, Result<(), Unanswered>>;
}

/// The control plane gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unanswered(pub String);

/// Why there is no route.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRoute {
    /// The mesh knows, and it says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody knows whether the destination is in the mesh. Sent as it is, what is meant for a mesh workload
    /// would leave in clear, so nothing is sent.
    #[error(
        "whether the mesh has {subject} is not known, so nothing is sent there in clear: {reason}; \
         see to it that the control plane answers"
    )]
    Unanswered {
        subject: Unknown,
        reason: Unanswered,
    },
}

impl NoRoute {
    /// Istio's word for it. A refusal by the mesh has none; a failure to ask is one to be seen in the metrics.
    pub(crate) fn flag(&self) -> ResponseFlag {
        match self {
            Self::Refused(_) => ResponseFlag::None,
            Self::Unanswered { .. } => ResponseFlag::Connect,
        }
    }
}

/// What the mesh does not know, and may be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    Address {
        network: Arc<str>,
        address: IpAddr,
    },
    Host {
        namespace: Arc<str>,
        hostname: Arc<str>,
    },
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address { address, .. } => write!(f, "{address}"),
            Self::Host {
                namespace,
                hostname,
            } => write!(f, "{namespace}/{hostname}"),
        }
    }
}

impl Unknown {
    /// What more knowledge could change of a route.
    fn of(route: &Result<Route, Refusal>, source: &Workload) -> Option<Self> {
        match route {
            Ok(Route::Passthrough {
                address,
                service: None,
            }) => Some(Self::Address {
                network: Arc::clone(&source.network),
                address: address.ip(),
            }),
            Err(Refusal::UnknownWaypoint { waypoint, .. }) => Some(match &waypoint.destination {
                GatewayDestination::Address { network, address } => Self::Address {
                    network: Arc::clone(network),
                    address: *address,
                },
                GatewayDestination::Hostname {
                    namespace,
                    hostname,
                } => Self::Host {
                    namespace: Arc::clone(namespace),
                    hostname: Arc::clone(hostname),
                },
            }),
            _ => None,
        }
    }

    async fn ask(&self, resolver: &dyn Resolve, deadline: Instant) -> Result<(), NoRoute> {
        let answer = match self {
            Self::Address { network, address } => resolver.resolve_address(network, *address),
            Self::Host {
                namespace,
                hostname,
            } => resolver.resolve_host(namespace, hostname),
        };
        let late = || {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(Unanswered(format!("no answer within {seconds} s")))
        };
        let answer = timeout_at(deadline, answer).await;
        answer
            .unwrap_or_else(|_| late())
            .map_err(|reason| NoRoute::Unanswered {
                subject: self.clone(),
                reason,
            })
    }
}

impl Asked {
    /// The route by what the mesh knows, or comes to know when it is asked for.
    pub(crate) async fn find(
        &self,
        source: &Workload,
        tried: &[Arc<str>],
    ) -> Result<Route, NoRoute> {
        let mut route = self.route(source, tried);
        let Some(resolver) = &self.pod.shared.resolver else {
            return Ok(route?);
        };
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        // An answer may name something else that is unknown, such as a waypoint; each is asked for once.
        let mut asked = Vec::new();
        while let Some(unknown) = Unknown::of(&route, source)
            && !asked.contains(&unknown)
        {
            unknown.ask(&**resolver, deadline).await?;
            asked.push(unknown);
            route = self.route(source, tried);
        }
        Ok(route?)
    }
}

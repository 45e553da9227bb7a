//! A client's stream: its requests in, responses out, as fast as the client takes them.
use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use tokio::time::timeout;
use tonic::Status;
use undermesh_identity::Caller;

use super::{
    counters::Counters,
    frame::Response,
    hub::{Hub, Membership},
    machines::{Attendance, Claim, Machines, RegistrationError},
    node::{Node, NodeError},
    session::Receipt,
};
use crate::{health::Health, wire::discovery::DeltaDiscoveryRequest};

/// How long a client may take for its first request, so that it does not keep others from starting.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// What the transport yields.
pub(crate) type Request = Result<DeltaDiscoveryRequest, Status>;

/// Where clients are received.
#[derive(Clone)]
pub(crate) struct Reception {
    /// What they are told.
    pub(crate) hub: Arc<Hub>,
    /// Who registers machines, if anybody does.
    pub(crate) machines: Option<Arc<dyn Machines>>,
}

impl From<Arc<Hub>> for Reception {
    fn from(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            machines: None,
        }
    }
}

/// The responses to a client that has been authenticated. The stream ends with the client's own, or with the
/// reason why it is not served any longer.
///
/// A response is made when the transport asks for it, which it does while the client's window is open. What
/// changes meanwhile coalesces in the session; nothing is queued.
pub(crate) fn converse<S>(
    reception: impl Into<Reception>,
    caller: Caller,
    requests: S,
) -> impl Stream<Item = Result<Response, Status>> + Send
where
    S: Stream<Item = Request> + Send + Unpin,
{
    let begun = Stage::Begin(Box::new((reception.into(), caller)));
    stream::unfold((begun, requests), |(stage, mut requests)| async move {
        let visit = match stage {
            Stage::Begin(opening) => {
                let (reception, caller) = *opening;
                match begin(reception, caller, &mut requests).await {
                    Ok(Some(visit)) => visit,
                    Ok(None) => return None,
                    Err(status) => return Some((Err(status), (Stage::Over, requests))),
                }
            }
            Stage::Joined(visit) => visit,
            Stage::Over => return None,
        };
        match turn(&visit, &mut requests).await {
            Ok(Some(response)) => Some((Ok(response), (Stage::Joined(visit), requests))),
            Ok(None) => None,
            Err(status) => Some((Err(status), (Stage::Over, requests))),
        }
    })
}

enum Stage {
    Begin(Box<(Reception, Caller)>),
    Joined(Visit),
    Over,
}

/// A client that was let in.
struct Visit {
    membership: Membership,
    /// A machine's registration.
    attendance: Option<Box<dyn Attendance>>,
}

impl Visit {
    async fn withdrawn(&self) {
        match &self.attendance {
            Some(attendance) => attendance.withdrawn().await,
            None => std::future::pending().await,
        }
    }
}

/// Reads the first request, which says who the client is.
async fn begin<S>(
    reception: Reception,
    caller: Caller,
    requests: &mut S,
) -> Result<Option<Visit>, Status>
where
    S: Stream<Item = Request> + Unpin,
{
    let joined = first(&reception, &caller, requests).await;
    if let Err(status) = &joined {
        Counters::count(&reception.hub.counters().refused, 1);
        let Caller {
            namespace,
            service_account,
            ..
        } = caller;
        tracing::warn!(%namespace, %service_account, reason = status.message(), "client refused");
    }
    joined
}

async fn first<S>(
    reception: &Reception,
    caller: &Caller,
    requests: &mut S,
) -> Result<Option<Visit>, Status>
where
    S: Stream<Item = Request> + Unpin,
{
    let hub = &reception.hub;
    let permit = hub.starting.acquire().await;
    let permit = permit.map_err(|_| Status::unavailable("the server is shutting down"))?;
    let request = timeout(FIRST_REQUEST, requests.next()).await;
    let late = |_| Status::deadline_exceeded("no request came; send one when the stream opens");
    let Some(request) = request.map_err(late)?.transpose()? else {
        return Ok(None);
    };
    let refused = |error: NodeError| Status::permission_denied(error.to_string());
    let mut node = Node::verify(request.node.as_ref(), caller).map_err(refused)?;
    let claim = request.node.as_ref().map_or(Ok(None), Claim::read);
    let (attendance, _permit) = match claim.map_err(refused)? {
        Some(claim) => {
            // The API server is asked, and whoever waits for it must not keep others from starting.
            drop(permit);
            let attendance = register(reception, caller, claim).await?;
            node.name = Arc::from(attendance.name());
            (Some(attendance), None)
        }
        None => (None, Some(permit)),
    };
    let membership = hub
        .join(node)
        .map_err(|error| Status::resource_exhausted(error.to_string()))?;
    tracing::info!(node = %membership.node().id, "client connected");
    let visit = Visit {
        membership,
        attendance,
    };
    receive(&visit, request)?;
    Ok(Some(visit))
}

async fn register(
    reception: &Reception,
    caller: &Caller,
    claim: Claim,
) -> Result<Box<dyn Attendance>, Status> {
    let machines = reception.machines.as_ref().ok_or_else(|| {
        Status::unimplemented(
            "no machines are registered here; connect to the cluster's controller",
        )
    })?;
    let registered = machines.register(caller.clone(), claim).await;
    registered.map_err(|error| match error {
        RegistrationError::Refused(_) => Status::permission_denied(error.to_string()),
        RegistrationError::Unavailable(_) => Status::unavailable(error.to_string()),
    })
}

/// The next response. Requests come first, so that what a client has said counts in what it is told.
async fn turn<S>(visit: &Visit, requests: &mut S) -> Result<Option<Response>, Status>
where
    S: Stream<Item = Request> + Unpin,
{
    loop {
        tokio::select! {
            biased;
            request = requests.next() => match request.transpose()? {
                Some(request) => receive(visit, request)?,
                None => return Ok(None),
            },
            () = visit.withdrawn() => {
                return Err(Status::aborted("the registration was withdrawn; connect again to register anew"));
            }
            response = visit.membership.next() => {
                let lagging = |error: super::Lagging| Status::aborted(error.to_string());
                return response.map(Some).map_err(lagging);
            }
        }
    }
}

fn receive(visit: &Visit, request: DeltaDiscoveryRequest) -> Result<(), Status> {
    if let Some(attendance) = &visit.attendance
        && let Some(health) = Health::of_request(&request)
    {
        attendance.report(health);
        return Ok(());
    }
    let membership = &visit.membership;
    let complaint = request
        .error_detail
        .as_ref()
        .map(|error| error.message.clone());
    let type_url = request.type_url.clone();
    let receipt = membership
        .receive(request)
        .map_err(|violation| Status::resource_exhausted(violation.to_string()))?;
    let node = &membership.node().id;
    match receipt {
        Receipt::Rejected => {
            let complaint: String = complaint.unwrap_or_default().chars().take(512).collect();
            tracing::warn!(%node, type_url, complaint, "client rejected resources");
        }
        Receipt::Ignored => tracing::debug!(%node, type_url, "request that changes nothing"),
        Receipt::Acknowledged | Receipt::Subscribed => {}
    }
    Ok(())
}

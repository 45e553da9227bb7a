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
    node::Node,
    session::Receipt,
};
use crate::wire::discovery::DeltaDiscoveryRequest;

/// How long a client may take for its first request, so that it does not keep others from starting.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// What the transport yields.
pub(crate) type Request = Result<DeltaDiscoveryRequest, Status>;

/// The responses to a client that has been authenticated. The stream ends with the client's own, or with the
/// reason why it is not served any longer.
///
/// A response is made when the transport asks for it, which it does while the client's window is open. What
/// changes meanwhile coalesces in the session; nothing is queued.
pub(crate) fn converse<S>(
    hub: Arc<Hub>,
    caller: Caller,
    requests: S,
) -> impl Stream<Item = Result<Response, Status>> + Send
where
    S: Stream<Item = Request> + Send + Unpin,
{
    let begun = Stage::Begin(Box::new((hub, caller)));
    stream::unfold((begun, requests), |(stage, mut requests)| async move {
        let membership = match stage {
            Stage::Begin(opening) => match begin(opening.0, &opening.1, &mut requests).await {
                Ok(Some(membership)) => membership,
                Ok(None) => return None,
                Err(status) => return Some((Err(status), (Stage::Over, requests))),
            },
            Stage::Joined(membership) => membership,
            Stage::Over => return None,
        };
        match turn(&membership, &mut requests).await {
            Ok(Some(response)) => Some((Ok(response), (Stage::Joined(membership), requests))),
            Ok(None) => None,
            Err(status) => Some((Err(status), (Stage::Over, requests))),
        }
    })
}

enum Stage {
    Begin(Box<(Arc<Hub>, Caller)>),
    Joined(Membership),
    Over,
}

/// Reads the first request, which says who the client is.
async fn begin<S>(
    hub: Arc<Hub>,
    caller: &Caller,
    requests: &mut S,
) -> Result<Option<Membership>, Status>
where
    S: Stream<Item = Request> + Unpin,
{
    let joined = first(&hub, caller, requests).await;
    if let Err(status) = &joined {
        Counters::count(&hub.counters().refused, 1);
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
    hub: &Arc<Hub>,
    caller: &Caller,
    requests: &mut S,
) -> Result<Option<Membership>, Status>
where
    S: Stream<Item = Request> + Unpin,
{
    let permit = hub.starting.acquire().await;
    let _permit = permit.map_err(|_| Status::unavailable("the server is shutting down"))?;
    let request = timeout(FIRST_REQUEST, requests.next()).await;
    let late = |_| Status::deadline_exceeded("no request came; send one when the stream opens");
    let Some(request) = request.map_err(late)?.transpose()? else {
        return Ok(None);
    };
    let node = Node::verify(request.node.as_ref(), caller)
        .map_err(|error| Status::permission_denied(error.to_string()))?;
    let membership = hub
        .join(node)
        .map_err(|error| Status::resource_exhausted(error.to_string()))?;
    tracing::info!(node = %membership.node().id, "client connected");
    receive(&membership, request)?;
    Ok(Some(membership))
}

/// The next response. Requests come first, so that what a client has said counts in what it is told.
async fn turn<S>(membership: &Membership, requests: &mut S) -> Result<Option<Response>, Status>
where
    S: Stream<Item = Request> + Unpin,
{
    loop {
        tokio::select! {
            biased;
            request = requests.next() => match request.transpose()? {
                Some(request) => receive(membership, request)?,
                None => return Ok(None),
            },
            response = membership.next() => {
                let lagging = |error: super::Lagging| Status::aborted(error.to_string());
                return response.map(Some).map_err(lagging);
            }
        }
    }
}

fn receive(membership: &Membership, request: DeltaDiscoveryRequest) -> Result<(), Status> {
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

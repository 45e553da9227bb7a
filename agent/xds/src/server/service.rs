//! The gRPC service: who may call, and the messages' way in and out.
use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, Stream, future::BoxFuture};
use tonic::{
    Request, Status, Streaming,
    body::Body,
    codegen::{Body as HttpBody, Service, StdError, http},
    metadata::MetadataMap,
    server::{Grpc, NamedService, StreamingService},
};
use tonic_prost::ProstCodec;
use undermesh_identity::{Authenticator, Caller, CallerError, PeerCertificate};

use super::{
    conversation::{Reception, converse},
    counters::Counters,
    frame::Response,
    hub::Hub,
    machines::Machines,
};
use crate::wire::discovery::{
    DeltaDiscoveryRequest, aggregated_discovery_service_server::SERVICE_NAME,
};

/// Longest request that is read, in bytes. The first one of a client that comes back lists all that it has: about
/// 120 bytes for each workload, as much as 250,000 of them.
const MAX_REQUEST_BYTES: usize = 32 << 20;
/// Longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 16 << 10;
const AUTHORIZATION: &str = "authorization";
/// The delta variant's method.
const DELTA: &str = "DeltaAggregatedResources";

/// Serves a hub to node proxies that `authenticator` knows.
pub fn service(hub: Arc<Hub>, authenticator: Arc<dyn Authenticator>) -> DiscoveryServer {
    DiscoveryServer {
        reception: hub.into(),
        authenticator,
    }
}

/// `AggregatedDiscoveryService` for tonic's router.
///
/// The generated server would decode and encode each resource anew for each client, so this one takes its place.
#[derive(Clone)]
pub struct DiscoveryServer {
    reception: Reception,
    authenticator: Arc<dyn Authenticator>,
}

impl fmt::Debug for DiscoveryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryServer").finish_non_exhaustive()
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<http::Request<B>> for DiscoveryServer
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path().strip_prefix('/');
        let method = path.and_then(|path| path.strip_prefix(SERVICE_NAME)?.strip_prefix('/'));
        if method != Some(DELTA) {
            let status = Status::unimplemented("only DeltaAggregatedResources is served");
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let method = DeltaMethod(self.clone());
        Box::pin(async move {
            let codec: ProstCodec<Response, DeltaDiscoveryRequest> = ProstCodec::default();
            let mut grpc =
                Grpc::new(codec).apply_max_message_size_config(Some(MAX_REQUEST_BYTES), None);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

struct DeltaMethod(DiscoveryServer);

impl StreamingService<DeltaDiscoveryRequest> for DeltaMethod {
    type Response = Response;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Response, Status>> + Send>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let server = self.0.clone();
        async move {
            let (metadata, extensions, requests) = request.into_parts();
            let caller = server.authenticate(&metadata, extensions.get()).await;
            let caller = caller.inspect_err(|status| {
                Counters::count(&server.reception.hub.counters().refused, 1);
                tracing::warn!(reason = status.message(), "call refused");
            })?;
            let responses = converse(server.reception, caller, requests);
            Ok(tonic::Response::new(
                Box::pin(responses) as Self::ResponseStream
            ))
        }
        .boxed()
    }
}

impl DiscoveryServer {
    /// Lets machines register; without this they are refused.
    #[must_use]
    pub fn with_machines(mut self, machines: Arc<dyn Machines>) -> Self {
        self.reception.machines = Some(machines);
        self
    }

    /// Who calls. A token counts before a certificate.
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer: Option<&PeerCertificate>,
    ) -> Result<Caller, Status> {
        let header = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let known = match peer {
            Some(PeerCertificate(identity)) if !metadata.contains_key(AUTHORIZATION) => {
                self.authenticator.certified(identity).await
            }
            _ => {
                let token = header(AUTHORIZATION).and_then(bearer).ok_or_else(|| {
                    Status::unauthenticated(
                        "there is no token; send the header authorization: Bearer <token>",
                    )
                })?;
                let cluster = header("clusterid").unwrap_or_default();
                self.authenticator.authenticate(token, cluster).await
            }
        };
        known.map_err(|error| match error {
            CallerError::Invalid(_) => Status::unauthenticated(error.to_string()),
            CallerError::Unavailable(_) => Status::unavailable(error.to_string()),
        })
    }
}

/// The token of an `authorization` header (RFC 6750, section 2.1; the scheme in any case).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let fits = !token.is_empty() && token.len() <= MAX_TOKEN_BYTES;
    (scheme.eq_ignore_ascii_case("bearer") && fits).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_is_taken() {
        assert_eq!(bearer("Bearer a.b.c"), Some("a.b.c"));
        assert_eq!(bearer("bearer x"), Some("x"));
        for header in ["", "Bearer", "Bearer ", "Basic eDp5", "a.b.c"] {
            assert_eq!(bearer(header), None, "{header}");
        }
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        assert_eq!(bearer(&long), None);
    }
}

//! SPIRE as the issuer: certificates and keys that the SPIRE agent of this node makes.
//!
//! The Delegated Identity API gives a node agent the SVIDs of its pods, by the selectors `k8s:ns` and `k8s:sa`; the
//! agent must be among SPIRE's `authorized_delegates`. The Workload API gives a process its own, for machines outside
//! Kubernetes. Both are gRPC on a Unix socket that only this node reaches.
//!
//! Source: SPIFFE Workload API, section 5, and SPIRE's `delegatedidentity.proto`.
use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt};
use rustls_pki_types::CertificateDer;
use tokio::{runtime::Handle, sync::watch, time::timeout};
use tonic::{
    Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use undermesh_identity::{
    CertificateRequest, IssueError, IssuedCertificate, Issuer, certificate::MAX_CERTIFICATES,
    key::WorkloadKey,
};
use undermesh_model::{Identity, TrustDomain};

use crate::{
    answer,
    wire::{
        spire::api::{
            agent::delegatedidentity::v1::{
                SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse,
                SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse, X509svidWithKey,
                delegated_identity_client::DelegatedIdentityClient,
            },
            types::Selector,
        },
        workload::{
            X509svid, X509svidRequest, X509svidResponse,
            spiffe_workload_api_client::SpiffeWorkloadApiClient,
        },
    },
};

mod der;
mod feed;

use feed::Feed;

/// Longest time that SPIRE may take until it has the SVID; a new registration reaches its agents in seconds.
pub const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a socket of SPIRE's agent cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("'{path}' cannot be the socket of a SPIRE agent: {reason}; give an absolute path")]
pub struct SocketError {
    path: String,
    reason: String,
}

/// Why SPIRE gave no certificate.
#[derive(Debug, thiserror::Error)]
enum SpireError {
    #[error("SPIRE's agent answered {:?}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    #[error(
        "SPIRE has no SVID for it; register an entry with this id for its namespace and account"
    )]
    Unregistered,
    #[error(
        "SPIRE's agent gave no usable answer within {} seconds; check that it runs, that the identity is registered, and that this agent is among its authorized delegates",
        ISSUE_TIMEOUT.as_secs()
    )]
    Timeout,
    #[error("SPIRE's agent sent a chain or bundle that is not DER: {0}")]
    Der(#[from] der::DerError),
    #[error("SPIRE's agent sent no certificate with the SVID")]
    Empty,
    #[error("{0}")]
    Key(#[from] undermesh_identity::key::KeyError),
    #[error("SPIRE's answer is not usable: {0}")]
    Answer(#[from] answer::AnswerError),
}

impl SpireError {
    fn for_identity(self, identity: Identity) -> IssueError {
        let reason = self.to_string();
        match self {
            Self::Key(_) | Self::Answer(_) | Self::Der(_) | Self::Empty => {
                IssueError::Refused { identity, reason }
            }
            _ => IssueError::Unavailable { identity, reason },
        }
    }
}

/// The SVIDs of the pods on this node.
pub struct SpireDelegated {
    channel: Channel,
    bundles: Feed<Bundles>,
}

/// The roots of the trust domains that SPIRE knows.
#[derive(PartialEq)]
struct Bundles(HashMap<String, Vec<u8>>);

impl SpireDelegated {
    /// Follows the root bundles of the agent that listens on `socket`, in a task on `runtime` that ends with this.
    ///
    /// # Errors
    /// When `socket` is no absolute path.
    pub fn start(socket: &Path, runtime: &Handle) -> Result<Self, SocketError> {
        let channel = connect(socket, runtime)?;
        let dial = channel.clone();
        let bundles = Feed::start(runtime, move || {
            let mut client = DelegatedIdentityClient::new(dial.clone());
            async move {
                let request = SubscribeToX509BundlesRequest {};
                let answer = client.subscribe_to_x509_bundles(request).await?;
                Ok(answer.into_inner())
            }
            .boxed()
        });
        Ok(Self { channel, bundles })
    }

    async fn fetch(&self, identity: &Identity) -> Result<IssuedCertificate, SpireError> {
        let roots = self
            .bundles
            .wait_for(|bundles| bundles.of(&identity.trust_domain))
            .await?;
        let selectors = [
            ("ns", &identity.namespace),
            ("sa", &identity.service_account),
        ];
        let selectors = selectors.map(|(key, value)| Selector {
            r#type: "k8s".to_owned(),
            value: format!("{key}:{value}"),
        });
        let request = SubscribeToX509sviDsRequest {
            selectors: selectors.into(),
        };
        let mut client = DelegatedIdentityClient::new(self.channel.clone());
        let mut svids = client.subscribe_to_x509svi_ds(request).await?.into_inner();
        // An entry that was just registered comes with a later message.
        while let Some(message) = svids.message().await? {
            if let Some(svid) = delegated_svid(message, identity) {
                let chain = svid.x509_svid.unwrap_or_default().cert_chain;
                let chain = chain.into_iter().map(CertificateDer::from).collect();
                return join(identity, chain, &svid.x509_svid_key, roots);
            }
        }
        Err(SpireError::Unregistered)
    }
}

impl Bundles {
    /// Keys are trust domains, with or without the scheme.
    fn of(
        &self,
        trust_domain: &TrustDomain,
    ) -> Option<Result<Vec<CertificateDer<'static>>, der::DerError>> {
        let name = trust_domain.as_str();
        let bundle = self.0.get(&format!("spiffe://{name}"));
        bundle
            .or_else(|| self.0.get(name))
            .map(|der| der::split(der))
    }
}

impl feed::Message for SubscribeToX509BundlesResponse {
    type Content = Bundles;

    fn content(self) -> Bundles {
        Bundles(self.ca_certificates)
    }
}

fn delegated_svid(
    message: SubscribeToX509sviDsResponse,
    identity: &Identity,
) -> Option<X509svidWithKey> {
    let wanted = identity.to_string();
    message.x509_svids.into_iter().find(|svid| {
        let id = svid.x509_svid.as_ref().and_then(|svid| svid.id.as_ref());
        id.is_some_and(|id| format!("spiffe://{}{}", id.trust_domain, id.path) == wanted)
    })
}

impl Issuer for SpireDelegated {
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>> {
        async move { bounded(self.fetch(&request.identity), &request.identity).await }.boxed()
    }

    fn renewals(&self) -> Option<watch::Receiver<u64>> {
        Some(self.bundles.changes())
    }
}

/// The SVIDs of this process itself.
pub struct SpireWorkload {
    svids: Feed<Svids>,
}

/// What the Workload API gives to this process.
#[derive(PartialEq)]
struct Svids(Vec<X509svid>);

impl SpireWorkload {
    /// Follows the SVIDs that the agent on `socket` gives to this process, in a task on `runtime` that ends with this.
    ///
    /// # Errors
    /// When `socket` is no absolute path.
    pub fn start(socket: &Path, runtime: &Handle) -> Result<Self, SocketError> {
        let channel = connect(socket, runtime)?;
        let svids = Feed::start(runtime, move || fetch_own(channel.clone()).boxed());
        Ok(Self { svids })
    }

    async fn fetch(&self, identity: &Identity) -> Result<IssuedCertificate, SpireError> {
        let wanted = identity.to_string();
        let issued = self.svids.wait_for(|svids| {
            let svid = svids.0.iter().find(|svid| svid.spiffe_id == wanted)?;
            Some(own_svid(identity, svid))
        });
        issued.await
    }
}

async fn fetch_own(channel: Channel) -> Result<Streaming<X509svidResponse>, Status> {
    let mut request = Request::new(X509svidRequest {});
    // A browser that was led to the socket could not set it (SPIFFE Workload API, section 3).
    request
        .metadata_mut()
        .insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let answer = SpiffeWorkloadApiClient::new(channel)
        .fetch_x509svid(request)
        .await?;
    Ok(answer.into_inner())
}

impl feed::Message for X509svidResponse {
    type Content = Svids;

    fn content(self) -> Svids {
        Svids(self.svids)
    }
}

fn own_svid(identity: &Identity, svid: &X509svid) -> Result<IssuedCertificate, SpireError> {
    let chain = der::split(&svid.x509_svid)?;
    join(
        identity,
        chain,
        &svid.x509_svid_key,
        der::split(&svid.bundle)?,
    )
}

impl Issuer for SpireWorkload {
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>> {
        async move { bounded(self.fetch(&request.identity), &request.identity).await }.boxed()
    }

    fn renewals(&self) -> Option<watch::Receiver<u64>> {
        Some(self.svids.changes())
    }
}

async fn bounded(
    fetch: impl Future<Output = Result<IssuedCertificate, SpireError>>,
    identity: &Identity,
) -> Result<IssuedCertificate, IssueError> {
    let answer = timeout(ISSUE_TIMEOUT, fetch).await;
    answer
        .unwrap_or(Err(SpireError::Timeout))
        .map_err(|error| error.for_identity(identity.clone()))
}

fn join(
    identity: &Identity,
    mut chain: Vec<CertificateDer<'static>>,
    key: &[u8],
    roots: Vec<CertificateDer<'static>>,
) -> Result<IssuedCertificate, SpireError> {
    if chain.is_empty() || chain.len() > MAX_CERTIFICATES {
        return Err(SpireError::Empty);
    }
    let leaf = chain.remove(0);
    answer::check_identity(&leaf, identity)?;
    Ok(IssuedCertificate {
        leaf,
        key: Some(Arc::new(WorkloadKey::from_pkcs8(identity, key.into())?)),
        intermediates: chain,
        roots,
    })
}

fn connect(socket: &Path, runtime: &Handle) -> Result<Channel, SocketError> {
    let wrong = |reason: &str| SocketError {
        path: socket.display().to_string(),
        reason: reason.to_owned(),
    };
    let text = socket.to_str().ok_or_else(|| wrong("it is not UTF-8"))?;
    if !socket.is_absolute() {
        return Err(wrong("it is relative"));
    }
    let endpoint = Endpoint::from_shared(format!("unix://{text}"))
        .map_err(|error| wrong(&error.to_string()))?;
    let _runtime = runtime.enter();
    Ok(endpoint.connect_timeout(ISSUE_TIMEOUT).connect_lazy())
}

#[cfg(test)]
mod tests;

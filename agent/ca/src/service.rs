//! The server of `istio.v1.auth.IstioCertificateService`: who calls, for whom, and is the key proved.
use std::{collections::HashMap, sync::Arc, time::Duration};

use prost_types::value::Kind;
use tokio::{sync::Semaphore, time::timeout};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use undermesh_identity::{
    Caller, CertificateRequest, IssueError, IssuedCertificate, PeerCertificate, certificate,
    csr::{self, MAX_REQUEST_PEM_BYTES},
};
use undermesh_model::Identity;

use crate::{
    access::Access,
    live::{Lifetimes, LiveAuthority},
    refusal::{Counters, Refusal},
    wire::citadel::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{
            IstioCertificateService, IstioCertificateServiceServer,
        },
    },
};

/// Calls that are worked on at once; most of their time is the check of the token.
pub const MAX_RUNNING: usize = 256;
/// Calls that may wait for their turn, as after a restart of all nodes.
pub const MAX_WAITING: usize = 16 * 1024;
/// Largest call that is read, in bytes.
pub const MAX_CALL_BYTES: usize = MAX_REQUEST_PEM_BYTES + 32 * 1024;
/// Largest token that is read, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Longest time that a token's check may take.
pub const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(10);
/// The key of the metadata that names another identity than the caller's own, as a SPIFFE URI.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
/// The header that names the caller's cluster.
pub const CLUSTER_HEADER: &str = "clusterid";

const MAX_CLUSTER_BYTES: usize = 256;
const AUTHORIZATION: &str = "authorization";

/// The certificate service.
pub struct CertificateService {
    access: Access,
    authority: Arc<LiveAuthority>,
    counters: Arc<Counters>,
    waiting: Semaphore,
    running: Semaphore,
}

impl CertificateService {
    /// Signs with `authority` for those whom `access` admits.
    pub fn new(access: Access, authority: Arc<LiveAuthority>) -> Self {
        Self {
            access,
            authority,
            counters: Arc::default(),
            waiting: Semaphore::new(MAX_WAITING),
            running: Semaphore::new(MAX_RUNNING),
        }
    }

    /// How many certificates were signed and refused.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The service for a tonic server or router.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_CALL_BYTES)
    }

    async fn answer(
        &self,
        headers: &MetadataMap,
        peer: Option<&PeerCertificate>,
        call: IstioCertificateRequest,
    ) -> Result<(Identity, IssuedCertificate), Refusal> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Refusal::Busy)?;
        let _running = self.running.acquire().await.map_err(|_| Refusal::Busy)?;
        let identity = self.authorize(headers, peer, &call).await?;
        let issued = self.sign(&identity, call).await?;
        Ok((identity, issued))
    }

    async fn authorize(
        &self,
        headers: &MetadataMap,
        peer: Option<&PeerCertificate>,
        call: &IstioCertificateRequest,
    ) -> Result<Identity, Refusal> {
        let caller = timeout(AUTHENTICATION_TIMEOUT, self.caller(headers, peer))
            .await
            .map_err(|_| {
                Refusal::Unchecked(format!(
                    "the caller was not checked within {} seconds",
                    AUTHENTICATION_TIMEOUT.as_secs()
                ))
            })??;
        self.access.grant(&caller, impersonated(call)?)
    }

    /// A token counts before a certificate.
    async fn caller(
        &self,
        headers: &MetadataMap,
        peer: Option<&PeerCertificate>,
    ) -> Result<Caller, Refusal> {
        match peer {
            Some(PeerCertificate(identity)) if !headers.contains_key(AUTHORIZATION) => {
                self.access.machine(identity).await
            }
            _ => {
                let (token, cluster) = (bearer_token(headers)?, cluster(headers)?);
                self.access.caller(token, cluster).await
            }
        }
    }

    async fn sign(
        &self,
        identity: &Identity,
        call: IstioCertificateRequest,
    ) -> Result<IssuedCertificate, Refusal> {
        let csr = csr::from_pem(&call.csr).map_err(|error| Refusal::Csr {
            identity: identity.clone(),
            error,
        })?;
        let request = CertificateRequest {
            identity: identity.clone(),
            csr,
            lifetime: lifetime(call.validity_duration, self.authority.lifetimes()),
        };
        let authority = Arc::clone(&self.authority);
        let identity = identity.clone();
        // An RSA intermediate takes milliseconds to sign.
        tokio::task::spawn_blocking(move || sign_proven(&authority, identity, request))
            .await
            .map_err(|error| Refusal::Sign(error.to_string()))?
    }
}

fn sign_proven(
    authority: &LiveAuthority,
    identity: Identity,
    request: CertificateRequest,
) -> Result<IssuedCertificate, Refusal> {
    csr::ProvenKey::of(&request.csr).map_err(|error| Refusal::Csr { identity, error })?;
    authority
        .sign(request)
        .map_err(|error: IssueError| Refusal::Sign(error.to_string()))
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.remote_addr();
        let (headers, extensions, call) = request.into_parts();
        match self.answer(&headers, extensions.get(), call).await {
            Ok((identity, issued)) => {
                self.counters.count_signed();
                tracing::debug!(%identity, ?peer, "certificate signed");
                Ok(Response::new(response(&issued)))
            }
            Err(refusal) => {
                let reason = refusal.reason();
                self.counters.count_refused(reason);
                tracing::warn!(reason = reason.label(), ?peer, %refusal, "no certificate signed");
                Err(refusal.status())
            }
        }
    }
}

/// The leaf, the intermediates one by one, and last all roots in one text.
fn response(issued: &IssuedCertificate) -> IstioCertificateResponse {
    let chain = std::iter::once(&issued.leaf).chain(&issued.intermediates);
    let mut cert_chain: Vec<String> = chain
        .map(|certificate| certificate::to_pem([certificate]))
        .collect();
    cert_chain.push(certificate::to_pem(&issued.roots));
    IstioCertificateResponse { cert_chain }
}

/// The one bearer token of a call (RFC 6750, section 2.1).
fn bearer_token(headers: &MetadataMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Refusal::Token);
    };
    let text = value.to_str().map_err(|_| Refusal::Token)?;
    let (scheme, token) = text.split_once(' ').ok_or(Refusal::Token)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::Token);
    }
    Ok(token)
}

fn cluster(headers: &MetadataMap) -> Result<&str, Refusal> {
    let Some(value) = headers.get(CLUSTER_HEADER) else {
        return Ok("");
    };
    let text = value.to_str().map_err(|_| Refusal::Token)?;
    if text.len() > MAX_CLUSTER_BYTES {
        return Err(Refusal::Token);
    }
    Ok(text)
}

/// Whom the caller asks for, if not for itself.
fn impersonated(call: &IstioCertificateRequest) -> Result<Option<&str>, Refusal> {
    let Some(metadata) = &call.metadata else {
        return Ok(None);
    };
    let Some(value) = metadata.fields.get(IMPERSONATED_IDENTITY) else {
        return Ok(None);
    };
    match &value.kind {
        Some(Kind::StringValue(text)) if text.is_empty() => Ok(None),
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        _ => Err(Refusal::Impersonated("it is not a string".to_owned())),
    }
}

/// What is granted to somebody who asks for so many seconds.
fn lifetime(seconds: i64, lifetimes: Lifetimes) -> Duration {
    let asked = match u64::try_from(seconds) {
        Ok(0) | Err(_) => lifetimes.default,
        Ok(seconds) => Duration::from_secs(seconds),
    };
    asked.min(lifetimes.max)
}

/// Metadata of a call, all of whose values are texts.
pub(crate) fn metadata<'a>(
    entries: impl IntoIterator<Item = (&'a str, String)>,
) -> prost_types::Struct {
    let value = |text| prost_types::Value {
        kind: Some(Kind::StringValue(text)),
    };
    let fields = entries
        .into_iter()
        .map(|(key, text)| (key.to_owned(), value(text)))
        .collect::<HashMap<_, _>>();
    prost_types::Struct {
        fields: fields.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests;

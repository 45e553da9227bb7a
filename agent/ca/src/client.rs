//! The client of `istio.v1.auth.IstioCertificateService`: certificates from istiod, from istio-csr (cert-manager), or
//! from our own controller.
use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use tokio::{io::AsyncReadExt, sync::Semaphore};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataKey, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity},
};
use undermesh_identity::{
    CertificateRequest, Credentials, IssueError, IssuedCertificate, Issuer, NoCredentials,
    Presented, Proof, Secret, certificate, store::MAX_FILE_BYTES,
};
use zeroize::Zeroizing;

use crate::{
    answer,
    service::{CLUSTER_HEADER, IMPERSONATED_IDENTITY, metadata},
    wire::citadel::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
};

/// Requests that may run at once, as in ztunnel.
pub const MAX_PARALLEL: usize = 8;
/// Longest time for one request.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for a connection to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// The metadata key for the signer that the CA shall use.
pub const CERT_SIGNER: &str = "CertSigner";

const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Who vouches for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerRoots {
    /// The roots in this PEM file; its changes are followed.
    File(PathBuf),
    /// The roots that the system trusts (`CA_ROOT_CA=SYSTEM`).
    System,
}

/// Who vouches for the server, and how this side proves itself to it.
#[derive(Clone, Debug)]
pub enum Trust {
    /// By files.
    Files {
        /// Who vouches for the server.
        roots: ServerRoots,
        /// The file of the bearer token; read for each request, because kubelet renews it.
        token: PathBuf,
    },
    /// By what is presented at the time of each request: a machine's, which has a token first and then a certificate.
    Held(Arc<dyn Credentials>),
}

/// Whose token it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenOwner {
    /// A node agent's: each request names the workload that it is for.
    Node,
    /// The workload's own.
    Workload,
}

/// How to reach a certificate service.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Its address, `host:port` or `https://host:port`.
    pub address: String,
    /// The name that its certificate must hold, if not that of the address (`ALT_CA_HOSTNAME`).
    pub server_name: Option<String>,
    /// Who vouches for it, and how this side proves itself.
    pub trust: Trust,
    /// Whose token that is.
    pub token_owner: TokenOwner,
    /// The name of this cluster (`CLUSTER_ID`).
    pub cluster: String,
    /// The signer that the CA shall use, if it offers several.
    pub cert_signer: Option<String>,
    /// More headers for each request (`CA_HEADER_<name>`).
    pub headers: Vec<(String, String)>,
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("'{address}' is not the address of a certificate service: {reason}; write host:port")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A header that HTTP cannot carry.
    #[error("'{0}' cannot be sent as a header; use printable ASCII")]
    Header(String),
}

/// A certificate service as an issuer.
pub struct CaClient {
    endpoint: Endpoint,
    options: ClientOptions,
    headers: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
    channel: Mutex<Option<Connected>>,
    places: Semaphore,
}

/// A channel, and what it was made with.
struct Connected {
    tls: Tls,
    channel: Channel,
}

/// What the TLS of a channel is made of; another one makes another channel.
#[derive(PartialEq, Eq)]
enum Tls {
    /// The roots of the system.
    System,
    /// Roots as PEM.
    Roots(Vec<u8>),
    /// Roots as PEM, and the client's certificate.
    Mutual {
        roots: String,
        chain: String,
        key: Secret,
    },
}

/// What one request is made with.
struct Access {
    tls: Tls,
    /// The bearer token, unless the certificate says enough.
    token: Option<Secret>,
}

/// Why a certificate did not come, before it is joined with the identity that it was for.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("cannot read the {what} {}: {error}", .path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("the token is empty or holds characters that no token has")]
    Token,
    #[error(transparent)]
    Credentials(#[from] NoCredentials),
    #[error("the roots in {} cannot be used: {error}", .path.display())]
    Roots {
        path: PathBuf,
        error: certificate::CertificateError,
    },
    #[error("cannot connect to {address}: {error}")]
    Connect { address: String, error: String },
    #[error("{address} answered {code:?}: {message}")]
    Status {
        address: String,
        code: Code,
        message: String,
    },
    #[error("the answer of {address} is not usable: {error}")]
    Answer {
        address: String,
        error: answer::AnswerError,
    },
}

impl CallError {
    /// Whether the same request would fail again.
    fn is_final(&self) -> bool {
        match self {
            Self::Status { code, .. } => matches!(
                code,
                Code::InvalidArgument
                    | Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::Unimplemented
            ),
            Self::Answer { .. } => true,
            _ => false,
        }
    }
}

impl CaClient {
    /// Checks the options; nothing is connected before the first request.
    ///
    /// # Errors
    /// When the address or a header is not valid.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        let endpoint = endpoint(&options.address)?;
        let mut headers = Vec::new();
        let own = [(CLUSTER_HEADER.to_owned(), options.cluster.clone())];
        for (name, value) in own.iter().chain(&options.headers) {
            let wrong = || ClientError::Header(name.clone());
            let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes());
            let value = MetadataValue::try_from(value).map_err(|_| wrong())?;
            headers.push((key.map_err(|_| wrong())?, value));
        }
        Ok(Self {
            endpoint,
            options,
            headers,
            channel: Mutex::new(None),
            places: Semaphore::new(MAX_PARALLEL),
        })
    }

    async fn call(&self, request: &CertificateRequest) -> Result<IssuedCertificate, CallError> {
        let Access { tls, token } = self.access().await?;
        let channel = self.channel(tls)?;
        let call = self.wire_request(request, token)?;
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        let response = client
            .create_certificate(call)
            .await
            .map_err(|status| self.status(&status))?;
        answer::read(&response.into_inner().cert_chain, request).map_err(|error| {
            CallError::Answer {
                address: self.options.address.clone(),
                error,
            }
        })
    }

    /// What is known now: files are read anew, and whoever holds credentials is asked anew.
    async fn access(&self) -> Result<Access, CallError> {
        let (roots, token) = match &self.options.trust {
            Trust::Held(credentials) => return Ok(credentials.present()?.into()),
            Trust::Files { roots, token } => (roots, token),
        };
        let tls = match roots {
            ServerRoots::System => Tls::System,
            ServerRoots::File(path) => {
                let content = read_file("roots", path).await?;
                certificate::parse_pem(&content).map_err(|error| CallError::Roots {
                    path: path.clone(),
                    error,
                })?;
                Tls::Roots(content)
            }
        };
        let token = String::from_utf8(read_file("token", token).await?);
        let token = token.map(Secret::new).map_err(|_| CallError::Token)?;
        Ok(Access {
            tls,
            token: Some(token),
        })
    }

    fn status(&self, status: &Status) -> CallError {
        // The cause below the status names what a bare "transport error" does not.
        let mut message = status.message().to_owned();
        let mut cause = status.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        CallError::Status {
            address: self.options.address.clone(),
            code: status.code(),
            message,
        }
    }

    fn wire_request(
        &self,
        request: &CertificateRequest,
        token: Option<Secret>,
    ) -> Result<Request<IstioCertificateRequest>, CallError> {
        let mut entries = Vec::new();
        if self.options.token_owner == TokenOwner::Node {
            entries.push((IMPERSONATED_IDENTITY, request.identity.to_string()));
        }
        if let Some(signer) = &self.options.cert_signer {
            entries.push((CERT_SIGNER, signer.clone()));
        }
        let mut call = Request::new(IstioCertificateRequest {
            csr: request.csr_pem(),
            validity_duration: i64::try_from(request.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(metadata(entries)),
        });
        call.set_timeout(CALL_TIMEOUT);
        let headers = call.metadata_mut();
        if let Some(token) = token {
            headers.insert("authorization", bearer(&token)?);
        }
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        Ok(call)
    }

    /// The channel made with `tls`. Calls that run on an old one end there.
    fn channel(&self, tls: Tls) -> Result<Channel, CallError> {
        let mut slot = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connected) = slot.as_ref().filter(|connected| connected.tls == tls) {
            return Ok(connected.channel.clone());
        }
        let channel = self.connect(&tls)?;
        *slot = Some(Connected {
            tls,
            channel: channel.clone(),
        });
        Ok(channel)
    }

    fn connect(&self, tls: &Tls) -> Result<Channel, CallError> {
        let mut config = match tls {
            Tls::System => ClientTlsConfig::new().with_native_roots(),
            Tls::Roots(roots) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots))
            }
            Tls::Mutual { roots, chain, key } => ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(roots))
                .identity(TlsIdentity::from_pem(chain, key.expose())),
        };
        if let Some(name) = &self.options.server_name {
            config = config.domain_name(name);
        }
        let endpoint = self.endpoint.clone().tls_config(config);
        let endpoint = endpoint.map_err(|error| CallError::Connect {
            address: self.options.address.clone(),
            error: error.to_string(),
        })?;
        Ok(endpoint.connect_lazy())
    }
}

impl From<Presented> for Access {
    fn from(presented: Presented) -> Self {
        let Presented { proof, roots } = presented;
        match proof {
            Proof::Token(token) => Self {
                tls: Tls::Roots(roots.into_bytes()),
                token: Some(token),
            },
            Proof::Certificate { chain, key } => Self {
                tls: Tls::Mutual { roots, chain, key },
                token: None,
            },
        }
    }
}

fn bearer(token: &Secret) -> Result<MetadataValue<Ascii>, CallError> {
    let token = token.expose().trim();
    if token.is_empty() {
        return Err(CallError::Token);
    }
    let header = Zeroizing::new(format!("Bearer {token}"));
    let value = MetadataValue::try_from(header.as_str());
    let mut value = value.map_err(|_| CallError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

impl Issuer for CaClient {
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>> {
        async move {
            let _place = self.places.acquire().await;
            let identity = request.identity.clone();
            let timed = tokio::time::timeout(CALL_TIMEOUT + CONNECT_TIMEOUT, self.call(&request));
            match timed.await {
                Ok(Ok(issued)) => Ok(issued),
                Ok(Err(error)) if error.is_final() => Err(IssueError::Refused {
                    identity,
                    reason: error.to_string(),
                }),
                Ok(Err(error)) => Err(IssueError::Unavailable {
                    identity,
                    reason: error.to_string(),
                }),
                Err(_) => Err(IssueError::Unavailable {
                    identity,
                    reason: format!("{} did not answer in time", self.options.address),
                }),
            }
        }
        .boxed()
    }
}

fn endpoint(address: &str) -> Result<Endpoint, ClientError> {
    let wrong = |reason: String| ClientError::Address {
        address: address.to_owned(),
        reason,
    };
    let host = match address.split_once("://") {
        None => address,
        Some(("https", host)) => host,
        Some((scheme, _)) => {
            return Err(wrong(format!(
                "a token must not travel by {scheme}, only by https"
            )));
        }
    };
    let endpoint = Endpoint::from_shared(format!("https://{host}"))
        .map_err(|error| wrong(error.to_string()))?;
    if endpoint.uri().port().is_none() {
        return Err(wrong("it has no port".to_owned()));
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE))
}

async fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, CallError> {
    let failed = |error| CallError::File {
        what,
        path: path.to_owned(),
        error,
    };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    // Sized at once, so that a growing buffer leaves no copies of a token behind.
    let length = file.metadata().await.map_err(failed)?.len();
    let mut content =
        Vec::with_capacity(usize::try_from(length.min(MAX_FILE_BYTES)).unwrap_or(0) + 1);
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut content)
        .await
        .map_err(failed)?;
    Ok(content)
}

#[cfg(test)]
mod tests;

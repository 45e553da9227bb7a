//! One stream to the server: gRPC over TLS, which verifies the server; the client proves itself with a token.
use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{fs::File, io::AsyncReadExt, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity},
};
use undermesh_identity::{NoCredentials, Presented, Proof};

use super::{
    counters::Termination,
    options::{Options, Roots, Token},
};
use crate::wire::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};

/// Longest time for TCP to connect, and again for TLS.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for the whole of a connection: its name, TCP, TLS and HTTP/2.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time until the server's first sign of a stream. istiod gives it with its first response, which a burst
/// of nodes can delay.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two PINGs of HTTP/2.
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Longest time that the server may take to answer one.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message that is taken, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 200 * 1024 * 1024;
/// Largest file of roots or of a token, in bytes.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Keepalive of TCP, as in ztunnel: it finds a peer that is gone before HTTP/2 runs.
const TCP_KEEPALIVE: Duration = Duration::from_secs(300);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const TCP_KEEPALIVE_RETRIES: u32 = 9;
/// Requests on their way to the connection.
const QUEUE: usize = 16;
/// Longest text of an error that is kept, in characters; the server has a say in it.
const MAX_ERROR_CHARS: usize = 1024;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}: {error}; mount it, or name another file", .path.display())]
    File {
        /// What it holds.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        error: io::Error,
    },
    /// A file that holds something else.
    #[error("the {what} in {place} cannot be used: {reason}; write a valid one there")]
    Content {
        /// What it should hold.
        what: &'static str,
        /// Where it is.
        place: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is nothing left to prove this node with.
    #[error(transparent)]
    Credentials(#[from] NoCredentials),
    /// The connection did not come about.
    #[error("cannot connect to {address}: {reason}; check the address, the roots and the network")]
    Connect {
        /// The server.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The server gave no sign of a stream.
    #[error("{address} did not answer within {} seconds; check its health", ANSWER_TIMEOUT.as_secs())]
    Silent {
        /// The server.
        address: String,
    },
    /// The server does not let this node in.
    #[error(
        "{address} refused the stream ({reason}); check the token, the cluster id and the pod's namespace"
    )]
    Refused {
        /// The server.
        address: String,
        /// Its code and its words.
        reason: String,
    },
    /// The server ended the stream in order.
    #[error("the server ended the stream")]
    Complete,
    /// The stream failed.
    #[error("the stream failed: {reason}")]
    Ended {
        /// Its code.
        code: Code,
        /// Its code and its words.
        reason: String,
    },
}

impl StreamError {
    /// How Istio's metrics call it. Codes that come with the end of a connection's life are no failures.
    pub fn termination(&self) -> Termination {
        match self {
            Self::Ended { code, .. } => match code {
                Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable => {
                    Termination::Reconnect
                }
                _ => Termination::Error,
            },
            Self::Complete => Termination::Complete,
            _ => Termination::ConnectionError,
        }
    }
}

impl From<Status> for StreamError {
    fn from(status: Status) -> Self {
        Self::Ended {
            code: status.code(),
            reason: reason(&status),
        }
    }
}

fn reason(status: &Status) -> String {
    let cause = status.source().map(chain).unwrap_or_default();
    let words = format!("{:?}: {} {cause}", status.code(), status.message());
    bounded(words.trim_end())
}

/// An open stream.
pub struct Stream {
    /// To the server.
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    /// From the server.
    pub responses: Streaming<DeltaDiscoveryResponse>,
}

/// Opens a stream and sends the first requests. Roots and token are read anew: both are replaced while we run.
///
/// # Errors
/// When a file cannot be used, the server cannot be reached or verified, or refuses.
pub async fn open(
    options: &Options,
    first: impl IntoIterator<Item = DeltaDiscoveryRequest>,
) -> Result<Stream, StreamError> {
    let presented = match &options.token {
        Token::Held(credentials) => Some(credentials.present()?),
        _ => None,
    };
    let channel = connect(options, presented.as_ref()).await?;
    let (requests, queue) = mpsc::channel(QUEUE);
    let queued = tokio_stream::iter(first.into_iter().collect::<Vec<_>>());
    let outgoing = tokio_stream::StreamExt::chain(queued, ReceiverStream::new(queue));
    let mut request = Request::new(outgoing);
    let metadata = request.metadata_mut();
    for (name, value) in &options.headers {
        metadata.insert(name.clone(), value.clone());
    }
    let cluster = options.cluster.parse();
    let bad = |_| content("cluster id", "the options", "it is not visible ASCII");
    metadata.insert("clusterid", cluster.map_err(bad)?);
    let token = match presented.map(|presented| presented.proof) {
        Some(Proof::Certificate { .. }) => None,
        Some(Proof::Token(token)) => Some(bearer(token.expose(), "the join token")?),
        None => token(&options.token).await?,
    };
    if let Some(token) = token {
        metadata.insert("authorization", token);
    }
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let answer = timeout(ANSWER_TIMEOUT, client.delta_aggregated_resources(request)).await;
    let answer = answer.map_err(|_| StreamError::Silent {
        address: options.address.to_string(),
    })?;
    let answer = answer.map_err(|status| StreamError::Refused {
        address: options.address.to_string(),
        reason: reason(&status),
    })?;
    Ok(Stream {
        requests,
        responses: answer.into_inner(),
    })
}

async fn connect(options: &Options, presented: Option<&Presented>) -> Result<Channel, StreamError> {
    let failed = |error: tonic::transport::Error| StreamError::Connect {
        address: options.address.to_string(),
        reason: bounded(&chain(&error)),
    };
    let endpoint = Endpoint::from(options.address.uri().clone())
        .tls_config(tls(options, presented).await?)
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Some(TCP_KEEPALIVE))
        .tcp_keepalive_interval(Some(TCP_KEEPALIVE_INTERVAL))
        .tcp_keepalive_retries(Some(TCP_KEEPALIVE_RETRIES))
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    // The name has to be resolved too, for which nothing else sets a limit.
    let connected = timeout(CONNECTION_TIMEOUT, endpoint.connect()).await;
    let late = |_| StreamError::Connect {
        address: options.address.to_string(),
        reason: format!("nothing within {} seconds", CONNECTION_TIMEOUT.as_secs()),
    };
    connected.map_err(late)?.map_err(failed)
}

async fn tls(
    options: &Options,
    presented: Option<&Presented>,
) -> Result<ClientTlsConfig, StreamError> {
    let config = ClientTlsConfig::new().timeout(CONNECT_TIMEOUT);
    let config = match (presented, &options.roots) {
        (Some(presented), _) => {
            let roots = certificates(presented.roots.as_bytes(), "the credentials")?;
            let config = config.ca_certificate(roots);
            match &presented.proof {
                Proof::Token(_) => config,
                Proof::Certificate { chain, key } => {
                    config.identity(TlsIdentity::from_pem(chain, key.expose()))
                }
            }
        }
        (None, Roots::System) => config.with_native_roots(),
        (None, Roots::Pem(pem)) => {
            config.ca_certificate(certificates(pem.as_bytes(), "the options")?)
        }
        (None, Roots::File(path)) => {
            let pem = read("root certificates", path).await?;
            config.ca_certificate(certificates(&pem, &path.display().to_string())?)
        }
    };
    Ok(match &options.verified_name {
        Some(name) => config.domain_name(name),
        None => config,
    })
}

fn certificates(pem: &[u8], place: &str) -> Result<Certificate, StreamError> {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    if !pem.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Err(content(
            "root certificates",
            place,
            "there is no PEM certificate in it",
        ));
    }
    Ok(Certificate::from_pem(pem))
}

async fn token(token: &Token) -> Result<Option<MetadataValue<Ascii>>, StreamError> {
    let (text, place) = match token {
        Token::None | Token::Held(_) => return Ok(None),
        Token::Text(text) => (text.to_string(), "the options".to_owned()),
        Token::File(path) => {
            let place = path.display().to_string();
            let bytes = read("token", path).await?;
            let text = String::from_utf8(bytes);
            let bad = |_| content("token", &place, "it is not ASCII");
            (text.map_err(bad)?, place)
        }
    };
    bearer(&text, &place).map(Some)
}

fn bearer(text: &str, place: &str) -> Result<MetadataValue<Ascii>, StreamError> {
    if text.trim().is_empty() {
        return Err(content("token", place, "it is empty"));
    }
    let header = format!("Bearer {}", text.trim()).parse();
    let bad = |_| content("token", place, "it is not visible ASCII");
    let mut value: MetadataValue<Ascii> = header.map_err(bad)?;
    value.set_sensitive(true);
    Ok(value)
}

fn content(what: &'static str, place: &str, reason: &'static str) -> StreamError {
    StreamError::Content {
        what,
        place: place.to_owned(),
        reason,
    }
}

async fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, StreamError> {
    let failed = |error| StreamError::File {
        what,
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).await.map_err(failed)?;
    let mut content = Vec::new();
    let read = file
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut content)
        .await
        .map_err(failed)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(self::content(
            what,
            &path.display().to_string(),
            "it is larger than 1 MiB",
        ));
    }
    Ok(content)
}

/// An error with its causes; transports name only the outermost by themselves.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn bounded(text: &str) -> String {
    text.chars().take(MAX_ERROR_CHARS).collect()
}

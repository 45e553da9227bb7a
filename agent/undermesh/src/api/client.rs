//! The client's side of the API.
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};

use super::types::ErrorBody;

/// Largest answer that is read.
pub const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// How long an answer may take, beyond the time that the request itself asks for.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent answers at {path} ({error}); start 'undermesh node', or name its socket with --socket"
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The socket may not be opened.
    #[error("{path} may not be opened; run this command as root")]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The agent took too long.
    #[error("the agent at {path} did not answer in {seconds} s; look at its log")]
    Late {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        seconds: u64,
    },
    /// The exchange broke.
    #[error("the exchange with the agent at {path} broke ({reason}); look at its log")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// The agent said no.
    #[error("{error}; {remedy}")]
    Refused {
        /// Why.
        error: String,
        /// What to do.
        remedy: String,
    },
}

/// Talks to the agent behind a socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the agent at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Asks for what is at `target`.
    ///
    /// # Errors
    /// When there is no agent, no answer, or a refusal.
    pub async fn get(&self, target: &str) -> Result<Value, ClientError> {
        self.ask(Method::GET, target, Bytes::new(), Duration::ZERO)
            .await
    }

    /// Sends one request, which by itself may take `patience`.
    ///
    /// # Errors
    /// When there is no agent, no answer, or a refusal.
    pub async fn ask(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Value, ClientError> {
        let limit = ANSWER_TIMEOUT + patience;
        let (status, body) = timeout(limit, self.exchange(method, target, body))
            .await
            .map_err(|_| ClientError::Late {
                path: self.path.clone(),
                seconds: limit.as_secs(),
            })??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.broken(error));
        }
        match serde_json::from_slice(&body) {
            Ok(ErrorBody { error, remedy }) => Err(ClientError::Refused { error, remedy }),
            Err(_) => Err(self.broken(format!(
                "status {status}: {}",
                String::from_utf8_lossy(&body).trim()
            ))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "undermesh")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let answer = async move {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|error| self.broken(error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|error| self.broken(error))?.to_bytes()))
        };
        // The connection only moves while it is polled; its own errors reach the answer too.
        let (answer, _) = futures::future::join(answer, connection).await;
        answer
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let path = self.path.clone();
        UnixStream::connect(&self.path)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
                _ => ClientError::NoAgent { path, error },
            })
    }

    fn broken(&self, reason: impl ToString) -> ClientError {
        ClientError::Broken {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }
}

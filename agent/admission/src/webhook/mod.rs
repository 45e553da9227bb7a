//! The validating admission webhook: `POST /validate` over HTTPS, asked by the API server before it stores an object.
use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use undermesh_control::Settings;

pub mod authority;
pub mod review;
#[cfg(test)]
mod tests;

/// Where reviews are posted.
pub const PATH: &str = "/validate";
/// Largest body: twice what etcd stores of one object, as an update comes with the old one, and its envelope.
pub const MAX_BODY_BYTES: usize = 3 << 20;
/// Most connections at once; further ones wait.
const MAX_CONNECTIONS: usize = 256;
/// Longest handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the head of a request, and so for the next one on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time for a review; the API server waits 5 s.
const DEADLINE: Duration = Duration::from_secs(4);
/// Wait after a failure to accept, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The webhook's server.
#[derive(Clone)]
pub struct Webhook {
    settings: Arc<Settings>,
    tls: TlsAcceptor,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Webhook {
    /// A webhook for the mesh of `settings`, which serves under the certificate of `tls`. Only HTTP/1.1 is offered.
    pub fn new(settings: Settings, mut tls: rustls::ServerConfig) -> Self {
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            settings: Arc::new(settings),
            tls: TlsAcceptor::from(Arc::new(tls)),
        }
    }

    /// Answers reviews until it is dropped.
    pub async fn serve(self, listener: TcpListener) -> Infallible {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            // The semaphore is never closed, so there is always a place to come.
            let place = places.clone().acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let webhook = self.clone();
                    connections.spawn(async move {
                        if let Err(error) = webhook.connection(stream).await {
                            tracing::debug!("webhook: a connection ended: {error}");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("webhook: cannot accept a connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream) -> io::Result<()> {
        let stream = timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await??;
        let answer =
            service_fn(|request| async { Ok::<_, Infallible>(self.answer(request).await) });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), answer)
            .await
            .map_err(io::Error::other)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let answer = timeout(DEADLINE, self.review(request)).await;
        answer.unwrap_or_else(|_| {
            plain(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            )
        })
    }

    async fn review(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return plain(StatusCode::NOT_FOUND, "there is only /validate");
        }
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "reviews are posted");
        }
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES)
            .collect()
            .await;
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return plain(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the review is larger than 3 MiB",
                );
            }
            Err(_) => return plain(StatusCode::BAD_REQUEST, "the body broke off"),
        };
        match review::read(&body) {
            Ok(request) => json(&review::decide(request, &self.settings)),
            Err(error) => plain(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }
}

fn json(review: &review::Review) -> Response<Full<Bytes>> {
    match serde_json::to_vec(review) {
        Ok(body) => respond(StatusCode::OK, "application/json", body),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(
        status,
        "text/plain; charset=utf-8",
        text.as_bytes().to_vec(),
    )
}

fn respond(status: StatusCode, form: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let form = header::HeaderValue::from_static(form);
    response.headers_mut().insert(header::CONTENT_TYPE, form);
    response
}

//! A small HTTP/1.1 server with bounds on everything a client can send, over TCP or a unix socket.
use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    time::timeout,
};

/// Most bytes of a request's head.
pub const MAX_HEAD: usize = 16 * 1024;
/// Most bytes of a request's body.
pub const MAX_BODY: usize = 64 * 1024;
/// Most connections that a server holds at a time; further ones wait in the listener's backlog.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head, and again its body.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait when the listener fails, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A request, read and decoded.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Segments of the path, percent-decoded; `/` has none.
    pub path: Vec<String>,
    /// Query parameters in order, percent-decoded.
    pub query: Vec<(String, String)>,
    /// The body, at most [`MAX_BODY`] bytes.
    pub body: Bytes,
}

impl Request {
    /// The path's segments, for matching.
    pub fn segments(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// The first query parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    /// Its content type.
    pub content_type: &'static str,
    /// The methods that the path takes, where the status is 405.
    pub allow: Option<&'static str>,
    /// Its body.
    pub body: Bytes,
}

impl Response {
    /// A response of lines of text.
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            allow: None,
            body: body.into(),
        }
    }

    /// A response that is JSON already.
    pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type: "application/json",
            allow: None,
            body: body.into(),
        }
    }
}

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(&self, request: Request) -> BoxFuture<'_, Response>;
}

/// Where connections come from.
pub trait Listener: Send + 'static {
    /// A byte stream to one client.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next client.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Serves until the future is dropped; connections in progress end by themselves.
pub async fn serve(listener: impl Listener, handler: Arc<dyn Handler>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(stream) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    converse(stream, handler).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one client until it goes, falls silent or breaks the protocol.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: Arc<dyn Handler>,
) {
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(answer(request, &*handler).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client's connection broke");
    }
}

async fn answer(
    request: http::Request<Incoming>,
    handler: &dyn Handler,
) -> http::Response<Full<Bytes>> {
    let response = match read(request).await {
        Ok(request) => handler.handle(request).await,
        Err(refusal) => refusal,
    };
    let mut answer = http::Response::new(Full::new(response.body));
    *answer.status_mut() = response.status;
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(response.content_type),
    );
    if let Some(allow) = response.allow {
        headers.insert(header::ALLOW, header::HeaderValue::from_static(allow));
    }
    answer
}

async fn read(request: http::Request<Incoming>) -> Result<Request, Response> {
    let bad = |what: &'static str| Response::text(StatusCode::BAD_REQUEST, what);
    let (head, body) = request.into_parts();
    let path = path(head.uri.path()).ok_or_else(|| bad("the path is not valid\n"))?;
    let query = query(head.uri.query().unwrap_or_default())
        .ok_or_else(|| bad("the query is not valid\n"))?;
    let body = timeout(READ_TIMEOUT, Limited::new(body, MAX_BODY).collect())
        .await
        .map_err(|_| Response::text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"))?
        .map_err(|_| Response::text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n"))?
        .to_bytes();
    Ok(Request {
        method: head.method,
        path,
        query,
        body,
    })
}

fn path(text: &str) -> Option<Vec<String>> {
    text.split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| decoded(segment, false))
        .collect()
}

fn query(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decoded(key, true)?, decoded(value, true)?))
    };
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(pair)
        .collect()
}

/// Percent-decoding (RFC 3986, section 2.1); in a query `+` is a space.
fn decoded(text: &str, plus: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => digit(rest.next()?)? * 16 + digit(rest.next()?)?,
            b'+' if plus => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// The inverse of the decoding here, for clients: everything but unreserved characters is escaped.
pub fn encoded(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| {
        if keep(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_and_queries_are_decoded_once() {
        assert_eq!(
            path("/v1/pods/a%2Fb/c").unwrap(),
            ["v1", "pods", "a/b", "c"]
        );
        assert_eq!(
            query("level=a%3Db,c+d&x").unwrap(),
            [
                ("level".to_owned(), "a=b,c d".to_owned()),
                ("x".to_owned(), String::new())
            ]
        );
        for bad in ["%", "%f", "%zz", "%ff"] {
            assert_eq!(decoded(bad, true), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in ".*") {
            prop_assert_eq!(decoded(&encoded(&text), true), Some(text.clone()));
            prop_assert_eq!(decoded(&encoded(&text), false), Some(text));
        }

        #[test]
        fn nothing_breaks_the_decoding(text in "[%+a-f0-9&=]*") {
            let _ = (path(&text), query(&text));
        }
    }
}

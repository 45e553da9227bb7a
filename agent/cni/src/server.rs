//! The agent's side of the plugin's socket: HTTP/1.1 with bounds on all that a client can send.
use std::{
    convert::Infallible,
    fs::{self, DirBuilder, Permissions},
    future::Future,
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

use crate::wire::{Answer, Failure, MAX_BODY, Sandbox, Verb};

/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Most sandboxes that are waited for at a time; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send a request's head, and again its body.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait when the listener fails, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who answers the plugin.
pub trait Desk: Send + Sync + 'static {
    /// Does what is asked of a sandbox. It goes on when the client goes away.
    fn handle(
        &self,
        verb: Verb,
        sandbox: Sandbox,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send;
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something that is not a socket has its name.
    #[error("{} is not a socket; move it away", .0.display())]
    Occupied(PathBuf),
    /// The system refused.
    #[error("the socket {} cannot be set up: {source}; run the agent as root, with its folder writable", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket on which the plugin's questions arrive. Only root may open it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
}

impl Server {
    /// Listens at `path`, in place of an earlier agent. The socket stays when the agent goes: then nobody
    /// answers on it, which tells the plugin that the agent is away. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When something else has the name, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let system = |source| ServerError::System {
            path: path.to_owned(),
            source,
        };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ServerError::Occupied(path.to_owned()));
            }
            _ => {}
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(system)?;
        // Bound under another name and renamed, so that the socket never exists with open permissions.
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(system)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&new, path))
            .map_err(system)?;
        Ok(Self { listener })
    }

    /// Answers until it is dropped.
    pub async fn run<D: Desk>(self, desk: Arc<D>) -> Infallible {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let desk = Arc::clone(&desk);
                    tokio::spawn(async move {
                        serve(stream, desk).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the plugin's socket fails");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve<D: Desk>(stream: UnixStream, desk: Arc<D>) {
    let service = service_fn(|request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(answer(&*desk, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a request of the plugin broke off");
    }
}

async fn answer<D: Desk>(desk: &D, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Some(verb) = Verb::of(request.uri().path()) else {
        let error = "there is no such path; the plugin and the agent are of different versions";
        return failed(StatusCode::NOT_FOUND, error);
    };
    if request.method() != Method::POST {
        return failed(StatusCode::METHOD_NOT_ALLOWED, "use POST");
    }
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return failed(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long");
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let sandbox = match timeout(READ_TIMEOUT, body).await {
        Ok(Ok(body)) => serde_json::from_slice::<Sandbox>(&body.to_bytes()),
        Ok(Err(error)) => return failed(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(_) => {
            return failed(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            );
        }
    };
    match sandbox {
        Ok(sandbox) => match desk.handle(verb, sandbox).await {
            Ok(answer) => json(StatusCode::OK, &answer),
            Err(failure) => json(StatusCode::SERVICE_UNAVAILABLE, &failure),
        },
        Err(error) => failed(
            StatusCode::BAD_REQUEST,
            &format!("the body is not a sandbox: {error}"),
        ),
    }
}

fn failed(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    let error = error.to_owned();
    json(status, &Failure { error })
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    // Strings alone, which always have a JSON form; an empty body is a failure to the plugin too.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests;

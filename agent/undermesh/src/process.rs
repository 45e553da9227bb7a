//! What every long-running role of the binary needs: a runtime, servers that end with it, the signals that end it.
use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::AbortHandle,
};
use undermesh_telemetry::http::{Handler, serve};

/// The running version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the system denies.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// An address is taken.
    #[error(
        "{what} cannot be served on {address}: {error}; free the address, or give another with --{what}-address"
    )]
    Listen {
        /// Which server.
        what: &'static str,
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The system has no more of something.
    #[error("{what} could not be set up: {error}; check the limits of the process")]
    System {
        /// What.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl ProcessError {
    /// The system has no more of `what`.
    pub fn system(what: &'static str, error: io::Error) -> Self {
        Self::System { what, error }
    }
}

/// A runtime whose threads carry `name`.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime(name: &'static str, threads: usize) -> Result<Runtime, ProcessError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|error| ProcessError::system("the runtime", error))
}

/// A server that ends when this is dropped.
pub struct Server(pub AbortHandle);

impl Server {
    /// Serves HTTP on an address.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start(
        what: &'static str,
        address: SocketAddr,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, ProcessError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| ProcessError::Listen {
                what,
                address,
                error,
            })?;
        Ok(Self(tokio::spawn(serve(listener, handler)).abort_handle()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The signals that end a process.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Begins to listen for them.
    ///
    /// # Errors
    /// When the system gives no handler.
    pub fn listen() -> Result<Self, ProcessError> {
        let listen =
            |kind| signal(kind).map_err(|error| ProcessError::system("the signal handler", error));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for one.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

//! Where captured connections were going: the agent asks once for each connection that it accepts.
use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use undermesh_abi::{Destination, FlowKey};

use crate::bpf;

/// The destinations that the kernel filed and nobody has taken yet. Cheap to clone; for any thread.
#[derive(Clone, Debug)]
pub struct Destinations {
    pending: Arc<OwnedFd>,
}

impl Destinations {
    pub(crate) fn new(pending: OwnedFd) -> Self {
        Self {
            pending: Arc::new(pending),
        }
    }

    /// Takes the destination that `source` asked for in the namespace with this cookie.
    ///
    /// `source` is the peer address of the accepted connection. `None` means that there is none: the
    /// connection was not captured, its entry gave way under pressure, or it was taken before. Such a
    /// connection must be refused. One system call, no allocation.
    pub fn take(&self, netns_cookie: u64, source: SocketAddr) -> Option<SocketAddr> {
        let key = FlowKey::new(netns_cookie, source);
        match bpf::take::<FlowKey, Destination>(self.pending.as_fd(), &key) {
            Ok(destination) => destination.map(SocketAddr::from),
            Err(error) => {
                tracing::warn!(%source, %error, "cannot look up the destination of a connection");
                None
            }
        }
    }
}

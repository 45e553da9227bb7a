//! The agent's side of a connection: waiting on its listeners.
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bed::Served;

/// How long a connection may take before a test fails.
const PATIENCE_MS: u16 = 5_000;

impl Served {
    /// Accepts the next captured connection, on whichever worker it comes.
    pub fn accept_outbound(&self) -> (TcpStream, SocketAddr) {
        accept(self.listeners.iter().flat_map(|worker| &worker.outbound))
    }

    /// Accepts the next plain inbound connection.
    pub fn accept_plaintext(&self) -> (TcpStream, SocketAddr) {
        accept(self.listeners.iter().flat_map(|worker| &worker.plaintext))
    }

    /// Accepts the next HBONE connection.
    pub fn accept_hbone(&self) -> (TcpStream, SocketAddr) {
        accept(self.listeners.iter().flat_map(|worker| &worker.hbone))
    }
}

/// Accepts the next connection of any of these.
pub fn accept<'a>(listeners: impl IntoIterator<Item = &'a TcpListener>) -> (TcpStream, SocketAddr) {
    let listeners: Vec<&TcpListener> = listeners.into_iter().collect();
    let mut polled: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN))
        .collect();
    assert_ne!(
        poll(&mut polled, PollTimeout::from(PATIENCE_MS)).unwrap(),
        0,
        "no connection came"
    );
    let ready = polled
        .iter()
        .position(|polled| polled.any() == Some(true))
        .unwrap();
    listeners[ready].accept().unwrap()
}

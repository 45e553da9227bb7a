//! Traffic of users that goes on while something changes: new connections all the time, and one that stays open.
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use undermesh_tests::tcp::{self, Server};
use undermesh_tests::{Context, Family, Result};

use super::{ClusterPod, Town};

/// The port of the server that the open connection is to.
const ECHO_PORT: u16 = 7007;
/// Rounds after the change, so that the last ones meet for certain what has changed.
const ROUNDS_AFTER: usize = 5;

/// Says that the change is over, however it ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Repeats `round` while `change` goes on and a few times more; every round must succeed.
pub fn during<T>(
    round: impl Fn() -> Result<()> + Sync,
    change: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let (mut rounds, mut after) = (0, 0);
            while after < ROUNDS_AFTER {
                round().context(|| format!("traffic, after {rounds} good rounds"))?;
                rounds += 1;
                after += usize::from(over.load(Ordering::Relaxed));
            }
            Ok(())
        });
        let outcome = {
            let _over = Over(&over);
            change()
        };
        traffic.join().unwrap()?;
        outcome
    })
}

/// The users of a town: who fetches pages of its service, and who keeps a connection to its server.
pub struct Traffic<'a> {
    fetch: Box<dyn Fn() -> Result<()> + Sync + 'a>,
    held: Mutex<TcpStream>,
    _echo: Server,
}

impl<'a> Traffic<'a> {
    /// Connects, and fetches a first page.
    pub fn start(town: &'a Town<'_>) -> Result<Self> {
        let fetch = || town.fetch()?.success().map(drop);
        fetch()?;
        let (held, echo) = hold(&town.client, &town.server)?;
        Ok(Self {
            fetch: Box::new(fetch),
            held: Mutex::new(held),
            _echo: echo,
        })
    }

    /// Goes on while `change` does; nothing may fail.
    pub fn during<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        during(|| self.round(), change)
    }

    fn round(&self) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        tcp::ping(&mut held, b"still there?").context(|| "use the open connection")?;
        (self.fetch)()
    }
}

fn hold(client: &ClusterPod, server: &ClusterPod) -> Result<(TcpStream, Server)> {
    let echo = Server::start(&server.pod, ECHO_PORT, tcp::echo)?;
    let address = (server.pod.ip(Family::V4), ECHO_PORT).into();
    let held = client.pod.run(|| tcp::connect(address))?;
    Ok((held.context(|| "open a connection that stays")?, echo))
}

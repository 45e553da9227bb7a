//! A replica of the controller on a host of its own, and the Service that leads nodes to one that serves.

use std::fmt;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::agent::{binary, poll};
use crate::cluster::SYSTEM;
use crate::http;
use crate::process::Running;
use crate::tcp::Server;
use crate::testbed::Outside;
use crate::{Context, Result};

/// Where a controller serves nodes.
pub const DISCOVERY_PORT: u16 = 15_012;
/// Where it shows its metrics.
const STATS_PORT: u16 = 15_014;
/// Where it says that it is ready.
const READINESS_PORT: u16 = 15_021;
/// How long a controller may take to end, or to write a line of its log.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a replica may take to accept a connection before the next one is tried.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A replica of the controller.
pub struct Controller {
    host: Outside,
    process: Mutex<Option<Running>>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Controller")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller that does not run yet.
    pub fn new(host: Outside) -> Self {
        Self {
            host,
            process: Mutex::default(),
        }
    }

    /// Its name in the Lease.
    pub fn name(&self) -> &str {
        self.host.place.label()
    }

    /// Where it serves nodes.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host.addresses.v4.into(), DISCOVERY_PORT)
    }

    /// Starts it and waits until it has listed the cluster; `extra` are more arguments of its command line.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, kubeconfig: &Path, extra: &[&str]) -> Result<()> {
        let kubeconfig = kubeconfig.to_string_lossy();
        let mut arguments = vec![
            "controller",
            "--kubeconfig",
            &kubeconfig,
            "--namespace",
            SYSTEM,
            "--name",
            self.name(),
            "--log-format",
            "json",
        ];
        arguments.extend(extra);
        let place = &self.host.place;
        let mut process = place.spawn(&binary()?.to_string_lossy(), arguments)?;
        process.wait_listening(DISCOVERY_PORT)?;
        *self.slot() = Some(process);
        poll("wait until the controller is ready", || {
            Ok(self
                .get(READINESS_PORT, "/healthz/ready")
                .is_ok_and(|answer| answer.status == 200))
        })
    }

    /// Kills it, as a lost machine would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Asks it to end and waits for it.
    ///
    /// # Errors
    /// When it does not run, or goes on.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        let taken = self.slot().take();
        let mut process = taken.context(|| "end the controller")?;
        process.signal(signal)?;
        process.wait(PATIENCE).map(drop)
    }

    /// The sum of the samples of `metric` that carry all `labels`, each such as `result="signed"`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metric(&self, metric: &str, labels: &[&str]) -> Result<f64> {
        let answer = self.get(STATS_PORT, "/metrics")?;
        Ok(http::sum_of_samples(&answer.body, metric, labels))
    }

    /// Its process id, as the sandbox numbers it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        let process = self.slot();
        process
            .as_ref()
            .map(Running::pid)
            .context(|| "find the process of the controller")
    }

    /// Waits for a line of its log that holds every one of `words`.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_line(&self, words: &[&str]) -> Result<String> {
        let lines = self.slot().as_ref().map(|it| it.lines().clone());
        let lines = lines.context(|| "read the log of the controller")?;
        lines
            .wait_for(0, PATIENCE, |line| {
                let found = words.iter().all(|word| line.contains(word));
                found.then(|| line.to_owned())
            })
            .context(|| format!("wait for a line of the controller with {words:?}"))
    }

    fn get(&self, port: u16, path: &str) -> Result<http::Answer> {
        let answer = self.host.place.run(|| http::get_local(port, path))?;
        answer.context(|| format!("ask {}", self.name()))
    }

    fn slot(&self) -> MutexGuard<'_, Option<Running>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves on `host` what one of `replicas` serves, as kube-proxy makes a Service with `sessionAffinity: ClientIP`:
/// a client keeps to one replica as long as that one takes connections.
///
/// # Errors
/// When the port cannot be had.
pub fn service(host: &Outside, replicas: Vec<SocketAddr>) -> Result<Server> {
    Server::start(&host.place, DISCOVERY_PORT, move |client| {
        let server = dial(affinity(client.peer_addr()?.ip()), &replicas)?;
        // Discovery is silent for as long as nothing changes.
        for stream in [&client, &server] {
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
        }
        let (back, forth) = (server.try_clone()?, client.try_clone()?);
        let answers = thread::spawn(move || forward(&back, &forth));
        forward(&client, &server);
        // It yields nothing, and a panic in it has been printed.
        let _ = answers.join();
        Ok(())
    })
}

fn affinity(client: IpAddr) -> usize {
    match client.to_canonical() {
        IpAddr::V4(address) => address.octets()[3].into(),
        IpAddr::V6(address) => address.octets()[15].into(),
    }
}

fn dial(first: usize, replicas: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for turn in 0..replicas.len() {
        let replica = replicas[(first + turn) % replicas.len()];
        match TcpStream::connect_timeout(&replica, DIAL_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Copies until either end has had enough, and then ends both: half a connection is of no use to gRPC.
fn forward(mut from: &TcpStream, mut to: &TcpStream) {
    // How a connection ends is for its ends to judge.
    let _ = io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

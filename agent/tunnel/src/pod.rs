//! One pod on one worker: its listeners, its open connections and how they end.
use std::{
    cell::RefCell,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use slab::Slab;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot, watch},
    task::spawn_local,
    time::{Instant, sleep, timeout_at},
};
use undermesh_identity::CertificateHandle;
use undermesh_model::{Decision, Identity, Mesh, Request, Verdict, Workload};
use undermesh_telemetry::Direction;

use crate::{
    PodConfig, WorkerListeners, inbound, outbound, plaintext, pool::Pool, socket, socket::Netns,
    worker::Shared,
};

/// Connections of one pod that one worker carries at a time.
const MAX_CONNECTIONS: usize = 32_768;
/// ALLOW policies that a refusal names.
const POLICIES_NAMED: usize = 5;
/// Pause after `accept()` failed for want of descriptors or memory; the kernel tells no end of that.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One pod on one worker.
pub(crate) struct Pod {
    pub id: u64,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub identity: Identity,
    pub certificate: CertificateHandle,
    pub netns: Netns,
    pub mark: u32,
    pub pool: Pool,
    pub shared: Rc<Shared>,
    connections: RefCell<Slab<Open>>,
    emptied: Notify,
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
}

/// Why an open connection is ended from this side.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// The pod was released, or the agent stops, and the time to drain is over.
    Drained,
    /// A change of policy denies it now.
    Policy(Refused),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("closed from drain: the time to finish was over"),
            Self::Policy(refused) => write!(f, "closed due to policy change: {refused}"),
        }
    }
}

/// A decision that refuses a connection, in words.
#[derive(Clone, Debug)]
pub(crate) struct Refused(Decision);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Decision::Denied { policy } => write!(f, "denied by policy {policy}"),
            Decision::NotAllowed { policies } => {
                write!(f, "no ALLOW policy matches (")?;
                for (index, policy) in policies.iter().take(POLICIES_NAMED).enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{policy}")?;
                }
                let more = if policies.len() > POLICIES_NAMED {
                    ", ..."
                } else {
                    ""
                };
                write!(f, "{more})")
            }
            Decision::Unenforceable { policy } => {
                write!(f, "policy {policy} is not known, so nothing is let through")
            }
            Decision::Allow { .. } => f.write_str("allowed"),
        }
    }
}

/// What an inbound connection was judged by, kept for when policy changes.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    /// The peer, where mutual TLS proved it.
    pub identity: Option<Identity>,
    /// The peer's address.
    pub source: IpAddr,
    /// The pod's own address.
    pub destination: IpAddr,
    /// The application's port.
    pub port: u16,
}

struct Open {
    judged: Option<Judged>,
    end: Option<oneshot::Sender<Ending>>,
}

/// A place among the pod's connections, given back when dropped.
pub(crate) struct Admission {
    pod: Rc<Pod>,
    key: usize,
    ended: oneshot::Receiver<Ending>,
}

impl Admission {
    /// Runs `work` until it is done or the connection is ended from this side.
    pub(crate) async fn until_ended<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Ending> {
        tokio::select! {
            result = work => Ok(result),
            ending = &mut self.ended => Err(ending.unwrap_or(Ending::Drained)),
        }
    }

    /// The pod that the connection belongs to.
    pub(crate) fn pod(&self) -> Rc<Pod> {
        Rc::clone(&self.pod)
    }

    /// Notes what the connection was judged by, so that a change of policy reaches it.
    pub(crate) fn judged(&self, judged: Judged) {
        if let Some(open) = self.pod.connections.borrow_mut().get_mut(self.key) {
            open.judged = Some(judged);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut connections = self.pod.connections.borrow_mut();
        connections.try_remove(self.key);
        if connections.is_empty() {
            self.pod.emptied.notify_waiters();
        }
    }
}

impl Pod {
    /// Takes the listeners into this worker's runtime and starts to serve them.
    ///
    /// # Errors
    /// When a listener cannot be set up.
    pub(crate) fn start(
        config: &PodConfig,
        listeners: WorkerListeners,
        shared: Rc<Shared>,
    ) -> io::Result<Rc<Self>> {
        let announce = shared.announce.clone();
        let netns = Netns::new(config.id, Arc::clone(&config.netns), announce);
        let pod = Rc::new(Self {
            id: config.id,
            namespace: Arc::clone(&config.namespace),
            name: Arc::clone(&config.name),
            identity: config.identity.clone(),
            certificate: config.certificate.clone(),
            pool: Pool::new(
                netns.clone(),
                config.outbound_mark,
                config.certificate.clone(),
                Arc::clone(&shared.tunnels),
            ),
            netns,
            mark: config.outbound_mark,
            shared,
            connections: RefCell::default(),
            emptied: Notify::new(),
            phase: watch::Sender::new(Phase::Serving),
        });
        for (direction, group) in [
            (Direction::Outbound, listeners.outbound),
            (Direction::InboundPlaintext, listeners.plaintext),
            (Direction::Inbound, listeners.hbone),
        ] {
            for listener in group {
                socket::prepare_listener(&listener)?;
                if direction == Direction::Outbound {
                    socket::unpaced(&(&listener).into());
                }
                let listener = TcpListener::from_std(listener)?;
                spawn_local(Rc::clone(&pod).listen(listener, direction));
            }
        }
        Ok(pod)
    }

    async fn listen(self: Rc<Self>, listener: TcpListener, direction: Direction) {
        let mut draining = self.draining();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut draining => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    spawn_local(Rc::clone(&self).serve(stream, socket::canonical(peer), direction));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(pod = %self.name, namespace = %self.namespace, %error,
                        "cannot accept a connection; raise the limit of open files if it says so");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Rc<Self>, stream: TcpStream, peer: SocketAddr, direction: Direction) {
        match direction {
            Direction::Outbound => outbound::serve(self, stream, peer).await,
            Direction::InboundPlaintext => plaintext::serve(self, stream, peer).await,
            Direction::Inbound => inbound::serve(self, stream, peer).await,
        }
    }

    /// A place for one more connection; `None` when the pod has all that it may have.
    pub(crate) fn admit(self: &Rc<Self>) -> Option<Admission> {
        let mut connections = self.connections.borrow_mut();
        if connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        let (end, ended) = oneshot::channel();
        let key = connections.insert(Open {
            judged: None,
            end: Some(end),
        });
        Some(Admission {
            pod: Rc::clone(self),
            key,
            ended,
        })
    }

    /// Completes when the pod takes no more connections.
    pub(crate) fn draining(&self) -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
        let mut phase = self.phase.subscribe();
        Box::pin(async move {
            // An error means that the pod is gone, which ends serving as well.
            let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
        })
    }

    /// Closes the listeners, waits until `deadline` for open connections to end, then ends them.
    pub(crate) async fn drain(&self, deadline: Instant) {
        self.phase.send_replace(Phase::Draining);
        if timeout_at(deadline, self.empty()).await.is_err() {
            self.end(|_| Some(Ending::Drained));
            // They end at once now; each needs a turn of this runtime.
            self.empty().await;
        }
    }

    async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.connections.borrow().is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Judges the open inbound connections again and lets go of tunnels that lead nowhere now.
    pub(crate) fn reconsider(&self, mesh: &Mesh) {
        self.pool.sweep(mesh);
        let workload = self.workload(mesh);
        self.end(|judged| {
            let judged = judged?;
            let refused = match &workload {
                Some(workload) => judge(mesh, workload, judged).err()?,
                // The pod's own workload has left the mesh: nothing tells any more who may come in.
                None => return Some(Ending::Drained),
            };
            Some(Ending::Policy(refused))
        });
    }

    fn end(&self, choose: impl Fn(Option<&Judged>) -> Option<Ending>) {
        for (_, open) in &mut *self.connections.borrow_mut() {
            if let Some(ending) = choose(open.judged.as_ref())
                && let Some(end) = open.end.take()
            {
                // It may have ended by itself in this very turn.
                let _ = end.send(ending);
            }
        }
    }

    /// The pod's workload, if the mesh knows it under the identity that the pod was enrolled with.
    pub(crate) fn workload(&self, mesh: &Mesh) -> Option<Arc<Workload>> {
        mesh.workload_named(&self.namespace, &self.name)
            .filter(|workload| workload.identity == self.identity)
            .cloned()
    }
}

/// Judges an inbound connection.
///
/// # Errors
/// The refusal, when policy does not let it through.
pub(crate) fn judge(mesh: &Mesh, workload: &Workload, judged: &Judged) -> Result<(), Refused> {
    let request = Request {
        identity: judged.identity.as_ref(),
        source: judged.source,
        destination: judged.destination,
        port: judged.port,
    };
    let Verdict { decision, dry_run } = mesh.evaluate(workload, &request);
    for policy in dry_run {
        tracing::info!(%policy, source = %judged.source, port = judged.port,
            "a dry-run policy would have refused this connection");
    }
    if decision.allows() {
        Ok(())
    } else {
        Err(Refused(decision))
    }
}

/// Errors of `accept()` that concern the connection alone (`accept(2)`).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

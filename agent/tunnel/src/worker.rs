//! The worker threads: a single-threaded runtime each, with its own listeners, pods and tunnels.
use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::{
    runtime::{Builder, Handle, LocalOptions},
    sync::{mpsc, oneshot, watch},
    task::spawn_local,
    time::{Instant, MissedTickBehavior, interval},
};
use undermesh_model::SharedMesh;
use undermesh_telemetry::Telemetry;

use crate::{
    Announce, OriginalDestinations, PodConfig, Resolve, WorkerListeners, names::Names, pod::Pod,
    pool::SWEEP_INTERVAL,
};

/// Commands that wait for one worker.
const COMMANDS: usize = 64;

/// What the workers share with the rest of the agent.
pub struct WorkersConfig {
    /// Number of worker threads.
    pub workers: usize,
    /// The mesh.
    pub mesh: SharedMesh,
    /// Changes whenever the mesh does.
    pub changed: watch::Receiver<u64>,
    /// Metrics, access log and table of connections.
    pub telemetry: Telemetry,
    /// Where captured connections were meant to go.
    pub destinations: Arc<dyn OriginalDestinations>,
    /// Whom to tell of connections to applications; `None` where the kernel knows them by their device.
    pub announce: Option<Arc<dyn Announce>>,
    /// Whom to ask for what the mesh does not hold; `None` where it holds everything.
    pub resolver: Option<Arc<dyn Resolve>>,
    /// The agent's own runtime, outside of all pods, where names are resolved.
    pub runtime: Handle,
}

/// Why the workers cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    /// A thread or its runtime could not be made.
    #[error("cannot start worker {worker}: {error}; check the limits of threads and open files")]
    Start {
        /// Which one.
        worker: usize,
        /// The cause.
        error: io::Error,
    },
    /// A pod's listeners could not be set up.
    #[error("cannot serve pod {namespace}/{name}: {error}; check the limit of open files")]
    Serve {
        /// Namespace of the pod.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// The cause.
        error: io::Error,
    },
    /// The pod came with listeners for another number of workers.
    #[error("pod {namespace}/{name} has listeners for {found} workers; {expected} run")]
    Listeners {
        /// Namespace of the pod.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// Workers that run.
        expected: usize,
        /// Sets of listeners.
        found: usize,
    },
    /// A worker thread has ended.
    #[error("a worker has stopped; restart the agent")]
    Stopped,
}

/// The running data plane.
pub struct Workers {
    workers: Vec<Worker>,
    tunnels: Arc<AtomicUsize>,
}

/// A thread's commands; the thread ends when they are dropped.
struct Worker {
    commands: mpsc::Sender<Command>,
}

/// What one worker's pods share.
pub(crate) struct Shared {
    pub mesh: SharedMesh,
    pub changed: watch::Receiver<u64>,
    pub telemetry: Telemetry,
    pub destinations: Arc<dyn OriginalDestinations>,
    pub announce: Option<Arc<dyn Announce>>,
    pub resolver: Option<Arc<dyn Resolve>>,
    pub names: Arc<Names>,
    pub random: RefCell<SmallRng>,
    /// Tunnels of all workers together.
    pub tunnels: Arc<AtomicUsize>,
}

enum Command {
    Add {
        config: Arc<PodConfig>,
        listeners: WorkerListeners,
        done: oneshot::Sender<io::Result<()>>,
    },
    Remove {
        id: u64,
        drain: Duration,
        done: oneshot::Sender<()>,
    },
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(config: WorkersConfig) -> Result<Self, WorkersError> {
        let tunnels = Arc::new(AtomicUsize::new(0));
        let names = Arc::new(Names::new(config.runtime.clone()));
        let workers = (0..config.workers)
            .map(|worker| {
                Worker::start(worker, &config, Arc::clone(&names), Arc::clone(&tunnels))
                    .map_err(|error| WorkersError::Start { worker, error })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { workers, tunnels })
    }

    /// Starts to serve a pod.
    ///
    /// # Errors
    /// When the listeners do not fit the workers, or cannot be set up; nothing is served then.
    pub async fn add_pod(&self, mut config: PodConfig) -> Result<(), WorkersError> {
        let listeners = std::mem::take(&mut config.listeners);
        if listeners.len() != self.workers.len() {
            return Err(WorkersError::Listeners {
                namespace: config.namespace,
                name: config.name,
                expected: self.workers.len(),
                found: listeners.len(),
            });
        }
        let config = Arc::new(config);
        for (worker, listeners) in self.workers.iter().zip(listeners) {
            let (done, added) = oneshot::channel();
            let command = Command::Add {
                config: Arc::clone(&config),
                listeners,
                done,
            };
            let added = worker.command(command, added).await.and_then(|result| {
                result.map_err(|error| WorkersError::Serve {
                    namespace: Arc::clone(&config.namespace),
                    name: Arc::clone(&config.name),
                    error,
                })
            });
            if let Err(error) = added {
                self.remove_pod(config.id, Duration::ZERO).await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Closes a pod's listeners, waits up to `drain` for its connections, then ends what is left.
    /// A pod that is not served is no error.
    pub async fn remove_pod(&self, id: u64, drain: Duration) {
        let removals = self.workers.iter().map(|worker| {
            let (done, removed) = oneshot::channel();
            // A worker that has stopped serves no pod.
            async move {
                worker
                    .command(Command::Remove { id, drain, done }, removed)
                    .await
                    .ok()
            }
        });
        futures::future::join_all(removals).await;
    }

    /// Tunnels to peers that are open, over all pods.
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }
}

impl Worker {
    fn start(
        index: usize,
        config: &WorkersConfig,
        names: Arc<Names>,
        tunnels: Arc<AtomicUsize>,
    ) -> io::Result<Self> {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let mesh = config.mesh.clone();
        let changed = config.changed.clone();
        let telemetry = config.telemetry.clone();
        let destinations = Arc::clone(&config.destinations);
        let announce = config.announce.clone();
        let resolver = config.resolver.clone();
        let (started, start) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let runtime = Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default());
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    // The starter waits for this.
                    Err(error) => return drop(started.send(Err(error))),
                };
                drop(started.send(Ok(())));
                let random = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
                let shared = Rc::new(Shared {
                    mesh,
                    changed,
                    telemetry,
                    destinations,
                    announce,
                    resolver,
                    names,
                    random,
                    tunnels,
                });
                runtime.block_on(run(shared, receiver));
            })?;
        start.recv().map_err(io::Error::other)??;
        Ok(Self { commands })
    }

    async fn command<T>(
        &self,
        command: Command,
        answer: oneshot::Receiver<T>,
    ) -> Result<T, WorkersError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| WorkersError::Stopped)?;
        answer.await.map_err(|_| WorkersError::Stopped)
    }
}

/// Serves commands until the agent drops the worker.
async fn run(shared: Rc<Shared>, mut commands: mpsc::Receiver<Command>) {
    let mut pods: HashMap<u64, Rc<Pod>> = HashMap::new();
    let mut changed = shared.changed.clone();
    let mut mesh_lives = true;
    let mut sweep = interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Add { config, listeners, done }) => {
                    let started = Pod::start(&config, listeners, Rc::clone(&shared));
                    let result = started.map(|pod| { pods.insert(config.id, pod); });
                    // The agent gave up waiting; the pod is served all the same until it is removed.
                    let _ = done.send(result);
                }
                Some(Command::Remove { id, drain, done }) => {
                    let removed = pods.remove(&id);
                    spawn_local(async move {
                        if let Some(pod) = removed {
                            pod.drain(Instant::now() + drain).await;
                        }
                        let _ = done.send(());
                    });
                }
            },
            result = changed.changed(), if mesh_lives => {
                mesh_lives = result.is_ok();
                reconsider(&shared, &pods);
            }
            // The mesh is the same as at its last change, so connections need no new judgement.
            _ = sweep.tick() => {
                let mesh = shared.mesh.snapshot();
                pods.values().for_each(|pod| pod.pool.sweep(&mesh));
            }
        }
    }
}

fn reconsider(shared: &Shared, pods: &HashMap<u64, Rc<Pod>>) {
    let mesh = shared.mesh.snapshot();
    for pod in pods.values() {
        pod.reconsider(&mesh);
    }
}

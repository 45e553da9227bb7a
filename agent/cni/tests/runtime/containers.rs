//! Pods started by containerd as kubelet starts them: the plugin holds them back until the agent has them.
use std::{
    net::IpAddr, os::unix::net::UnixListener, path::Path, sync::Arc, thread, time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::timeout,
};
use undermesh_cni::{
    discovery::{Discovery, DiscoveryError},
    netns,
    server::{Desk, Server},
    wire::{Answer, Failure, Sandbox, Verb},
};

use crate::{
    Test,
    runtime::{Node, OWN_NAMESPACE},
};

pub const TESTS: &[Test] = &[
    (
        "containers::a_pod_does_not_run_before_it_is_captured",
        not_before_it_is_captured,
    ),
    (
        "containers::without_an_agent_pods_wait_and_the_mesh_itself_starts",
        without_an_agent,
    ),
    (
        "containers::an_agent_that_ends_in_the_middle_leaves_no_pod_running",
        ends_in_the_middle,
    ),
];

const PATIENCE: Duration = Duration::from_secs(60);
const UID: &str = "0b5c8e2f-4d67-4c1b-9a3e-2f1d0c9b8a76";

/// An agent that takes pods in when the test lets it, and tells of all that it is asked.
struct Agent {
    asked: mpsc::UnboundedSender<(Verb, Sandbox)>,
    permits: Semaphore,
}

impl Desk for Agent {
    async fn handle(&self, verb: Verb, sandbox: Sandbox) -> Result<Answer, Failure> {
        self.asked.send((verb, sandbox)).unwrap();
        match verb {
            Verb::Add | Verb::Check => {
                self.permits.acquire().await.unwrap().forget();
                Ok(Answer::Enrolled)
            }
            Verb::Del => Ok(Answer::Released),
        }
    }
}

struct Running {
    agent: Arc<Agent>,
    asked: mpsc::UnboundedReceiver<(Verb, Sandbox)>,
    task: JoinHandle<std::convert::Infallible>,
}

impl Running {
    fn start(node: &Node) -> Self {
        let (asked, questions) = mpsc::unbounded_channel();
        let permits = Semaphore::new(0);
        let agent = Arc::new(Agent { asked, permits });
        let server = Server::bind(&node.socket()).unwrap();
        let task = tokio::spawn(server.run(Arc::clone(&agent)));
        Self {
            agent,
            asked: questions,
            task,
        }
    }

    async fn question(&mut self) -> (Verb, Sandbox) {
        timeout(PATIENCE, self.asked.recv()).await.unwrap().unwrap()
    }

    fn allow(&self) {
        self.agent.permits.add_permits(1);
    }
}

/// Each trial has a runtime of its own: what it leaves running, such as an agent that is killed, ends with it.
fn block_on(trial: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(trial);
    runtime.shutdown_timeout(Duration::from_secs(1));
}

fn discovery() -> Discovery {
    Discovery::new("/proc", ["/run/netns".into()])
}

fn not_before_it_is_captured() {
    block_on(async {
        let node = Node::new();
        let mut agent = Running::start(&node);
        let runtime = node.runtime().await;
        let (starting, pod) = (runtime.clone(), node.pod("shop", "web-0", UID));
        let started = tokio::spawn(async move { starting.run(pod).await });

        // Its network stands, and nothing of it runs.
        let (verb, sandbox) = agent.question().await;
        assert_eq!(verb, Verb::Add);
        assert_eq!((&*sandbox.namespace, &*sandbox.name), ("shop", "web-0"));
        assert_eq!(sandbox.uid.as_deref(), Some(UID));
        let path = sandbox.netns.clone().unwrap();
        let open = discovery().open(&path, UID, &sandbox.addresses).unwrap();
        assert_eq!(sandbox.addresses.len(), 1);
        let nobody = discovery().find(UID, &[]).unwrap_err();
        assert!(
            matches!(nobody, DiscoveryError::NoProcess { .. }),
            "{nobody}"
        );
        assert!(!started.is_finished());

        agent.allow();
        let id = timeout(PATIENCE, started).await.unwrap().unwrap().unwrap();
        // Now its process is found, in the very namespace, by the mount that outlives it.
        let found = discovery().find(UID, &sandbox.addresses).unwrap();
        assert_eq!(found.id, open.id);
        let mount = Path::new("/run/netns").join(path.file_name().unwrap());
        assert_eq!(found.path, mount);
        let other: IpAddr = "10.99.0.250".parse().unwrap();
        assert!(discovery().find(UID, &[other]).is_err());

        runtime.stop(&id).await.unwrap();
        let (verb, going) = agent.question().await;
        assert_eq!((verb, going.netns), (Verb::Del, sandbox.netns));
        runtime.remove(&id).await.unwrap();
        assert!(netns::open(&path).is_err());
    });
}

fn without_an_agent() {
    block_on(async {
        let node = Node::new();
        let runtime = node.runtime().await;
        let refused = runtime
            .run(node.pod("shop", "web-0", UID))
            .await
            .unwrap_err();
        assert!(refused.message().contains("does not answer"), "{refused}");
        assert!(discovery().find(UID, &[]).is_err());
        let own = "11111111-2222-3333-4444-555555555555";
        let agent_pod = runtime
            .run(node.pod(OWN_NAMESPACE, "node-x", own))
            .await
            .unwrap();

        // Kubelet tries again, and the agent is back.
        let agent = Running::start(&node);
        agent.allow();
        let id = runtime.run(node.pod("shop", "web-0", UID)).await.unwrap();
        agent.task.abort();
        assert!(agent.task.await.unwrap_err().is_cancelled());
        // A pod can be taken down while the agent is away.
        for id in [id, agent_pod] {
            runtime.stop(&id).await.unwrap();
            runtime.remove(&id).await.unwrap();
        }
    });
}

fn ends_in_the_middle() {
    block_on(async {
        let node = Node::new();
        let runtime = node.runtime().await;
        // What the plugin sees of an agent that is killed: its connection ends, and nobody listens.
        let listener = UnixListener::bind(node.socket()).unwrap();
        let killed = thread::spawn(move || drop(listener.accept().unwrap()));
        let refused = runtime
            .run(node.pod("shop", "web-0", UID))
            .await
            .unwrap_err();
        killed.join().unwrap();
        assert!(refused.message().contains("does not answer"), "{refused}");
        assert!(discovery().find(UID, &[]).is_err());

        let agent = Running::start(&node);
        agent.allow();
        let id = runtime.run(node.pod("shop", "web-0", UID)).await.unwrap();
        runtime.stop(&id).await.unwrap();
        runtime.remove(&id).await.unwrap();
    });
}

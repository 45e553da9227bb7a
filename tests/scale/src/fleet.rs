//! The generated nodes: each one the discovery client of a real node, with a token of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use undermesh_tests::cluster::{CONTROLLER_NAME, SYSTEM};
use undermesh_tests::{Context, Error, Result};
use undermesh_xds::client::options::{Address, NodeOptions, Roots, Token};
use undermesh_xds::client::{
    Client, Counts, Interest, Options, Resolution, Subscription, Termination, Updates,
};

use crate::ledger::Ledger;
use crate::objects::agent_name;
use crate::plan::{Plan, Share};

/// How long all nodes together may take for anything.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pause before a question is repeated that the controller could not be asked.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Where the controller is and what proves it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its URL.
    pub url: String,
    /// The mesh's roots, PEM.
    pub roots: String,
}

/// How far a node is.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    counts: Counts,
    /// Responses that brought addresses.
    responses: u64,
}

/// One generated node.
#[derive(Debug)]
struct Member {
    client: Client,
    state: watch::Receiver<State>,
    /// The fewest workloads that it knew since the last mark.
    fewest: Arc<AtomicUsize>,
    follower: JoinHandle<()>,
    /// Keeps what it asked for subscribed.
    _talks: Vec<Interest>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// All generated nodes.
#[derive(Debug)]
pub struct Fleet {
    members: Vec<Member>,
    plan: Arc<Plan>,
}

/// What the nodes have received since their start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Received {
    /// Responses.
    pub messages: u64,
    /// Bytes of resources in them.
    pub bytes: u64,
}

/// How far the nodes were when the controller went away.
#[derive(Debug)]
pub struct Before(Vec<u64>);

impl Fleet {
    /// Starts all nodes at once, and waits until each knows all that it needs.
    ///
    /// # Errors
    /// When one of them is not served.
    pub async fn join(plan: &Arc<Plan>, server: &Server, ledger: &Arc<Ledger>) -> Result<Self> {
        let nodes = 0..plan.size().nodes;
        let joining: Vec<_> = nodes
            .map(|node| {
                let member = Member::join(node, Arc::clone(plan), server, Arc::clone(ledger));
                Ok(tokio::spawn(member?))
            })
            .collect::<Result<_>>()?;
        let mut members = Vec::with_capacity(joining.len());
        for (number, joining) in joining.into_iter().enumerate() {
            members.push(joining.await.context(|| format!("join node {number}"))??);
        }
        Ok(Self {
            members,
            plan: Arc::clone(plan),
        })
    }

    /// Waits until every node knows what it needs, and nothing else.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for (number, member) in (0..).zip(&mut self.members) {
            member
                .settle(number, self.plan.share(number), deadline)
                .await?;
        }
        Ok(())
    }

    /// What the nodes have received.
    pub fn received(&self) -> Received {
        let mut received = Received::default();
        for member in &self.members {
            for (_, counters) in member.client.counters().types() {
                received.messages += counters.messages();
                received.bytes += counters.bytes();
            }
        }
        received
    }

    /// Attempts and streams that failed, beyond those that a server's end explains.
    pub fn failures(&self) -> u64 {
        let reasons = [Termination::ConnectionError, Termination::Error];
        let of = |member: &Member| -> u64 {
            let counters = member.client.counters();
            reasons
                .map(|reason| counters.terminations(reason))
                .iter()
                .sum()
        };
        self.members.iter().map(of).sum()
    }

    /// Notes how far the nodes are.
    pub fn mark(&mut self) -> Before {
        let responses = self.members.iter().map(|member| {
            let state = *member.state.borrow();
            member
                .fewest
                .store(state.counts.workloads, Ordering::Relaxed);
            state.responses
        });
        Before(responses.collect())
    }

    /// Waits until a server has answered every node again.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn served_since(&mut self, before: &Before) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for (member, responses) in self.members.iter_mut().zip(&before.0) {
            let answered = member.state.wait_for(|state| state.responses > *responses);
            within(deadline, answered)
                .await
                .context(|| "wait until every node is served again")?;
        }
        Ok(())
    }

    /// How many nodes knew fewer workloads than they should at any time since the mark, but for `changes` that
    /// were under way.
    pub fn forgetful(&self, changes: usize) -> usize {
        let members = (0..).zip(&self.members);
        members
            .filter(|(node, member)| {
                let known = member.fewest.load(Ordering::Relaxed) + changes;
                known < self.plan.share(*node).workloads
            })
            .count()
    }
}

impl Member {
    /// Starts the client now; the future waits until it knows what it needs.
    fn join(
        node: u32,
        plan: Arc<Plan>,
        server: &Server,
        ledger: Arc<Ledger>,
    ) -> Result<impl Future<Output = Result<Self>> + use<>> {
        let (client, updates) = Client::start(options(node, server)?, &Handle::current());
        let (sender, state) = watch::channel(State::default());
        let fewest = Arc::new(AtomicUsize::new(0));
        let follower = Follower {
            node,
            client: client.clone(),
            ledger,
            state: sender,
            fewest: Arc::clone(&fewest),
        };
        let follower = tokio::spawn(follower.run(updates));
        Ok(async move {
            let deadline = Instant::now() + PATIENCE;
            let mut talks = Vec::new();
            for service in plan.talks_of(node) {
                talks.push(ask(&client, service, deadline).await?);
            }
            let mut member = Self {
                client,
                state,
                fewest,
                follower,
                _talks: talks,
            };
            member.settle(node, plan.share(node), deadline).await?;
            Ok(member)
        })
    }

    async fn settle(&mut self, node: u32, share: Share, deadline: Instant) -> Result<()> {
        let whole = |state: &State| {
            let Counts {
                workloads,
                services,
                ..
            } = state.counts;
            Share {
                workloads,
                services,
            } == share
        };
        let known = within(deadline, self.state.wait_for(whole)).await.map(drop);
        known.map_err(|cause| {
            let counts = self.state.borrow().counts;
            Error::step(
                format!("wait until node {node} knows {share:?}"),
                format!("{cause}; it knows {counts:?}, {:?}", self.client.status()),
            )
        })
    }
}

fn options(node: u32, server: &Server) -> Result<Options> {
    Ok(Options {
        address: Address::new(&server.url).context(|| "read the controller's URL")?,
        roots: Roots::Pem(server.roots.clone()),
        verified_name: Some(CONTROLLER_NAME.to_owned()),
        token: Token::Text(token(node).into()),
        headers: Vec::new(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        node: NodeOptions {
            name: Plan::node_name(node).into(),
            pod: agent_name(node),
            namespace: SYSTEM.to_owned(),
            ..NodeOptions::default()
        },
        subscription: Subscription::OnDemand,
        cache: None,
    })
}

/// The token of a node's agent.
pub fn token(node: u32) -> String {
    format!("token-of-node-{node}")
}

/// Asks for a service by its address, as a node does at its first connection to it.
async fn ask(client: &Client, service: u32, deadline: Instant) -> Result<Interest> {
    let resolver = client.resolver().context(|| "ask on demand")?;
    let address = IpAddr::from(Plan::service_address(service));
    let network = Arc::from("");
    loop {
        match resolver.resolve(&network, address, deadline.into()).await {
            Resolution::Answered(interest) => return Ok(interest),
            Resolution::Disconnected(_) if Instant::now() < deadline => {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            other => {
                return Err(Error::step(
                    format!("ask for {address}"),
                    format!("{other:?}"),
                ));
            }
        }
    }
}

/// Takes a node's updates.
struct Follower {
    node: u32,
    client: Client,
    ledger: Arc<Ledger>,
    state: watch::Sender<State>,
    fewest: Arc<AtomicUsize>,
}

impl Follower {
    async fn run(self, mut updates: Updates) {
        while let Some(update) = updates.next().await {
            self.ledger.seen(self.node, &update.delta, Instant::now());
            let counts = self.client.status().counts;
            let [(_, addresses), _] = self.client.counters().types();
            self.fewest.fetch_min(counts.workloads, Ordering::Relaxed);
            self.state.send_replace(State {
                counts,
                responses: addresses.messages(),
            });
        }
    }
}

async fn within<T, E: std::fmt::Display>(
    deadline: Instant,
    work: impl Future<Output = std::result::Result<T, E>>,
) -> std::result::Result<T, String> {
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("not within {PATIENCE:?}")),
    }
}

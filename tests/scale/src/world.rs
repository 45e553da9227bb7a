//! The cluster that is measured: its API server in this process, filled with objects, and the real controller.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use undermesh_kubernetes::testing::{ApiServer, TokenOwner};
use undermesh_tests::agent::poll;
use undermesh_tests::api::Api;
use undermesh_tests::cluster::{NODE_ACCOUNT, SYSTEM};
use undermesh_tests::testbed::Outside;
use undermesh_tests::{Cluster, Context, Result, Testbed, usage};

use crate::fleet::{Server, token};
use crate::objects::{self, Progress};
use crate::plan::Plan;

/// The port of the API server.
const PORT: u16 = 6443;
/// How long the tokens of the nodes are valid.
const TOKEN_LIFETIME: Duration = Duration::from_secs(6 * 3600);
/// How many pods are written between two signs of life.
const PROGRESS: u32 = 10_000;

/// The API server, the controller, and the runtimes of this process. Both runtimes stand where the controller does.
pub struct World<'a> {
    /// The objects.
    pub api: ApiServer,
    /// The controller, and nodes with real agents.
    pub cluster: Cluster<'a>,
    /// Runs the generated nodes.
    pub runtime: Runtime,
    /// Runs the API server, apart from the nodes, which must not delay it.
    pub server_runtime: Runtime,
}

impl<'a> World<'a> {
    /// Starts an API server without objects; no controller yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn new(bed: &'a Testbed) -> Result<Self> {
        let host = bed.outside("control")?;
        let server_runtime = runtime(&host, 1)?;
        let address = host.addresses.v4;
        let listener = host
            .place
            .run(|| TcpListener::bind((address, PORT)))?
            .context(|| "listen for the API server")?;
        listener
            .set_nonblocking(true)
            .context(|| "prepare the API server's listener")?;
        let api = server_runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Ok::<_, std::io::Error>(ApiServer::serve(listener))
        });
        let api = api.context(|| "start the API server")?;
        api.install_istio();
        api.install_gateway_api();
        let access = Api {
            url: api.url(),
            credentials: Vec::new(),
            host: host.clone(),
        };
        Ok(Self {
            cluster: Cluster::new(bed, access, &api.kubeconfig(), Box::new(()))?,
            runtime: runtime(&host, 2)?,
            server_runtime,
            api,
        })
    }

    /// Writes all objects of the plan, and the tokens of its nodes.
    pub fn fill(&self, plan: &Plan) {
        let (api, size) = (&self.api, plan.size());
        api.put(objects::strict());
        for namespace in (0..size.namespaces).map(Plan::namespace_name) {
            api.put(objects::namespace(&namespace));
            api.put(objects::policy(&namespace));
        }
        for node in 0..size.nodes {
            api.put(objects::node(node));
            let agent = api.put(objects::agent(node));
            let uid = agent["metadata"]["uid"].as_str().unwrap_or_default();
            let owner = TokenOwner::new(SYSTEM, NODE_ACCOUNT);
            let owner = owner.bound_to(&objects::agent_name(node), uid);
            api.register_token_for(&token(node), owner, TOKEN_LIFETIME);
        }
        for slot in 0..size.pods {
            if slot % PROGRESS == 0 {
                eprintln!("cluster: {slot} of {} pods", size.pods);
            }
            let pod = plan.pod(slot, 0);
            api.put(objects::pod(plan, slot, &pod, Progress::Ready));
        }
        for service in 0..size.services {
            api.put(objects::service(plan, service));
            let pods = plan.slots_of(service);
            let pods: Vec<_> = pods
                .map(|slot| (plan.pod(slot, 0), plan.node_of(slot)))
                .collect();
            let ready = pods.iter().map(|(pod, node)| (pod, *node));
            api.put(objects::slice(plan, service, ready));
        }
        api.compact();
    }

    /// Where the nodes find the controller, which has written its roots.
    ///
    /// # Errors
    /// When it has not.
    pub fn server(&self) -> Result<Server> {
        poll("wait until the controller has written its root", || {
            Ok(self.cluster.root_bundle(SYSTEM).is_ok())
        })?;
        Ok(Server {
            url: self.cluster.discovery_url(),
            roots: self.cluster.root_bundle(SYSTEM)?,
        })
    }

    /// The CPU time that the controller has used.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cpu(&self) -> Result<Duration> {
        usage::cpu(&self.controller()?)
    }

    /// The memory that the controller uses, and the most that it has used, in MiB.
    ///
    /// # Errors
    /// When it does not run.
    pub fn memory(&self) -> Result<(f64, f64)> {
        let controller = self.controller()?;
        Ok((usage::memory(&controller)?.rss, usage::peak(&controller)?))
    }

    fn controller(&self) -> Result<BTreeSet<u32>> {
        Ok(BTreeSet::from([self.cluster.controller().pid()?]))
    }
}

/// A runtime whose threads stand on `host`: threads inherit the namespace of the one that starts them.
fn runtime(host: &Outside, threads: usize) -> Result<Runtime> {
    host.place
        .run(|| {
            Builder::new_multi_thread()
                .worker_threads(threads)
                .enable_all()
                .build()
        })?
        .context(|| "make a runtime")
}

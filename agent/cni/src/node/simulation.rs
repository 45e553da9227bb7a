//! The controller in a simulated cluster: watches that lag, names and addresses used again, restarts.
//!
//! After every operation the enroller of the simulation checks what it is asked for against the truth: nobody
//! gets the identity of another, and no running member is ever taken out of the mesh.
use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    sync::Mutex,
};

use proptest::prelude::*;

use super::{agenda::Outcome, *};
use crate::{
    membership::{MODE_AMBIENT, MODE_NONE, Rules, Traits},
    wire::{Answer, Sandbox},
};

const NAMESPACE: &str = "shop";
const NAMES: [&str; 2] = ["web-0", "web-1"];

#[derive(Clone, Debug)]
enum Op {
    /// A pod is made; the container runtime asks the agent, or does not since it is away.
    Create {
        name: usize,
        asks: bool,
    },
    /// A pod is removed by force: its processes may go on for a while.
    Delete {
        name: usize,
        lingers: bool,
    },
    /// The sandbox of a pod is made anew.
    Sandbox {
        name: usize,
    },
    Label {
        name: usize,
        mode: Option<bool>,
    },
    LabelNamespace {
        on: bool,
    },
    End {
        name: usize,
    },
    /// The watch tells of so many changes.
    Hear(usize),
    /// The controller works on a pod, for one step.
    Work {
        name: usize,
    },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..NAMES.len();
    prop_oneof![
        4 => (name.clone(), any::<bool>()).prop_map(|(name, asks)| Op::Create { name, asks }),
        3 => (name.clone(), any::<bool>()).prop_map(|(name, lingers)| Op::Delete { name, lingers }),
        1 => name.clone().prop_map(|name| Op::Sandbox { name }),
        2 => (name.clone(), any::<Option<bool>>()).prop_map(|(name, mode)| Op::Label { name, mode }),
        2 => any::<bool>().prop_map(|on| Op::LabelNamespace { on }),
        1 => name.clone().prop_map(|name| Op::End { name }),
        4 => (1_usize..4).prop_map(Op::Hear),
        8 => name.prop_map(|name| Op::Work { name }),
        1 => Just(Op::Restart),
    ]
}

/// The truth, which everybody sees through their own interface.
#[derive(Default)]
struct World(Mutex<Truth>);

#[derive(Default)]
struct Truth {
    pods: BTreeMap<PodKey, PodFacts>,
    mode: Option<String>,
    /// The namespaces of processes, and the uid that they are of; a later one of the same uid is in force.
    sandboxes: BTreeMap<u64, String>,
    accounts: BTreeMap<String, String>,
    held: BTreeMap<PodKey, (u64, String)>,
    news: VecDeque<Change>,
    last: u64,
}

impl Truth {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn sandbox_of(&self, uid: &str) -> Option<u64> {
        let own = self.sandboxes.iter().filter(|(_, owner)| *owner == uid);
        own.map(|(inode, _)| *inode).max()
    }

    fn is_member(&self, key: &PodKey) -> bool {
        self.pods.get(key).is_some_and(|pod| {
            Rules::new("undermesh-system")
                .judge(&pod.traits, key.namespace(), self.mode.as_deref())
                .is_ok()
        })
    }

    /// A member whose sandbox runs.
    fn is_running_member(&self, key: &PodKey) -> Option<u64> {
        let pod = self.pods.get(key).filter(|_| self.is_member(key))?;
        self.sandbox_of(&pod.uid)
    }

    fn change(&mut self, key: &PodKey, change: impl FnOnce(&mut PodFacts)) {
        if let Some(pod) = self.pods.get_mut(key) {
            change(pod);
            let news = Change::Pod(key.clone(), Box::new(pod.clone()));
            self.news.push_back(news);
        }
    }
}

impl Enroller for World {
    async fn enroll(&self, target: Target) -> Result<(), EnrollError> {
        let mut truth = self.0.lock().unwrap();
        let inode = target.netns_id.made_up_of();
        assert_eq!(
            truth.sandboxes.get(&inode),
            Some(&target.uid),
            "another pod's namespace"
        );
        assert_eq!(
            truth.accounts[&target.uid], target.service_account,
            "another's identity"
        );
        match truth.held.get(&target.pod) {
            Some((held, _)) if *held != inode => Err(EnrollError::new("the name is taken")),
            _ => {
                truth
                    .held
                    .insert(target.pod, (inode, target.service_account));
                Ok(())
            }
        }
    }

    async fn release(&self, pod: &PodKey, why: Release) -> Result<(), EnrollError> {
        let mut truth = self.0.lock().unwrap();
        let released = truth.held.remove(pod).map(|(inode, _)| inode);
        let running = truth.is_running_member(pod);
        assert!(
            released.is_none() || released != running,
            "a member was released: {why:?}"
        );
        Ok(())
    }

    fn enrolled(&self) -> Vec<Held> {
        let truth = self.0.lock().unwrap();
        let held = truth.held.iter().map(|(pod, (inode, account))| Held {
            pod: pod.clone(),
            service_account: account.clone(),
            netns: NetnsId::made_up(*inode),
        });
        held.collect()
    }
}

impl Cluster for Arc<World> {
    async fn look(&self, key: &PodKey) -> Result<View, ClusterError> {
        let truth = self.0.lock().unwrap();
        Ok(View {
            pod: truth.pods.get(key).cloned(),
            mode: truth.mode.clone(),
        })
    }

    async fn mark(&self, key: &PodKey, uid: &str, marked: bool) -> Result<bool, ClusterError> {
        let mut truth = self.0.lock().unwrap();
        let meant = truth.pods.get(key).is_some_and(|pod| pod.uid == uid);
        if meant {
            truth.change(key, |pod| pod.marked = marked);
        }
        Ok(meant)
    }
}

impl Namespaces for Arc<World> {
    fn of_pod(&self, uid: &str, _: &[IpAddr]) -> Result<Found, DiscoveryError> {
        let truth = self.0.lock().unwrap();
        truth
            .sandbox_of(uid)
            .map(found)
            .ok_or_else(|| DiscoveryError::NoProcess {
                uid: uid.to_owned(),
                proc: "/proc".into(),
            })
    }

    fn at(&self, path: &Path, _: &str, _: &[IpAddr]) -> Result<Found, DiscoveryError> {
        let name = path.file_name().unwrap().to_str().unwrap();
        Ok(found(name.parse().unwrap()))
    }

    fn identify(&self, path: &Path) -> io::Result<NetnsId> {
        Ok(self.at(path, "", &[]).unwrap().id)
    }
}

fn found(inode: u64) -> Found {
    Found {
        netns: File::open("/dev/null").unwrap().into(),
        id: NetnsId::made_up(inode),
        path: format!("/run/netns/{inode}").into(),
    }
}

struct Simulation {
    world: Arc<World>,
    controller: Controller<Arc<World>, Arc<World>, Arc<World>>,
}

impl Simulation {
    fn new(world: Arc<World>) -> Self {
        let rules = Rules::new("undermesh-system");
        let part = || Arc::clone(&world);
        let controller = Controller::new(part(), part(), part(), rules);
        // What the lists say is older than what the watch tells afterwards.
        let truth = world.0.lock().unwrap();
        let pods = truth.pods.clone();
        let modes = truth
            .mode
            .iter()
            .map(|mode| (NAMESPACE.to_owned(), mode.clone()));
        let modes = modes.collect();
        drop(truth);
        controller.apply(Change::Pods(pods));
        controller.apply(Change::Namespaces(modes));
        Self { world, controller }
    }

    async fn perform(&mut self, op: Op) {
        match op {
            Op::Create { name, asks } => self.create(&key(name), asks).await,
            Op::Delete { name, lingers } => self.delete(&key(name), lingers),
            Op::Sandbox { name } => {
                let uid = self.truth().pods.get(&key(name)).map(|pod| pod.uid.clone());
                if let Some(uid) = uid {
                    self.sandbox(&key(name), &uid, true).await;
                }
            }
            Op::Label { name, mode } => {
                let mode = mode.map(|on| if on { MODE_AMBIENT } else { MODE_NONE }.to_owned());
                self.truth()
                    .change(&key(name), |pod| pod.traits.mode = mode);
            }
            Op::LabelNamespace { on } => {
                let mut truth = self.truth();
                truth.mode = on.then(|| MODE_AMBIENT.to_owned());
                let news = Change::Namespace(NAMESPACE.to_owned(), truth.mode.clone());
                truth.news.push_back(news);
            }
            Op::End { name } => self
                .truth()
                .change(&key(name), |pod| pod.traits.ended = true),
            Op::Hear(count) => self.hear(count),
            Op::Work { name } => {
                // What fails is tried again.
                let _ = self.controller.advance(&key(name)).await;
            }
            Op::Restart => {
                self.truth().news.clear();
                *self = Self::new(Arc::clone(&self.world));
            }
        }
    }

    async fn create(&mut self, key: &PodKey, asks: bool) {
        if self.truth().pods.contains_key(key) {
            return;
        }
        let uid = format!("u-{}", self.truth().next());
        let account = format!("account-of-{uid}");
        let pod = PodFacts {
            uid: uid.clone(),
            kubelet_uid: uid.clone(),
            node: "n1".to_owned(),
            service_account: account.clone(),
            addresses: Vec::new(),
            traits: Traits::default(),
            marked: false,
        };
        {
            let mut truth = self.truth();
            truth.accounts.insert(uid.clone(), account);
            truth.pods.insert(key.clone(), pod.clone());
            truth
                .news
                .push_back(Change::Pod(key.clone(), Box::new(pod)));
        }
        self.sandbox(key, &uid, asks).await;
    }

    /// A sandbox is made; the pod's address is the one that its name always gets.
    async fn sandbox(&mut self, key: &PodKey, uid: &str, asks: bool) {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let inode = self.truth().next();
        self.truth().sandboxes.insert(inode, uid.to_owned());
        if asks {
            let sandbox = Sandbox {
                namespace: key.namespace().to_owned(),
                name: key.name().to_owned(),
                uid: Some(uid.to_owned()),
                netns: Some(found(inode).path),
                addresses: vec![address],
            };
            let answer = self.controller.add(sandbox).await.unwrap();
            let truth = self.truth();
            let held = truth.held.get(key).is_some_and(|(held, _)| *held == inode);
            assert_eq!(answer == Answer::Enrolled, held);
            assert_eq!(held, truth.is_member(key), "{answer:?}");
        }
        self.truth()
            .change(key, |pod| pod.addresses = vec![address]);
    }

    fn delete(&mut self, key: &PodKey, lingers: bool) {
        let mut truth = self.truth();
        if let Some(pod) = truth.pods.remove(key) {
            if !lingers {
                truth.sandboxes.retain(|_, uid| *uid != pod.uid);
            }
            truth.news.push_back(Change::PodGone(key.clone(), pod.uid));
        }
    }

    fn hear(&mut self, count: usize) {
        for _ in 0..count {
            let Some(change) = self.truth().news.pop_front() else {
                return;
            };
            self.controller.apply(change);
        }
    }

    /// Hears everything and works until there is nothing to do.
    async fn settle(&mut self) {
        for _ in 0..20 {
            self.hear(usize::MAX);
            let mut settled = true;
            for name in 0..NAMES.len() {
                let outcome = self.controller.advance(&key(name)).await;
                settled &= matches!(outcome, Ok(Outcome::Settled));
            }
            if settled && self.truth().news.is_empty() {
                return;
            }
        }
        panic!("the controller never comes to rest");
    }

    fn truth(&self) -> std::sync::MutexGuard<'_, Truth> {
        self.world.0.lock().unwrap()
    }

    /// Exactly the members are captured, each in its own namespace, and marked so.
    fn check(&self) {
        let truth = self.truth();
        for key in (0..NAMES.len()).map(key) {
            let held = truth.held.get(&key).map(|(inode, _)| *inode);
            assert_eq!(held, truth.is_running_member(&key), "{key}");
            if let Some(pod) = truth.pods.get(&key) {
                assert_eq!(pod.marked, held.is_some(), "{key}");
            }
        }
    }
}

fn key(name: usize) -> PodKey {
    PodKey::new(NAMESPACE, NAMES[name]).unwrap()
}

fn play(ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut simulation = Simulation::new(Arc::default());
        for op in ops {
            simulation.perform(op).await;
        }
        simulation.settle().await;
        simulation.check();
    });
}

#[test]
fn a_sandbox_made_anew_outside_the_mesh_is_captured_when_its_pod_comes_back() {
    play(vec![
        Op::LabelNamespace { on: true },
        Op::Create {
            name: 1,
            asks: true,
        },
        Op::Hear(1),
        Op::LabelNamespace { on: false },
        Op::Sandbox { name: 1 },
        Op::Label {
            name: 1,
            mode: Some(true),
        },
    ]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_happens_members_alone_are_captured_and_never_confused(
        ops in prop::collection::vec(op(), 1..60)
    ) {
        play(ops);
    }
}

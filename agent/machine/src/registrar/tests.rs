//! Registration against an API server in the process.
use serde_json::{Value, json};
use undermesh_identity::SystemClock;
use undermesh_kubernetes::testing::ApiServer;

use super::*;
use crate::group::tests::object;

const ENTRY: &str = "vm-10.0.0.7";

/// Who has which address.
#[derive(Default)]
struct Known(Mutex<Vec<(IpAddr, String)>>);

impl Holders for Known {
    fn holders(&self, _network: &str, address: IpAddr) -> Option<Vec<String>> {
        let known = self.0.lock().unwrap();
        let here = known.iter().filter(|(held, _)| *held == address);
        Some(here.map(|(_, holder)| holder.clone()).collect())
    }
}

struct World {
    api: ApiServer,
    known: Arc<Known>,
}

impl World {
    async fn new() -> Self {
        let api = ApiServer::start().await;
        api.install_istio();
        api.put_namespace("shop", &[]);
        api.put(object());
        api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }] },
        }));
        Self {
            api,
            known: Arc::default(),
        }
    }

    /// A replica, at work.
    fn replica(&self, name: &str) -> Arc<Registrar> {
        let settings = Settings {
            replica: name.to_owned(),
            cluster: "Kubernetes".to_owned(),
            network: String::new(),
            times: Times {
                grace: Duration::from_millis(300),
                first_retry: Duration::from_millis(50),
                ..Times::default()
            },
            clock: Arc::new(SystemClock),
        };
        let registrar = Registrar::new(
            Cluster::new(self.api.client()),
            Arc::clone(&self.known) as _,
            settings,
        );
        tokio::spawn(Arc::clone(&registrar).run());
        registrar
    }

    fn entry(&self) -> Option<Value> {
        self.api.get("WorkloadEntry", "shop", ENTRY)
    }

    async fn wait_for(&self, done: impl Fn(&Value) -> bool) -> Value {
        self.api
            .wait_for("WorkloadEntry", "shop", ENTRY, done)
            .await
    }
}

fn caller(account: &str) -> Caller {
    Caller {
        namespace: "shop".to_owned(),
        service_account: account.to_owned(),
        pod: None,
    }
}

fn claim(address: &str) -> Claim {
    Claim {
        group: "vm".to_owned(),
        address: address.parse().unwrap(),
        network: String::new(),
    }
}

async fn join(registrar: &Arc<Registrar>) -> Attendance {
    let joined = registrar
        .register(&caller("stock"), &claim("10.0.0.7"))
        .await;
    joined.unwrap()
}

async fn refusal(world: &World, caller: &Caller, claim: &Claim) -> String {
    let refused = world.replica("one").register(caller, claim).await.err();
    assert_eq!(world.entry(), None);
    let refused = refused.expect("a refusal");
    assert!(!refused.is_temporary(), "{refused}");
    refused.to_string()
}

fn annotation<'a>(entry: &'a Value, name: &str) -> &'a Value {
    &entry["metadata"]["annotations"][name]
}

#[tokio::test]
async fn a_machine_is_registered_while_it_is_connected() {
    let world = World::new().await;
    let attendance = join(&world.replica("one")).await;
    assert_eq!(attendance.name(), ENTRY);
    let made = world.entry().unwrap();
    assert_eq!(annotation(&made, entry::CONTROLLER), "one");
    assert_eq!(made["spec"]["serviceAccount"], "stock");
    drop(attendance);
    world.api.wait_gone("WorkloadEntry", "shop", ENTRY).await;
}

#[tokio::test]
async fn its_health_is_a_condition() {
    let world = World::new().await;
    let attendance = join(&world.replica("one")).await;
    let condition = |entry: &Value| entry["status"]["conditions"][0]["status"].clone();
    attendance.report(Verdict::Healthy);
    world.wait_for(|entry| condition(entry) == "True").await;
    attendance.report(Verdict::Unhealthy("refused".to_owned()));
    world.wait_for(|entry| condition(entry) == "False").await;
}

#[tokio::test]
async fn a_machine_that_moves_to_another_replica_stays_registered() {
    let world = World::new().await;
    let (one, two) = (world.replica("one"), world.replica("two"));
    let first = join(&one).await;
    let uid = world.entry().unwrap()["metadata"]["uid"].clone();
    drop(first);
    let marked = |entry: &Value| annotation(entry, entry::DISCONNECTED_AT).is_string();
    world.wait_for(marked).await;
    let second = join(&two).await;
    let entry = world.entry().unwrap();
    assert_eq!(annotation(&entry, entry::CONTROLLER), "two");
    assert_eq!(annotation(&entry, entry::DISCONNECTED_AT), &Value::Null);
    // The first replica finds that it is no longer its own when the grace is over, and forgets it.
    let key = Key {
        namespace: "shop".to_owned(),
        name: ENTRY.to_owned(),
    };
    let forgotten = async {
        while one.lock().ledger.due(Instant::now()).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), forgotten)
        .await
        .unwrap();
    assert!(!one.lock().ledger.is_connected(&key));
    assert_eq!(world.entry().unwrap()["metadata"]["uid"], uid);
    drop(second);
    world.api.wait_gone("WorkloadEntry", "shop", ENTRY).await;
}

#[tokio::test]
async fn an_entry_that_is_deleted_ends_the_connection_and_may_come_again() {
    let world = World::new().await;
    let registrar = world.replica("one");
    let attendance = join(&registrar).await;
    world.api.delete("WorkloadEntry", "shop", ENTRY);
    registrar.suspect(&attendance.key);
    tokio::time::timeout(Duration::from_secs(10), attendance.withdrawn())
        .await
        .unwrap();
    drop(attendance);
    let _again = join(&registrar).await;
    assert!(world.entry().is_some());
}

#[tokio::test]
async fn a_claim_that_does_not_hold_is_refused() {
    let world = World::new().await;
    let good = claim("10.0.0.7");
    assert!(
        refusal(&world, &caller("cart"), &good)
            .await
            .contains("is for service account stock")
    );
    let mut other = caller("stock");
    other.namespace = "bank".to_owned();
    assert!(
        refusal(&world, &other, &good)
            .await
            .contains("no WorkloadGroup bank/vm")
    );
    let far = Claim {
        network: "far".to_owned(),
        ..good.clone()
    };
    assert!(
        refusal(&world, &caller("stock"), &far)
            .await
            .contains("network")
    );
    for (address, named) in [("127.0.0.1", "loopback"), ("10.0.0.1", "node n1")] {
        let refused = refusal(&world, &caller("stock"), &claim(address)).await;
        assert!(refused.contains(named), "{refused}");
    }
    let pod = (good.address, "Kubernetes//Pod/shop/cart".to_owned());
    world.known.0.lock().unwrap().push(pod);
    assert!(
        refusal(&world, &caller("stock"), &good)
            .await
            .contains("Pod/shop/cart")
    );
}

#[tokio::test]
async fn its_own_workload_does_not_stand_in_its_way_and_a_written_entry_does() {
    let world = World::new().await;
    let own = format!("Kubernetes/networking.istio.io/WorkloadEntry/shop/{ENTRY}");
    let address = "10.0.0.7".parse().unwrap();
    world.known.0.lock().unwrap().push((address, own));
    drop(join(&world.replica("one")).await);
    world.api.wait_gone("WorkloadEntry", "shop", ENTRY).await;
    world.api.put(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": { "name": ENTRY, "namespace": "shop" }, "spec": { "address": "10.0.0.7" },
    }));
    let refused = world
        .replica("two")
        .register(&caller("stock"), &claim("10.0.0.7"))
        .await;
    assert!(matches!(refused, Err(RegisterError::Foreign(_))));
}

#[tokio::test]
async fn the_leader_removes_what_a_dead_replica_left_and_nothing_else() {
    let world = World::new().await;
    let living = world.replica("one");
    let attendance = join(&living).await;
    let left = |name: &str, annotations: Value| {
        world.api.put(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": { "name": name, "namespace": "shop", "annotations": annotations },
            "spec": { "address": "10.0.0.8" },
        }));
    };
    let long_ago = "2020-01-01T00:00:00Z";
    left(
        "gone",
        json!({ entry::GROUP: "vm", entry::CONNECTED_AT: long_ago, entry::DISCONNECTED_AT: long_ago }),
    );
    left(
        "orphaned",
        json!({ entry::GROUP: "vm", entry::CONNECTED_AT: long_ago }),
    );
    left("written", json!({ entry::CONNECTED_AT: long_ago }));
    living.sweep_once().await.unwrap();
    let entries = world.api.list("WorkloadEntry");
    let names: Vec<_> = entries
        .iter()
        .map(|it| it["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, [ENTRY, "written"]);
    drop(attendance);
}

#[tokio::test]
async fn machines_of_an_account_exist_as_long_as_it_and_a_group_do() {
    let world = World::new().await;
    let cluster = Cluster::new(world.api.client());
    assert!(!cluster.has_machines("shop", "stock").await.unwrap());
    world.api.put(json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "stock", "namespace": "shop" },
    }));
    assert!(cluster.has_machines("shop", "stock").await.unwrap());
    assert!(!cluster.has_machines("shop", "cart").await.unwrap());
    assert!(!cluster.is_registered("shop", "stock").await.unwrap());
    let _attendance = join(&world.replica("one")).await;
    assert!(cluster.is_registered("shop", "stock").await.unwrap());
    world.api.delete("WorkloadGroup", "shop", "vm");
    assert!(!cluster.has_machines("shop", "stock").await.unwrap());
}

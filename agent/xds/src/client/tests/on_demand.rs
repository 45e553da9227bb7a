//! Tests of names that are asked for on demand.
use undermesh_model::SharedMesh;

use super::*;

/// Puts updates in force as the agent does, for ever.
async fn apply_all(mut updates: Updates, meshes: SharedMesh) {
    while let Some(update) = updates.next().await {
        let mesh = updates.client.builder().build(&meshes.load());
        meshes.replace(mesh);
        drop(update);
    }
}

struct OnDemand {
    client: Client,
    resolver: Resolver,
    meshes: SharedMesh,
    server: Running,
    world: World,
}

impl OnDemand {
    async fn start() -> Self {
        let world = World::new();
        let server = world.serve().await;
        let (client, updates) = start(world.options(server.address, Subscription::OnDemand));
        let meshes = SharedMesh::new(Mesh::empty());
        tokio::spawn(apply_all(updates, meshes.clone()));
        Self {
            resolver: client.resolver().unwrap(),
            client,
            meshes,
            server,
            world,
        }
    }

    fn ask(&self, address: &str) -> JoinHandle<Resolution> {
        let (resolver, address) = (self.resolver.clone(), address.parse().unwrap());
        tokio::spawn(async move {
            let deadline = Instant::now() + PATIENCE;
            resolver.resolve(&"".into(), address, deadline).await
        })
    }

    /// Waits until the client knows that it is connected; the server's stream is there a little earlier.
    async fn connected(&self) {
        let mut connected = self.client.shared.connected.subscribe();
        let wait = connected.wait_for(|connected| *connected);
        drop(soon("the connection", wait).await.unwrap());
    }
}

#[tokio::test]
async fn what_is_asked_for_on_demand_is_in_the_mesh_when_the_answer_comes() {
    let mut it = OnDemand::start().await;
    let mut stream = it.server.conversation().await;
    let [first, _] = stream.first().await;
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert_eq!(first.resource_names_unsubscribe, ["*"]);
    stream.tell(policies("p1", vec![])).await;
    it.connected().await;

    let (one, other) = (it.ask("10.0.0.1"), it.ask("10.0.0.1"));
    assert_eq!(
        stream.request().await.resource_names_subscribe,
        ["/10.0.0.1"]
    );
    stream.tell(addresses("a1", vec![web()])).await;
    for answer in [one, other] {
        let answer = soon("an answer", answer).await.unwrap();
        assert!(matches!(answer, Resolution::Answered(_)), "{answer:?}");
        let mesh = it.meshes.load();
        assert!(mesh.workload_at("", "10.0.0.1".parse().unwrap()).is_some());
    }

    let nothing = it.ask("10.0.0.9");
    stream.request().await;
    stream
        .tell(removal(addresses("a2", vec![]), &["/10.0.0.9"]))
        .await;
    let answer = soon("an answer", nothing).await.unwrap();
    assert!(matches!(answer, Resolution::Answered(_)), "{answer:?}");
    // The subscription stays: the second question needs no server, nor does what appears later.
    let answer = soon("an answer", it.ask("10.0.0.9")).await.unwrap();
    assert!(matches!(answer, Resolution::Answered(_)), "{answer:?}");
    assert_eq!(it.client.status().interests, 2);
}

#[tokio::test]
async fn a_host_is_asked_for_by_its_key_and_a_range_answers_its_addresses() {
    let mut it = OnDemand::start().await;
    let mut stream = it.server.conversation().await;
    stream.first().await;
    stream.tell(policies("p1", vec![])).await;
    it.connected().await;
    let within = it.ask("10.97.1.2");
    assert_eq!(
        stream.request().await.resource_names_subscribe,
        ["/10.97.1.2"]
    );
    let mut wide = service([10, 97, 0, 0]);
    wide.addresses[0].length = Some(16);
    stream
        .tell(addresses("a1", vec![of_service("1", wide)]))
        .await;
    let answer = soon("an answer", within).await.unwrap();
    assert!(matches!(answer, Resolution::Answered(_)), "{answer:?}");

    let resolver = it.resolver.clone();
    let host = tokio::spawn(async move {
        let (namespace, hostname) = KEY.split_once('/').unwrap();
        let deadline = Instant::now() + PATIENCE;
        resolver
            .resolve_host(&namespace.into(), &hostname.into(), deadline)
            .await
    });
    assert_eq!(stream.request().await.resource_names_subscribe, [KEY]);
    let service = of_service("1", service([10, 96, 0, 1]));
    stream.tell(addresses("a2", vec![service])).await;
    let answer = soon("an answer", host).await.unwrap();
    assert!(matches!(answer, Resolution::Answered(_)), "{answer:?}");
}

#[tokio::test]
async fn a_question_ends_when_the_server_does_and_is_asked_again_when_it_is_back() {
    let mut it = OnDemand::start().await;
    let mut stream = it.server.conversation().await;
    stream.first().await;
    stream.tell(policies("p1", vec![])).await;
    it.connected().await;
    let asked = it.ask("10.0.0.1");
    stream.request().await;
    drop(stream);
    let answer = soon("an answer", asked).await.unwrap();
    assert!(matches!(answer, Resolution::Disconnected(_)), "{answer:?}");

    let mut stream = it.server.conversation().await;
    let [first, _] = stream.first().await;
    assert_eq!(first.resource_names_subscribe, ["*", "/10.0.0.1"]);
    assert_eq!(first.initial_resource_versions["/10.0.0.1"], "");
    stream.tell(addresses("a1", vec![web()])).await;
    it.connected().await;
    let answer = soon("an answer", it.ask("10.0.0.1")).await.unwrap();
    assert!(matches!(answer, Resolution::Answered(_)), "{answer:?}");
}

#[tokio::test]
async fn what_was_asked_for_is_answered_by_the_cache_after_a_restart() {
    let mut it = OnDemand::start().await;
    let mut stream = it.server.conversation().await;
    stream.first().await;
    stream.tell(policies("p1", vec![])).await;
    it.connected().await;
    let asked = it.ask("10.0.0.1");
    stream.request().await;
    stream.tell(addresses("a1", vec![web()])).await;
    soon("an answer", asked).await.unwrap();
    drop(stream);
    soon("the end", it.client.stop()).await;
    let address = it.server.address;
    it.server.stop().await;

    let (client, _updates) = start(it.world.options(address, Subscription::OnDemand));
    soon("readiness", client.ready()).await;
    let resolver = client.resolver().unwrap();
    let network = "".into();
    let known = "10.0.0.1".parse().unwrap();
    let wait = resolver.resolve(&network, known, Instant::now());
    let answer = soon("an answer", wait).await;
    assert!(matches!(answer, Resolution::Answered(_)), "{answer:?}");
    let unknown = "10.0.0.2".parse().unwrap();
    let wait = resolver.resolve(&network, unknown, Instant::now() + PATIENCE);
    let answer = soon("an answer", wait).await;
    assert!(matches!(answer, Resolution::Disconnected(_)), "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_taken_or_does_not_come_is_told_apart() {
    let mut it = OnDemand::start().await;
    let mut stream = it.server.conversation().await;
    stream.first().await;
    stream.tell(policies("p1", vec![])).await;
    it.connected().await;
    let deadline = Instant::now() + Duration::from_millis(50);
    let (network, address) = ("".into(), "10.0.0.3".parse().unwrap());
    let silent = it.resolver.resolve(&network, address, deadline);
    let answer = soon("an answer", silent).await;
    assert!(matches!(answer, Resolution::Late(_)), "{answer:?}");
    stream.request().await;

    let asked = it.ask("10.0.0.2");
    stream.request().await;
    let mut legacy = workload("bad", [10, 0, 0, 2]);
    legacy.tunnel_protocol = 2;
    let mut resource = of_workload("1", legacy);
    resource.aliases = vec!["/10.0.0.2".into()];
    stream.tell(addresses("a1", vec![resource])).await;
    let answer = soon("an answer", asked).await.unwrap();
    assert!(matches!(answer, Resolution::Rejected(_)), "{answer:?}");
}

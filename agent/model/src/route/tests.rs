//! Routes by example, and endpoint choice against a model that looks at every endpoint.
use proptest::{collection::vec, prelude::*, sample::select};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    fixture::{identity, mesh, pod, service},
    locality::Locality,
    service::{AppProtocol, HealthPolicy, Scope, ServiceEndpoint, ServicePort},
    workload::Health,
};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn route(mesh: &Mesh, source: &Workload, target: &str) -> Result<Route, Refusal> {
    mesh.route(
        source,
        at(target),
        &[],
        Instant::now(),
        &mut StdRng::seed_from_u64(1),
    )
}

fn destination(route: Result<Route, Refusal>) -> Destination {
    match route {
        Ok(Route::Hbone(destination) | Route::Plain(destination)) => destination,
        other => panic!("no destination: {other:?}"),
    }
}

fn is_passthrough(route: &Result<Route, Refusal>, wanted: &str) -> bool {
    matches!(route, Ok(Route::Passthrough { address, .. }) if *address == at(wanted))
}

#[test]
fn a_pod_address_leads_to_the_pod_with_its_port_unchanged() {
    let (client, web) = (
        pod("client", &["10.0.0.1"]),
        pod("web", &["10.0.0.2", "fd00::2"]),
    );
    let mesh = mesh(&[&client, &web], &[]);
    for target in ["10.0.0.2:80", "[fd00::2]:80"] {
        let found = destination(route(&mesh, &client, target));
        assert_eq!((&*found.workload.name, found.address), ("web", at(target)));
        assert_eq!(found.expected[..], [identity("shop", "web")]);
    }
    let mapped = destination(route(&mesh, &client, "[::ffff:10.0.0.2]:80"));
    assert_eq!(mapped.address, at("10.0.0.2:80"));
}

#[test]
fn the_tunnel_decides_between_hbone_and_plain_tcp() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["10.0.0.2"]));
    let legacy = Workload {
        tunnel: Tunnel::None,
        ..pod("legacy", &["10.0.0.3"])
    };
    let mesh = mesh(&[&client, &web, &legacy], &[]);
    assert!(matches!(
        route(&mesh, &client, "10.0.0.2:80"),
        Ok(Route::Hbone(_))
    ));
    assert!(matches!(
        route(&mesh, &client, "10.0.0.3:80"),
        Ok(Route::Plain(_))
    ));
}

#[test]
fn an_unknown_address_is_passed_through() {
    let client = pod("client", &["10.0.0.1"]);
    let mesh = mesh(&[&client], &[]);
    assert!(is_passthrough(
        &route(&mesh, &client, "192.0.2.1:443"),
        "192.0.2.1:443"
    ));
    assert!(is_passthrough(
        &route(&mesh, &client, "192.0.2.1:15008"),
        "192.0.2.1:15008"
    ));
}

#[test]
fn loops_are_refused() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["10.0.0.2"]));
    let mut front = service("web", &["10.96.0.1"], &[&web]);
    front.ports[0].target_port = Some(15006);
    let mesh = mesh(&[&client, &web], &[&front]);
    for port in MESH_PORTS {
        for address in [
            "127.0.0.1",
            "[::1]",
            "0.0.0.0",
            "[::ffff:127.0.0.1]",
            "10.0.0.1",
            "10.0.0.2",
        ] {
            let refusal = route(&mesh, &client, &format!("{address}:{port}")).unwrap_err();
            assert_eq!(refusal, Refusal::Loop(port), "{address}");
        }
    }
    assert_eq!(
        route(&mesh, &client, "10.96.0.1:80").unwrap_err(),
        Refusal::Loop(15006)
    );
}

#[test]
fn a_service_leads_to_an_endpoint_on_its_target_port() {
    let (client, web) = (
        pod("client", &["10.0.0.1"]),
        pod("web", &["10.0.0.2", "fd00::2"]),
    );
    let mut front = service("web", &["10.96.0.1", "fd96::1"], &[&web]);
    front.subject_alt_names = vec![identity("shop", "alias")];
    let mesh = mesh(&[&client, &web], &[&front]);
    let found = destination(route(&mesh, &client, "10.96.0.1:80"));
    assert_eq!(found.address, at("10.0.0.2:8080"));
    assert_eq!(
        found.expected[..],
        [identity("shop", "web"), identity("shop", "alias")]
    );
    assert_eq!(found.service.unwrap().name, front.name);
    let found = destination(route(&mesh, &client, "[fd96::1]:80"));
    assert_eq!(found.address, at("[fd00::2]:8080"));
}

#[test]
fn an_endpoint_of_the_other_family_serves_when_it_has_no_other_address() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["fd00::2"]));
    let mesh = mesh(
        &[&client, &web],
        &[&service("web", &["10.96.0.1"], &[&web])],
    );
    assert_eq!(
        destination(route(&mesh, &client, "10.96.0.1:80")).address,
        at("[fd00::2]:8080")
    );
}

#[test]
fn an_endpoint_with_a_port_of_its_own_is_reached_there() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["10.0.0.2"]));
    let mut front = service("web", &["10.96.0.1"], &[&web]);
    front.endpoints[0].ports = vec![(80, 9000)];
    let mesh = mesh(&[&client, &web], &[&front]);
    assert_eq!(
        destination(route(&mesh, &client, "10.96.0.1:80")).address,
        at("10.0.0.2:9000")
    );
}

#[test]
fn a_named_port_leaves_out_endpoints_that_do_not_know_it() {
    let client = pod("client", &["10.0.0.1"]);
    let (knows, lacks) = (pod("knows", &["10.0.0.2"]), pod("lacks", &["10.0.0.3"]));
    let mut front = service("web", &["10.96.0.1"], &[&knows, &lacks]);
    front.ports[0].target_port = None;
    front.endpoints[0].ports = vec![(80, 9000)];
    let mesh = mesh(&[&client, &knows, &lacks], &[&front]);
    let tried = [Arc::clone(&knows.uid)];
    let mut rng = StdRng::seed_from_u64(1);
    let refusal = mesh
        .route(
            &client,
            at("10.96.0.1:80"),
            &tried,
            Instant::now(),
            &mut rng,
        )
        .unwrap_err();
    assert_eq!(
        refusal,
        Refusal::NoEndpoint {
            service: front.hostname,
            port: 80
        }
    );
    assert_eq!(
        destination(route(&mesh, &client, "10.96.0.1:80")).address,
        at("10.0.0.2:9000")
    );
}

#[test]
fn a_port_that_the_service_does_not_list_is_refused() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["10.0.0.2"]));
    let front = service("web", &["10.96.0.1"], &[&web]);
    let mesh = mesh(&[&client, &web], &[&front]);
    let refusal = route(&mesh, &client, "10.96.0.1:81").unwrap_err();
    assert_eq!(
        refusal,
        Refusal::NoPort {
            service: front.hostname,
            port: 81
        }
    );
}

#[test]
fn a_service_without_endpoints_is_never_passed_through() {
    let client = pod("client", &["10.0.0.1"]);
    let front = service("web", &["10.96.0.1"], &[]);
    let mesh = mesh(&[&client], &[&front]);
    let refusal = route(&mesh, &client, "10.96.0.1:80").unwrap_err();
    assert_eq!(
        refusal,
        Refusal::NoEndpoint {
            service: front.hostname,
            port: 80
        }
    );
}

#[test]
fn a_passthrough_service_connects_to_the_address_asked_for() {
    let client = pod("client", &["10.0.0.1"]);
    let mut front = service("outside", &["198.51.100.0/24"], &[]);
    front.preference = Preference::Passthrough;
    let mesh = mesh(&[&client], &[&front]);
    let found = route(&mesh, &client, "198.51.100.7:443");
    assert!(is_passthrough(&found, "198.51.100.7:443"));
    assert!(matches!(
        found,
        Ok(Route::Passthrough {
            service: Some(_),
            ..
        })
    ));
}

#[test]
fn a_service_address_is_looked_up_before_a_workload_address() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["10.0.0.2"]));
    let squatter = pod("squatter", &["10.96.0.1"]);
    let mesh = mesh(
        &[&client, &web, &squatter],
        &[&service("web", &["10.96.0.1"], &[&web])],
    );
    assert_eq!(
        &*destination(route(&mesh, &client, "10.96.0.1:80"))
            .workload
            .name,
        "web"
    );
}

#[test]
fn a_pod_that_was_tried_by_its_own_address_is_not_tried_again() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["10.0.0.2"]));
    let mesh = mesh(&[&client, &web], &[]);
    let tried = [Arc::clone(&web.uid)];
    let mut rng = StdRng::seed_from_u64(1);
    let refusal = mesh
        .route(&client, at("10.0.0.2:80"), &tried, Instant::now(), &mut rng)
        .unwrap_err();
    assert_eq!(refusal, Refusal::Tried(web.uid));
}

#[test]
fn an_endpoint_that_fails_is_left_alone_until_all_fail() {
    let client = pod("client", &["10.0.0.1"]);
    let (bad, good) = (pod("bad", &["10.0.0.2"]), pod("good", &["10.0.0.3"]));
    let mesh = mesh(
        &[&client, &bad, &good],
        &[&service("web", &["10.96.0.1"], &[&bad, &good])],
    );
    let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
    let mut next = || destination(mesh.route(&client, at("10.96.0.1:80"), &[], now, &mut rng));
    let mut named = |name: &str| loop {
        let found = next();
        if &*found.workload.name == name {
            return found;
        }
    };
    let (bad, good) = (named("bad"), named("good"));
    bad.load.failed(now);
    assert!((0..50).all(|_| &*next().workload.name == "good"));
    good.load.failed(now);
    let names: Vec<_> = (0..50).map(|_| Arc::clone(&next().workload.name)).collect();
    assert!(names.contains(&"bad".into()) && names.contains(&"good".into()));
}

#[test]
fn an_endpoint_with_fewer_open_connections_is_chosen() {
    let client = pod("client", &["10.0.0.1"]);
    let (one, two) = (pod("one", &["10.0.0.2"]), pod("two", &["10.0.0.3"]));
    let mesh = mesh(
        &[&client, &one, &two],
        &[&service("web", &["10.96.0.1"], &[&one, &two])],
    );
    let busy = destination(route(&mesh, &client, "10.0.0.2:80"));
    let _open = busy.load.opened();
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..50 {
        let found = mesh.route(&client, at("10.96.0.1:80"), &[], Instant::now(), &mut rng);
        assert_eq!(&*destination(found).workload.name, "two");
    }
}

/// What the model knows of the pods that may be endpoints, each part with few values so that ranks differ.
fn pods() -> impl Strategy<Value = Vec<(Workload, [bool; 2])>> {
    let letters = || select(vec!["", "a", "b"]);
    let parts = (
        [letters(), letters(), letters(), letters()],
        0..8u8,
        0..4u8,
        any::<[bool; 2]>(),
    );
    vec(parts, 1..14).prop_map(|all| {
        let pod = |(index, ([region, zone, subzone, node], health, network, flags)): (
            usize,
            ([&str; 4], _, _, _),
        )| {
            let workload = Workload {
                locality: Locality {
                    region: region.into(),
                    zone: zone.into(),
                    subzone: subzone.into(),
                },
                node: node.into(),
                health: if health == 0 {
                    Health::Unhealthy
                } else {
                    Health::Healthy
                },
                network: if network == 0 { "far" } else { "" }.into(),
                ..pod(&format!("p{index}"), &[&format!("10.0.1.{index}")])
            };
            (workload, flags)
        };
        all.into_iter().enumerate().map(pod).collect()
    })
}

fn preferences() -> impl Strategy<Value = Preference> {
    let scopes = [
        Scope::Network,
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
        Scope::Cluster,
    ];
    let scopes = || vec(select(scopes.to_vec()), 0..5);
    prop_oneof![
        Just(Preference::None),
        scopes().prop_map(Preference::Strict),
        scopes().prop_map(Preference::Failover),
    ]
}

/// How many scopes match from the front; `None` when the preference leaves the endpoint out.
fn rank(preference: &Preference, source: &Workload, other: &Workload) -> Option<usize> {
    let same = |scope: &Scope| match scope {
        Scope::Network => source.network == other.network,
        Scope::Region => source.locality.region == other.locality.region,
        Scope::Zone => source.locality.zone == other.locality.zone,
        Scope::Subzone => source.locality.subzone == other.locality.subzone,
        Scope::Node => source.node == other.node,
        Scope::Cluster => source.cluster == other.cluster,
    };
    match preference {
        Preference::None | Preference::Passthrough => Some(0),
        Preference::Strict(scopes) => scopes.iter().all(same).then_some(0),
        Preference::Failover(scopes) => Some(scopes.iter().take_while(|scope| same(scope)).count()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_choice_is_untried_and_the_nearest_that_is_well(
        pods in pods(),
        preference in preferences(),
        all_serve in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let now = Instant::now();
        let workloads: Vec<&Workload> = pods.iter().map(|(workload, _)| workload).collect();
        let mut front = service("web", &["10.96.0.1"], &workloads);
        front.preference = preference;
        front.health_policy = if all_serve { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
        let mesh = mesh(&workloads, &[&front]);
        let source = Workload { network: "".into(), ..pods[0].0.clone() };
        for (workload, [fails, _]) in &pods {
            if *fails {
                mesh.member_at(&workload.network, workload.addresses[0]).unwrap().load.failed(now);
            }
        }
        let mut tried: Vec<Arc<str>> = Vec::new();
        tried.extend(pods.iter().filter(|(_, [_, tried])| *tried).map(|(workload, _)| Arc::clone(&workload.uid)));

        // The model: each endpoint that may be chosen, with its rank; one that is well outranks all others.
        let rank_of = |(workload, [fails, _]): &(Workload, [bool; 2])| {
            let serves = all_serve || workload.health == Health::Healthy;
            let open = serves && workload.network == source.network && !tried.contains(&workload.uid);
            open.then(|| rank(&front.preference, &source, workload)).flatten().map(|rank| (!fails, rank))
        };
        let best = pods.iter().filter_map(rank_of).max();

        let mut rng = StdRng::seed_from_u64(seed);
        match mesh.route(&source, at("10.96.0.1:80"), &tried, now, &mut rng) {
            Ok(found) => {
                let found = destination(Ok(found));
                prop_assert!(!tried.contains(&found.workload.uid));
                let chosen = pods.iter().find(|(workload, _)| workload.uid == found.workload.uid).unwrap();
                prop_assert!(best.is_some() && rank_of(chosen) == best, "{:?}, not {:?}", rank_of(chosen), best);
            }
            Err(refusal) => {
                prop_assert_eq!(refusal, Refusal::NoEndpoint { service: Arc::clone(&front.hostname), port: 80 });
                prop_assert_eq!(best, None);
            }
        }
    }

    #[test]
    fn retries_visit_every_endpoint_once(count in 1..40usize, seed in any::<u64>()) {
        let client = pod("client", &["10.0.0.1"]);
        let pods: Vec<Workload> =
            (0..count).map(|index| pod(&format!("p{index}"), &[&format!("10.0.1.{index}")])).collect();
        let front = service("web", &["10.96.0.1"], &pods.iter().collect::<Vec<_>>());
        let mesh = mesh(&pods.iter().collect::<Vec<_>>(), &[&front]);
        let (now, mut rng, mut tried) = (Instant::now(), StdRng::seed_from_u64(seed), Vec::new());
        while let Ok(route) = mesh.route(&client, at("10.96.0.1:80"), &tried, now, &mut rng) {
            let found = destination(Ok(route));
            prop_assert!(!tried.contains(&found.workload.uid));
            found.load.failed(now);
            tried.push(Arc::clone(&found.workload.uid));
        }
        prop_assert_eq!(tried.len(), count);
    }
}

#[test]
fn services_and_workloads_survive_the_way_through_json() {
    let mut front = service(
        "web",
        &["10.96.0.1", "198.51.100.0/24"],
        &[&pod("web", &["10.0.0.2"])],
    );
    front.preference = Preference::Failover(vec![Scope::Region, Scope::Zone]);
    front.ports.push(ServicePort {
        port: 81,
        target_port: None,
        name: "".into(),
        protocol: AppProtocol::Unknown,
    });
    front.endpoints.push(ServiceEndpoint {
        workload: "x".into(),
        ports: vec![(80, 81)],
    });
    let text = serde_json::to_string(&front).unwrap();
    assert_eq!(serde_json::from_str::<Service>(&text).unwrap(), front);
    let workload = pod("web", &["10.0.0.2", "fd00::2"]);
    let text = serde_json::to_string(&workload).unwrap();
    assert_eq!(serde_json::from_str::<Workload>(&text).unwrap(), workload);
}

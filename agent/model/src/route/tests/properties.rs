//! Endpoint choice against a model that looks at every endpoint.
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// What the model knows of the pods that may be endpoints, each part with few values so that ranks differ.
fn pods() -> impl Strategy<Value = Vec<(Workload, [bool; 2])>> {
    let letters = || select(vec!["", "a", "b"]);
    let parts = (
        [letters(), letters(), letters(), letters()],
        0..8u8,
        0..4u8,
        0..4u32,
        any::<[bool; 2]>(),
    );
    vec(parts, 1..14).prop_map(|all| {
        let pod = |(index, ([region, zone, subzone, node], health, network, capacity, flags)): (
            usize,
            ([&str; 4], _, _, _, _),
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
                capacity,
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
            let serves = workload.capacity > 0 && (all_serve || workload.health == Health::Healthy);
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

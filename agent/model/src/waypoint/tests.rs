//! Waypoints by example, and that nothing goes past them.
use std::{net::SocketAddr, time::Instant};

use proptest::{collection::vec, prelude::*, sample::select};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    fixture::{identity, mesh, pod, service},
    gateway::WeightedWaypoint,
    route::{Destination, HBONE_PORT, Route},
    service::{AppProtocol, ServicePort},
    workload::{ApplicationTunnel, Health, Tunnel},
};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn route(mesh: &Mesh, source: &Workload, target: &str, seed: u64) -> Result<Route, Refusal> {
    let mut rng = StdRng::seed_from_u64(seed);
    mesh.route(source, at(target), &[], Instant::now(), &mut rng)
}

/// The workload and authority of a route through HBONE.
fn tunnel(route: Result<Route, Refusal>) -> (Destination, SocketAddr) {
    match route {
        Ok(Route::Hbone {
            destination,
            authority,
        }) => (destination, authority),
        other => panic!("not through HBONE: {other:?}"),
    }
}

/// A gateway that is known by its service in namespace `shop`.
fn gateway(name: &str) -> Gateway {
    Gateway {
        destination: GatewayDestination::Hostname {
            namespace: "shop".into(),
            hostname: format!("{name}.shop.svc.cluster.local").into(),
        },
        port: HBONE_PORT,
    }
}

fn gateway_at(address: &str) -> Gateway {
    Gateway {
        destination: GatewayDestination::Address {
            network: "".into(),
            address: address.parse().unwrap(),
        },
        port: HBONE_PORT,
    }
}

/// A waypoint's service with a listener for HBONE.
fn waypoint_service(name: &str, addresses: &[&str], instances: &[&Workload]) -> Service {
    let mut front = service(name, addresses, instances);
    front.ports = vec![ServicePort {
        port: HBONE_PORT,
        target_port: Some(15009),
        name: "mesh".into(),
        protocol: AppProtocol::Unknown,
    }];
    front
}

/// An Envoy that is not captured itself, as waypoints are.
fn waypoint_pod(name: &str, address: &str) -> Workload {
    Workload {
        tunnel: Tunnel::None,
        ..pod(name, &[address])
    }
}

#[test]
fn a_service_with_a_waypoint_is_reached_through_it_under_its_own_address() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["10.0.0.2"]));
    let envoy = waypoint_pod("envoy", "10.0.0.9");
    let mut front = service("web", &["10.96.0.1"], &[&web]);
    front.waypoint = Some(gateway("wp"));
    let mut wp = waypoint_service("wp", &["10.96.0.9"], &[&envoy]);
    wp.subject_alt_names = vec![identity("shop", "wp-alias")];
    let mesh = mesh(&[&client, &web, &envoy], &[&front, &wp]);
    let (found, authority) = tunnel(route(&mesh, &client, "10.96.0.1:80", 1));
    assert_eq!(found.target, at("10.0.0.9:15009"));
    assert_eq!(authority, at("10.96.0.1:80"));
    assert_eq!(&*found.workload.name, "envoy");
    assert_eq!(
        found.expected[..],
        [identity("shop", "envoy"), identity("shop", "wp-alias")]
    );
    assert_eq!(found.service.unwrap().hostname, front.hostname);
    // The pod itself has no waypoint.
    let (found, authority) = tunnel(route(&mesh, &client, "10.0.0.2:80", 1));
    assert_eq!(
        (&*found.workload.name, authority),
        ("web", at("10.0.0.2:80"))
    );
}

#[test]
fn a_workload_with_a_waypoint_is_reached_through_it_by_its_own_address_alone() {
    let client = pod("client", &["10.0.0.1"]);
    let envoy = waypoint_pod("envoy", "10.0.0.9");
    for gateway in [gateway("wp"), gateway_at("10.96.0.9")] {
        let web = Workload {
            waypoint: Some(gateway),
            ..pod("web", &["10.0.0.2"])
        };
        let front = service("web", &["10.96.0.1"], &[&web]);
        let wp = waypoint_service("wp", &["10.96.0.9"], &[&envoy]);
        let mesh = mesh(&[&client, &web, &envoy], &[&front, &wp]);
        let (found, authority) = tunnel(route(&mesh, &client, "10.0.0.2:80", 1));
        assert_eq!(found.target, at("10.0.0.9:15009"));
        assert_eq!(authority, at("10.0.0.2:80"));
        assert!(found.service.is_none());
        let (found, _) = tunnel(route(&mesh, &client, "10.96.0.1:80", 1));
        assert_eq!(&*found.workload.name, "web");
    }
}

#[test]
fn a_waypoint_that_is_known_by_a_pods_address_is_that_pod() {
    let client = pod("client", &["10.0.0.1"]);
    let envoy = waypoint_pod("envoy", "10.0.0.9");
    let web = Workload {
        waypoint: Some(gateway_at("10.0.0.9")),
        ..pod("web", &["10.0.0.2"])
    };
    let mesh = mesh(&[&client, &web, &envoy], &[]);
    let (found, authority) = tunnel(route(&mesh, &client, "10.0.0.2:80", 1));
    assert_eq!(
        (found.target, authority),
        (at("10.0.0.9:15008"), at("10.0.0.2:80"))
    );
    assert_eq!(found.expected[..], [identity("shop", "envoy")]);
    let tried = [Arc::clone(&envoy.uid)];
    let mut rng = StdRng::seed_from_u64(1);
    let refusal = mesh
        .route(&client, at("10.0.0.2:80"), &tried, Instant::now(), &mut rng)
        .unwrap_err();
    assert!(
        matches!(refusal, Refusal::Waypoint { reason, .. } if *reason == Refusal::Tried(envoy.uid))
    );
}

#[test]
fn the_waypoint_itself_goes_to_the_destination() {
    let envoy = Workload {
        waypoint: Some(gateway("wp")),
        ..pod("envoy", &["10.0.0.9"])
    };
    let web = Workload {
        waypoint: Some(gateway("wp")),
        ..pod("web", &["10.0.0.2"])
    };
    let mut front = service("web", &["10.96.0.1"], &[&web]);
    front.waypoint = Some(gateway("wp"));
    let wp = waypoint_service("wp", &["10.96.0.9"], &[&envoy]);
    let mesh = mesh(&[&web, &envoy], &[&front, &wp]);
    for target in ["10.96.0.1:80", "10.0.0.2:80"] {
        let (found, _) = tunnel(route(&mesh, &envoy, target, 1));
        assert_eq!(&*found.workload.name, "web", "{target}");
    }
    assert!(mesh.is_waypoint_before(&envoy, "10.96.0.1".parse().unwrap()));
    assert!(mesh.is_waypoint_before(&envoy, "10.0.0.2".parse().unwrap()));
    assert!(!mesh.is_waypoint_before(&web, "10.96.0.1".parse().unwrap()));
    assert!(!mesh.is_waypoint_before(&envoy, "10.96.0.9".parse().unwrap()));
}

#[test]
fn a_waypoint_that_cannot_be_found_is_not_passed_by() {
    let client = pod("client", &["10.0.0.1"]);
    for gateway in [gateway("gone"), gateway_at("10.96.0.99")] {
        let web = Workload {
            waypoint: Some(gateway.clone()),
            ..pod("web", &["10.0.0.2"])
        };
        let mut front = service("web", &["10.96.0.1"], &[&web]);
        front.waypoint = Some(gateway.clone());
        let mesh = mesh(&[&client, &web], &[&front]);
        for (target, destination) in [("10.96.0.1:80", &front.hostname), ("10.0.0.2:80", &web.uid)]
        {
            let expected = Refusal::UnknownWaypoint {
                destination: Arc::clone(destination),
                waypoint: gateway.clone(),
            };
            assert_eq!(route(&mesh, &client, target, 1).unwrap_err(), expected);
        }
    }
}

#[test]
fn a_port_that_the_service_does_not_list_is_refused_before_its_waypoint() {
    let client = pod("client", &["10.0.0.1"]);
    let envoy = waypoint_pod("envoy", "10.0.0.9");
    let mut front = service("web", &["10.96.0.1"], &[]);
    front.waypoint = Some(gateway("wp"));
    let wp = waypoint_service("wp", &["10.96.0.9"], &[&envoy]);
    let mesh = mesh(&[&client, &envoy], &[&front, &wp]);
    let refusal = route(&mesh, &client, "10.96.0.1:81", 1).unwrap_err();
    assert!(matches!(refusal, Refusal::NoPort { port: 81, .. }));
}

#[test]
fn a_waypoint_behind_an_application_tunnel_takes_hbone_though_it_does_not_list_the_port() {
    let client = pod("client", &["10.0.0.1"]);
    let sandwiched = Workload {
        application_tunnel: Some(ApplicationTunnel {
            proxy_protocol: true,
            port: Some(15088),
        }),
        ..pod("proxy", &["10.0.0.9"])
    };
    let mut front = service("web", &["10.96.0.1"], &[]);
    front.waypoint = Some(gateway("wp"));
    let wp = service("wp", &["10.96.0.9"], &[&sandwiched]);
    let mesh = mesh(&[&client, &sandwiched], &[&front, &wp]);
    let (found, authority) = tunnel(route(&mesh, &client, "10.96.0.1:80", 1));
    assert_eq!(
        (found.target, authority),
        (at("10.0.0.9:15008"), at("10.96.0.1:80"))
    );
}

#[test]
fn waypoints_share_a_service_by_weight() {
    let client = pod("client", &["10.0.0.1"]);
    let (old, new) = (
        waypoint_pod("old", "10.0.0.8"),
        waypoint_pod("new", "10.0.0.9"),
    );
    let weighted = |name, weight| WeightedWaypoint {
        gateway: gateway(name),
        weight,
    };
    let counted = |weights: [u32; 2]| {
        let mut front = service("web", &["10.96.0.1"], &[]);
        front.waypoint = Some(gateway("old"));
        front.weighted_waypoints = vec![weighted("old", weights[0]), weighted("new", weights[1])];
        let services = [
            front,
            waypoint_service("old", &[], &[&old]),
            waypoint_service("new", &[], &[&new]),
        ];
        let mesh = mesh(&[&client, &old, &new], &services.each_ref());
        let routes = (0..1000).map(|seed| tunnel(route(&mesh, &client, "10.96.0.1:80", seed)).0);
        routes
            .filter(|found| &*found.workload.name == "new")
            .count()
    };
    assert!((150..250).contains(&counted([80, 20])));
    assert_eq!(counted([0, 1]), 1000);
    assert_eq!(counted([0, 0]), 0);
}

proptest! {
    #[test]
    fn nothing_but_the_waypoint_goes_past_a_waypoint(
        instances in vec((any::<bool>(), 0..2u32), 0..4),
        by in select(vec![gateway("wp"), gateway("gone"), gateway_at("10.96.0.9"), gateway_at("10.0.2.0")]),
        sender in 0..4usize,
        target in select(vec!["10.96.0.1:80", "10.0.0.2:80"]),
        seed in any::<u64>(),
    ) {
        let instance = |(index, (healthy, capacity)): (usize, &(bool, u32))| Workload {
            health: if *healthy { Health::Healthy } else { Health::Unhealthy },
            capacity: *capacity,
            ..pod(&format!("wp{index}"), &[&format!("10.0.2.{index}")])
        };
        let instances: Vec<Workload> = instances.iter().enumerate().map(instance).collect();
        let client = pod("client", &["10.0.0.1"]);
        let web = Workload { waypoint: Some(by.clone()), ..pod("web", &["10.0.0.2"]) };
        let mut front = service("web", &["10.96.0.1"], &[&web]);
        front.waypoint = Some(by.clone());
        let wp = waypoint_service("wp", &["10.96.0.9"], &instances.iter().collect::<Vec<_>>());
        let mut workloads: Vec<&Workload> = instances.iter().collect();
        workloads.extend([&client, &web]);
        let mesh = mesh(&workloads, &[&front, &wp]);

        let single = by == gateway_at("10.0.2.0");
        let means = |workload: &&Workload| {
            instances.contains(workload) && by != gateway("gone") && (!single || *workload == &instances[0])
        };
        let serves = |workload: &&Workload| {
            single || workload.health == Health::Healthy && workload.capacity > 0
        };
        let source = instances.get(sender).unwrap_or(&client);
        let usable = workloads.iter().copied().filter(means).any(|workload| serves(&workload));
        match route(&mesh, source, target, seed) {
            Ok(Route::Hbone { destination, authority }) if *destination.workload == web => {
                prop_assert!(means(&source));
                prop_assert_eq!(authority.ip(), web.addresses[0]);
            }
            Ok(Route::Hbone { destination, authority }) => {
                prop_assert!(means(&&*destination.workload) && serves(&&*destination.workload));
                prop_assert_eq!(authority, at(target));
            }
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(Refusal::UnknownWaypoint { .. } | Refusal::Waypoint { .. }) => prop_assert!(!usable),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}

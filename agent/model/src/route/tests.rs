//! Routes by example.
mod properties;

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
        Ok(Route::Hbone { destination, .. } | Route::Plain(destination)) => destination,
        other => panic!("no destination: {other:?}"),
    }
}

/// Where the application is reached: the CONNECT authority, or the plain target.
fn application(route: Result<Route, Refusal>) -> SocketAddr {
    match route {
        Ok(Route::Hbone { authority, .. }) => authority,
        Ok(Route::Plain(destination)) => destination.target,
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
        assert_eq!(&*found.workload.name, "web");
        assert_eq!(found.target, SocketAddr::new(at(target).ip(), HBONE_PORT));
        assert_eq!(application(route(&mesh, &client, target)), at(target));
        assert_eq!(found.expected[..], [identity("shop", "web")]);
    }
    let mapped = application(route(&mesh, &client, "[::ffff:10.0.0.2]:80"));
    assert_eq!(mapped, at("10.0.0.2:80"));
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
        Ok(Route::Hbone { .. })
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
    assert_eq!(
        application(route(&mesh, &client, "10.96.0.1:80")),
        at("10.0.0.2:8080")
    );
    assert_eq!(
        found.expected[..],
        [identity("shop", "web"), identity("shop", "alias")]
    );
    assert_eq!(found.service.unwrap().name, front.name);
    assert_eq!(
        application(route(&mesh, &client, "[fd96::1]:80")),
        at("[fd00::2]:8080")
    );
}

#[test]
fn an_endpoint_of_the_other_family_serves_when_it_has_no_other_address() {
    let (client, web) = (pod("client", &["10.0.0.1"]), pod("web", &["fd00::2"]));
    let mesh = mesh(
        &[&client, &web],
        &[&service("web", &["10.96.0.1"], &[&web])],
    );
    assert_eq!(
        application(route(&mesh, &client, "10.96.0.1:80")),
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
        application(route(&mesh, &client, "10.96.0.1:80")),
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
        application(route(&mesh, &client, "10.96.0.1:80")),
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

#[test]
fn connections_are_shared_by_capacity_and_none_go_to_capacity_zero() {
    let client = pod("client", &["10.0.0.1"]);
    let weighing = |name, address, capacity| Workload {
        capacity,
        ..pod(name, &[address])
    };
    let pods = [
        weighing("none", "10.0.0.2", 0),
        weighing("one", "10.0.0.3", 1),
        weighing("three", "10.0.0.4", 3),
    ];
    let [none, one, three] = &pods;
    let front = service("web", &["10.96.0.1"], &[none, one, three]);
    let mesh = mesh(&[&client, none, one, three], &[&front]);
    let mut rng = StdRng::seed_from_u64(1);
    let mut to_three = 0;
    for _ in 0..4000 {
        let found = mesh.route(&client, at("10.96.0.1:80"), &[], Instant::now(), &mut rng);
        match &*destination(found).workload.name {
            "three" => to_three += 1,
            name => assert_eq!(name, "one"),
        }
    }
    assert!((2800..3200).contains(&to_three), "{to_three} of 4000");
    // By its own address a workload is reached whatever its share.
    assert_eq!(
        application(route(&mesh, &client, "10.0.0.2:80")),
        at("10.0.0.2:80")
    );
}

#[test]
fn a_service_leads_only_to_addresses_of_its_families() {
    let client = pod("client", &["10.0.0.1"]);
    let (dual, old) = (
        pod("dual", &["10.0.0.2", "fd00::2"]),
        pod("old", &["10.0.0.3"]),
    );
    let mut front = service("web", &["10.96.0.1"], &[&dual, &old]);
    front.ip_families = IpFamilies::Ipv6Only;
    let mesh = mesh(&[&client, &dual, &old], &[&front]);
    for _ in 0..20 {
        assert_eq!(
            application(route(&mesh, &client, "10.96.0.1:80")),
            at("[fd00::2]:8080")
        );
    }
}

#[test]
fn a_workload_with_a_name_alone_is_reached_once_the_name_is_resolved() {
    let client = pod("client", &["10.0.0.1"]);
    let outside = Workload {
        hostname: "db.example".into(),
        tunnel: Tunnel::None,
        ..pod("outside", &[])
    };
    let front = service("db", &["10.96.0.1"], &[&outside]);
    let mesh = mesh(&[&client, &outside], &[&front]);
    let Ok(Route::Named(named)) = route(&mesh, &client, "10.96.0.1:80") else {
        panic!("not by name");
    };
    assert_eq!(&**named.host(), "db.example");
    let found = named.at("192.0.2.1".parse().unwrap());
    assert_eq!(application(found), at("192.0.2.1:8080"));
}

#[test]
fn endpoints_behind_a_gateway_of_another_network_are_refused_by_name() {
    let client = pod("client", &["10.0.0.1"]);
    let far = Workload {
        network: "west".into(),
        network_gateway: Some(crate::gateway::Gateway {
            destination: crate::gateway::GatewayDestination::Address {
                network: "west".into(),
                address: "198.51.100.1".parse().unwrap(),
            },
            port: HBONE_PORT,
        }),
        ..pod("far", &[])
    };
    let near = pod("near", &["10.0.0.2"]);
    let front = service("web", &["10.96.0.1"], &[&far]);
    let alone = mesh(&[&client, &far], &[&front]);
    let refusal = route(&alone, &client, "10.96.0.1:80").unwrap_err();
    assert_eq!(
        refusal,
        Refusal::OtherNetwork {
            service: front.hostname,
            network: "west".into()
        }
    );
    assert!(refusal.to_string().contains("network west"));
    let front = service("web", &["10.96.0.1"], &[&far, &near]);
    let both = mesh(&[&client, &far, &near], &[&front]);
    assert_eq!(
        application(route(&both, &client, "10.96.0.1:80")),
        at("10.0.0.2:8080")
    );
}

#[test]
fn an_application_that_takes_all_traffic_on_one_port_needs_no_mapping() {
    let client = pod("client", &["10.0.0.1"]);
    let tunnel = crate::workload::ApplicationTunnel {
        proxy_protocol: true,
        port: Some(15088),
    };
    let proxy = Workload {
        application_tunnel: Some(tunnel),
        ..pod("proxy", &["10.0.0.2"])
    };
    let mut front = service("proxy", &["10.96.0.1"], &[&proxy]);
    front.ports[0].target_port = None;
    let mesh = mesh(&[&client, &proxy], &[&front]);
    assert_eq!(
        application(route(&mesh, &client, "10.96.0.1:80")),
        at("10.0.0.2:80")
    );
    assert_eq!(
        route(&mesh, &client, "10.96.0.1:15008").unwrap_err(),
        Refusal::NoPort {
            service: front.hostname,
            port: HBONE_PORT
        }
    );
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

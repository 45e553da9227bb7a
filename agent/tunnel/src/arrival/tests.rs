//! Where a CONNECT ends, by example.
use std::sync::Arc;

use undermesh_model::{
    Baggage, Gateway, GatewayDestination, MeshBuilder,
    service::{
        AppProtocol, HealthPolicy, IpFamilies, Preference, ServiceEndpoint, ServicePort, Visibility,
    },
    workload::ApplicationTunnel,
};

use super::*;

const LOCAL: &str = "10.0.0.2";

fn workload(name: &str, address: &str) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
    Workload {
        uid: format!("c//Pod/shop/{name}").into(),
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        ..Baggage::default().into_workload(&identity.parse().unwrap(), "")
    }
}

/// A service `<name>.shop` at `10.96.0.1` whose port 80 is its endpoint's 8080.
fn service(name: &str, endpoint: &Workload) -> Service {
    Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop").into(),
        network: "".into(),
        addresses: vec!["fd96::1/128", "10.97.0.0/16", "10.96.0.1/32"]
            .into_iter()
            .map(|net| net.parse().unwrap())
            .collect(),
        ports: vec![ServicePort {
            port: 80,
            target_port: Some(8080),
            name: "http".into(),
            protocol: AppProtocol::Unknown,
        }],
        preference: Preference::None,
        health_policy: HealthPolicy::OnlyHealthy,
        subject_alt_names: Vec::new(),
        canonical: true,
        visibility: Visibility::Public,
        ip_families: IpFamilies::Automatic,
        waypoint: None,
        weighted_waypoints: Vec::new(),
        ingress_use_waypoint: false,
        endpoints: vec![ServiceEndpoint {
            workload: Arc::clone(&endpoint.uid),
            ports: Vec::new(),
        }],
    }
}

fn mesh(workloads: &[&Workload], services: &[&Service]) -> Mesh {
    let builder = MeshBuilder {
        workloads: workloads.iter().map(|it| Arc::new((*it).clone())).collect(),
        services: services.iter().map(|it| Arc::new((*it).clone())).collect(),
        policies: Vec::new(),
    };
    builder.build(&Mesh::empty())
}

fn address(text: &str) -> Authority {
    Authority::Address(text.parse().unwrap())
}

fn host(host: &str, port: u16) -> Authority {
    Authority::Host {
        host: host.to_owned(),
        port,
    }
}

fn found(mesh: &Mesh, workload: &Workload, authority: &Authority) -> Result<Arrival, Astray> {
    find(mesh, workload, LOCAL.parse().unwrap(), authority)
}

fn plainly(application: &str) -> Arrival {
    let application = application.parse().unwrap();
    Arrival {
        application,
        target: application,
        announced: None,
    }
}

#[test]
fn the_pods_own_address_leads_to_its_application() {
    let web = workload("web", LOCAL);
    let mesh = mesh(&[&web], &[]);
    let arrival = found(&mesh, &web, &address("10.0.0.2:8080"));
    assert_eq!(arrival, Ok(plainly("10.0.0.2:8080")));
}

#[test]
fn another_address_is_not_served() {
    let (web, cart) = (workload("web", LOCAL), workload("cart", "10.0.0.3"));
    let front = service("cart", &cart);
    let mesh = mesh(&[&web, &cart], &[&front]);
    for asked in ["10.0.0.3:8080", "10.96.0.1:80", "192.0.2.1:80"] {
        let astray = found(&mesh, &web, &address(asked)).unwrap_err();
        assert_eq!(astray.status(), StatusCode::BAD_REQUEST, "{asked}");
    }
}

#[test]
fn the_ports_of_the_mesh_lead_nowhere() {
    let looping = Workload {
        application_tunnel: Some(ApplicationTunnel {
            proxy_protocol: false,
            port: Some(15008),
        }),
        ..workload("web", LOCAL)
    };
    let web = workload("web", LOCAL);
    let mesh = mesh(&[&web], &[]);
    for (workload, asked) in [(&web, "10.0.0.2:15001"), (&looping, "10.0.0.2:80")] {
        let astray = found(&mesh, workload, &address(asked)).unwrap_err();
        assert!(matches!(astray, Astray::MeshPort(_)));
        assert_eq!(astray.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[test]
fn a_service_by_name_leads_to_its_endpoints_port() {
    let (web, cart) = (workload("web", LOCAL), workload("cart", "10.0.0.3"));
    let mut front = service("web", &web);
    let mesh_of = |front: &Service| mesh(&[&web, &cart], &[front, &service("cart", &cart)]);
    let arrival = found(&mesh_of(&front), &web, &host("web.shop", 80));
    assert_eq!(arrival, Ok(plainly("10.0.0.2:8080")));
    for (name, port) in [("web.shop", 81), ("cart.shop", 80), ("gone.shop", 80)] {
        let astray = found(&mesh_of(&front), &web, &host(name, port)).unwrap_err();
        assert_eq!(
            astray.status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "{name}:{port}"
        );
    }
    front.endpoints[0].ports = vec![(80, 9000)];
    let arrival = found(&mesh_of(&front), &web, &host("web.shop", 80));
    assert_eq!(arrival, Ok(plainly("10.0.0.2:9000")));
}

#[test]
fn a_waypoint_takes_what_is_meant_for_the_services_behind_it() {
    let (web, cart) = (workload("waypoint", LOCAL), workload("cart", "10.0.0.3"));
    let mut behind = service("cart", &cart);
    behind.waypoint = Some(Gateway {
        destination: GatewayDestination::Address {
            network: "".into(),
            address: LOCAL.parse().unwrap(),
        },
        port: 15008,
    });
    let mesh = mesh(&[&web, &cart], &[&behind]);
    let arrival = found(&mesh, &web, &address("10.96.0.1:80"));
    assert_eq!(arrival, Ok(plainly("10.0.0.2:80")));
}

#[test]
fn an_application_behind_a_tunnel_is_told_what_was_asked_for() {
    let mut proxy = workload("proxy", LOCAL);
    let cart = workload("cart", "10.0.0.3");
    let mesh = mesh(&[&proxy, &cart], &[&service("cart", &cart)]);
    let tunnel = |proxy_protocol, port| {
        Some(ApplicationTunnel {
            proxy_protocol,
            port,
        })
    };
    let told = |application: &str, target: &str, announced: &str| Arrival {
        application: application.parse().unwrap(),
        target: target.parse().unwrap(),
        announced: Some(announced.parse().unwrap()),
    };
    proxy.application_tunnel = tunnel(true, Some(15088));
    for authority in [address("10.96.0.1:80"), host("cart.shop", 80)] {
        let expected = told("10.0.0.2:15088", "127.0.0.1:15088", "10.96.0.1:80");
        assert_eq!(found(&mesh, &proxy, &authority), Ok(expected));
    }
    proxy.application_tunnel = tunnel(true, None);
    let expected = told("10.0.0.2:80", "127.0.0.1:80", "10.96.0.1:80");
    assert_eq!(found(&mesh, &proxy, &address("10.96.0.1:80")), Ok(expected));
    proxy.application_tunnel = tunnel(false, Some(15088));
    let expected = plainly("10.0.0.2:15088");
    assert_eq!(found(&mesh, &proxy, &address("10.96.0.1:80")), Ok(expected));
}

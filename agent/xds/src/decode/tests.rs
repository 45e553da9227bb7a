//! Tests of decoding: good values come out as they are meant, bad ones are named, and no bytes do harm.
use std::net::IpAddr;

use bytes::Bytes;
use proptest::prelude::*;
use undermesh_model::{
    Gateway, GatewayDestination, Tunnel,
    service::{HealthPolicy, Preference, Scope, Visibility},
    workload::{Health, WorkloadKind},
};

use super::*;
use crate::wire::{security, workload as wire};

mod policies;

const UID: &str = "c//Pod/shop/web";
const KEY: &str = "shop/web.shop.svc.cluster.local";

fn decoder() -> Decoder {
    Decoder::new("home".into())
}

fn packed(url: &str, message: &impl Message) -> Any {
    Any {
        type_url: url.to_owned(),
        value: message.encode_to_vec(),
    }
}

fn wire_workload() -> wire::Workload {
    wire::Workload {
        uid: UID.into(),
        name: "web".into(),
        namespace: "shop".into(),
        ..wire::Workload::default()
    }
}

fn wire_service() -> wire::Service {
    wire::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        ..wire::Service::default()
    }
}

fn wire_policy() -> security::Authorization {
    security::Authorization {
        name: "deny".into(),
        namespace: "shop".into(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        ..security::Authorization::default()
    }
}

fn workload(wire: wire::Workload) -> Result<Member, DecodeError> {
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(wire)),
    };
    match decoder().address(UID, &packed(ADDRESS_TYPE, &address)) {
        Ok(Address::Workload(member)) => Ok(*member),
        Ok(other) => panic!("{other:?}"),
        Err(rejection) => Err(rejection.error),
    }
}

fn service(wire: wire::Service) -> Result<Service, DecodeError> {
    let address = wire::Address {
        r#type: Some(wire::address::Type::Service(wire)),
    };
    match decoder().address(KEY, &packed(ADDRESS_TYPE, &address)) {
        Ok(Address::Service(service)) => Ok(*service),
        Ok(other) => panic!("{other:?}"),
        Err(rejection) => Err(rejection.error),
    }
}

fn place(network: &str, address: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: network.into(),
        address: Bytes::copy_from_slice(address),
        length,
    }
}

fn by_host(namespace: &str, hostname: &str, port: u32) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    wire::GatewayAddress {
        destination: Some(Destination::Hostname(wire::NamespacedHostname {
            namespace: namespace.into(),
            hostname: hostname.into(),
        })),
        hbone_mtls_port: port,
    }
}

#[test]
fn empty_fields_of_a_workload_are_filled_as_in_istio() {
    let Member { workload, services } = workload(wire_workload()).unwrap();
    assert_eq!(
        workload.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/default"
    );
    assert_eq!(&*workload.cluster, "Kubernetes");
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.tunnel, Tunnel::None);
    assert_eq!(workload.health, Health::Healthy);
    assert_eq!(workload.workload_kind, WorkloadKind::Deployment);
    assert_eq!(services, []);
}

#[test]
fn a_whole_workload_comes_out_as_it_was_sent() {
    let ports = wire::PortList {
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 99,
        }],
    };
    let decoded = workload(wire::Workload {
        addresses: vec![
            Bytes::from_static(&[10, 0, 0, 1]),
            Bytes::from_static(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2]),
        ],
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        trust_domain: "td".into(),
        service_account: "web".into(),
        waypoint: Some(by_host("shop", "waypoint.shop.svc", 0)),
        services: [(KEY.to_owned(), ports)].into(),
        status: wire::WorkloadStatus::Unhealthy.into(),
        capacity: Some(0),
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        }),
        workload_type: 77,
        extensions: vec![wire::Extension::default()],
        ..wire_workload()
    })
    .unwrap();
    let workload = decoded.workload;
    let addresses: Vec<IpAddr> = ["10.0.0.1", "fd00::1", "10.0.0.2"]
        .map(|address| address.parse().unwrap())
        .into();
    assert_eq!(workload.addresses, addresses);
    assert_eq!(workload.identity.to_string(), "spiffe://td/ns/shop/sa/web");
    assert_eq!(workload.waypoint.unwrap().port, 15008);
    assert_eq!(workload.health, Health::Unhealthy);
    assert_eq!(workload.capacity, 0);
    let tunnel = workload.application_tunnel.unwrap();
    assert_eq!((tunnel.proxy_protocol, tunnel.port), (true, Some(15088)));
    assert_eq!(&*decoded.services[0].service, KEY);
    assert_eq!(decoded.services[0].ports, [(80, 8080)]);
}

#[test]
fn a_workload_that_cannot_be_taken_as_meant_is_rejected_with_its_field() {
    let unknown = |field, value| DecodeError::Number(field, value);
    let port = wire::PortList {
        ports: vec![wire::Port {
            service_port: 65536,
            ..wire::Port::default()
        }],
    };
    let cases = [
        (
            wire::Workload {
                addresses: vec![Bytes::from_static(&[1, 2, 3])],
                ..wire_workload()
            },
            DecodeError::Address("addresses", 3),
        ),
        (
            wire::Workload {
                name: String::new(),
                ..wire_workload()
            },
            DecodeError::Missing("name"),
        ),
        (
            wire::Workload {
                tunnel_protocol: 2,
                ..wire_workload()
            },
            DecodeError::LegacyTunnel,
        ),
        (
            wire::Workload {
                tunnel_protocol: 3,
                ..wire_workload()
            },
            unknown("tunnel_protocol", 3),
        ),
        (
            wire::Workload {
                status: -1,
                ..wire_workload()
            },
            unknown("status", -1),
        ),
        (
            wire::Workload {
                network_mode: 2,
                ..wire_workload()
            },
            unknown("network_mode", 2),
        ),
        (
            wire::Workload {
                application_tunnel: Some(wire::ApplicationTunnel {
                    protocol: 2,
                    port: 0,
                }),
                ..wire_workload()
            },
            unknown("application_tunnel", 2),
        ),
        (
            wire::Workload {
                services: [(KEY.to_owned(), port)].into(),
                ..wire_workload()
            },
            DecodeError::Port("services", 65536),
        ),
        (
            wire::Workload {
                services: [("web".to_owned(), wire::PortList::default())].into(),
                ..wire_workload()
            },
            DecodeError::Key("services", "web".into()),
        ),
        (
            wire::Workload {
                waypoint: Some(wire::GatewayAddress::default()),
                ..wire_workload()
            },
            DecodeError::Missing("waypoint"),
        ),
        (
            wire::Workload {
                uid: "c//Pod/shop/other".into(),
                ..wire_workload()
            },
            DecodeError::Name("c//Pod/shop/other".into()),
        ),
    ];
    for (wire, error) in cases {
        assert_eq!(workload(wire).unwrap_err(), error);
    }
    let identity = workload(wire::Workload {
        service_account: "a/b".into(),
        ..wire_workload()
    });
    assert!(matches!(identity, Err(DecodeError::Identity(_))));
}

#[test]
fn a_whole_service_comes_out_as_it_was_sent() {
    use wire::load_balancing::{HealthPolicy as WireHealth, Mode, Scope as WireScope};

    let decoded = service(wire::Service {
        addresses: vec![
            place("far", &[10, 1, 0, 1], None),
            place("home", &[10, 96, 0, 1], None),
            place("home", &[10, 97, 0, 0], Some(16)),
        ],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 0,
            app_protocol: 1,
        }],
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".into(), "www.example.com".into()],
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![WireScope::Network.into(), WireScope::Zone.into()],
            mode: Mode::Failover.into(),
            health_policy: WireHealth::AllowAll.into(),
        }),
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: Some(by_host("shop", "w", 15008)),
            weight: 10,
        }],
        visibility: 9,
        canonical: true,
        ..wire_service()
    })
    .unwrap();
    assert_eq!(&*decoded.network, "home");
    let addresses: Vec<ipnet::IpNet> = ["10.96.0.1/32", "10.97.0.0/16"]
        .map(|net| net.parse().unwrap())
        .into();
    assert_eq!(decoded.addresses, addresses);
    assert_eq!(decoded.ports[0].target_port, None);
    assert_eq!(decoded.subject_alt_names.len(), 1);
    assert_eq!(
        decoded.preference,
        Preference::Failover(vec![Scope::Network, Scope::Zone])
    );
    assert_eq!(decoded.health_policy, HealthPolicy::AllowAll);
    assert_eq!(decoded.visibility, Visibility::Public);
    assert_eq!(decoded.weighted_waypoints[0].weight, 10);
    assert!(decoded.canonical);
}

#[test]
fn a_service_of_other_networks_alone_keeps_the_first_one() {
    let decoded = service(wire::Service {
        addresses: vec![
            place("far", &[10, 1, 0, 1], None),
            place("farther", &[10, 2, 0, 1], None),
        ],
        waypoint: Some(wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Address(place(
                "far",
                &[10, 1, 0, 9],
                None,
            ))),
            hbone_mtls_port: 15009,
        }),
        ..wire_service()
    })
    .unwrap();
    assert_eq!((&*decoded.network, decoded.addresses.len()), ("far", 1));
    let destination = GatewayDestination::Address {
        network: "far".into(),
        address: "10.1.0.9".parse().unwrap(),
    };
    let port = 15009;
    assert_eq!(decoded.waypoint, Some(Gateway { destination, port }));
}

#[test]
fn a_service_that_cannot_be_taken_as_meant_is_rejected_with_its_field() {
    let balanced = |balancing| wire::Service {
        load_balancing: Some(balancing),
        ..wire_service()
    };
    let cases = [
        (
            wire::Service {
                addresses: vec![place("home", &[10, 0, 0, 0], Some(33))],
                ..wire_service()
            },
            DecodeError::Prefix("addresses", 33),
        ),
        (
            wire::Service {
                addresses: vec![place("far", &[], None)],
                ..wire_service()
            },
            DecodeError::Address("addresses", 0),
        ),
        (
            wire::Service {
                ports: vec![wire::Port::default()],
                ..wire_service()
            },
            DecodeError::Port("ports", 0),
        ),
        (
            wire::Service {
                ip_families: 4,
                ..wire_service()
            },
            DecodeError::Number("ip_families", 4),
        ),
        (
            balanced(wire::LoadBalancing {
                mode: 4,
                ..wire::LoadBalancing::default()
            }),
            DecodeError::Number("load_balancing.mode", 4),
        ),
        (
            balanced(wire::LoadBalancing {
                mode: 1,
                routing_preference: vec![0],
                ..wire::LoadBalancing::default()
            }),
            DecodeError::Number("load_balancing.routing_preference", 0),
        ),
        (
            balanced(wire::LoadBalancing {
                health_policy: 2,
                ..wire::LoadBalancing::default()
            }),
            DecodeError::Number("load_balancing.health_policy", 2),
        ),
        (
            wire::Service {
                weighted_waypoints: vec![wire::WeightedWaypoint::default()],
                ..wire_service()
            },
            DecodeError::Missing("weighted_waypoints"),
        ),
        (
            wire::Service {
                hostname: String::new(),
                ..wire_service()
            },
            DecodeError::Missing("hostname"),
        ),
    ];
    for (wire, error) in cases {
        assert_eq!(service(wire).unwrap_err(), error);
    }
}

#[test]
fn a_rejection_reads_as_istio_reports_it() {
    let wire = wire::Workload {
        tunnel_protocol: 3,
        ..wire_workload()
    };
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(wire)),
    };
    let rejection = decoder()
        .address(UID, &packed(ADDRESS_TYPE, &address))
        .unwrap_err();
    assert_eq!(
        rejection.to_string(),
        "c//Pod/shop/web: 'tunnel_protocol' has the unknown value 3; upgrade the node, or do not use what it stands for"
    );
}

#[test]
fn other_messages_are_not_taken_for_addresses() {
    let policy = packed(AUTHORIZATION_TYPE, &wire_policy());
    let error = decoder().address(KEY, &policy).unwrap_err().error;
    assert!(matches!(error, DecodeError::Type(_)), "{error}");
    let empty = packed(ADDRESS_TYPE, &wire::Address::default());
    assert_eq!(
        decoder().address(KEY, &empty).unwrap_err().error,
        DecodeError::Empty
    );
}

proptest! {
    #[test]
    fn no_bytes_do_harm(name in ".{0,40}", value in proptest::collection::vec(any::<u8>(), 0..200)) {
        let content = |url: &str| Any { type_url: url.to_owned(), value: value.clone() };
        let mut decoder = decoder();
        if let Ok(Address::Workload(member)) = decoder.address(&name, &content(ADDRESS_TYPE)) {
            prop_assert_eq!(&*member.workload.uid, &name);
        }
        if let Ok(policy) = decoder.policy(&name, &content(AUTHORIZATION_TYPE)) {
            prop_assert_eq!(policy.key(), name.clone());
        }
        if let Some(policy) = stand_in(&name, Some(&content(AUTHORIZATION_TYPE))) {
            prop_assert_eq!(policy.key(), name);
        }
    }

    #[test]
    fn every_workload_is_taken_whole_or_rejected(
        numbers in proptest::array::uniform4(-1..4i32),
        addresses in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..18), 0..4),
        port in 0..70_000u32,
        account in "[a-z/]{0,3}",
        key in "[a-z]{0,2}/?[a-z]{0,2}",
    ) {
        let [tunnel_protocol, status, network_mode, workload_type] = numbers;
        let ports = wire::PortList {
            ports: vec![wire::Port { service_port: port, target_port: port, app_protocol: 0 }],
        };
        let wire = wire::Workload {
            tunnel_protocol,
            status,
            network_mode,
            workload_type,
            addresses: addresses.iter().cloned().map(Bytes::from).collect(),
            service_account: account.clone(),
            services: [(key.clone(), ports)].into(),
            ..wire_workload()
        };
        let good = (0..2).contains(&tunnel_protocol)
            && (0..2).contains(&status)
            && (0..2).contains(&network_mode)
            && addresses.iter().all(|bytes| matches!(bytes.len(), 4 | 16))
            && (1..65536).contains(&port)
            && !account.contains('/')
            && key.split_once('/').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
        match workload(wire) {
            Ok(member) => {
                prop_assert!(good);
                prop_assert_eq!(member.workload.addresses.len(), addresses.len());
                prop_assert_eq!(&*member.services[0].service, &*key);
            }
            Err(error) => prop_assert!(!good, "{}", error),
        }
    }
}

//! Bytes written out by hand from the field numbers of `istio.workload` and `istio.security`.
use std::collections::HashSet;

use prost::Message;
use undermesh_model::{
    Gateway, GatewayDestination, Identity, ServicePort, WeightedWaypoint,
    policy::{Action, Clause, Enforcement, Match, Rule, ServiceAccountMatch, StringMatch},
    service::{
        AppProtocol, HealthPolicy, IpFamilies, Preference, Scope, ServiceEndpoint, Visibility,
    },
    workload::{ApplicationTunnel, Health, NetworkMode, WorkloadKind},
};

use super::*;
use crate::server::fixture;

/// A field with a length: tag, length, content.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = tag(number << 3 | 2);
    bytes.push(content.len().try_into().unwrap());
    bytes.extend(content);
    bytes
}

/// A field with a small number.
fn number(number: u32, value: u8) -> Vec<u8> {
    let mut bytes = tag(number << 3);
    bytes.push(value);
    bytes
}

fn tag(tag: u32) -> Vec<u8> {
    match u8::try_from(tag) {
        Ok(small) if small < 0x80 => vec![small],
        _ => vec![(tag & 0x7f | 0x80) as u8, (tag >> 7) as u8],
    }
}

/// The fields of a message, each as its bytes: generated code writes them in an order of its own.
fn fields(message: &[u8]) -> HashSet<Vec<u8>> {
    let mut fields = HashSet::new();
    let mut rest = message;
    while !rest.is_empty() {
        let mut length = 1 + usize::from(rest[0] & 0x80 != 0);
        length += match rest[0] & 7 {
            0 => {
                rest[length..]
                    .iter()
                    .position(|byte| byte & 0x80 == 0)
                    .unwrap()
                    + 1
            }
            2 => usize::from(rest[length]) + 1,
            other => panic!("wire type {other}"),
        };
        let (field, others) = rest.split_at(length);
        fields.insert(field.to_vec());
        rest = others;
    }
    fields
}

fn set(fields: &[Vec<u8>]) -> HashSet<Vec<u8>> {
    fields.iter().cloned().collect()
}

const PORT_15008: &[u8] = &[0x18, 0xa0, 0x75];

fn waypoint() -> Gateway {
    Gateway {
        destination: GatewayDestination::Hostname {
            namespace: "a".into(),
            hostname: "w".into(),
        },
        port: 15008,
    }
}

fn waypoint_bytes() -> Vec<u8> {
    let name = [field(1, b"a"), field(2, b"w")].concat();
    [field(1, &name), PORT_15008.to_vec()].concat()
}

#[test]
fn tags_are_those_of_the_wire_format() {
    assert_eq!(field(1, b"a"), [0x0a, 1, b'a']);
    assert_eq!(field(22, b""), [0xb2, 0x01, 0]);
    assert_eq!(number(17, 1), [0x88, 0x01, 1]);
}

#[test]
fn a_workload_has_the_fields_of_istio() {
    let mut pod = fixture::pod("p", "10.0.0.1", "n");
    pod.uid = "u".into();
    pod.namespace = "a".into();
    pod.addresses.push("::ffff:10.0.0.2".parse().unwrap());
    pod.addresses.push("::1".parse().unwrap());
    pod.network = "t".into();
    pod.identity = Identity::new("td".parse().unwrap(), "a", "s").unwrap();
    pod.locality.region = "r".into();
    pod.locality.zone = "z".into();
    pod.health = Health::Unhealthy;
    pod.workload_kind = WorkloadKind::Job;
    pod.cluster = "c".into();
    pod.policies = vec!["a/x".into()];
    pod.hostname = "h".into();
    pod.network_mode = NetworkMode::HostNetwork;
    pod.capacity = 0;
    pod.waypoint = Some(waypoint());
    pod.network_gateway = Some(Gateway {
        destination: GatewayDestination::Address {
            network: "t".into(),
            address: "10.0.0.9".parse().unwrap(),
        },
        port: 15008,
    });
    pod.application_tunnel = Some(ApplicationTunnel {
        proxy_protocol: true,
        port: Some(99),
    });
    pod.native_tunnel = true;
    let gateway = [field(1, b"t"), field(2, &[10, 0, 0, 9])].concat();
    let expected = [
        field(20, b"u"),
        field(1, b"p"),
        field(2, b"a"),
        field(3, &[10, 0, 0, 1]),
        field(3, &[10, 0, 0, 2]),
        field(3, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        field(21, b"h"),
        field(4, b"t"),
        number(5, 1),
        field(6, b"td"),
        field(7, b"s"),
        field(8, &waypoint_bytes()),
        field(19, &[field(2, &gateway), PORT_15008.to_vec()].concat()),
        field(9, b"n"),
        field(10, b"p"),
        field(11, b"latest"),
        number(12, 3),
        field(13, b"p"),
        number(14, 1),
        field(23, &[number(1, 1), number(2, 99)].concat()),
        field(16, b"a/x"),
        number(17, 1),
        field(18, b"c"),
        field(24, &[field(1, b"r"), field(2, b"z")].concat()),
        number(25, 1),
        field(27, b""),
    ];
    let bytes = workload(&pod).encode_to_vec();
    assert_eq!(fields(&bytes), set(&expected));
}

#[test]
fn what_is_the_default_is_left_out() {
    let pod = fixture::pod("p", "10.0.0.1", "");
    let wire = workload(&pod);
    assert_eq!(wire.trust_domain, "");
    assert_eq!((wire.locality, wire.capacity), (None, None));
    let service = super::service(&fixture::service("s", "10.96.0.1", &[]));
    assert_eq!(service.load_balancing, None);
    assert_eq!(service.addresses[0].length, None);
}

#[test]
fn a_service_has_the_fields_of_istio() {
    let mut model = fixture::service("s", "10.96.0.1", &[]);
    model.namespace = "a".into();
    model.hostname = "h".into();
    model.network = "t".into();
    model.addresses.push("::ffff:10.1.0.0/112".parse().unwrap());
    model.ports = vec![
        ServicePort {
            port: 80,
            target_port: Some(81),
            name: "x".into(),
            protocol: AppProtocol::Grpc,
        },
        ServicePort {
            port: 90,
            target_port: None,
            name: "named".into(),
            protocol: AppProtocol::Unknown,
        },
        ServicePort {
            port: 80,
            target_port: Some(7),
            name: "again".into(),
            protocol: AppProtocol::Tcp,
        },
    ];
    model.subject_alt_names = vec!["spiffe://td/ns/a/sa/s".parse().unwrap()];
    model.preference = Preference::Failover(vec![Scope::Network, Scope::Region, Scope::Zone]);
    model.health_policy = HealthPolicy::AllowAll;
    model.ip_families = IpFamilies::Dual;
    model.visibility = Visibility::Namespace;
    model.ingress_use_waypoint = true;
    model.waypoint = Some(waypoint());
    model.weighted_waypoints = vec![WeightedWaypoint {
        gateway: waypoint(),
        weight: 5,
    }];
    let range = [field(1, b"t"), field(2, &[10, 1, 0, 0]), number(3, 16)].concat();
    let expected = [
        field(1, b"s"),
        field(2, b"a"),
        field(3, b"h"),
        field(4, &[field(1, b"t"), field(2, &[10, 96, 0, 1])].concat()),
        field(4, &range),
        field(5, &[number(1, 80), number(2, 81), number(3, 3)].concat()),
        field(5, &number(1, 90)),
        field(6, b"spiffe://td/ns/a/sa/s"),
        field(7, &waypoint_bytes()),
        field(
            8,
            &[field(1, &[6, 1, 2]), number(2, 2), number(3, 1)].concat(),
        ),
        number(9, 3),
        number(11, 1),
        number(12, 1),
        field(13, &[field(1, &waypoint_bytes()), number(2, 5)].concat()),
        number(14, 1),
    ];
    let bytes = super::service(&model).encode_to_vec();
    assert_eq!(fields(&bytes), set(&expected));
}

#[test]
fn a_membership_resolves_every_port_that_can_be() {
    let mut service = fixture::service("s", "10.96.0.1", &[]);
    let port = |port, target_port| ServicePort {
        port,
        target_port,
        name: "".into(),
        protocol: AppProtocol::Tcp,
    };
    service.ports = vec![
        port(1, Some(11)),
        port(2, None),
        port(3, None),
        port(4, Some(44)),
    ];
    let endpoint = ServiceEndpoint {
        workload: "u".into(),
        ports: vec![(2, 22), (4, 40)],
    };
    let ports = membership(&service, &endpoint).ports;
    let pairs: Vec<_> = ports
        .iter()
        .map(|port| (port.service_port, port.target_port))
        .collect();
    assert_eq!(pairs, [(1, 11), (2, 22), (4, 40)]);
}

#[test]
fn a_policy_has_the_fields_of_istio() {
    let mut model = fixture::policy("x", Action::Deny);
    model.namespace = "a".into();
    model.enforcement = Enforcement::DryRun;
    let account = ServiceAccountMatch {
        namespace: "a".into(),
        service_account: "s".into(),
    };
    let wanted = Match {
        namespaces: vec![StringMatch::Exact("".into())],
        not_namespaces: vec![StringMatch::Prefix("p".into())],
        principals: vec![StringMatch::Suffix("q".into())],
        not_principals: vec![StringMatch::Presence],
        source_ips: vec!["::ffff:10.0.0.0/104".parse().unwrap()],
        not_source_ips: vec!["10.0.0.0/0".parse().unwrap()],
        destination_ips: vec!["10.0.0.1/32".parse().unwrap()],
        not_destination_ips: vec!["10.0.0.2/32".parse().unwrap()],
        destination_ports: vec![0, 80],
        not_destination_ports: vec![81],
        service_accounts: vec![account.clone()],
        not_service_accounts: vec![account],
    };
    model.rules = vec![Rule {
        clauses: vec![Clause {
            matches: vec![wanted, Match::default()],
        }],
    }];
    let net = |last, bits| [field(1, &[10, 0, 0, last]), number(2, bits)].concat();
    let account = [field(1, b"a"), field(2, b"s")].concat();
    let matches = [
        field(1, &field(1, b"")),
        field(2, &field(2, b"p")),
        field(3, &field(3, b"q")),
        field(4, &field(4, b"")),
        field(5, &net(0, 8)),
        field(6, &field(1, &[10, 0, 0, 0])),
        field(7, &net(1, 32)),
        field(8, &net(2, 32)),
        field(9, &[0, 80]),
        field(10, &[81]),
        field(11, &account),
        field(12, &account),
    ]
    .concat();
    let clause = [field(2, &matches), field(2, b"")].concat();
    let expected = [
        field(1, b"x"),
        field(2, b"a"),
        number(3, 2),
        number(4, 1),
        field(5, &field(1, &clause)),
        number(6, 1),
    ];
    let bytes = policy(&model).encode_to_vec();
    assert_eq!(fields(&bytes), set(&expected));
    // The parts of a policy are written in the order of their numbers, so the bytes are the same as well.
    assert_eq!(bytes, expected.concat());
}

#[test]
fn the_stand_in_for_a_missing_policy_refuses_everything() {
    let expected = [
        field(1, b"x"),
        field(2, b"a"),
        number(3, 2),
        number(4, 1),
        field(5, b""),
    ];
    assert_eq!(refusal("a/x").encode_to_vec(), expected.concat());
}

#[test]
fn each_scope_and_mode_has_its_number() {
    let scopes = [
        (Scope::Region, 1),
        (Scope::Zone, 2),
        (Scope::Subzone, 3),
        (Scope::Node, 4),
        (Scope::Cluster, 5),
        (Scope::Network, 6),
    ];
    for (model, wire) in scopes {
        let balancing = load_balancing(&Preference::Strict(vec![model]), HealthPolicy::OnlyHealthy);
        let balancing = balancing.unwrap();
        assert_eq!(
            (balancing.mode, &*balancing.routing_preference),
            (1, &[wire][..])
        );
    }
    let passthrough = load_balancing(&Preference::Passthrough, HealthPolicy::AllowAll).unwrap();
    assert_eq!((passthrough.mode, passthrough.health_policy), (3, 1));
    let protocols = [
        AppProtocol::Unknown,
        AppProtocol::Http11,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Tcp,
        AppProtocol::Tls,
    ];
    assert_eq!(
        protocols.map(|model| i32::from(protocol(model))),
        [0, 1, 2, 3, 4, 5]
    );
    let kinds = [
        WorkloadKind::Deployment,
        WorkloadKind::CronJob,
        WorkloadKind::Pod,
        WorkloadKind::Job,
    ];
    assert_eq!(kinds.map(|model| i32::from(kind(model))), [0, 1, 2, 3]);
}

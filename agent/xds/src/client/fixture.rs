//! Values of the wire for tests.
use bytes::Bytes;
use prost::Message;
use prost_types::Any;

use crate::wire::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{DeltaDiscoveryResponse, Resource},
    security,
    workload::{Address, NetworkAddress, Port, PortList, Service, Workload, address::Type},
};

pub(super) const WEB: &str = "c//Pod/shop/web";
pub(super) const KEY: &str = "shop/web.shop.svc.cluster.local";

pub(super) fn workload(name: &str, address: [u8; 4]) -> Workload {
    let ports = PortList {
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
    };
    Workload {
        uid: format!("c//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![Bytes::copy_from_slice(&address)],
        tunnel_protocol: 1,
        services: [(KEY.to_owned(), ports)].into(),
        ..Workload::default()
    }
}

pub(super) fn service(address: [u8; 4]) -> Service {
    Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        addresses: vec![NetworkAddress {
            network: String::new(),
            address: Bytes::copy_from_slice(&address),
            length: None,
        }],
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
        ..Service::default()
    }
}

pub(super) fn policy(name: &str) -> security::Authorization {
    security::Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: security::Scope::WorkloadSelector.into(),
        action: security::Action::Deny.into(),
        ..security::Authorization::default()
    }
}

pub(super) fn of_workload(version: &str, workload: Workload) -> Resource {
    let name = workload.uid.clone();
    address(name, version, Type::Workload(workload))
}

pub(super) fn of_service(version: &str, service: Service) -> Resource {
    let name = format!("{}/{}", service.namespace, service.hostname);
    address(name, version, Type::Service(service))
}

fn address(name: String, version: &str, content: Type) -> Resource {
    let message = Address {
        r#type: Some(content),
    };
    resource(name, version, ADDRESS_TYPE, &message)
}

pub(super) fn of_policy(policy: security::Authorization) -> Resource {
    let name = format!("{}/{}", policy.namespace, policy.name);
    resource(name, "", AUTHORIZATION_TYPE, &policy)
}

fn resource(name: String, version: &str, url: &str, message: &impl Message) -> Resource {
    Resource {
        name,
        version: version.into(),
        resource: Some(Any {
            type_url: url.into(),
            value: message.encode_to_vec(),
        }),
        ..Resource::default()
    }
}

pub(super) fn addresses(nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    response(ADDRESS_TYPE, nonce, resources)
}

pub(super) fn policies(nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    response(AUTHORIZATION_TYPE, nonce, resources)
}

fn response(url: &str, nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: url.into(),
        nonce: nonce.into(),
        resources,
        ..DeltaDiscoveryResponse::default()
    }
}

pub(super) fn removal(
    mut response: DeltaDiscoveryResponse,
    names: &[&str],
) -> DeltaDiscoveryResponse {
    response.removed_resources = names.iter().map(|name| (*name).to_owned()).collect();
    response
}

//! Messages with parts that are encoded already: the same bytes as the generated ones, copied once.
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_types::Any;
use xxhash_rust::xxh64::xxh64;

use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE, discovery, security, workload};

/// `DeltaDiscoveryResponse`, its resources as encoded `Resource` messages.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// Encoded `Resource` messages.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    /// The type of all of them.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// Repeated by the client when it acknowledges.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names of resources that are gone, and of such that never were.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// `istio.workload.Address` that holds an encoded workload.
#[derive(Clone, PartialEq, Message)]
struct WorkloadAddress {
    #[prost(bytes = "vec", tag = "1")]
    workload: Vec<u8>,
}

/// The part of `Resource` that differs between clients.
#[derive(Clone, PartialEq, Message)]
struct Aliases {
    #[prost(string, repeated, tag = "4")]
    aliases: Vec<String>,
}

/// One encoded `Resource`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// The message.
    pub(crate) bytes: Bytes,
    /// What its version says; policies have none (as in istiod), so they are sent anew on each reconnect.
    pub(crate) version: Option<u64>,
}

impl Encoded {
    /// A workload with its services, in the order that they come in.
    ///
    /// The services are joined by hand: the generated map has no order, and equal content must have equal bytes.
    pub(crate) fn workload<'a>(
        name: &str,
        workload: &workload::Workload,
        services: impl Iterator<Item = (&'a str, workload::PortList)>,
    ) -> Self {
        let mut body = workload.encode_to_vec();
        for (service, ports) in services {
            let part = workload::Workload {
                services: [(service.to_owned(), ports)].into(),
                ..workload::Workload::default()
            };
            // Encoded messages that follow each other are one message with the fields of both.
            body.extend(part.encode_to_vec());
        }
        let address = WorkloadAddress { workload: body };
        Self::versioned(name, address.encode_to_vec())
    }

    /// A service.
    pub(crate) fn service(name: &str, service: workload::Service) -> Self {
        let address = workload::Address {
            r#type: Some(workload::address::Type::Service(service)),
        };
        Self::versioned(name, address.encode_to_vec())
    }

    /// A policy.
    pub(crate) fn policy(name: &str, policy: &security::Authorization) -> Self {
        let any = Any {
            type_url: AUTHORIZATION_TYPE.to_owned(),
            value: policy.encode_to_vec(),
        };
        Self {
            bytes: resource(name, any, String::new()),
            version: None,
        }
    }

    fn versioned(name: &str, value: Vec<u8>) -> Self {
        let any = Any {
            type_url: ADDRESS_TYPE.to_owned(),
            value,
        };
        let version = xxh64(&any.encode_to_vec(), 0);
        Self {
            bytes: resource(name, any, format!("{version:x}")),
            version: Some(version),
        }
    }

    /// Whether a client that reports `version` has this very content.
    pub(crate) fn is(&self, version: &str) -> bool {
        self.version
            .is_some_and(|own| u64::from_str_radix(version, 16) == Ok(own))
    }

    /// The message with aliases.
    pub(crate) fn with_aliases(&self, aliases: Vec<String>) -> Bytes {
        if aliases.is_empty() {
            return self.bytes.clone();
        }
        let aliases = Aliases { aliases }.encode_to_vec();
        let mut joined = BytesMut::with_capacity(self.bytes.len() + aliases.len());
        joined.put_slice(&self.bytes);
        joined.put_slice(&aliases);
        joined.freeze()
    }
}

fn resource(name: &str, any: Any, version: String) -> Bytes {
    let resource = discovery::Resource {
        version,
        resource: Some(any),
        name: name.to_owned(),
        ..discovery::Resource::default()
    };
    Bytes::from(resource.encode_to_vec())
}

//! A response, decoded: the work that grows with its size, done before anything is locked.
use std::sync::Arc;

use ipnet::IpNet;
use prost_types::Any;

use crate::{
    decode::{Address, DecodeError, Decoder},
    wire::{
        AUTHORIZATION_TYPE,
        discovery::{DeltaDiscoveryResponse, Resource},
    },
};

/// A response whose resources are decoded.
#[derive(Debug)]
pub struct Batch {
    pub(super) nonce: String,
    pub(super) url: String,
    pub(super) updates: Vec<Update>,
    pub(super) removed: Vec<String>,
}

/// One resource of it.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) aliases: Vec<String>,
    pub(super) content: Option<Arc<Any>>,
    pub(super) outcome: Result<Part, DecodeError>,
}

/// What a resource is.
#[derive(Debug)]
pub(super) enum Part {
    Address(Address),
    Policy(undermesh_model::Policy),
}

impl Batch {
    /// Decodes a response; this is the work that grows with its size.
    pub fn decode(response: DeltaDiscoveryResponse, decoder: &mut Decoder) -> Self {
        let url = response.type_url;
        let resources = response.resources.into_iter();
        Self {
            updates: resources
                .map(|resource| Update::decode(&url, resource, decoder))
                .collect(),
            nonce: response.nonce,
            removed: response.removed_resources,
            url,
        }
    }
}

impl Update {
    fn decode(url: &str, resource: Resource, decoder: &mut Decoder) -> Self {
        let name = resource.name;
        let outcome = match (&resource.resource, url) {
            (None, _) => Err(DecodeError::Empty),
            (Some(content), AUTHORIZATION_TYPE) => decoder
                .policy(&name, content)
                .map(Part::Policy)
                .map_err(|rejection| rejection.error),
            (Some(content), _) => decoder
                .address(&name, content)
                .map(Part::Address)
                .map_err(|rejection| rejection.error),
        };
        Self {
            name: Arc::from(name),
            version: Arc::from(resource.version),
            aliases: resource.aliases,
            content: resource.resource.map(Arc::new),
            outcome,
        }
    }
}

/// A name that a response answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This name.
    Name(String),
    /// Every address on a network within a range.
    Range(Arc<str>, IpNet),
    /// This name, by what cannot be taken.
    Rejected(String),
}

impl Part {
    /// The names that it answers beside its own. Servers say them as aliases, but not all of them: a service with
    /// a range answers every address in it.
    pub(super) fn answers(&self) -> Vec<Answer> {
        let (network, ranges): (_, Vec<IpNet>) = match self {
            Self::Address(Address::Workload(member)) => {
                let addresses = member.workload.addresses.iter();
                (
                    &member.workload.network,
                    addresses.map(|address| IpNet::from(*address)).collect(),
                )
            }
            Self::Address(Address::Service(service)) => {
                (&service.network, service.addresses.clone())
            }
            Self::Policy(_) => return Vec::new(),
        };
        let answers = ranges.into_iter().map(|range| {
            if range.prefix_len() == range.max_prefix_len() {
                Answer::Name(format!("{network}/{}", range.addr()))
            } else {
                Answer::Range(Arc::clone(network), range)
            }
        });
        answers.collect()
    }
}

//! From the wire to the model, one resource at a time. The bytes are not trusted: what comes out is whole and
//! checked, or it is a [`Rejection`] that names the resource, the field and the remedy.
//!
//! Where Istio's ztunnel drops a part that it cannot read, the whole resource is rejected here: a policy without
//! one of its conditions, or a workload without one of its addresses, is another policy and another workload.
use std::sync::Arc;

use prost::Message;
use prost_types::Any;
use undermesh_model::{IdentityError, Policy, Service, Workload};

use crate::wire::{self, ADDRESS_TYPE, AUTHORIZATION_TYPE};

mod field;
mod names;
mod policy;
mod service;
mod workload;

#[cfg(test)]
mod tests;

use names::Names;
pub use policy::stand_in;

/// Longest name of a resource that is taken, in bytes: a uid joins a cluster, a namespace and a name, each of up
/// to 253 bytes (RFC 1123), with the names of a group and a kind.
pub const MAX_NAME_BYTES: usize = 2048;

/// A resource that is not taken. It reads `<name>: <reason>`, the form in which Istio reports rejections.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {error}")]
pub struct Rejection {
    /// Name of the resource, as the server gave it.
    pub name: String,
    /// Why it is not taken.
    pub error: DecodeError,
}

/// Why a resource is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no message.
    #[error(
        "the bytes are not a {0} message ({1}); check that both ends speak the same version of the protocol"
    )]
    Message(&'static str, String),
    /// The message is of a type that was not asked for.
    #[error("it holds a '{0}', which was not asked for; send the type of the subscription")]
    Type(String),
    /// The message holds nothing.
    #[error("it is empty; send the resource, or its name among the removed ones")]
    Empty,
    /// The name and the content disagree, so that it could not be removed by its name.
    #[error("the content calls itself '{0}'; name and content must agree")]
    Name(String),
    /// The name is longer than any name is.
    #[error("its name has {0} bytes, more than {MAX_NAME_BYTES}; shorten it")]
    NameLength(usize),
    /// There are more resources than are taken.
    #[error("{0} resources of its type are known and no more are taken; subscribe on demand")]
    Count(usize),
    /// A field is empty that must not be.
    #[error("'{0}' is empty; it must be set")]
    Missing(&'static str),
    /// Bytes that are no address.
    #[error("an address in '{0}' has {1} bytes; IPv4 has 4, IPv6 has 16")]
    Address(&'static str, usize),
    /// A prefix that is longer than its address.
    #[error("a range in '{0}' has a prefix of {1} bits, more than its address; shorten it")]
    Prefix(&'static str, u32),
    /// A number that is no port.
    #[error("'{0}' holds {1}, which is no port; ports end at 65535")]
    Port(&'static str, u32),
    /// A number that this version gives no meaning to.
    #[error("'{0}' has the unknown value {1}; upgrade the node, or do not use what it stands for")]
    Number(&'static str, i32),
    /// A text that is no `<namespace>/<hostname>`.
    #[error("'{0}' holds '{1}'; write <namespace>/<hostname>")]
    Key(&'static str, String),
    /// Parts that make no identity.
    #[error("it has no identity: {0}")]
    Identity(#[from] IdentityError),
    /// A workload that wants the mutual TLS of Istio's sidecars.
    ///
    /// Nodes do not speak it. Taken as a plain one, the workload would become an endpoint that is sent plain
    /// text in the place of encrypted traffic, so it is no endpoint at all; ztunnel rejects it too.
    #[error(
        "it wants LEGACY_ISTIO_MTLS, which nodes do not speak; enroll the workload in ambient mode"
    )]
    LegacyTunnel,
    /// A text match of no kind.
    #[error("a text in '{0}' is neither exact nor prefix, suffix or presence; set one of them")]
    StringMatch(&'static str),
}

/// A workload and its part in services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The workload.
    pub workload: Workload,
    /// The services that it is an endpoint of, in the order of their keys.
    pub services: Vec<Membership>,
}

/// A workload's part in one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// [`Service::key`].
    pub service: Arc<str>,
    /// Service port to the workload's port, see [`undermesh_model::service::ServiceEndpoint::ports`].
    pub ports: Vec<(u16, u16)>,
}

/// What `istio.workload.Address` holds. The endpoints of a service are empty: they come with the workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A workload.
    Workload(Box<Member>),
    /// A service.
    Service(Box<Service>),
}

/// Decodes for one node. Texts that many resources hold are kept once.
#[derive(Debug)]
pub struct Decoder {
    network: Arc<str>,
    names: Names,
}

impl Decoder {
    /// A decoder for a node on `network`. A service has addresses on several networks on the wire and on one in
    /// the model: it is the node's, if the service has any there.
    pub fn new(network: Arc<str>) -> Self {
        Self {
            network,
            names: Names::default(),
        }
    }

    /// Reads an `istio.workload.Address` that the server calls `name`.
    ///
    /// # Errors
    /// When any of it cannot be taken as it is meant.
    pub fn address(&mut self, name: &str, content: &Any) -> Result<Address, Rejection> {
        self.try_address(name, content).map_err(rejected(name))
    }

    /// Reads an `istio.security.Authorization` that the server calls `name`.
    ///
    /// # Errors
    /// When any of it cannot be taken as it is meant. What it selects must be denied then, see [`stand_in`].
    pub fn policy(&mut self, name: &str, content: &Any) -> Result<Policy, Rejection> {
        self.try_policy(name, content).map_err(rejected(name))
    }

    fn try_address(&mut self, name: &str, content: &Any) -> Result<Address, DecodeError> {
        use wire::workload::address::Type;

        let message: wire::workload::Address = message(ADDRESS_TYPE, "Address", content)?;
        let (address, own_name) = match message.r#type.ok_or(DecodeError::Empty)? {
            Type::Workload(wire) => {
                let member = workload::member(wire, &mut self.names)?;
                let uid = member.workload.uid.to_string();
                (Address::Workload(Box::new(member)), uid)
            }
            Type::Service(wire) => {
                let service = service::service(wire, &self.network, &mut self.names)?;
                let key = service.key();
                (Address::Service(Box::new(service)), key)
            }
        };
        agree(name, own_name)?;
        Ok(address)
    }

    fn try_policy(&mut self, name: &str, content: &Any) -> Result<Policy, DecodeError> {
        let message = message(AUTHORIZATION_TYPE, "Authorization", content)?;
        let policy = policy::policy(message, &mut self.names)?;
        agree(name, policy.key())?;
        Ok(policy)
    }
}

fn rejected(name: &str) -> impl FnOnce(DecodeError) -> Rejection {
    move |error| Rejection {
        name: name.chars().take(MAX_NAME_BYTES).collect(),
        error,
    }
}

fn message<M: Message + Default>(
    url: &str,
    kind: &'static str,
    content: &Any,
) -> Result<M, DecodeError> {
    if content.type_url != url {
        return Err(DecodeError::Type(
            content.type_url.chars().take(MAX_NAME_BYTES).collect(),
        ));
    }
    M::decode(content.value.as_slice()).map_err(|e| DecodeError::Message(kind, e.to_string()))
}

fn agree(name: &str, own: String) -> Result<(), DecodeError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(DecodeError::NameLength(name.len()));
    }
    if name != own {
        return Err(DecodeError::Name(own));
    }
    Ok(())
}

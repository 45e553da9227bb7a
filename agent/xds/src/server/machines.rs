//! The seam to whoever registers machines: callers that say with their first request that they are a workload.
use std::net::IpAddr;

use futures::future::BoxFuture;
use prost_types::{Struct, value::Kind as Value};
use undermesh_identity::Caller;

use super::node::{NodeError, text};
use crate::{health::Health, wire::discovery};

/// The metadata that names the WorkloadGroup to register with.
const GROUP: &str = "AUTO_REGISTER_GROUP";
/// The metadata of the machine's addresses, the first of which it is registered with.
const ADDRESSES: &str = "INSTANCE_IPS";
/// The metadata of the network that the machine is on.
const NETWORK: &str = "NETWORK";

/// What a machine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Name of its WorkloadGroup, in the namespace that the caller has proved.
    pub group: String,
    /// Its address.
    pub address: IpAddr,
    /// The network that its address is on; empty is the default one.
    pub network: String,
}

impl Claim {
    /// Reads it out of a first request, if that names a group.
    pub(crate) fn read(node: &discovery::Node) -> Result<Option<Self>, NodeError> {
        let metadata = node.metadata.as_ref();
        let group = text(metadata, GROUP)?;
        if group.is_empty() {
            return Ok(None);
        }
        let addresses = addresses(metadata)?;
        let first = addresses.split(',').next().unwrap_or_default().trim();
        let address = first
            .parse()
            .map_err(|_| NodeError::Address(first.to_owned()))?;
        Ok(Some(Self {
            group: group.to_owned(),
            address,
            network: text(metadata, NETWORK)?.to_owned(),
        }))
    }
}

/// Istio's proxies write the addresses as one text with commas.
fn addresses(metadata: Option<&Struct>) -> Result<&str, NodeError> {
    let value = metadata.and_then(|metadata| metadata.fields.get(ADDRESSES)?.kind.as_ref());
    match value {
        Some(Value::StringValue(_)) => text(metadata, ADDRESSES),
        _ => Err(NodeError::Address(String::new())),
    }
}

/// Why a machine is not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// It may not be, and asking again changes nothing until somebody changes something.
    #[error("{0}")]
    Refused(String),
    /// It could not be registered at present.
    #[error("{0}; try again")]
    Unavailable(String),
}

/// Registers machines.
pub trait Machines: Send + Sync {
    /// Registers a machine of the account that `caller` has proved, for as long as the answer lives.
    fn register(
        &self,
        caller: Caller,
        claim: Claim,
    ) -> BoxFuture<'_, Result<Box<dyn Attendance>, RegistrationError>>;
}

/// A machine that is connected and registered. Dropping it says that it is connected no more.
pub trait Attendance: Send + Sync {
    /// The name under which it is registered: what it has in place of a node's name.
    fn name(&self) -> &str;

    /// Takes what it says of its application's health.
    fn report(&self, health: Health);

    /// Waits until somebody has taken the registration away; the machine is not served any longer then.
    fn withdrawn(&self) -> BoxFuture<'_, ()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::fixture;

    fn claim(fields: &[(&str, &str)]) -> Result<Option<Claim>, NodeError> {
        let mut node = fixture::node("shop", "vm", "vm");
        for (key, value) in fields {
            fixture::set_metadata(&mut node, key, value);
        }
        Claim::read(&node)
    }

    #[test]
    fn a_node_that_names_no_group_is_no_machine() {
        assert_eq!(claim(&[]), Ok(None));
        assert_eq!(claim(&[(GROUP, "")]), Ok(None));
    }

    #[test]
    fn a_machine_names_its_group_and_its_first_address() {
        let told = [
            (GROUP, "vm"),
            (ADDRESSES, "10.0.0.7,fd00::7"),
            (NETWORK, "far"),
        ];
        let claim = claim(&told).unwrap().unwrap();
        assert_eq!((&*claim.group, &*claim.network), ("vm", "far"));
        assert_eq!(claim.address, IpAddr::from([10, 0, 0, 7]));
    }

    #[test]
    fn a_machine_without_a_sound_address_is_refused() {
        for address in ["", "vm.local", "10.0.0.300", " "] {
            let refused = claim(&[(GROUP, "vm"), (ADDRESSES, address)]).unwrap_err();
            assert!(matches!(refused, NodeError::Address(_)), "{refused}");
        }
    }
}

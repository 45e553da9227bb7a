//! Fields that several messages share.
use std::net::IpAddr;

use ipnet::IpNet;
use undermesh_model::{Gateway, GatewayDestination};

use super::{DecodeError, names::Names};
use crate::wire::workload as wire;

/// The port of HBONE, for a gateway that names none (Istio always sends it).
const HBONE_PORT: u16 = 15008;

/// A text that must not be empty.
pub(super) fn required<'a>(text: &'a str, field: &'static str) -> Result<&'a str, DecodeError> {
    if text.is_empty() {
        return Err(DecodeError::Missing(field));
    }
    Ok(text)
}

/// An address of 4 or 16 bytes; IPv4 that is mapped into IPv6 becomes IPv4.
pub(super) fn address(bytes: &[u8], field: &'static str) -> Result<IpAddr, DecodeError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(octets));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => Ok(IpAddr::from(octets).to_canonical()),
        Err(_) => Err(DecodeError::Address(field, bytes.len())),
    }
}

/// A range of addresses; without a length it is a single one.
pub(super) fn range(
    bytes: &[u8],
    length: Option<u32>,
    field: &'static str,
) -> Result<IpNet, DecodeError> {
    // Not `address`: the prefix of a mapped address counts the bits of the IPv6 form.
    let address = match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => address(bytes, field)?,
    };
    let Some(length) = length else {
        return Ok(IpNet::from(address.to_canonical()));
    };
    let bits = u8::try_from(length).map_err(|_| DecodeError::Prefix(field, length))?;
    IpNet::new(address, bits).map_err(|_| DecodeError::Prefix(field, length))
}

/// A port; 0 where the wire gives it a meaning of its own.
pub(super) fn port(number: u32, field: &'static str) -> Result<u16, DecodeError> {
    u16::try_from(number).map_err(|_| DecodeError::Port(field, number))
}

/// A port that is not 0.
pub(super) fn real_port(number: u32, field: &'static str) -> Result<u16, DecodeError> {
    match port(number, field)? {
        0 => Err(DecodeError::Port(field, 0)),
        port => Ok(port),
    }
}

/// A value of an enum; a number without a meaning is an error.
pub(super) fn number<E: TryFrom<i32>>(value: i32, field: &'static str) -> Result<E, DecodeError> {
    E::try_from(value).map_err(|_| DecodeError::Number(field, value))
}

/// A waypoint or a network gateway.
pub(super) fn gateway(
    wire: wire::GatewayAddress,
    field: &'static str,
    names: &mut Names,
) -> Result<Gateway, DecodeError> {
    use wire::gateway_address::Destination;

    let destination = match wire.destination.ok_or(DecodeError::Missing(field))? {
        Destination::Hostname(name) => GatewayDestination::Hostname {
            namespace: names.get(required(&name.namespace, field)?),
            hostname: names.get(required(&name.hostname, field)?),
        },
        Destination::Address(place) => GatewayDestination::Address {
            network: names.get(&place.network),
            address: address(&place.address, field)?,
        },
    };
    let port = match port(wire.hbone_mtls_port, field)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(Gateway { destination, port })
}

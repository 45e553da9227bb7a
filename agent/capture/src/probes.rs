//! Kubelet's probes, which reach the applications past the agent whatever the policies say.
//!
//! A program on kubelet's own cgroup notes kubelet's connections, and the programs of the pods let exactly
//! those through. Other processes of the node are judged like any client.
use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use aya::maps::{HashMap, MapData, MapError};
use undermesh_abi::{Address, MAX_PROBERS};

use crate::{
    error::CaptureError,
    programs::{self, Cgroup, Pins, Programs},
};

/// The program that notes probes, and the name of its pinned link.
const PROGRAM: &str = "note_probe";

/// By what kubelet's probes are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probes {
    /// By nothing: they are judged like other plain connections.
    #[default]
    Judged,
    /// By kubelet's own cgroup (v2), such as `/sys/fs/cgroup/system.slice/kubelet.service`.
    Kubelet(PathBuf),
    /// By their source, one of the node's own addresses: where kubelet's cgroup is not found. Other processes
    /// of the node pass as well.
    From(BTreeSet<IpAddr>),
}

/// Puts this in the place of what was in force.
pub(crate) fn set(
    programs: &mut Programs,
    pins: &Pins,
    probes: &Probes,
) -> Result<(), CaptureError> {
    let none = BTreeSet::new();
    let (kubelet, addresses) = match probes {
        Probes::Judged => (None, &none),
        Probes::Kubelet(cgroup) => (Some(cgroup), &none),
        Probes::From(addresses) => (None, addresses),
    };
    match kubelet {
        Some(cgroup) => {
            programs::attach(&mut programs.object, PROGRAM, pins, &Cgroup::open(cgroup)?)?
        }
        None => programs::remove_link(&pins.links().join(PROGRAM))?,
    }
    Ok(allow(&mut programs.probers, addresses)?)
}

fn allow(
    map: &mut HashMap<MapData, Address, u8>,
    addresses: &BTreeSet<IpAddr>,
) -> Result<(), MapError> {
    let wanted: BTreeSet<IpAddr> = addresses
        .iter()
        .copied()
        .take(MAX_PROBERS as usize)
        .collect();
    let present: Vec<Address> = map.keys().collect::<Result<_, _>>()?;
    for address in present {
        if !wanted.contains(&IpAddr::from(address)) {
            map.remove(&address)?;
        }
    }
    for address in wanted {
        map.insert(Address::from(address), 0, 0)?;
    }
    Ok(())
}

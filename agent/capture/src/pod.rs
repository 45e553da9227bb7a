//! The program of one pod or machine: `sk_lookup` in its network namespace, with a map of its listeners.
use std::{
    fs, io,
    net::TcpListener,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Map, MapData, PerCpuArray, SockMap},
    programs::{Program, links::FdLink},
};
use undermesh_abi::{LISTENER_IPV4, LISTENER_IPV6};

use crate::{
    bpf::PinnedLink,
    counters::Counts,
    features::{self, Devices},
    netns::Netns,
    programs::{self, ANNOUNCED, LoadError, PORTS, PROBERS, PROBES, Pins},
};

const POD_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.o"));
const LISTENERS: &str = "LISTENERS";
const COUNTS: &str = "COUNTS";
const LINK: &str = "link";

/// Which connections are handed to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// All that come from outside.
    All,
    /// Those to sockets of the machine's slice.
    Noted,
}

impl Taken {
    fn program(self, devices: Devices) -> &'static str {
        match (self, devices) {
            (Self::All, Devices::Seen) => "assign_plaintext",
            (Self::All, Devices::Unseen) => "assign_plaintext_blind",
            (Self::Noted, Devices::Seen) => "assign_noted",
            (Self::Noted, Devices::Unseen) => "assign_noted_blind",
        }
    }
}

/// Whether the namespace of a pinned pod is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its program is attached to a namespace that exists.
    Alive,
    /// The namespace is gone.
    Gone,
    /// No link is pinned, so there is nothing to tell by.
    Unknown,
}

/// Loads the program for a pod, or takes over an earlier agent's, and gives it the new listeners.
pub(crate) fn attach(
    pins: &Pins,
    netns: &Netns,
    plaintext: &[TcpListener],
    taken: Taken,
    devices: Devices,
) -> Result<(), LoadError> {
    let name = taken.program(devices);
    let folder = pins.pod(netns.cookie());
    programs::make_folder(&folder)?;
    let mut object = programs::load(POD_OBJECT, maps(pins, &folder))?;
    // Listeners first: from its attachment on, the program refuses what it has no listener for.
    let map = object
        .map_mut(LISTENERS)
        .ok_or(LoadError::Incomplete(LISTENERS))?;
    assign(SockMap::try_from(map)?, plaintext)?;
    let Some(Program::SkLookup(program)) = object.program_mut(name) else {
        return Err(LoadError::Incomplete(name));
    };
    program
        .load()
        .map_err(|source| features::refused(name, source))?;
    let descriptor = program
        .fd()
        .and_then(|descriptor| Ok(descriptor.try_clone()?))
        .map_err(|source| programs::attaching(name, source))?;
    programs::put_in_place(
        &folder.join(LINK),
        &descriptor,
        PinnedLink::namespace_lives,
        || {
            program
                .attach(netns.as_fd())
                .and_then(|id| program.take_link(id).map(FdLink::from))
                .map_err(|source| programs::attaching(name, source))
        },
    )
}

/// The maps of a pod's object: its own, and those that it shares with all others.
fn maps(pins: &Pins, folder: &Path) -> [(&'static str, PathBuf); 6] {
    [
        (LISTENERS, folder.join(LISTENERS)),
        (COUNTS, folder.join(COUNTS)),
        (PROBES, pins.maps().join(PROBES)),
        (PROBERS, pins.maps().join(PROBERS)),
        (PORTS, pins.maps().join(PORTS)),
        (ANNOUNCED, pins.maps().join(ANNOUNCED)),
    ]
}

fn assign(mut map: SockMap<&mut MapData>, plaintext: &[TcpListener]) -> Result<(), LoadError> {
    for listener in plaintext {
        let slot = match listener.local_addr() {
            Ok(address) if address.is_ipv4() => LISTENER_IPV4,
            _ => LISTENER_IPV6,
        };
        map.set(slot, listener, 0)?;
    }
    Ok(())
}

/// Detaches the program: from here on, inbound connections reach the applications as without a mesh.
pub(crate) fn detach(pins: &Pins, cookie: u64) -> Result<(), LoadError> {
    programs::remove_link(&pins.pod(cookie).join(LINK))
}

/// Detaches the program and removes its maps.
pub(crate) fn remove(pins: &Pins, cookie: u64) -> Result<(), LoadError> {
    let folder = pins.pod(cookie);
    for name in [LINK, LISTENERS, COUNTS] {
        programs::remove_file(&folder.join(name))?;
    }
    match fs::remove_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LoadError::File {
            path: folder,
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Tells by the pinned link whether the namespace with this cookie is still there.
pub(crate) fn life(pins: &Pins, cookie: u64) -> Result<Life, LoadError> {
    let path = pins.pod(cookie).join(LINK);
    let failed = |source| LoadError::Link {
        path: path.clone(),
        source,
    };
    let Some(link) = PinnedLink::open(&path).map_err(failed)? else {
        return Ok(Life::Unknown);
    };
    let alive = link.namespace_lives().map_err(failed)?;
    Ok(if alive { Life::Alive } else { Life::Gone })
}

/// The cookies of all pods with a folder in the BPF file system.
pub(crate) fn pinned(pins: &Pins) -> Result<Vec<u64>, LoadError> {
    let folder = pins.pods();
    let failed = |source| LoadError::File {
        path: folder.clone(),
        source,
    };
    let mut cookies = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(cookie) = name.to_str().and_then(|name| name.parse().ok()) {
            cookies.push(cookie);
        }
    }
    Ok(cookies)
}

/// The counters of one pod; zeroes where its map is not pinned.
pub(crate) fn counts(pins: &Pins, cookie: u64) -> Result<Counts, LoadError> {
    let path = pins.pod(cookie).join(COUNTS);
    if !path.exists() {
        return Ok(Counts::default());
    }
    let map = PerCpuArray::try_from(Map::PerCpuArray(MapData::from_pin(&path)?))?;
    Ok(Counts::read(&map)?)
}

//! Kernel settings of a pod's namespace, and the values that they had before.
use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

const ROOT: &str = "/proc/sys";

/// What the agent sets in a pod's namespace.
const WANTED: [(&str, &str, Need); 2] = [
    // Replies on connections that the agent makes from the client's address inherit the mark of the
    // request, and so the route back (Documentation/networking/ip-sysctl.rst).
    ("net/ipv4/tcp_fwmark_accept", "1", Need::Always),
    // An MPTCP socket does not run the connect hook. With this, socket() refuses one and programs
    // fall back to TCP (Documentation/networking/mptcp-sysctl.rst).
    ("net/mptcp/enabled", "0", Need::WherePresent),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    WherePresent,
}

/// Values from before the pod was enrolled, by name below `/proc/sys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Previous(BTreeMap<String, String>);

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot set {name} in the pod's network namespace: {source}; \
     mount /proc/sys writable for the agent (a privileged container has it)"
)]
pub struct SysctlError {
    name: &'static str,
    source: io::Error,
}

/// Reads the present values, in the calling thread's namespace.
pub(crate) fn read() -> Result<Previous, SysctlError> {
    let mut values = BTreeMap::new();
    for (name, _, need) in WANTED {
        match fs::read_to_string(path(name)) {
            Ok(value) => {
                values.insert(name.to_owned(), value.trim().to_owned());
            }
            Err(error) if absent(&error) && need == Need::WherePresent => {}
            Err(source) => return Err(SysctlError { name, source }),
        }
    }
    Ok(Previous(values))
}

/// Sets what the agent needs, in the calling thread's namespace.
pub(crate) fn apply() -> Result<(), SysctlError> {
    for (name, value, need) in WANTED {
        match fs::write(path(name), value) {
            Err(error) if absent(&error) && need == Need::WherePresent => {}
            result => result.map_err(|source| SysctlError { name, source })?,
        }
    }
    Ok(())
}

/// Puts the earlier values back, in the calling thread's namespace.
pub(crate) fn restore(previous: &Previous) -> Result<(), SysctlError> {
    for (name, _, _) in WANTED {
        if let Some(value) = previous.0.get(name) {
            fs::write(path(name), value).map_err(|source| SysctlError { name, source })?;
        }
    }
    Ok(())
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new(ROOT).join(name)
}

fn absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

//! Kernel settings of the namespace of a pod or machine, and the values that they had before.
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What the agent sets in the namespace.
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

/// Values from before the enrollment, by name below `/proc/sys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Previous(BTreeMap<String, String>);

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot set {name} in the network namespace: {source}; \
     mount the host's /proc into the agent, writable, and name it with --proc (a privileged container has it)"
)]
pub struct SysctlError {
    name: &'static str,
    source: io::Error,
}

/// The settings below one `/proc`. They are those of the calling thread's namespace, whichever `/proc` it is.
#[derive(Clone, Debug)]
pub(crate) struct Sysctls(PathBuf);

impl Sysctls {
    /// Those below `proc`.
    pub(crate) fn new(proc: &Path) -> Self {
        Self(proc.join("sys"))
    }

    /// Reads the present values, in the calling thread's namespace.
    pub(crate) fn read(&self) -> Result<Previous, SysctlError> {
        let mut values = BTreeMap::new();
        for (name, _, need) in WANTED {
            match fs::read_to_string(self.0.join(name)) {
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
    pub(crate) fn apply(&self) -> Result<(), SysctlError> {
        for (name, value, need) in WANTED {
            match fs::write(self.0.join(name), value) {
                Err(error) if absent(&error) && need == Need::WherePresent => {}
                result => result.map_err(|source| SysctlError { name, source })?,
            }
        }
        Ok(())
    }

    /// Puts the earlier values back, in the calling thread's namespace.
    pub(crate) fn restore(&self, previous: &Previous) -> Result<(), SysctlError> {
        for (name, _, _) in WANTED {
            if let Some(value) = previous.0.get(name) {
                fs::write(self.0.join(name), value)
                    .map_err(|source| SysctlError { name, source })?;
            }
        }
        Ok(())
    }
}

fn absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

//! Finds the network namespace of a running pod.
//!
//! The pod's processes are known by their cgroups, which carry the pod's uid. A process is held by its open
//! folder in `/proc`: reads through it fail once the process has ended, even if another one has its number.
//! So the namespace that is opened is the one of a process that was of the pod before and after. The pod's
//! addresses must be in it: a privileged process may have entered another namespace. A pod never
//! gets the namespace, and with it the identity, of another.
mod cgroup;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use crate::netns::{self, NetnsId};

/// Longest `/proc/PID/stat` that is read.
const MAX_STAT: u64 = 4096;
/// The field of `/proc/PID/stat` that tells when the process was started (`proc_pid_stat(5)`), counted from
/// the one after the name, which ends with the last parenthesis.
const START_TIME: usize = 22 - 3;

/// The agent's own namespace.
const OWN: &str = "/proc/self/ns/net";

/// Where to look.
#[derive(Clone, Debug)]
pub struct Discovery {
    proc: PathBuf,
    /// Folders in which container runtimes mount the namespaces of pods.
    mounts: Vec<PathBuf>,
}

/// The network namespace of a pod.
#[derive(Debug)]
pub struct Found {
    /// The namespace, open.
    pub netns: OwnedFd,
    /// Which it is.
    pub id: NetnsId,
    /// A path by which it can be opened again: a mount of the container runtime, or `/proc/PID/ns/net`.
    pub path: PathBuf,
}

/// Why no namespace was found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// Something cannot be read.
    #[error("cannot read {}: {source}; run the agent as root, with the host's /proc", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No process runs in the pod's cgroup.
    #[error(
        "no process of the pod with uid {uid} runs; if it does, start the agent with hostPID and check that {} is the host's and that it has CAP_SYS_PTRACE", proc.display()
    )]
    NoProcess {
        /// The pod's uid.
        uid: String,
        /// Where processes were looked for.
        proc: PathBuf,
    },
    /// All processes of the pod are in the namespace of the node.
    #[error("the pod with uid {0} uses the node's own network namespace, which cannot be enrolled")]
    Host(String),
    /// The namespace lacks an address of the pod.
    #[error(
        "the network namespace {} of the pod with uid {uid} does not have its address {address}; \
         another process may have entered it, or the address changed", path.display()
    )]
    OtherAddresses {
        /// The pod's uid.
        uid: String,
        /// The namespace.
        path: PathBuf,
        /// The address that is missing.
        address: IpAddr,
    },
}

/// A process of the pod.
struct Process {
    started: u64,
    id: NetnsId,
    netns: OwnedFd,
    path: PathBuf,
}

impl Discovery {
    /// Looks in `proc`, the host's `/proc`, and prefers paths in the folders `mounts`, such as `/run/netns`:
    /// a mount outlives the pod's processes.
    pub fn new(proc: impl Into<PathBuf>, mounts: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            proc: proc.into(),
            mounts: mounts.into_iter().collect(),
        }
    }

    /// Finds the namespace of the pod with this uid, which must have all of `addresses`. Blocks while it
    /// reads all processes.
    ///
    /// # Errors
    /// When there is none, or it is not certain.
    pub fn find(&self, uid: &str, addresses: &[IpAddr]) -> Result<Found, DiscoveryError> {
        let hosts = self.hosts()?;
        let mut processes = self.processes(uid)?;
        if processes.is_empty() {
            return Err(DiscoveryError::NoProcess {
                uid: uid.to_owned(),
                proc: self.proc.clone(),
            });
        }
        processes.retain(|process| !hosts.contains(&process.id));
        // The oldest is the one that the container runtime made the namespace for.
        let oldest = processes.into_iter().min_by_key(|process| process.started);
        let Process {
            id, netns, path, ..
        } = oldest.ok_or_else(|| DiscoveryError::Host(uid.to_owned()))?;
        let inside = netns::addresses(netns.as_fd()).map_err(at(&path))?;
        check_addresses(uid, &path, &inside, addresses)?;
        let path = self.mount_of(id).unwrap_or(path);
        Ok(Found { netns, id, path })
    }

    /// Opens the namespace at `path`, which is to be that of the pod with this uid: it must not be the
    /// node's own and must have all of `addresses`.
    ///
    /// # Errors
    /// When it cannot be opened, or is another one.
    pub fn open(
        &self,
        path: &Path,
        uid: &str,
        addresses: &[IpAddr],
    ) -> Result<Found, DiscoveryError> {
        let netns = netns::open(path).map_err(at(path))?;
        let id = NetnsId::of(&netns).map_err(at(path))?;
        if self.hosts()?.contains(&id) {
            return Err(DiscoveryError::Host(uid.to_owned()));
        }
        let inside = netns::addresses(netns.as_fd()).map_err(at(path))?;
        check_addresses(uid, path, &inside, addresses)?;
        Ok(Found {
            netns,
            id,
            path: path.to_owned(),
        })
    }

    /// The node's own namespace: that of the agent and that of the first process, which are the same unless the
    /// agent was put into another one. The first process may be closed to it, where it lacks `CAP_SYS_PTRACE`.
    fn hosts(&self) -> Result<Vec<NetnsId>, DiscoveryError> {
        let id = |path: &Path| netns::open(path).and_then(NetnsId::of);
        let own = Path::new(OWN);
        let mut hosts = vec![id(own).map_err(at(own))?];
        match id(&self.proc.join("1/ns/net")) {
            Ok(first) => hosts.push(first),
            Err(error) => {
                tracing::debug!(%error, "the namespace of the first process cannot be told");
            }
        }
        Ok(hosts)
    }

    fn processes(&self, uid: &str) -> Result<Vec<Process>, DiscoveryError> {
        let mut processes = Vec::new();
        for entry in fs::read_dir(&self.proc).map_err(at(&self.proc))? {
            let entry = entry.map_err(at(&self.proc))?;
            let name = entry.file_name();
            let is_process = name
                .to_str()
                .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
            if !is_process {
                continue;
            }
            match process(&entry.path(), uid) {
                Ok(process) => processes.extend(process),
                // It has ended meanwhile.
                Err(error) => {
                    tracing::trace!(%error, path = %entry.path().display(), "a process was passed over");
                }
            }
        }
        Ok(processes)
    }

    fn mount_of(&self, id: NetnsId) -> Option<PathBuf> {
        let entries = self
            .mounts
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok());
        let mut paths = entries.flatten().flatten().map(|entry| entry.path());
        paths.find(|path| {
            netns::open(path)
                .and_then(NetnsId::of)
                .is_ok_and(|there| there == id)
        })
    }
}

/// The process whose folder in `/proc` this is, if it is of the pod.
fn process(folder: &Path, uid: &str) -> io::Result<Option<Process>> {
    let handle = File::open(folder)?;
    let is_of_pod = || -> io::Result<bool> {
        let text = read(&handle, "cgroup", cgroup::MAX_FILE)?;
        Ok(cgroup::is_of_pod(&text, uid))
    };
    if !is_of_pod()? {
        return Ok(None);
    }
    let started = start_time(&read(&handle, "stat", MAX_STAT)?)?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let netns = openat(&handle, "ns/net", flags, Mode::empty())?;
    netns::check(netns.as_fd())?;
    // A process that has ended, or moved to another pod's cgroup, says nothing of this pod's namespace.
    if !is_of_pod()? {
        return Ok(None);
    }
    Ok(Some(Process {
        started,
        id: NetnsId::of(&netns)?,
        netns,
        path: folder.join("ns/net"),
    }))
}

fn read(folder: &File, name: &str, longest: u64) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    let mut text = String::new();
    file.take(longest).read_to_string(&mut text)?;
    Ok(text)
}

fn start_time(stat: &str) -> io::Result<u64> {
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields);
    fields
        .and_then(|fields| fields.split_whitespace().nth(START_TIME))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not a process's stat"))
}

/// Makes sure that all of `wanted` are inside.
fn check_addresses(
    uid: &str,
    path: &Path,
    inside: &BTreeSet<IpAddr>,
    wanted: &[IpAddr],
) -> Result<(), DiscoveryError> {
    match wanted.iter().find(|address| !inside.contains(address)) {
        None => Ok(()),
        Some(address) => Err(DiscoveryError::OtherAddresses {
            uid: uid.to_owned(),
            path: path.to_owned(),
            address: *address,
        }),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DiscoveryError {
    let path = path.to_owned();
    move |source| DiscoveryError::System { path, source }
}

#[cfg(test)]
mod tests;

//! Makes the network namespace of a pod or machine ready for capture, and puts it back.
//!
//! In a machine's own namespace these effects concern all of its processes, not only those of the slice:
//! - `net.ipv4.tcp_fwmark_accept=1`: an accepted connection takes over the mark of its first packet. Processes that
//!   are reached by packets which the machine's own firewall marks answer with that mark.
//! - `net.mptcp.enabled=0`, where the kernel has it: `socket()` refuses MPTCP, and programs fall back to TCP.
//! - A rule at 32764 sends packets with the mark 0x111 to a table of its own, whose one route leads to `lo`.
//! - Ports 15001 and 15006 on loopback and 15008 on every address are the agent's.
//!
//! The release takes all of it back; what the settings were before is kept on disk.
use std::{io, net::TcpListener, path::PathBuf};

use crate::{
    enrollment::{Enrollment, Scope},
    error::CaptureError,
    listeners::{self, WorkerListeners},
    netlink::Netlink,
    netns::Netns,
    routes::{self, Addresses, Table},
    slice,
    sysctl::{Previous, Sysctls},
};

/// What was opened in a namespace.
pub(crate) struct Ready {
    pub(crate) addresses: Addresses,
    pub(crate) listeners: Vec<WorkerListeners>,
    /// The first worker's plaintext listeners once more.
    pub(crate) plaintext: Vec<TcpListener>,
}

/// Works in namespaces.
pub(crate) struct Ground {
    sysctls: Sysctls,
    workers: usize,
    cgroup: PathBuf,
}

impl Ground {
    pub(crate) fn new(sysctls: Sysctls, workers: usize, cgroup: PathBuf) -> Self {
        Self {
            sysctls,
            workers: workers.max(1),
            cgroup,
        }
    }

    /// Looks at a namespace that no agent has changed: its settings, and whether there is room for our routes.
    pub(crate) fn survey(&self, scope: &Scope, netns: &Netns) -> Result<Previous, CaptureError> {
        netns.run(|| {
            if let Scope::Machine(_) = scope {
                let netlink = Netlink::open().map_err(CaptureError::Network)?;
                if !routes::is_free(&netlink, Table::Machine).map_err(CaptureError::Network)? {
                    return Err(CaptureError::TableInUse);
                }
            }
            Ok(self.sysctls.read()?)
        })?
    }

    /// Makes a namespace ready; everything in it may be there already from an earlier agent.
    pub(crate) fn set_up(
        &self,
        enrollment: &Enrollment,
        netns: &Netns,
    ) -> Result<Ready, CaptureError> {
        if let Scope::Machine(_) = enrollment.scope() {
            slice::check_without_agent(&self.cgroup)?;
        }
        netns.run(|| {
            let netlink = Netlink::open().map_err(CaptureError::Network)?;
            routes::raise_loopback(&netlink).map_err(CaptureError::Network)?;
            let addresses = addresses(&netlink, enrollment)?;
            let listeners = listeners::open(&addresses, self.workers)?;
            self.sysctls.apply()?;
            for family in addresses.families() {
                routes::add(&netlink, family, table(enrollment.scope()))
                    .map_err(CaptureError::Network)?;
            }
            let plaintext = first_plaintext(&listeners).map_err(CaptureError::Network)?;
            Ok(Ready {
                addresses,
                listeners,
                plaintext,
            })
        })?
    }

    /// Puts a namespace back as it was before enrollment.
    pub(crate) fn undo(
        &self,
        scope: &Scope,
        netns: &Netns,
        previous: &Previous,
    ) -> Result<(), CaptureError> {
        netns.run(|| {
            let netlink = Netlink::open().map_err(CaptureError::Network)?;
            for family in routes::FAMILIES {
                routes::remove(&netlink, family, table(scope)).map_err(CaptureError::Network)?;
            }
            Ok(self.sysctls.restore(previous)?)
        })?
    }
}

fn table(scope: &Scope) -> Table {
    match scope {
        Scope::Pod(_) => Table::Pod,
        Scope::Machine(_) => Table::Machine,
    }
}

fn addresses(netlink: &Netlink, enrollment: &Enrollment) -> Result<Addresses, CaptureError> {
    let addresses = routes::addresses(netlink).map_err(CaptureError::Network)?;
    match enrollment.scope() {
        Scope::Pod(_) if addresses.all().is_empty() => {
            Err(CaptureError::NoAddress(enrollment.clone()))
        }
        Scope::Pod(_) => Ok(addresses),
        Scope::Machine(own) => addresses
            .of_machine(own)
            .map_err(CaptureError::ForeignAddress),
    }
}

fn first_plaintext(listeners: &[WorkerListeners]) -> io::Result<Vec<TcpListener>> {
    let first = listeners
        .first()
        .into_iter()
        .flat_map(|worker| &worker.plaintext);
    first.map(TcpListener::try_clone).collect()
}

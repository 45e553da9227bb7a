//! Network namespaces: telling them apart, and the addresses inside.
use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    thread,
};

use nix::{
    fcntl::OFlag,
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::{
        stat::fstat,
        statfs::{NSFS_MAGIC, fstatfs},
    },
};

/// The device and inode of a namespace. While somebody holds the namespace open, no other has the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    /// The identity of an open namespace.
    ///
    /// # Errors
    /// When the system gives no information of the descriptor.
    pub fn of(namespace: impl AsFd) -> io::Result<Self> {
        let stat = fstat(namespace)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

#[cfg(test)]
impl NetnsId {
    /// An identity without a namespace.
    pub(crate) fn made_up(inode: u64) -> Self {
        Self { device: 0, inode }
    }

    /// What it was made up of.
    pub(crate) fn made_up_of(self) -> u64 {
        self.inode
    }
}

impl fmt::Debug for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As the kernel shows it in /proc/PID/ns.
        write!(f, "net:[{}]", self.inode)
    }
}

/// Opens the network namespace at `path`.
///
/// # Errors
/// When it cannot be opened, or is something else (`InvalidInput`).
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    // O_NONBLOCK: a path that turns out to be a pipe must not hold the agent up.
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    check(file.as_fd())?;
    Ok(file.into())
}

/// Makes sure that a descriptor is one of a namespace.
pub(crate) fn check(file: BorrowedFd<'_>) -> io::Result<()> {
    if fstatfs(file)?.filesystem_type() == NSFS_MAGIC {
        return Ok(());
    }
    let error = "it is not a network namespace";
    Err(io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The addresses of all interfaces inside a namespace. Takes a thread for the time of the call.
///
/// # Errors
/// When the namespace cannot be entered, which needs `CAP_SYS_ADMIN`.
pub fn addresses(namespace: BorrowedFd<'_>) -> io::Result<BTreeSet<IpAddr>> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                own_addresses()
            })?;
        match worker.join() {
            Ok(addresses) => addresses,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = getifaddrs()?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    };
    Ok(interfaces.filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_known_by_whichever_path() {
        let one = open(Path::new("/proc/self/ns/net")).unwrap();
        let other = open(Path::new("/proc/thread-self/ns/net")).unwrap();
        assert_eq!(NetnsId::of(&one).unwrap(), NetnsId::of(&other).unwrap());
        let shown = format!("{:?}", NetnsId::of(&one).unwrap());
        let link = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(Path::new(&shown), link);
    }

    #[test]
    fn what_is_not_a_namespace_is_refused() {
        let error = open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

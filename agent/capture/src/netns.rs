//! Network namespaces: opening, telling apart, and working inside one.
use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use socket2::{Domain, Socket, Type};

/// The namespace of the agent's own process.
pub(crate) const OWN: &str = "/proc/self/ns/net";
/// The namespace of the calling thread.
const HERE: &str = "/proc/thread-self/ns/net";

/// Why a network namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("cannot open the network namespace {path}: {source}; give the path of one that exists")]
    Open {
        /// The path given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path names something else.
    #[error("{0} is not a network namespace; give a path like /run/netns/NAME or /proc/PID/ns/net")]
    NotANamespace(PathBuf),
    /// The namespace is the node's own.
    #[error(
        "{0} is the node's own network namespace, which cannot be enrolled; \
         give the namespace of a pod that does not use host networking"
    )]
    Host(PathBuf),
    /// The namespace cannot be entered.
    #[error(
        "cannot enter the network namespace {path}: {source}; run the agent with CAP_SYS_ADMIN"
    )]
    Enter {
        /// The path given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The agent's own namespace cannot be told or opened again.
    #[error(
        "cannot use the agent's own network namespace: {0}; raise the limit of open files (ulimit -n)"
    )]
    Own(io::Error),
    /// No thread for the work inside could be started.
    #[error("cannot start a thread: {0}; raise the limit of threads (ulimit -u, pids.max)")]
    Thread(io::Error),
}

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    descriptor: OwnedFd,
    cookie: u64,
    place: Place,
}

/// Where a namespace was found; it does not keep the namespace alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path, and the device and inode that it named.
    At {
        /// The path.
        path: PathBuf,
        /// The device and inode.
        identity: (u64, u64),
    },
    /// The agent's own namespace, which lives as long as the agent.
    Own,
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::At { path, .. } => path,
            Self::Own => Path::new(OWN),
        }
    }

    /// Whether the path still names the namespace.
    pub(crate) fn holds(&self) -> bool {
        match self {
            Self::At {
                path,
                identity: then,
            } => open(path)
                .and_then(|file| identity(&file, path))
                .is_ok_and(|now| now == *then),
            Self::Own => true,
        }
    }
}

impl Netns {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// When the path cannot be opened or entered, names something else, or names the process's own namespace.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = open(path)?;
        let own = open(Path::new(OWN))?;
        let host = || NetnsError::Host(path.to_owned());
        let inode = identity(&file, path)?;
        if inode == identity(&own, Path::new(OWN))? {
            return Err(host());
        }
        let descriptor = OwnedFd::from(file);
        let enter = |source| NetnsError::Enter {
            path: path.to_owned(),
            source,
        };
        let cookie = inside(descriptor.as_fd(), self::cookie)?
            .map_err(enter)?
            .map_err(enter)?;
        // A namespace has one inode, but a second look through another attribute costs nothing.
        if cookie == self::cookie().map_err(enter)? {
            return Err(host());
        }
        let place = Place::At {
            path: path.to_owned(),
            identity: inode,
        };
        Ok(Self {
            descriptor,
            cookie,
            place,
        })
    }

    /// The namespace of the calling thread, which becomes the one of a machine.
    pub(crate) fn own() -> Result<Self, NetnsError> {
        let descriptor = open(Path::new(HERE))?.into();
        let cookie = self::cookie().map_err(NetnsError::Own)?;
        Ok(Self {
            descriptor,
            cookie,
            place: Place::Own,
        })
    }

    /// The same namespace, open once more.
    pub(crate) fn try_clone(&self) -> Result<Self, NetnsError> {
        Ok(Self {
            descriptor: self.descriptor.try_clone().map_err(NetnsError::Own)?,
            cookie: self.cookie,
            place: self.place.clone(),
        })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// `SO_NETNS_COOKIE` of its sockets: never used twice while the kernel runs.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it.
    ///
    /// # Errors
    /// When no thread can be started or the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        inside(self.as_fd(), work)?.map_err(|source| NetnsError::Enter {
            path: self.path().to_owned(),
            source,
        })
    }

    /// What tells later whether the path still names this namespace.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn open(path: &Path) -> Result<File, NetnsError> {
    // O_NONBLOCK: a path that turns out to be a pipe must not hold the agent up.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| NetnsError::Open {
            path: path.to_owned(),
            source,
        })?;
    match fstatfs(&file) {
        Ok(system) if system.filesystem_type() == NSFS_MAGIC => Ok(file),
        _ => Err(NetnsError::NotANamespace(path.to_owned())),
    }
}

fn identity(file: &File, path: &Path) -> Result<(u64, u64), NetnsError> {
    let metadata = file.metadata().map_err(|source| NetnsError::Open {
        path: path.to_owned(),
        source,
    })?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The outer error is of the thread, the inner one of entering.
fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<io::Result<T>, NetnsError> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })
            .map_err(NetnsError::Thread)?;
        match worker.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The cookie of the namespace that the calling thread is in.
fn cookie() -> io::Result<u64> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket_cookie(&socket)
}

#[allow(unsafe_code)]
fn socket_cookie(socket: &Socket) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length live on the stack for the call, and the length is that of the value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

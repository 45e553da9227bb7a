//! The cgroup of a machine's workload, such as a systemd slice: which cgroups are part of it.
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Bound of cgroups that are looked at.
const MAX_GROUPS: usize = 65_536;

/// Why the cgroup of a machine's processes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    /// A cgroup cannot be read.
    #[error(
        "cannot look into the cgroup {path}: {source}; start the slice, and give its folder with --cgroup"
    )]
    Read {
        /// Its folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There are too many cgroups.
    #[error("{0} has more than {MAX_GROUPS} cgroups; give one with fewer below it")]
    TooMany(PathBuf),
    /// The agent would capture itself.
    #[error(
        "the agent itself runs in {0}, whose processes are the machine's workload; \
         start it elsewhere, such as in system.slice"
    )]
    HoldsAgent(PathBuf),
    /// The kernel does not list sockets.
    #[error(
        "cannot list the listeners of the slice: {0}; \
         run a kernel with CONFIG_INET_DIAG and CONFIG_SOCK_CGROUP_DATA (the module tcp_diag)"
    )]
    Sockets(io::Error),
    /// The listeners change faster than they can be noted.
    #[error("the listeners of {0} do not come to rest; enroll the machine again")]
    Restless(PathBuf),
    /// The kernel programs have no room.
    #[error(
        "no room to note the listener of the slice on {0}; have its processes listen on fewer addresses"
    )]
    Full(std::net::SocketAddr),
}

/// The ids of a cgroup and of all below it.
#[derive(Debug)]
pub(crate) struct Slice {
    ids: BTreeSet<u64>,
}

impl Slice {
    /// Looks at the cgroup at `path` and at all below it.
    ///
    /// A cgroup that is made meanwhile is no part of it: its sockets are younger than the look.
    pub(crate) fn read(path: &Path) -> Result<Self, SliceError> {
        let mut ids = BTreeSet::new();
        walk(path, &mut |folder| {
            // A cgroup's id is its inode number.
            let id = fs::metadata(folder)?.ino();
            ids.insert(id);
            Ok(())
        })?;
        Ok(Self { ids })
    }

    pub(crate) fn holds(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }
}

/// Refuses a cgroup that the agent is in, or below which it is.
pub(crate) fn check_without_agent(path: &Path) -> Result<(), SliceError> {
    let own = std::process::id().to_string();
    let mut found = false;
    walk(path, &mut |folder| {
        match fs::read_to_string(folder.join("cgroup.procs")) {
            Ok(processes) => found |= processes.lines().any(|process| process == own),
            // Threaded cgroups show their processes further up (Documentation/admin-guide/cgroup-v2.rst).
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    if found {
        return Err(SliceError::HoldsAgent(path.to_owned()));
    }
    Ok(())
}

/// Visits a cgroup and all below it; one that goes meanwhile is as good as never there, except for the first.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path) -> io::Result<()>) -> Result<(), SliceError> {
    let mut waiting = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(folder) = waiting.pop() {
        seen += 1;
        if seen > MAX_GROUPS {
            return Err(SliceError::TooMany(root.to_owned()));
        }
        let looked = visit(&folder).and_then(|()| below(&folder, &mut waiting));
        match looked {
            Err(error) if folder != root && is_gone(&error) => {}
            result => result.map_err(|source| SliceError::Read {
                path: folder,
                source,
            })?,
        }
    }
    Ok(())
}

fn below(folder: &Path, waiting: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            waiting.push(entry.path());
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_all_below_it_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("mesh.slice/web.service");
        let beside = folder.path().join("system.slice");
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir(&beside).unwrap();
        let slice = Slice::read(&folder.path().join("mesh.slice")).unwrap();
        let id = |path: &Path| fs::metadata(path).unwrap().ino();
        assert!(slice.holds(id(&inside)) && !slice.holds(id(&beside)));
    }

    #[test]
    fn a_slice_that_holds_the_agent_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("web.service");
        fs::create_dir(&inside).unwrap();
        fs::write(folder.path().join("cgroup.procs"), "1\n").unwrap();
        fs::write(inside.join("cgroup.procs"), "").unwrap();
        assert!(check_without_agent(folder.path()).is_ok());
        fs::write(inside.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let error = check_without_agent(folder.path()).unwrap_err();
        assert!(matches!(error, SliceError::HoldsAgent(_)), "{error}");
    }

    #[test]
    fn a_slice_that_is_not_there_is_refused() {
        let error = Slice::read(Path::new("/does/not/exist")).unwrap_err();
        assert!(error.to_string().contains("start the slice"), "{error}");
    }
}

//! Cgroups of a run, below one cgroup that carries the run's own process id and start time.
//!
//! All of them are threaded (Linux, Documentation/admin-guide/cgroup-v2.rst, "Threads"): one thread of
//! the testbed can then stand in a pod's cgroup and open sockets as a program in that pod would.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Context, Result};

/// The name of a run's cgroup starts with this, then comes `<pid>.<start time>`.
const RUN_PREFIX: &str = "undermesh-testbed.";

/// The cgroup v2 hierarchy of this machine.
#[derive(Debug)]
pub struct Hierarchy {
    root: PathBuf,
    /// Hierarchies of version 1 beside it, where a container runtime puts its containers under the same names.
    others: Vec<PathBuf>,
}

impl Hierarchy {
    /// Finds where cgroup v2 is mounted, be it alone or beside version 1.
    ///
    /// # Errors
    /// When it is not mounted.
    pub fn find() -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mounts").context(|| "read /proc/self/mounts")?;
        let mounted = |kind: &'static str| {
            let lines = table.lines().map(|line| line.split_ascii_whitespace());
            lines.filter_map(move |mut fields| {
                let place = fields.nth(1)?;
                (fields.next() == Some(kind)).then(|| PathBuf::from(place))
            })
        };
        Ok(Self {
            root: mounted("cgroup2").next().context(|| {
                "find a cgroup v2 mount (mount one: mount -t cgroup2 none /sys/fs/cgroup/unified)"
            })?,
            others: mounted("cgroup").collect(),
        })
    }

    /// Where the hierarchy is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes the cgroups of runs that are no longer alive, and those of their containers.
    pub fn sweep(&self) {
        for path in runs_in(&self.root) {
            // A run in another pid namespace looks dead by its id, but has processes in its cgroup.
            if is_empty(&path) {
                remove_tree(&path);
            }
        }
        for path in self.others.iter().flat_map(|root| runs_in(root)) {
            // The run's own cgroup tells whether it is alive.
            let own = path.file_name().map(|name| self.root.join(name));
            if own.is_some_and(|own| !own.exists()) {
                remove_tree(&path);
            }
        }
    }

    /// Removes the cgroups of a run that is over, and those of its containers.
    pub fn end_run(&self, cgroup: &Cgroup) {
        cgroup.remove();
        let name = cgroup.path().file_name();
        let others = name.map(|name| self.others.iter().map(move |root| root.join(name)));
        others.into_iter().flatten().for_each(|it| remove_tree(&it));
    }

    /// Creates the cgroup of the calling process's run.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create_run(&self) -> Result<Cgroup> {
        let pid = std::process::id().to_string();
        let started = start_time(&pid).context(|| "read this process's start time")?;
        let path = self.root.join(format!("{RUN_PREFIX}{pid}.{started}"));
        fs::create_dir(&path).context(|| format!("create cgroup {}", path.display()))?;
        Ok(Cgroup { path })
    }
}

/// The cgroups of runs whose process is not there.
fn runs_in(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let is_over = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let owner = name
            .and_then(|name| name.strip_prefix(RUN_PREFIX))
            .and_then(|id| id.split_once('.'));
        owner.is_some_and(|(pid, started)| start_time(pid).as_deref() != Some(started))
    };
    entries.map(|entry| entry.path()).filter(is_over).collect()
}

/// The start time of a process, in clock ticks since boot (proc_pid_stat(5), field 22).
fn start_time(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_ascii_whitespace()
        .nth(19)
        .map(str::to_owned)
}

/// A cgroup of the run.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Where the cgroup is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a threaded cgroup below this one.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn child(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        fs::create_dir(&path).context(|| format!("create cgroup {}", path.display()))?;
        let kind = path.join("cgroup.type");
        fs::write(&kind, "threaded").context(|| format!("make {} threaded", path.display()))?;
        Ok(Self { path })
    }

    /// Moves the calling process here.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self) -> Result<()> {
        self.write_self("cgroup.procs")
    }

    /// Moves the calling thread here.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join_thread(&self) -> Result<()> {
        self.write_self("cgroup.threads")
    }

    /// The file that takes the process ids of those who join.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn processes(&self) -> Result<File> {
        self.open("cgroup.procs")
    }

    /// Removes the cgroup and those below it. One that still has processes stays, and the next run
    /// sweeps it.
    pub fn remove(&self) {
        remove_tree(&self.path);
    }

    fn write_self(&self, file: &str) -> Result<()> {
        self.open(file)?
            .write_all(b"0")
            .context(|| format!("join cgroup {}", self.path.display()))
    }

    fn open(&self, file: &str) -> Result<File> {
        let path = self.path.join(file);
        OpenOptions::new()
            .write(true)
            .open(&path)
            .context(|| format!("open {}", path.display()))
    }
}

/// Whether no process is in the cgroup or below it.
pub fn is_empty(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 0"))
}

fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // A cgroup in use cannot be removed; the sweep of the next run takes it.
    let _ = fs::remove_dir(path);
}

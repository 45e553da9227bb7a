//! What a demo consists of, as the machine sees it, and the proof that none of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use undermesh_tests::agent::poll;
use undermesh_tests::cgroup::Hierarchy;
use undermesh_tests::{Context, Result};

use super::narrator::Narrator;

/// The name of a run's cgroup starts with this, then comes `<pid>.<start time>`.
pub const RUN_PREFIX: &str = "undermesh-testbed.";

/// The kinds of namespaces that a demo makes, as /proc/PID/ns names them.
const KINDS: [&str; 3] = ["net", "mnt", "pid"];

/// What one demo consists of.
#[derive(Debug)]
pub struct Inventory {
    run: PathBuf,
    cgroups: usize,
    processes: BTreeSet<Process>,
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<Mount>,
}

impl Inventory {
    /// Looks at the demo whose stage was started as process `stage`.
    ///
    /// # Errors
    /// When it has no cgroup or no namespaces.
    pub fn take(stage: u32) -> Result<Self> {
        let run = run_of(stage)?;
        let cgroups = below(&run);
        // The stage stands outside of the pid namespace it made; its programs are in the cgroups.
        let members: BTreeSet<u32> = cgroups.iter().flat_map(|path| threads(path)).collect();
        let outside = namespaces_of("self");
        let mut namespaces: BTreeSet<String> = members
            .iter()
            .flat_map(|id| namespaces_of(&id.to_string()))
            .filter(|namespace| !outside.contains(namespace))
            .collect();
        let machine = mounts_of("self")?;
        let mounts: BTreeSet<Mount> = mounts_of(&stage.to_string())?
            .difference(&machine)
            .cloned()
            .collect();
        namespaces.extend(mounts.iter().filter_map(Mount::namespace));
        let processes = processes()
            .filter(|process| process.stands_in(&namespaces))
            .collect();
        Ok(Self {
            run,
            cgroups: cgroups.len(),
            processes,
            namespaces,
            mounts,
        })
    }

    /// Shows that all of it is gone.
    ///
    /// # Errors
    /// What is still there.
    pub fn prove_gone(&self, narrator: &Narrator) -> Result<()> {
        let wait = format!(
            "wait until the processes of {} are gone",
            self.run.display()
        );
        poll(&wait, || Ok(self.left().is_empty()))?;
        // Takes the cgroups of a run that was entered by `demo exec` until its end.
        Hierarchy::find()?.sweep();
        let left = self.left();
        narrator.proof(
            left.is_empty(),
            format!(
                "processes: {} while it ran, {} now.",
                self.processes.len(),
                left.len()
            ),
        )?;
        let machine = mounts_of("self")?;
        let kept: Vec<_> = self.mounts.intersection(&machine).collect();
        narrator.proof(
            kept.is_empty(),
            format!(
                "mounts: {} while it ran, {} now. Its files were on one of them, in memory.",
                self.mounts.len(),
                kept.len()
            ),
        )?;
        let held: BTreeSet<String> = machine.iter().filter_map(Mount::namespace).collect();
        let held = self.namespaces.intersection(&held).count();
        narrator.proof(
            held == 0,
            format!(
                "namespaces: {} while it ran, {held} now held by a mount, none by a process.",
                self.namespaces.len()
            ),
        )?;
        let standing = below(&self.run).len();
        narrator.proof(
            standing == 0,
            format!("cgroups: {} while it ran, {standing} now.", self.cgroups),
        )
    }

    fn left(&self) -> Vec<&Process> {
        self.processes
            .iter()
            .filter(|process| process.lives())
            .collect()
    }
}

/// A process; the start time tells it from a later one with the same id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    id: String,
    started: String,
}

impl Process {
    fn find(id: &str) -> Option<Self> {
        Some(Self {
            id: id.to_owned(),
            started: started(id)?,
        })
    }

    fn lives(&self) -> bool {
        started(&self.id).as_ref() == Some(&self.started)
    }

    fn stands_in(&self, namespaces: &BTreeSet<String>) -> bool {
        namespaces_of(&self.id)
            .iter()
            .any(|namespace| namespaces.contains(namespace))
    }
}

/// The start time of a process, in clock ticks since boot (proc_pid_stat(5), field 22).
fn started(id: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_ascii_whitespace()
        .nth(19)
        .map(str::to_owned)
}

fn processes() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Process::find(entry.file_name().to_str()?))
}

/// The namespaces of a process, such as `net:[4026531833]`; none when it has ended.
fn namespaces_of(id: &str) -> BTreeSet<String> {
    KINDS
        .iter()
        .filter_map(|kind| fs::read_link(format!("/proc/{id}/ns/{kind}")).ok())
        .map(|namespace| namespace.to_string_lossy().into_owned())
        .collect()
}

/// A mount (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mount {
    device: String,
    root: String,
    point: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().skip(2).map(str::to_owned);
        Some(Self {
            device: fields.next()?,
            root: fields.next()?,
            point: fields.next()?,
        })
    }

    /// The namespace that this mount holds.
    fn namespace(&self) -> Option<String> {
        self.root.contains(":[").then(|| self.root.clone())
    }
}

fn mounts_of(id: &str) -> Result<BTreeSet<Mount>> {
    let file = format!("/proc/{id}/mountinfo");
    let table = fs::read_to_string(&file).context(|| format!("read {file}"))?;
    Ok(table.lines().filter_map(Mount::parse).collect())
}

/// The cgroup of the run that process `id` started.
///
/// # Errors
/// When there is none.
pub fn run_of(id: u32) -> Result<PathBuf> {
    let prefix = format!("{RUN_PREFIX}{id}.");
    runs()?
        .into_iter()
        .find(|run| name(run).starts_with(&prefix))
        .context(|| format!("find the cgroup of process {id}"))
}

/// The cgroups of all runs on this machine.
///
/// # Errors
/// When cgroup v2 is not mounted.
pub fn runs() -> Result<Vec<PathBuf>> {
    let hierarchy = Hierarchy::find()?;
    Ok(folders(hierarchy.root())
        .filter(|path| name(path).starts_with(RUN_PREFIX))
        .collect())
}

/// A cgroup that exists, and all below it.
pub fn below(cgroup: &Path) -> Vec<PathBuf> {
    if !cgroup.exists() {
        return Vec::new();
    }
    let mut all = vec![cgroup.to_owned()];
    all.extend(folders(cgroup).flat_map(|folder| below(&folder)));
    all
}

/// The threads in a cgroup as this process numbers them, the oldest first: that is the main thread of
/// the program that was started there.
pub fn threads(cgroup: &Path) -> Vec<u32> {
    let mut ids: Vec<u32> = fs::read_to_string(cgroup.join("cgroup.threads"))
        .unwrap_or_default()
        .lines()
        .filter_map(|id| id.parse().ok())
        .collect();
    ids.sort_unstable();
    ids
}

/// The last part of a path, as text.
pub fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn folders(path: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_holds_a_namespace_is_told_from_others() {
        let held = "93 78 0:4 net:[4026532301] /run/a/netns rw shared:5 - nsfs nsfs rw";
        let other = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        let namespace = |line| Mount::parse(line).and_then(|mount| mount.namespace());
        assert_eq!(namespace(held), Some("net:[4026532301]".to_owned()));
        assert_eq!(namespace(other), None);
    }

    #[test]
    fn a_process_is_alive_under_its_own_start_time_only() {
        let own = Process::find("self").into_iter().collect::<Vec<_>>();
        assert!(own.iter().all(Process::lives) && own.len() == 1);
        let later = Process {
            id: "self".to_owned(),
            started: "1".to_owned(),
        };
        assert!(!later.lives());
    }
}

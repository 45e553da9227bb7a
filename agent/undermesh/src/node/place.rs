//! What the node finds out about where it runs, when it is not told.
use std::{
    fs, io,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use undermesh_capture::{Devices, Probes, Settings as CaptureSettings};
use undermesh_control::Settings as MeshSettings;

use crate::command::NodeOptions;

/// Most workers unless told otherwise: more gain little for one node's traffic.
const DEFAULT_WORKERS: usize = 4;
/// Control groups that hold the pods, by kubelet's cgroup driver (systemd, cgroupfs).
const POD_GROUPS: [&str; 2] = ["kubepods.slice", "kubepods"];

/// Control group of kubelet where systemd starts it.
const KUBELET_GROUP: &str = "system.slice/kubelet.service";

/// What could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The host has no name.
    #[error("the host's name cannot be read ({0}); give one with --node-name")]
    Name(io::Error),
    /// No cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted; mount one, or name the control group above the pods with --cgroup"
    )]
    NoHierarchy,
    /// No control group of pods.
    #[error("there is no kubepods.slice or kubepods below {}; name the control group above the pods with --cgroup", .0.display())]
    NoPodGroup(PathBuf),
}

/// Raises the limit of open files as far as the system lets this process: every connection takes several.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The node's name: as given, else the host's.
pub fn node_name(options: &NodeOptions) -> Result<String, PlaceError> {
    match &options.node_name {
        Some(name) => Ok(name.clone()),
        None => {
            let name = fs::read_to_string("/proc/sys/kernel/hostname").map_err(PlaceError::Name)?;
            Ok(name.trim().to_owned())
        }
    }
}

/// The kernel's release, as uname(2) tells it.
pub fn kernel_release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// How many workers run.
pub fn workers(options: &NodeOptions) -> usize {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    options.workers.unwrap_or(cpus.min(DEFAULT_WORKERS))
}

/// Where capture works.
pub fn capture(options: &NodeOptions, workers: usize) -> Result<CaptureSettings, PlaceError> {
    let cgroup = match &options.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => pod_group(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())?,
    };
    Ok(CaptureSettings {
        bpffs: options.bpffs.clone(),
        cgroup,
        state_dir: options.run_dir.join("pods"),
        proc: options.cluster.proc.clone(),
        workers,
        devices: Devices::of_kernel(),
    })
}

/// The mesh's fixed names.
pub fn mesh(options: &NodeOptions) -> MeshSettings {
    MeshSettings {
        trust_domain: options.trust_domain.clone(),
        cluster: Arc::from(options.cluster_id.as_str()),
        network: Arc::from(options.network.as_str()),
        ..MeshSettings::default()
    }
}

/// By what kubelet's probes are known.
pub fn probes(options: &NodeOptions) -> Probes {
    let cluster = &options.cluster;
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let usual = hierarchy(&mounts).map(|it| it.join(KUBELET_GROUP));
    let group = cluster
        .kubelet_cgroup
        .clone()
        .or(usual.filter(|group| group.is_dir()));
    match group {
        Some(group) => Probes::Kubelet(group),
        None if cluster.node_addresses.is_empty() => Probes::Judged,
        None => Probes::From(cluster.node_addresses.iter().copied().collect()),
    }
}

fn pod_group(mounts: &str) -> Result<PathBuf, PlaceError> {
    let hierarchy = hierarchy(mounts).ok_or(PlaceError::NoHierarchy)?;
    let groups = POD_GROUPS.iter().map(|group| hierarchy.join(group));
    groups
        .into_iter()
        .find(|group| group.is_dir())
        .ok_or_else(|| PlaceError::NoPodGroup(hierarchy.to_owned()))
}

/// Where cgroup v2 is mounted (`proc_pid_mounts(5)`: device, place, type, …).
fn hierarchy(mounts: &str) -> Option<&Path> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next()? == "cgroup2").then_some(Path::new(place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_hierarchy_is_found_among_the_mounts() {
        let mounts =
            "proc /proc proc rw 0 0\nx /y tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(hierarchy(mounts), Some(Path::new("/sys/fs/cgroup")));
        assert_eq!(hierarchy("proc /proc proc rw 0 0\n\n"), None);
    }

    #[test]
    fn the_group_of_pods_is_found_or_its_absence_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mounts = format!("cgroup2 {} cgroup2 rw 0 0\n", directory.path().display());
        assert!(matches!(pod_group(&mounts), Err(PlaceError::NoPodGroup(_))));
        fs::create_dir(directory.path().join("kubepods")).unwrap();
        assert_eq!(
            pod_group(&mounts).unwrap(),
            directory.path().join("kubepods")
        );
        fs::create_dir(directory.path().join("kubepods.slice")).unwrap();
        assert_eq!(
            pod_group(&mounts).unwrap(),
            directory.path().join("kubepods.slice")
        );
    }
}

//! Which pod a process belongs to, by the paths of its cgroups.
//!
//! Kubelet puts a pod's containers below a folder that is named by the pod's uid, in one of two forms:
//!
//! - cgroupfs driver: `/kubepods/burstable/pod1f3a…-…/CONTAINER`
//! - systemd driver: `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f3a…_….slice/cri-containerd-CONTAINER.scope`,
//!   with underscores for hyphens, since a hyphen nests slices (`systemd.slice(5)`)
//!
//! `/proc/PID/cgroup` has one line for the unified hierarchy (`0::PATH`) and one for each hierarchy of
//! version 1 (`cgroups(7)`); container runtimes differ in the last part alone.

/// Longest `/proc/PID/cgroup` that is read.
pub const MAX_FILE: u64 = 64 * 1024;

/// Whether `text`, the content of `/proc/PID/cgroup`, puts the process into the pod with this uid.
///
/// All of its hierarchies that name a pod must name this one.
pub fn is_of_pod(text: &str, uid: &str) -> bool {
    let mut pods = text.lines().filter_map(pod_of_line).peekable();
    !uid.is_empty() && pods.peek().is_some() && pods.all(|pod| pod == uid)
}

/// The uid in a line `ID:CONTROLLERS:PATH`. The outermost folder of a pod counts: what is below it may be
/// named by the pod's own processes.
fn pod_of_line(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    let mut below_kubelet = false;
    for folder in path.split('/') {
        if below_kubelet && let Some(uid) = pod_of_folder(folder) {
            return Some(uid);
        }
        below_kubelet |= is_kubelets(folder);
    }
    None
}

/// Whether a folder is one that kubelet keeps pods in: `kubepods`, `kubepods.slice`, `kubepods-burstable.slice`,
/// or such a slice below one of its own, as in `kubelet-kubepods.slice`.
fn is_kubelets(folder: &str) -> bool {
    let name = folder.strip_suffix(".slice").unwrap_or(folder);
    name.split('-').any(|part| part == "kubepods")
}

fn pod_of_folder(folder: &str) -> Option<String> {
    if let Some(name) = folder.strip_suffix(".slice") {
        let (_, uid) = name.rsplit_once("-pod")?;
        return Some(uid.replace('_', "-"));
    }
    let uid = folder.strip_prefix("pod")?;
    (!uid.is_empty()).then(|| uid.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0b5c8e2f-4d67-4c1b-9a3e-2f1d0c9b8a76";
    const SYSTEMD: &str = "0b5c8e2f_4d67_4c1b_9a3e_2f1d0c9b8a76";

    #[test]
    fn processes_of_a_pod_are_known_under_every_runtime_and_driver() {
        for text in [
            // containerd, systemd driver, cgroup v2.
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice/cri-containerd-c0ffee.scope\n"
            ),
            // The guaranteed class has no slice of its own.
            format!("0::/kubepods.slice/kubepods-pod{SYSTEMD}.slice/crio-c0ffee.scope"),
            // CRI-O with a cgroup for its monitor.
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice/crio-c0ffee.scope/container"
            ),
            // Docker, systemd driver.
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice/docker-c0ffee.scope"
            ),
            // cgroupfs driver.
            format!("0::/kubepods/burstable/pod{UID}/c0ffee"),
            format!("0::/kubepods/pod{UID}/c0ffee"),
            // A node that is itself a container (kind).
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SYSTEMD}.slice/cri-containerd-c0ffee.scope"
            ),
            format!("0::/../../kubelet/kubepods/besteffort/pod{UID}/c0ffee"),
            // cgroup v1 with many hierarchies, one of which is not kubelet's.
            format!(
                "12:pids:/kubepods/burstable/pod{UID}/c0\n5:cpu,cpuacct:/kubepods/burstable/pod{UID}/c0\n1:name=systemd:/system.slice/containerd.service\n0::/\n"
            ),
        ] {
            assert!(is_of_pod(&text, UID), "{text}");
            let other = "0b5c8e2f-4d67-4c1b-9a3e-2f1d0c9b8a77";
            assert!(!is_of_pod(&text, other), "{text}");
        }
    }

    #[test]
    fn static_pods_have_uids_without_hyphens() {
        let uid = "6f1ed002ab5595859014ebf0951522d9";
        let text = format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/c.scope"
        );
        assert!(is_of_pod(&text, uid));
    }

    #[test]
    fn a_pod_cannot_pretend_to_be_another() {
        let other = "11111111-2222-3333-4444-555555555555";
        for text in [
            // A cgroup that the pod made below its own.
            format!("0::/kubepods/burstable/pod{other}/c0ffee/kubepods/pod{UID}"),
            format!("0::/kubepods/pod{other}/c0ffee/pod{UID}"),
            // A process outside of kubelet's folder.
            format!("0::/user.slice/pod{UID}/x"),
            format!("0::/system.slice/web-pod{SYSTEMD}.slice"),
            // Hierarchies that contradict each other.
            format!("2:pids:/kubepods/pod{UID}/c0\n1:cpu:/kubepods/pod{other}/c0"),
            // A longer uid.
            format!("0::/kubepods/pod{UID}0/c0ffee"),
            "0::/".to_owned(),
            String::new(),
        ] {
            assert!(!is_of_pod(&text, UID), "{text}");
        }
        assert!(!is_of_pod("0::/kubepods/pod/x", ""));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text: String) {
            is_of_pod(&text, UID);
        }
    }
}

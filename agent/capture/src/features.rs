//! What the node must offer: kernel features, file systems, capabilities.
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use aya::{programs::ProgramError, util::KernelVersion};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

/// The oldest kernel that has everything: `bpf_get_netns_cookie` in `sock_ops` came last.
const OLDEST: (u8, u8, u16) = (5, 15, 0);
/// The kernel that brought `ingress_ifindex` of `struct bpf_sk_lookup`.
const SIGHTED: (u8, u8, u16) = (5, 17, 0);

/// Whether `sk_lookup` sees through which device a connection comes, by which it knows those that the agent makes to
/// applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Since Linux 5.17.
    Seen,
    /// Before: the agent announces each connection ([`Announcements`](crate::Announcements)).
    Unseen,
}

impl Devices {
    /// What this kernel shows. One that took the field over from a later release is taken for one without it, which is
    /// only slower.
    pub fn of_kernel() -> Self {
        if is_at_least(SIGHTED) {
            Self::Seen
        } else {
            Self::Unseen
        }
    }
}

/// Something that the node lacks.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// The kernel is older than 5.15.
    #[error("Linux {0} is too old; run Linux 5.15 or newer")]
    Kernel(String),
    /// The folder is not on a BPF file system.
    #[error(
        "{0} is not a BPF file system, which keeps capture in place while the agent is away; \
         run `mount -t bpf bpffs {0}` or give another folder with --bpffs"
    )]
    BpfFileSystem(PathBuf),
    /// The folder is not in the cgroup v2 hierarchy.
    #[error(
        "{0} is not a cgroup v2 folder; mount cgroup2 (boot with systemd.unified_cgroup_hierarchy=1) \
         or give the cgroup above the pods with --cgroup"
    )]
    Cgroup(PathBuf),
    /// The process lacks a capability.
    #[error("the agent lacks {0}; run it as root or grant it this capability")]
    Capability(Capability),
    /// `/proc/self/status` cannot be read.
    #[error("cannot read the agent's own capabilities: {0}; mount /proc")]
    Proc(io::Error),
    /// The kernel does not take a program.
    #[error(
        "the kernel does not take the program {program}, which needs {feature}; \
         run a kernel that has it, 5.15 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_INET"
    )]
    Program {
        /// The program's name.
        program: &'static str,
        /// What it needs, and since which release the kernel has it.
        feature: &'static str,
        /// What the loader said, with the verifier's log.
        source: Box<ProgramError>,
    },
}

/// A capability that the agent needs (`capabilities(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Programs of networking kinds, marks, routes.
    NetAdmin,
    /// Entering network namespaces.
    SysAdmin,
    /// Loading programs; implied by `CAP_SYS_ADMIN`.
    Bpf,
}

impl Capability {
    /// The bit in the sets of `/proc/self/status`.
    const fn bit(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::SysAdmin => 21,
            Self::Bpf => 39,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Bpf => "CAP_BPF",
        })
    }
}

/// Checks everything that can be told without loading a program; loading is the test of the rest.
pub(crate) fn probe(bpffs: &Path, cgroup: &Path) -> Result<(), FeatureError> {
    check_kernel()?;
    check_capabilities()?;
    if !is_on(bpffs, BPF_FS_MAGIC) {
        return Err(FeatureError::BpfFileSystem(bpffs.to_owned()));
    }
    if !is_on(cgroup, CGROUP2_SUPER_MAGIC) {
        return Err(FeatureError::Cgroup(cgroup.to_owned()));
    }
    Ok(())
}

/// Says what `program` needs, after the kernel refused it.
pub(crate) fn refused(program: &'static str, source: ProgramError) -> FeatureError {
    let feature = match program {
        "connect4" | "connect6" => {
            "cgroup/connect hooks with bpf_get_netns_cookie (Linux 5.7) and socket storage (5.8)"
        }
        "getpeername4" | "getpeername6" => "cgroup/getpeername hooks (Linux 5.8)",
        "note_bind4" | "note_bind6" => "cgroup/post_bind hooks (Linux 4.17)",
        "forget_bind" => "cgroup/sock_release hooks (Linux 5.9)",
        "note_found" | "forget_found" => "traffic classifiers with locks in maps (Linux 5.1)",
        "file_destination" | "note_probe" | "note_listen" => {
            "sock_ops with bpf_get_netns_cookie (Linux 5.15)"
        }
        _ => "sk_lookup (Linux 5.9)",
    };
    FeatureError::Program {
        program,
        feature,
        source: Box::new(source),
    }
}

fn check_kernel() -> Result<(), FeatureError> {
    if is_at_least(OLDEST) {
        return Ok(());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Err(FeatureError::Kernel(release.trim().to_owned()))
}

fn is_at_least((major, minor, patch): (u8, u8, u16)) -> bool {
    KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(major, minor, patch))
}

fn check_capabilities() -> Result<(), FeatureError> {
    let status = fs::read_to_string("/proc/self/status").map_err(FeatureError::Proc)?;
    let held = effective(&status).ok_or_else(|| {
        FeatureError::Proc(io::Error::new(
            io::ErrorKind::InvalidData,
            "CapEff is missing",
        ))
    })?;
    match missing(held) {
        Some(capability) => Err(FeatureError::Capability(capability)),
        None => Ok(()),
    }
}

/// The effective set in the text of `/proc/self/status`.
fn effective(status: &str) -> Option<u64> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

fn missing(held: u64) -> Option<Capability> {
    let has = |capability: Capability| held & (1 << capability.bit()) != 0;
    if !has(Capability::NetAdmin) {
        return Some(Capability::NetAdmin);
    }
    if !has(Capability::SysAdmin) {
        let bpf = has(Capability::Bpf);
        return Some(if bpf {
            Capability::SysAdmin
        } else {
            Capability::Bpf
        });
    }
    None
}

fn is_on(path: &Path, system: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_capabilities_are_enough() {
        let held = effective("Name:\tagent\nCapEff:\t000001ffffffffff\n").unwrap();
        assert_eq!(missing(held), None);
    }

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(missing(0), Some(Capability::NetAdmin));
        assert_eq!(missing(1 << 12), Some(Capability::Bpf));
        assert_eq!(missing(1 << 12 | 1 << 39), Some(Capability::SysAdmin));
    }

    #[test]
    fn folders_on_other_file_systems_are_refused() {
        assert!(!is_on(Path::new("/proc"), BPF_FS_MAGIC));
        assert!(!is_on(Path::new("/does/not/exist"), CGROUP2_SUPER_MAGIC));
    }
}

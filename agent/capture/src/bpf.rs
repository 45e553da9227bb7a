//! The few `bpf(2)` commands that the loader library does not offer.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Numbers of `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// The fields of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct ObjectAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The fields of `union bpf_attr` for commands on map elements.
#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The fields of `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C)]
#[derive(Default)]
struct UpdateAttributes {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The fields of `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
#[derive(Default)]
struct DetachAttributes {
    link: u32,
}

/// The fields of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Default)]
struct InfoAttributes {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// The start of `struct bpf_link_info`; the last two fields are of the kind's own part.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    own: [u32; 4],
}

/// A link that is pinned in a bpffs; dropping it leaves the pin alone.
#[derive(Debug)]
pub(crate) struct PinnedLink(OwnedFd);

impl PinnedLink {
    /// Opens the link pinned at `path`; `None` where there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mut attributes = ObjectAttributes {
            path: name.as_ptr() as u64,
            ..ObjectAttributes::default()
        };
        match call(OBJ_GET, &mut attributes) {
            // SAFETY: the kernel has just made this descriptor and nobody else knows it.
            Ok(raw) => Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(raw) }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts `program` in the place of the attached one; no packet or call meets neither (kernel 5.7).
    pub(crate) fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attributes = UpdateAttributes {
            link: number(self.0.as_fd()),
            program: number(program),
            ..UpdateAttributes::default()
        };
        call(LINK_UPDATE, &mut attributes).map(drop)
    }

    /// Ends the attachment before it returns (kernel 5.9); with the last pin alone it would end some time later.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let mut attributes = DetachAttributes {
            link: number(self.0.as_fd()),
        };
        call(LINK_DETACH, &mut attributes).map(drop)
    }

    /// The inode number of the cgroup that a cgroup link is attached to; `None` when that cgroup is gone.
    pub(crate) fn cgroup(&self) -> io::Result<Option<u64>> {
        let own = self.info()?.own;
        let id = u64::from(own[0]) | u64::from(own[1]) << 32;
        Ok((id != 0).then_some(id))
    }

    /// Whether the network namespace that a namespace link is attached to still exists.
    pub(crate) fn namespace_lives(&self) -> io::Result<bool> {
        Ok(self.info()?.own[0] != 0)
    }

    fn info(&self) -> io::Result<LinkInfo> {
        let mut info = LinkInfo::default();
        let mut attributes = InfoAttributes {
            descriptor: number(self.0.as_fd()),
            length: size_of::<LinkInfo>() as u32,
            info: (&raw mut info) as u64,
        };
        call(OBJ_GET_INFO_BY_FD, &mut attributes)?;
        Ok(info)
    }
}

/// Takes an element out of a hash map in one step (for LRU maps, kernel 5.14); `None` where it is missing.
///
/// `K` and `V` must be the map's key and value types; [`aya::Pod`] says that any bytes are valid.
pub(crate) fn take<K: aya::Pod, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attributes = ElementAttributes {
        map: number(map),
        key: std::ptr::from_ref(key) as u64,
        value: (&raw mut value) as u64,
        ..ElementAttributes::default()
    };
    match call(MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd() as u32
}

fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is the command's own structure, alive and exclusively borrowed for the call,
    // and its size is passed; the addresses in it point to values that the callers keep alive.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as RawFd)
    }
}

//! The node-wide programs: loaded, attached to the cgroup above the pods, pinned, and adopted after a restart.
//!
//! Maps and links are pinned in a BPF file system and so outlive the agent. A new agent takes over the
//! maps and replaces the programs in the pinned links by its own; a link's program is replaced in one
//! step, so no connection passes uncaptured. While no agent runs, captured connections are refused,
//! for nobody listens.
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray},
    pin::PinError,
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, ProgramFd, SockOps,
        links::FdLink,
    },
};
use undermesh_abi::{Address, Binding, LAYOUT, Pod, Port, Settings};

use crate::{
    bpf::PinnedLink,
    counters::Counts,
    features::{self, FeatureError},
    log::KernelLog,
};

/// Our folder in the BPF file system.
const FOLDER: &str = "undermesh";
const NODE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node.o"));
/// The maps that are pinned, by their names in the object.
const PINNED: [&str; 11] = [
    "PODS", "PENDING", "ORIGINAL", "SETTINGS", "COUNTS", PROBES, PROBERS, "MACHINE", "BOUND",
    PORTS, ANNOUNCED,
];
/// Open connections of kubelet's: written by the node-wide object, read by those of the pods.
pub(crate) const PROBES: &str = "PROBES";
/// Addresses whose connections are taken for probes: written here, read by the pods' objects.
pub(crate) const PROBERS: &str = "PROBERS";
/// Where sockets of the machine's slice are bound: written by the node-wide object, read by the machine's.
pub(crate) const PORTS: &str = "PORTS";
/// Connections that the agent is making to applications: written by user space, read by the pods' objects.
pub(crate) const ANNOUNCED: &str = "ANNOUNCED";
/// In the order of attachment: what serves a captured connection is there before what captures.
const PROGRAMS: [&str; 5] = [
    "file_destination",
    "getpeername4",
    "getpeername6",
    "connect4",
    "connect6",
];

/// Why the programs could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The node lacks a feature.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// Maps of another version of the programs are in use.
    #[error(
        "the maps pinned in {path} have layout {found}, this agent needs {LAYOUT}; \
         release all pods with the agent that made them, then remove that folder"
    )]
    Layout {
        /// Where the maps are pinned.
        path: PathBuf,
        /// Their layout version.
        found: u32,
    },
    /// A file or folder could not be made or removed.
    #[error("cannot change {path}: {source}; check that it can be written by the agent")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The object or its maps could not be loaded.
    #[error(
        "cannot load the kernel programs: {0}; check the kernel's log and the limits on memory"
    )]
    Object(#[from] EbpfError),
    /// A map could not be read or written.
    #[error(
        "cannot use a map of the kernel programs: {0}; check that nothing else changes {FOLDER} in the BPF file system"
    )]
    Map(#[from] MapError),
    /// A program could not be attached.
    #[error(
        "cannot attach the program {program}: {source}; check that no other program holds the cgroup or namespace exclusively"
    )]
    Attach {
        /// The program.
        program: &'static str,
        /// What the loader said.
        source: Box<ProgramError>,
    },
    /// A link could not be inspected or changed.
    #[error("cannot take over the link {path}: {source}; remove it, and capture starts anew")]
    Link {
        /// Where it is pinned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A link or map could not be pinned.
    #[error("cannot pin {path}: {source}; check that the BPF file system can be written")]
    Pin {
        /// Where it was to be pinned.
        path: PathBuf,
        /// What the loader said.
        source: PinError,
    },
    /// The embedded object lacks a program or map.
    #[error("the embedded kernel object has no {0}; build the agent again")]
    Incomplete(&'static str),
}

/// Where everything is pinned.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(crate) fn new(bpffs: &Path) -> Self {
        Self {
            root: bpffs.join(FOLDER),
        }
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The folder above those of the pods.
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The folder of one pod.
    pub(crate) fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(cookie.to_string())
    }
}

/// The loaded and attached programs, and their maps.
pub(crate) struct Programs {
    /// Pods by cookie: the entry is what captures.
    pub(crate) pods: HashMap<MapData, u64, Pod>,
    /// Addresses whose connections are taken for probes.
    pub(crate) probers: HashMap<MapData, Address, u8>,
    /// The cookie of the machine's own namespace.
    pub(crate) machine: Array<MapData, u64>,
    /// Where the sockets of the machine's slice are bound, by socket and by port.
    pub(crate) bound: HashMap<MapData, u64, Binding>,
    pub(crate) ports: HashMap<MapData, u32, Port>,
    counts: PerCpuArray<MapData, u64>,
    pending: OwnedFd,
    outbound_mark: u32,
    log: Option<KernelLog>,
    /// Holds the programs that are attached later: for kubelet's probes, and for a machine's slice.
    pub(crate) object: Ebpf,
}

impl Programs {
    /// Loads the programs, or takes over those of an earlier agent.
    pub(crate) fn load(pins: &Pins, cgroup: &Path) -> Result<Self, LoadError> {
        for folder in [pins.maps(), pins.links(), pins.pods()] {
            make_folder(&folder)?;
        }
        check_layout(&pins.maps())?;
        let mut object = load_object(&pins.maps())?;
        let outbound_mark = settle(&mut object)?;
        attach_all(&mut object, pins, cgroup)?;
        let log = KernelLog::open(&mut object);
        Ok(Self {
            pods: HashMap::try_from(take(&mut object, "PODS")?)?,
            probers: HashMap::try_from(take(&mut object, PROBERS)?)?,
            machine: Array::try_from(take(&mut object, "MACHINE")?)?,
            bound: HashMap::try_from(take(&mut object, "BOUND")?)?,
            ports: HashMap::try_from(take(&mut object, PORTS)?)?,
            counts: PerCpuArray::try_from(take(&mut object, "COUNTS")?)?,
            pending: duplicate(&pins.maps().join("PENDING"))?,
            outbound_mark,
            log,
            object,
        })
    }

    /// Attaches what is not attached to this cgroup yet.
    pub(crate) fn attach(&mut self, pins: &Pins, cgroup: &Path) -> Result<(), LoadError> {
        attach_all(&mut self.object, pins, cgroup)
    }

    /// The mark of the agent's own outgoing sockets.
    pub(crate) fn outbound_mark(&self) -> u32 {
        self.outbound_mark
    }

    /// A descriptor of the map of pending destinations.
    pub(crate) fn pending(&self) -> io::Result<OwnedFd> {
        self.pending.try_clone()
    }

    /// The messages of the programs; the first call alone gets them.
    pub(crate) fn take_log(&mut self) -> Option<KernelLog> {
        self.log.take()
    }

    /// The counters, summed over all CPUs.
    pub(crate) fn counts(&self) -> Result<Counts, MapError> {
        Counts::read(&self.counts)
    }
}

/// Takes an absent entry for a removed one.
pub(crate) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    let absent = match &result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => true,
        Err(MapError::SyscallError(error)) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    };
    if absent { Ok(()) } else { result }
}

/// Takes a map out of an object whose programs are loaded: they name it by its descriptor until then.
fn take(object: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, LoadError> {
    object.take_map(name).ok_or(LoadError::Incomplete(name))
}

/// Makes a folder that only root can look into; one that is there already is as good.
pub(crate) fn make_folder(path: &Path) -> Result<(), LoadError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| LoadError::File {
            path: path.to_owned(),
            source,
        })
}

/// Puts `program` into the link pinned at `path`, or attaches it there for the first time.
///
/// `fits` says whether the existing link is attached where it should be; one that is not is replaced
/// by a new link, which is attached before the old one goes.
pub(crate) fn put_in_place(
    path: &Path,
    program: &ProgramFd,
    fits: impl FnOnce(&PinnedLink) -> io::Result<bool>,
    attach: impl FnOnce() -> Result<FdLink, LoadError>,
) -> Result<(), LoadError> {
    let taking_over = |source| LoadError::Link {
        path: path.to_owned(),
        source,
    };
    if let Some(link) = PinnedLink::open(path).map_err(taking_over)?
        && fits(&link).map_err(taking_over)?
    {
        return link.replace(program.as_fd()).map_err(taking_over);
    }
    pin_over(attach()?, path)
}

/// Pins a link, replacing the file of an older one in one step.
fn pin_over(link: FdLink, path: &Path) -> Result<(), LoadError> {
    let mut name = path.as_os_str().to_owned();
    name.push("-new");
    let new = PathBuf::from(name);
    remove_file(&new)?;
    link.pin(&new).map_err(|source| LoadError::Pin {
        path: new.clone(),
        source,
    })?;
    fs::rename(&new, path).map_err(|source| LoadError::File {
        path: path.to_owned(),
        source,
    })
}

/// Detaches a pinned link and removes its pin; one that is gone already is as good.
pub(crate) fn remove_link(path: &Path) -> Result<(), LoadError> {
    let failed = |source| LoadError::Link {
        path: path.to_owned(),
        source,
    };
    if let Some(link) = PinnedLink::open(path).map_err(failed)? {
        link.detach().map_err(failed)?;
    }
    remove_file(path)
}

/// Removes a file or pin; one that is gone already is as good.
pub(crate) fn remove_file(path: &Path) -> Result<(), LoadError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LoadError::File {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Refuses maps of another layout before anything opens them by name.
fn check_layout(maps: &Path) -> Result<(), LoadError> {
    let path = maps.join("SETTINGS");
    if !path.exists() {
        return Ok(());
    }
    let settings = Array::try_from(aya::maps::Map::Array(MapData::from_pin(&path)?))?;
    let Settings { layout, .. } = settings.get(&0, 0)?;
    // Zero: an agent stopped after it made the map and before it attached anything.
    if layout == LAYOUT || layout == 0 {
        Ok(())
    } else {
        Err(LoadError::Layout {
            path: maps.to_owned(),
            found: layout,
        })
    }
}

fn load_object(maps: &Path) -> Result<Ebpf, LoadError> {
    load(NODE_OBJECT, PINNED.map(|name| (name, maps.join(name))))
}

/// Loads an object whose `pinned` maps are kept at these paths; maps that are there already are taken over.
pub(crate) fn load(
    object: &[u8],
    pinned: impl IntoIterator<Item = (&'static str, PathBuf)>,
) -> Result<Ebpf, LoadError> {
    // A new loader reads the types of the whole kernel, megabytes that these programs have no use
    // for; so one is made, once, and let go of them.
    static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        Mutex::new(loader)
    });
    let mut loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, path) in pinned {
        loader.map_pin_path(name, path);
    }
    Ok(loader.load(object)?)
}

/// Reads the node's settings, or makes them at the first start; returns the outbound mark.
fn settle(object: &mut Ebpf) -> Result<u32, LoadError> {
    let map = object
        .map_mut("SETTINGS")
        .ok_or(LoadError::Incomplete("SETTINGS"))?;
    let mut map = Array::<_, Settings>::try_from(map)?;
    let mut settings = map.get(&0, 0)?;
    if settings.outbound_mark == 0 || settings.layout != LAYOUT {
        settings = Settings {
            outbound_mark: rand::random_range(1..=u32::MAX),
            layout: LAYOUT,
        };
        map.set(0, settings, 0)?;
    }
    Ok(settings.outbound_mark)
}

fn attach_all(object: &mut Ebpf, pins: &Pins, cgroup: &Path) -> Result<(), LoadError> {
    let cgroup = Cgroup::open(cgroup)?;
    for name in PROGRAMS {
        attach(object, name, pins, &cgroup)?;
    }
    Ok(())
}

/// Attaches a program of the node-wide object to a cgroup, or puts it into the link that is pinned there.
pub(crate) fn attach(
    object: &mut Ebpf,
    name: &'static str,
    pins: &Pins,
    cgroup: &Cgroup,
) -> Result<(), LoadError> {
    let program = object
        .program_mut(name)
        .ok_or(LoadError::Incomplete(name))?;
    let mut program = CgroupProgram::load(name, program)?;
    let descriptor = program.descriptor()?;
    put_in_place(
        &pins.links().join(name),
        &descriptor,
        |link| cgroup.is_of(link),
        || program.attach(&cgroup.folder),
    )
}

/// An open cgroup.
pub(crate) struct Cgroup {
    folder: File,
    /// A cgroup's id is its inode number.
    id: u64,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |source| LoadError::File {
            path: path.to_owned(),
            source,
        };
        let folder = File::open(path).map_err(failed)?;
        let id = folder.metadata().map_err(failed)?.ino();
        Ok(Self { folder, id })
    }

    /// Whether a link is attached here.
    pub(crate) fn is_of(&self, link: &PinnedLink) -> io::Result<bool> {
        Ok(link.cgroup()? == Some(self.id))
    }
}

/// A loaded program of one of the kinds that attach to a cgroup.
struct CgroupProgram<'a> {
    name: &'static str,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Address(&'a mut CgroupSockAddr),
    Socket(&'a mut CgroupSock),
    Operations(&'a mut SockOps),
}

impl<'a> CgroupProgram<'a> {
    fn load(
        name: &'static str,
        program: &'a mut aya::programs::Program,
    ) -> Result<Self, LoadError> {
        use aya::programs::Program;
        let kind = match program {
            Program::CgroupSockAddr(program) => Kind::Address(program),
            Program::CgroupSock(program) => Kind::Socket(program),
            Program::SockOps(program) => Kind::Operations(program),
            _ => return Err(LoadError::Incomplete(name)),
        };
        let mut program = Self { name, kind };
        // Attached anew to another cgroup, it is loaded already.
        if program.own_descriptor().is_err() {
            program
                .load_kind()
                .map_err(|source| features::refused(name, source))?;
        }
        Ok(program)
    }

    fn load_kind(&mut self) -> Result<(), ProgramError> {
        match &mut self.kind {
            Kind::Address(program) => program.load(),
            Kind::Socket(program) => program.load(),
            Kind::Operations(program) => program.load(),
        }
    }

    fn own_descriptor(&self) -> Result<&ProgramFd, ProgramError> {
        match &self.kind {
            Kind::Address(program) => program.fd(),
            Kind::Socket(program) => program.fd(),
            Kind::Operations(program) => program.fd(),
        }
    }

    fn descriptor(&self) -> Result<ProgramFd, LoadError> {
        self.own_descriptor()
            .and_then(|descriptor| Ok(descriptor.try_clone()?))
            .map_err(|source| attaching(self.name, source))
    }

    fn attach(&mut self, cgroup: &File) -> Result<FdLink, LoadError> {
        // Links take no multi flag; they are multi by nature.
        let mode = CgroupAttachMode::Single;
        let link = match &mut self.kind {
            Kind::Address(program) => program
                .attach(cgroup, mode)
                .and_then(|id| program.take_link(id))
                .map(FdLink::try_from),
            Kind::Socket(program) => program
                .attach(cgroup, mode)
                .and_then(|id| program.take_link(id))
                .map(FdLink::try_from),
            Kind::Operations(program) => program
                .attach(cgroup, mode)
                .and_then(|id| program.take_link(id))
                .map(FdLink::try_from),
        };
        // Kernels without links for cgroups are older than the oldest that is accepted.
        link.and_then(|link| link.map_err(|_| ProgramError::NotAttached))
            .map_err(|source| attaching(self.name, source))
    }
}

/// Names the program that could not be attached.
pub(crate) fn attaching(program: &'static str, source: ProgramError) -> LoadError {
    LoadError::Attach {
        program,
        source: Box::new(source),
    }
}

fn duplicate(pin: &Path) -> Result<OwnedFd, LoadError> {
    let map = MapData::from_pin(pin)?;
    map.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| LoadError::File {
            path: pin.to_owned(),
            source,
        })
}

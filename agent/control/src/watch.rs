//! Notices that something changed in the directories that were read (inotify(7)).
//!
//! Directories are watched, not files: editors and mounted ConfigMaps replace files by renaming.
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, timeout_at},
};

/// A burst of changes is over when nothing happened for this long.
const QUIET: Duration = Duration::from_millis(100);
/// A burst that goes on is taken as it is after this long.
const LONGEST_BURST: Duration = Duration::from_secs(2);

/// Which changes in a directory matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Those of every entry.
    All,
    /// Those of the entries of these names.
    Names(BTreeSet<OsString>),
}

impl Concern {
    /// A concern for one entry.
    pub fn name(name: impl Into<OsString>) -> Self {
        Self::Names(BTreeSet::from([name.into()]))
    }

    /// Extends this concern by another.
    pub fn join(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Names(names), Self::Names(more)) => names.extend(more),
            _ => *self = Self::All,
        }
    }

    fn covers(&self, event: &InotifyEvent) -> bool {
        match (self, &event.name) {
            (Self::Names(names), Some(name)) => names.contains(name),
            // Events without a name are about the directory itself.
            _ => true,
        }
    }
}

/// The directories that are watched.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    directories: Mutex<BTreeMap<PathBuf, (WatchDescriptor, Concern)>>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self {
            inotify,
            directories: Mutex::default(),
        })
    }

    /// Watches a directory. The path is resolved at every call, so that one that leads elsewhere since the last
    /// call is watched there.
    pub fn add(&self, directory: PathBuf, concern: Concern) -> io::Result<()> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        let descriptor = self.inotify.add_watch(&directory, flags)?;
        let mut directories = self.directories();
        let (known, concerns) = directories
            .entry(directory)
            .or_insert((descriptor, concern.clone()));
        *known = descriptor;
        concerns.join(concern);
        Ok(())
    }

    /// Stops watching whatever is not `wanted`.
    pub fn keep(&self, wanted: &BTreeMap<PathBuf, Concern>) {
        let mut directories = self.directories();
        let (mut kept, dropped): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut *directories)
                .into_iter()
                .partition(|(path, _)| wanted.contains_key(path));
        for (path, (_, concern)) in &mut kept {
            concern.clone_from(&wanted[path]);
        }
        *directories = kept;
        for (descriptor, _) in dropped.into_values() {
            let in_use = directories.values().any(|(other, _)| *other == descriptor);
            // The kernel drops the watch of a removed directory by itself, so failure is no surprise.
            if !in_use && let Err(error) = self.inotify.rm_watch(descriptor) {
                tracing::debug!(%error, "a directory was no longer watched");
            }
        }
    }

    fn directories(
        &self,
    ) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, (WatchDescriptor, Concern)>> {
        self.directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change. Cancel safe.
    pub async fn changed(&self) -> io::Result<()> {
        let ready = self.readiness()?;
        loop {
            let mut guard = ready.readable().await?;
            if self.drain()? {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    #[expect(unsafe_code)]
    fn readiness(&self) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
        // SAFETY: the borrow keeps the descriptor open for as long as the registration lives, and a
        // `BorrowedFd` always names the same descriptor.
        let registration =
            unsafe { AsyncFd::register_with_interest(self.inotify.as_fd(), Interest::READABLE) };
        Ok(registration?)
    }

    /// Waits until the burst of changes is over.
    pub async fn settled(&self) -> io::Result<()> {
        let end = Instant::now() + LONGEST_BURST;
        while let Ok(changed) = timeout_at(end.min(Instant::now() + QUIET), self.changed()).await {
            changed?;
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    /// Takes the events that wait; says whether any matters.
    fn drain(&self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) => any |= events.iter().any(|event| self.matters(event)),
                Err(Errno::EAGAIN) => return Ok(any),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn matters(&self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        let directories = self.directories();
        directories
            .values()
            .any(|(descriptor, concern)| *descriptor == event.wd && concern.covers(event))
    }
}

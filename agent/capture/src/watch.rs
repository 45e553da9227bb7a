//! Tells when a pod's network namespace is not at its path any more.
//!
//! Three kinds of events make it look: changes of the mount table (namespaces are bind mounts), changes of
//! the folder of the path (inotify), and the end of the process (pidfd) where the path is
//! `/proc/PID/ns/net`. A path that names another namespace counts as vanished. The agent's own never does.

use std::{collections::BTreeMap, fs::File, io, os::fd::OwnedFd, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::JoinSet,
};

use crate::{enrolled::EnrolledPod, netns::Place, poll};

/// The mount table; polling it tells of changes (`proc_pid_mountinfo(5)`).
const MOUNTS: &str = "/proc/self/mountinfo";
/// Bound of requests and of reports that wait.
const QUEUE: usize = 256;

enum Change {
    Add(u64, Place),
    Remove(u64),
}

/// Watches the namespaces of enrolled pods. It ends when it is dropped.
#[derive(Clone, Debug)]
pub struct Watch {
    changes: mpsc::Sender<Change>,
}

impl Watch {
    /// Starts watching; must be called inside a tokio runtime with I/O.
    ///
    /// The receiver gets the cookie of each pod whose namespace vanished, once.
    ///
    /// # Errors
    /// When the kernel gives no more inotify instances or the mount table cannot be opened.
    pub fn start() -> io::Result<(Self, mpsc::Receiver<u64>)> {
        let (changes, requests) = mpsc::channel(QUEUE);
        let (reports, vanished) = mpsc::channel(QUEUE);
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let task = Task {
            events: poll::wait_on(&inotify, Interest::READABLE)?,
            folders: inotify,
            mounts: poll::wait_on(File::open(MOUNTS)?, Interest::PRIORITY)?,
            processes: JoinSet::new(),
            places: BTreeMap::new(),
            requests,
            reports,
        };
        tokio::spawn(task.run());
        Ok((Self { changes }, vanished))
    }

    /// Watches a pod; one that vanished before this call is reported too.
    pub async fn add(&self, pod: &EnrolledPod) {
        let place = pod.netns().place().clone();
        // The other end lives as long as any sender, or ends because nobody takes its reports.
        let _ = self.changes.send(Change::Add(pod.cookie(), place)).await;
    }

    /// Stops watching a pod.
    pub async fn remove(&self, cookie: u64) {
        let _ = self.changes.send(Change::Remove(cookie)).await;
    }
}

struct Task {
    folders: Inotify,
    /// The same descriptor, to wait on.
    events: AsyncFd<OwnedFd>,
    mounts: AsyncFd<OwnedFd>,
    processes: JoinSet<()>,
    places: BTreeMap<u64, Place>,
    requests: mpsc::Receiver<Change>,
    reports: mpsc::Sender<u64>,
}

impl Task {
    async fn run(mut self) {
        loop {
            tokio::select! {
                change = self.requests.recv() => match change {
                    Some(Change::Add(cookie, place)) => self.add(cookie, place),
                    Some(Change::Remove(cookie)) => {
                        self.places.remove(&cookie);
                    }
                    None => return,
                },
                ready = self.events.readable() => match ready {
                    Ok(mut guard) => {
                        // What happened where does not matter: all places are looked at.
                        while self.folders.read_events().is_ok_and(|events| !events.is_empty()) {}
                        guard.clear_ready();
                    }
                    Err(error) => tracing::warn!(%error, "cannot watch the folders of namespaces"),
                },
                ready = self.mounts.ready(Interest::PRIORITY) => match ready {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(error) => tracing::warn!(%error, "cannot watch the mount table"),
                },
                Some(_) = self.processes.join_next() => {}
            }
            if self.report().await.is_err() {
                return;
            }
        }
    }

    fn add(&mut self, cookie: u64, place: Place) {
        if place == Place::Own {
            return;
        }
        if let Some(folder) = place.path().parent() {
            let events = AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE_SELF;
            // A folder of /proc gives no events; the process is watched instead.
            if let Err(error) = self.folders.add_watch(folder, events) {
                tracing::debug!(folder = %folder.display(), %error, "cannot watch a folder");
            }
        }
        match process(place.path()).map(poll::wait_for_process) {
            Some(Ok(process)) => {
                self.processes.spawn(async move {
                    let _ = process.readable().await;
                });
            }
            Some(Err(error)) => {
                tracing::debug!(path = %place.path().display(), %error, "cannot watch a process");
            }
            None => {}
        }
        self.places.insert(cookie, place);
    }

    async fn report(&mut self) -> Result<(), mpsc::error::SendError<u64>> {
        let vanished: Vec<u64> = self
            .places
            .iter()
            .filter(|(_, place)| !place.holds())
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in vanished {
            self.places.remove(&cookie);
            self.reports.send(cookie).await?;
        }
        Ok(())
    }
}

/// The process of a path `/proc/PID/ns/net`.
fn process(path: &Path) -> Option<libc::pid_t> {
    let rest = path.strip_prefix("/proc").ok()?;
    let mut parts = rest.iter();
    let pid = parts.next()?.to_str()?.parse().ok()?;
    (parts.as_path() == Path::new("ns/net")).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_path_is_told() {
        assert_eq!(process(Path::new("/proc/42/ns/net")), Some(42));
        for other in [
            "/run/netns/web",
            "/proc/self/ns/net",
            "/proc/42/ns/mnt",
            "/proc/42",
        ] {
            assert_eq!(process(Path::new(other)), None, "{other}");
        }
    }
}

//! Keeps the chain as it should be: looks at it whenever something happens in its folders.
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::pipe2,
};

use super::{ChainError, Installer, State};

/// The least time between two looks: others who rewrite the same files are not raced.
const PAUSE: Duration = Duration::from_millis(200);
/// When to look again although nothing happened: after a failure, or since a folder was missing.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// A thread that repairs the chain. It ends when this is dropped; the chain stays.
#[derive(Debug)]
pub struct Keeper {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Puts the plugin into the chain and watches it from then on. What is found at each look that changed
    /// something, or failed, goes to `tell`, the first look's at once.
    ///
    /// # Errors
    /// When the system gives no more threads, pipes or watches.
    pub fn start(
        installer: Installer,
        mut tell: impl FnMut(Result<State, ChainError>) + Send + 'static,
    ) -> Result<Self, ChainError> {
        let folders = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(|error| ChainError::Watch(error.into()))?;
        let (stopped, stop) =
            pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| ChainError::Watch(error.into()))?;
        let thread = thread::Builder::new()
            .name("cni-chain".to_owned())
            .spawn(move || keep(&installer, &folders, &stopped, &mut tell))
            .map_err(ChainError::Watch)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps the CNI chain broke off");
        }
    }
}

fn keep(
    installer: &Installer,
    folders: &Inotify,
    stopped: &OwnedFd,
    tell: &mut impl FnMut(Result<State, ChainError>),
) {
    let mut last = None;
    loop {
        // Watched anew each time, since a folder may have been replaced; before the look, so that nothing is missed.
        let watched = watch(installer, folders);
        let state = installer.ensure();
        let again = !watched || state.is_err();
        match &state {
            Ok(state) if last.as_ref() == Some(state) => {}
            _ => {
                last = state.as_ref().ok().cloned();
                tell(state);
            }
        }
        let looked = Instant::now();
        if wait(folders, stopped, again.then_some(SECOND_LOOK)) == Next::Stop {
            return;
        }
        let pause = PAUSE.saturating_sub(looked.elapsed());
        if wait_for(stopped, pause) == Next::Stop {
            return;
        }
        while folders.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

/// Watches both folders; `false` where one is missing.
fn watch(installer: &Installer, folders: &Inotify) -> bool {
    let events = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    let settings = &installer.settings;
    let mut complete = true;
    for folder in [&settings.bin_dir, &settings.conf_dir] {
        if let Err(error) = folders.add_watch(folder, events) {
            tracing::debug!(folder = %folder.display(), %error, "cannot watch a folder");
            complete = false;
        }
    }
    complete
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Look,
    Stop,
}

/// Waits until something happens in the folders, at most `longest`.
fn wait(folders: &Inotify, stopped: &OwnedFd, longest: Option<Duration>) -> Next {
    let mut polled = [
        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        PollFd::new(folders.as_fd(), PollFlags::POLLIN),
    ];
    poll_until(&mut polled, longest)
}

/// Waits for `pause`.
fn wait_for(stopped: &OwnedFd, pause: Duration) -> Next {
    poll_until(
        &mut [PollFd::new(stopped.as_fd(), PollFlags::POLLIN)],
        Some(pause),
    )
}

/// The first of the descriptors tells to stop.
fn poll_until(polled: &mut [PollFd<'_>], longest: Option<Duration>) -> Next {
    let timeout = longest.map_or(PollTimeout::NONE, |longest| {
        PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX)
    });
    match poll(polled, timeout) {
        Err(error) if error != nix::errno::Errno::EINTR => {
            tracing::error!(error = %io::Error::from(error), "the CNI chain is not kept any more");
            Next::Stop
        }
        // A closed pipe is an event that is always told of.
        _ if polled.first().is_some_and(|stop| stop.any() == Some(true)) => Next::Stop,
        _ => Next::Look,
    }
}

//! The signals by which people and supervisors end a demo.

use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use undermesh_tests::{Context, Result};

use super::Event;

/// Signals that end the demo.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Blocks these signals in the calling thread and those it starts, so that [`follow`] gets them.
///
/// # Errors
/// When the kernel refuses.
pub fn block() -> Result<()> {
    set().thread_block().context(|| "block signals")
}

/// Turns each signal into an event, on a thread of its own.
///
/// # Errors
/// When there can be no more threads.
pub fn follow(events: Sender<Event>) -> Result<()> {
    thread::Builder::new()
        .spawn(
            move || {
                while set().wait().is_ok() && events.send(Event::Interrupted).is_ok() {}
            },
        )
        .map(drop)
        .context(|| "start a thread for signals")
}

fn set() -> SigSet {
    ENDING.into_iter().collect()
}

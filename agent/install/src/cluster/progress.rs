//! Telling somebody how far it is.
use std::{fmt, io};

use super::{Change, Problem};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A part of the work begins.
    Step(&'a str),
    /// The preflight found something.
    Problem(&'a Problem),
    /// An object is as it should be.
    Applied {
        /// The object.
        object: &'a str,
        /// What that took.
        change: Change,
    },
    /// An object is on its way.
    Waiting {
        /// The object.
        object: &'a str,
        /// Pods that are ready.
        ready: i32,
        /// Pods that are to be ready.
        wanted: i32,
    },
    /// All pods of an object are ready.
    Ready {
        /// The object.
        object: &'a str,
        /// How many these are.
        pods: i32,
    },
    /// An object is gone.
    Removed(&'a str),
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(text) => f.write_str(text),
            Self::Problem(problem) => write!(f, "  {}: {problem}", problem.severity()),
            Self::Applied { object, change } => write!(f, "  {object}: {change}"),
            Self::Waiting {
                object,
                ready,
                wanted,
            } => write!(f, "  {object}: {ready} of {wanted} ready"),
            Self::Ready { object, pods } => write!(f, "  {object}: ready ({pods})"),
            Self::Removed(object) => write!(f, "  {object}: removed"),
        }
    }
}

/// Whom events are told.
pub trait Progress: Send {
    /// Takes note of an event.
    fn event(&mut self, event: &Event<'_>);
}

/// Writes one line for each event.
#[derive(Debug)]
pub struct Lines<W>(pub W);

impl<W: io::Write + Send> Progress for Lines<W> {
    fn event(&mut self, event: &Event<'_>) {
        // The work goes on though nobody reads.
        let _ = writeln!(self.0, "{event}");
    }
}

//! What programs print, kept line by line, so that a test can wait for a line and show all on failure.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that [`Journal::print`] shows of each program: the last ones.
const SHOWN_LINES: usize = 120;

/// The lines of one program, in the order of their arrival.
#[derive(Debug, Default)]
pub struct Lines {
    lines: Mutex<Vec<String>>,
    arrived: Condvar,
}

impl Lines {
    /// Reads lines until the end of `source`, on a thread of its own.
    pub fn follow(self: &Arc<Self>, source: impl Read + Send + 'static) {
        let lines = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
                lines.push(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }

    /// The number of lines so far: a mark to wait from.
    pub fn mark(&self) -> usize {
        self.lock().len()
    }

    /// The lines since `mark`.
    pub fn since(&self, mark: usize) -> Vec<String> {
        self.lock().get(mark..).unwrap_or_default().to_vec()
    }

    /// Waits until a line since `mark` gives a value, at most for `timeout`.
    pub fn wait_for<T>(
        &self,
        mark: usize,
        timeout: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut lines = self.lock();
        let mut next = mark;
        loop {
            while next < lines.len() {
                if let Some(found) = pick(&lines[next]) {
                    return Some(found);
                }
                next += 1;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self
                .arrived
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn push(&self, line: String) {
        self.lock().push(line);
        self.arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lines of all programs of a testbed.
#[derive(Debug, Default)]
pub struct Journal {
    programs: Mutex<Vec<(String, Arc<Lines>)>>,
}

impl Journal {
    /// Starts the lines of the program `label`.
    pub fn open(&self, label: &str) -> Arc<Lines> {
        let lines = Arc::new(Lines::default());
        self.programs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((label.to_owned(), Arc::clone(&lines)));
        lines
    }

    /// Prints the last lines of every program that said any to standard error.
    pub fn print(&self) {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        for (label, lines) in programs.iter() {
            let all = lines.since(0);
            if all.is_empty() {
                continue;
            }
            eprintln!("--- {label} ({} lines)", all.len());
            for line in &all[all.len().saturating_sub(SHOWN_LINES)..] {
                eprintln!("{line}");
            }
        }
    }
}

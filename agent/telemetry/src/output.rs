//! Standard output behind a bounded queue and a thread of its own, so that nobody waits for a slow reader.
//!
//! The thread waits [`GATHER`] after the first entry and takes all that came meanwhile: under load the data
//! path wakes it a few times a second, not once a line.
use std::{
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use crate::{access_log::Record, format::Format};

/// Most entries that wait to be written; what comes on top is dropped and counted.
pub const MAX_QUEUED: usize = 16_384;
/// How long the thread gathers entries before it writes them.
pub const GATHER: Duration = Duration::from_millis(20);
/// How long the end of the program waits for a reader to take the last lines.
pub const LAST_LINES: Duration = Duration::from_secs(2);

/// One thing to write.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A line of the program's log, ready.
    Log(Vec<u8>),
    /// An access-log record; made into a line on the output's thread.
    Access(Record),
}

#[derive(Debug, Default)]
struct State {
    queue: Vec<Entry>,
    closed: bool,
    finished: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    dropped_log: AtomicU64,
    dropped_access: AtomicU64,
}

/// Where log lines go. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Output(Arc<Shared>);

/// Owns the thread; dropping it writes what is queued, for at most [`LAST_LINES`].
#[derive(Debug)]
#[must_use = "the output ends when this is dropped"]
pub struct OutputThread(Output);

impl Output {
    /// Starts the thread that writes to `sink`.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(
        format: Format,
        sink: impl Write + Send + 'static,
    ) -> io::Result<(Self, OutputThread)> {
        Self::with_capacity(format, sink, MAX_QUEUED)
    }

    /// An output that keeps nothing, for callers that only want the metrics.
    pub fn discard() -> Self {
        let output = Self::new(0);
        output.lock().closed = true;
        output
    }

    fn with_capacity(
        format: Format,
        sink: impl Write + Send + 'static,
        capacity: usize,
    ) -> io::Result<(Self, OutputThread)> {
        let output = Self::new(capacity);
        let queue = output.clone();
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || queue.run(format, sink))?;
        Ok((output.clone(), OutputThread(output)))
    }

    fn new(capacity: usize) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            capacity,
            dropped_log: AtomicU64::new(0),
            dropped_access: AtomicU64::new(0),
        }))
    }

    /// Log lines that found the queue full.
    pub fn dropped_log(&self) -> u64 {
        self.0.dropped_log.load(Relaxed)
    }

    /// Access-log lines that found the queue full.
    pub fn dropped_access(&self) -> u64 {
        self.0.dropped_access.load(Relaxed)
    }

    /// Queues one entry; never waits for the reader.
    pub(crate) fn push(&self, entry: Entry) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if state.queue.len() >= self.0.capacity {
            drop(state);
            self.count_dropped(&entry);
            return;
        }
        state.queue.push(entry);
        if state.queue.len() == 1 {
            drop(state);
            self.0.changed.notify_all();
        }
    }

    fn count_dropped(&self, entry: &Entry) {
        let counter = match entry {
            Entry::Log(_) => &self.0.dropped_log,
            Entry::Access(_) => &self.0.dropped_access,
        };
        counter.fetch_add(1, Relaxed);
    }

    fn run(&self, format: Format, mut sink: impl Write) {
        let mut batch = Vec::new();
        let mut text = Vec::new();
        while self.take(&mut batch) {
            for entry in &batch {
                match entry {
                    Entry::Log(line) => text.extend_from_slice(line),
                    Entry::Access(record) => text.extend_from_slice(record.line(format).as_bytes()),
                }
            }
            if sink.write_all(&text).and_then(|()| sink.flush()).is_err() {
                batch.iter().for_each(|entry| self.count_dropped(entry));
            }
            batch.clear();
            text.clear();
        }
        self.lock().finished = true;
        self.0.changed.notify_all();
    }

    /// Waits for entries and moves them all to `batch`; false when the output is closed and empty.
    fn take(&self, batch: &mut Vec<Entry>) -> bool {
        let waiting = |state: &mut State| state.queue.is_empty() && !state.closed;
        let guard = self.0.changed.wait_while(self.lock(), waiting);
        let guard = guard.unwrap_or_else(PoisonError::into_inner);
        let open = |state: &mut State| !state.closed;
        let gathered = self.0.changed.wait_timeout_while(guard, GATHER, open);
        let (mut state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.queue, batch);
        !batch.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OutputThread {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let mut state = self.0.lock();
        state.closed = true;
        shared.changed.notify_all();
        let waited = shared
            .changed
            .wait_timeout_while(state, LAST_LINES, |state| !state.finished);
        drop(waited);
    }
}

/// One log line on its way into the queue (the formatter writes a line in one call).
#[derive(Debug)]
pub struct LineWriter<'a>(&'a Output);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(Entry::Log(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Output {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A sink that shows what was written.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A reader that takes nothing until it is let go.
    struct Stuck(mpsc::Receiver<()>, Captured, mpsc::Sender<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.2.send(());
            let _ = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_last_lines_are_written_at_the_end() {
        let sink = Captured::default();
        let (output, thread) = Output::start(Format::Text, sink.clone()).unwrap();
        output.push(Entry::Log(b"one\n".to_vec()));
        output.push(Entry::Log(b"two\n".to_vec()));
        drop(thread);
        assert_eq!(sink.text(), "one\ntwo\n");
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_never_time() {
        let (go, wait) = mpsc::channel();
        let (entered, writing) = mpsc::channel();
        let sink = Captured::default();
        let stuck = Stuck(wait, sink.clone(), entered);
        let (output, thread) = Output::with_capacity(Format::Text, stuck, 2).unwrap();
        output.push(Entry::Log(b"a\n".to_vec()));
        writing.recv().unwrap();
        for line in ["b\n", "c\n", "d\n", "e\n"] {
            output.push(Entry::Log(line.into()));
        }
        assert_eq!(output.dropped_log(), 2);
        drop(go);
        drop(thread);
        assert_eq!(sink.text(), "a\nb\nc\n");
    }
}

//! Messages of the kernel programs, forwarded to `tracing`.
use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use tokio::io::Interest;

use crate::poll;

/// The messages of the node-wide programs.
pub struct KernelLog {
    logger: EbpfLogger<Forward>,
}

impl KernelLog {
    /// Opens the messages of the programs in `object`.
    pub(crate) fn open(object: &mut Ebpf) -> Option<Self> {
        match EbpfLogger::init_with_logger(object, Forward) {
            Ok(logger) => Some(Self { logger }),
            Err(error) => {
                tracing::warn!(%error, "messages of the kernel programs will not be logged");
                None
            }
        }
    }

    /// Forwards messages as they come, under the target `undermesh::kernel`; ends only by an error.
    ///
    /// # Errors
    /// When the ring buffer cannot be polled. Must be called inside a tokio runtime with I/O.
    pub async fn run(mut self) -> io::Result<()> {
        let messages = poll::wait_on(&self.logger, Interest::READABLE)?;
        loop {
            let mut guard = messages.readable().await?;
            // Before the reading: a message that comes while it goes on wakes the loop again.
            guard.clear_ready();
            self.logger.flush();
        }
    }
}

/// Turns records of the `log` crate into events.
struct Forward;

impl Log for Forward {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let (program, text) = (record.target(), record.args());
        match record.level() {
            Level::Error => tracing::error!(target: "undermesh::kernel", program, "{text}"),
            Level::Warn => tracing::warn!(target: "undermesh::kernel", program, "{text}"),
            Level::Info => tracing::info!(target: "undermesh::kernel", program, "{text}"),
            Level::Debug => tracing::debug!(target: "undermesh::kernel", program, "{text}"),
            Level::Trace => tracing::trace!(target: "undermesh::kernel", program, "{text}"),
        }
    }

    fn flush(&self) {}
}

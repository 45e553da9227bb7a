//! The time of day as an argument, so that tests can move it.
use std::{
    fmt::Debug,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// A source of the time of day.
pub trait Clock: Debug + Send + Sync {
    /// The time now.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Lends a [`Clock`] to rustls.
#[derive(Debug)]
pub(crate) struct TlsClock(pub(crate) Arc<dyn Clock>);

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        unix_time(self.0.now())
    }
}

/// The same instant as rustls counts it; `None` before 1970.
pub(crate) fn unix_time(time: SystemTime) -> Option<UnixTime> {
    time.duration_since(UNIX_EPOCH)
        .ok()
        .map(UnixTime::since_unix_epoch)
}

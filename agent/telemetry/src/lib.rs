//! What a node tells about itself: metrics, the access log, the table of open connections, logs, readiness
//! and the loopback servers that show them.
//!
//! The data path holds a [`Connection`] for every connection and adds bytes to its [`Counters`]; everything
//! else happens on other threads.
#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod connection;
pub mod format;
pub mod http;
pub mod labels;
pub mod logging;
pub mod metrics;
pub mod output;
pub mod readiness;
pub mod series;
pub mod table;
pub mod telemetry;

pub use connection::{
    Connection, Counters, Direction, Early, Opening, Outcome, Peer, ResponseFlag, Security,
};
pub use format::Format;
pub use logging::Logging;
pub use metrics::Metrics;
pub use output::{Output, OutputThread};
pub use readiness::{Readiness, ReadyGuard};
pub use table::{ConnectionView, PeerView};
pub use telemetry::Telemetry;

//! The access log: one line a connection, in ztunnel's form.
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    connection::{Early, Open, Peer, Security},
    format::{Format, Line},
};

/// Target of the access log in level directives, for example `access=off`.
pub const TARGET: &str = "access";
/// Longest reason of a failure that is written, in bytes.
pub const MAX_REASON: usize = 1024;

/// What one line tells.
#[derive(Debug)]
pub(crate) struct Record {
    at: SystemTime,
    event: Event,
}

#[derive(Debug)]
enum Event {
    Opened(Arc<Open>),
    Closed {
        open: Arc<Open>,
        duration: Duration,
        error: Option<String>,
    },
    Failed {
        early: Early,
    },
}

impl Record {
    pub(crate) fn opened(open: &Arc<Open>, at: SystemTime) -> Self {
        Self {
            at,
            event: Event::Opened(Arc::clone(open)),
        }
    }

    pub(crate) fn closed(
        open: &Arc<Open>,
        duration: Duration,
        error: Option<String>,
        at: SystemTime,
    ) -> Self {
        Self {
            at,
            event: Event::Closed {
                open: Arc::clone(open),
                duration,
                error,
            },
        }
    }

    pub(crate) fn failed(early: Early, at: SystemTime) -> Self {
        Self {
            at,
            event: Event::Failed { early },
        }
    }

    /// The line, with its line feed.
    pub(crate) fn line(&self, format: Format) -> String {
        match &self.event {
            Event::Opened(open) => {
                let mut line = Line::new(format, self.at, "debug", TARGET, "connection opened");
                describe(&mut line, open);
                line.finish()
            }
            Event::Closed {
                open,
                duration,
                error,
            } => {
                let level = if error.is_some() { "error" } else { "info" };
                let mut line = Line::new(format, self.at, level, TARGET, "connection complete");
                describe(&mut line, open);
                let (sent, received) = open.local_bytes();
                line.number("bytes_sent", sent);
                line.number("bytes_recv", received);
                line.quoted("duration", &format!("{}ms", duration.as_millis()));
                if let Some(error) = error {
                    line.quoted("error", shortened(error));
                }
                line.finish()
            }
            Event::Failed { early } => {
                let mut line = Line::new(format, self.at, "warn", TARGET, "connection failed");
                address(&mut line, "src.addr", early.source);
                address(&mut line, "dst.addr", early.destination);
                line.quoted("direction", early.direction.as_str());
                line.quoted("error", shortened(&early.reason));
                line.finish()
            }
        }
    }
}

/// The fields that are known from the start, in ztunnel's order.
fn describe(line: &mut Line, open: &Open) {
    let opening = &open.opening;
    let mutual = opening.security == Security::MutualTls;
    address(line, "src.addr", opening.source.address);
    let keys = [
        "src.workload",
        "src.namespace",
        "src.identity",
        "src.cluster",
    ];
    peer(line, keys, &opening.source, mutual);
    address(line, "dst.addr", opening.destination.address);
    if let Some(authority) = &opening.hbone_authority {
        line.bare("dst.hbone_addr", authority);
    }
    if let Some(service) = &opening.service {
        line.quoted("dst.service", &service.hostname);
    }
    let keys = [
        "dst.workload",
        "dst.namespace",
        "dst.identity",
        "dst.cluster",
    ];
    peer(line, keys, &opening.destination, mutual);
    line.quoted("direction", opening.direction.as_str());
}

fn peer(line: &mut Line, keys: [&str; 4], peer: &Peer, mutual: bool) {
    if let Some(workload) = &peer.workload {
        line.quoted(keys[0], &workload.name);
        line.quoted(keys[1], &workload.namespace);
    }
    if let Some(identity) = peer.identity.as_ref().filter(|_| mutual) {
        line.quoted(keys[2], &identity.to_string());
    }
    if let Some(workload) = &peer.workload {
        line.quoted(keys[3], &workload.cluster);
    }
}

fn address(line: &mut Line, key: &str, address: SocketAddr) {
    line.bare(key, &address.to_string());
}

fn shortened(reason: &str) -> &str {
    if reason.len() <= MAX_REASON {
        return reason;
    }
    let end = (0..=MAX_REASON)
        .rev()
        .find(|end| reason.is_char_boundary(*end));
    &reason[..end.unwrap_or(0)]
}

//! A connection that did not come about: why, and what was known of it by then.
use std::net::SocketAddr;

use undermesh_telemetry::{Direction, Early, Opening, Outcome, ResponseFlag, Telemetry};

/// Why a connection did not come about.
pub(crate) struct Failure {
    flag: ResponseFlag,
    reason: String,
    opening: Option<Opening>,
}

impl Failure {
    /// A failure before the other end was known.
    pub(crate) fn early(flag: ResponseFlag, reason: impl ToString) -> Self {
        Self {
            flag,
            reason: reason.to_string(),
            opening: None,
        }
    }

    /// A failure of a connection whose ends are known.
    pub(crate) fn of(opening: Opening, flag: ResponseFlag, reason: impl ToString) -> Self {
        Self {
            opening: Some(opening),
            ..Self::early(flag, reason)
        }
    }

    /// Counts and logs it; the addresses are for a failure that knows no more than them.
    pub(crate) fn report(
        self,
        telemetry: &Telemetry,
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
    ) {
        let Self {
            flag,
            reason,
            opening,
        } = self;
        match opening {
            Some(opening) => {
                let connection = telemetry.opened(opening);
                connection.finish(Outcome::Failed { flag, reason });
            }
            None => telemetry.refused(Early {
                direction,
                source,
                destination,
                reason,
                flag,
            }),
        }
    }
}

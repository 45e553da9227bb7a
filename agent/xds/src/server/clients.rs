//! Who is connected, for the status page.
use std::time::SystemTime;

use super::{kind::Kind, node::Node};

/// Longest part of a client's complaint that is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Most names that are read out of a complaint.
const MAX_NAMES: usize = 64;

/// A client and how far it is.
#[derive(Clone, Debug)]
pub struct ClientReport {
    /// Who it is.
    pub node: Node,
    /// Since when it is connected.
    pub connected: SystemTime,
    /// What it subscribes to.
    pub subscriptions: Vec<SubscriptionReport>,
}

/// One type's subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionReport {
    /// The type.
    pub kind: Kind,
    /// Whether it wants every resource; else it asks on demand.
    pub everything: bool,
    /// How many names it asks for.
    pub names: usize,
    /// How many resources it has not been sent in their present form.
    pub behind: usize,
    /// Number of the last response; 0 before the first. Responses of one client are numbered from 1.
    pub sent: u64,
    /// The last response that it took.
    pub acknowledged: Option<Acknowledgement>,
    /// The last response of which it rejected resources.
    pub rejected: Option<Rejection>,
}

/// A client took a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Number of the response.
    pub nonce: u64,
    /// When the client said so.
    pub at: SystemTime,
}

/// A client rejected resources. It keeps the versions from before, and has taken the others of the same response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Number of the response.
    pub nonce: u64,
    /// When the client said so.
    pub at: SystemTime,
    /// What it said, cut to a bounded length.
    pub message: String,
    /// The resources, as far as the message has Istio's form `name: reason; name: reason`.
    pub names: Vec<String>,
}

impl Rejection {
    pub(crate) fn new(nonce: u64, message: &str, at: SystemTime) -> Self {
        let message = &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)];
        let parts = message.split("; ");
        let names = parts.filter_map(|part| {
            let (name, _) = part.split_once(": ")?;
            (name.contains('/') && !name.contains(' ')).then(|| name.to_owned())
        });
        Self {
            nonce,
            at,
            message: message.to_owned(),
            names: names.take(MAX_NAMES).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_out_of_a_rejection() {
        let message = "Kubernetes//Pod/shop/web: unknown enum: 7; shop/strict: no; again";
        let rejection = Rejection::new(3, message, SystemTime::UNIX_EPOCH);
        assert_eq!(rejection.names, ["Kubernetes//Pod/shop/web", "shop/strict"]);
        assert_eq!(rejection.message, message);
    }

    #[test]
    fn a_long_rejection_is_cut_between_characters() {
        let message = "é".repeat(MAX_MESSAGE_BYTES);
        let rejection = Rejection::new(1, &format!("a{message}"), SystemTime::UNIX_EPOCH);
        assert_eq!(rejection.message.len(), MAX_MESSAGE_BYTES - 1);
    }
}

//! A response while it is filled.
use std::time::Instant;

use bytes::Bytes;

use super::{frame::Response, kind::Kind};

/// A response is full when its resources and names have this many bytes. A stream keeps the buffer of its largest
/// response for as long as it lasts, so a large one would cost each of a thousand clients its size.
const FULL: usize = 64 << 10;

/// The part of a response that is filled.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) resources: Vec<Bytes>,
    pub(crate) removed: Vec<String>,
    /// Time of the oldest change in it that the client did not ask for.
    pub(crate) oldest: Option<Instant>,
    bytes: usize,
}

impl Batch {
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= FULL
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }

    pub(crate) fn add(&mut self, resource: Bytes, news: Option<Instant>) {
        self.bytes += resource.len();
        self.oldest = self.oldest.into_iter().chain(news).min();
        self.resources.push(resource);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.bytes += name.len();
        self.removed.push(name.to_owned());
    }

    pub(crate) fn into_response(self, kind: Kind, nonce: String) -> Response {
        Response {
            resources: self.resources,
            type_url: kind.type_url().to_owned(),
            nonce,
            removed_resources: self.removed,
        }
    }
}

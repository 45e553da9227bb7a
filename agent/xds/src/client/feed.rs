//! All resources of one type that are in force, with their versions.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use prost_types::Any;

use crate::{
    decode::DecodeError,
    wire::discovery::{DeltaDiscoveryRequest, Node},
};

/// Most bytes of versions that a first request carries: gRPC servers, istiod among them, take 4 MiB unless they are
/// told otherwise, and would refuse a larger request at every attempt.
pub const MAX_VERSIONS_BYTES: usize = 3 * 1024 * 1024;
/// What a name and a version take beside their own bytes in a request: the tags and lengths of a map's entry.
const VERSION_OVERHEAD: usize = 12;

/// A resource in force: its version, and its bytes for the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The version as the server gave it; may be empty.
    pub version: Arc<str>,
    /// The resource itself.
    pub content: Arc<Any>,
    /// Whether it could not be taken and something stands in for it.
    pub stand_in: bool,
}

/// Resources by name.
pub type Resources = Vec<(Arc<str>, Held)>;

/// All of one type.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) url: &'static str,
    pub(super) held: HashMap<Arc<str>, Held>,
    pub(super) rejected: BTreeMap<String, DecodeError>,
    /// Whether it was ever answered.
    pub(super) answered: bool,
    /// Whether it was answered on this stream.
    heard: bool,
    /// What was held when the stream started, without telling the server so, and was not mentioned since.
    unconfirmed: HashSet<Arc<str>>,
}

impl Feed {
    pub(super) fn new(url: &'static str) -> Self {
        Self {
            url,
            held: HashMap::new(),
            rejected: BTreeMap::new(),
            answered: false,
            heard: false,
            unconfirmed: HashSet::new(),
        }
    }

    /// The versions of a first request. A rejected resource is listed with the version that stays in force, so
    /// that the server sends the new one again or says that it is gone; without such a version it is left out.
    /// `None` when they are too many to send.
    fn versions(&self, asked: &[Arc<str>]) -> Option<HashMap<String, String>> {
        let held = self.held.iter().map(|(name, held)| (name, &*held.version));
        let never_received = asked
            .iter()
            .filter(|name| !self.held.contains_key(*name))
            .map(|name| (name, ""));
        let mut bytes = 0;
        let mut versions = HashMap::with_capacity(self.held.len() + asked.len());
        for (name, version) in held.chain(never_received) {
            bytes += name.len() + version.len() + VERSION_OVERHEAD;
            if bytes > MAX_VERSIONS_BYTES {
                return None;
            }
            versions.insert(name.to_string(), version.to_owned());
        }
        Some(versions)
    }

    /// The first request of a stream, with the names that are asked for on demand.
    pub(super) fn open(&mut self, node: &Node, asked: &[Arc<str>]) -> DeltaDiscoveryRequest {
        let versions = self.versions(asked);
        self.heard = false;
        self.unconfirmed = match &versions {
            Some(_) => HashSet::new(),
            None => self.held.keys().cloned().collect(),
        };
        DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.url.to_owned(),
            initial_resource_versions: versions.unwrap_or_default(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// The server has answered.
    pub(super) fn hear(&mut self) {
        self.answered = true;
        self.heard = true;
    }

    /// The server has mentioned a name.
    pub(super) fn confirm(&mut self, name: &str) {
        self.unconfirmed.remove(name);
    }

    /// Whether an answer may have left out what it should have removed.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.heard && !self.unconfirmed.is_empty()
    }

    /// What the server has answered without.
    pub(super) fn take_unconfirmed(&mut self) -> HashSet<Arc<str>> {
        match self.heard {
            true => std::mem::take(&mut self.unconfirmed),
            false => HashSet::new(),
        }
    }
}

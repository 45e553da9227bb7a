//! The protocol's rules, without its transport: what to send when a stream starts, what a response changes and how
//! it is answered. It outlives the streams.
//!
//! Source: the delta variant of xDS as Istio's ztunnel and istiod speak it.
use std::sync::Arc;

use ipnet::IpNet;
use prost_types::Any;

use super::{
    batch::{Answer, Batch, Part, Update},
    feed::{Feed, Held, Resources},
    options::Subscription,
    store::Store,
};
use crate::{
    decode::{self, DecodeError, Rejection},
    wire::{
        ADDRESS_TYPE, AUTHORIZATION_TYPE,
        discovery::{DeltaDiscoveryRequest, Node, Status},
    },
};

/// Most resources of one type that are kept.
pub const MAX_RESOURCES: usize = 1_000_000;
/// Longest text of a NACK, in bytes.
pub const MAX_NACK_BYTES: usize = 16 * 1024;

/// `INVALID_ARGUMENT` (`google.rpc.Code`). ztunnel leaves 0; servers only look whether there is an error.
const INVALID_ARGUMENT: i32 = 3;
const WILDCARD: &str = "*";

/// What a response did.
#[derive(Debug)]
pub struct Outcome {
    /// The ACK or NACK to send.
    pub reply: DeltaDiscoveryRequest,
    /// What was asked for and is answered; on demand only.
    pub answers: Vec<Answer>,
    /// What was not taken.
    pub rejections: Vec<Rejection>,
}

/// The client's side of the protocol.
#[derive(Debug)]
pub struct Session {
    node: Node,
    node_name: Arc<str>,
    subscription: Subscription,
    addresses: Feed,
    policies: Feed,
    store: Store,
}

impl Session {
    /// Nothing is known yet.
    pub fn new(node: Node, node_name: Arc<str>, subscription: Subscription) -> Self {
        Self {
            node,
            node_name,
            subscription,
            addresses: Feed::new(ADDRESS_TYPE),
            policies: Feed::new(AUTHORIZATION_TYPE),
            store: Store::default(),
        }
    }

    /// What is known.
    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Whether the server has told everything once: each type that is subscribed to as a whole was answered.
    pub fn is_complete(&self) -> bool {
        let addresses = self.addresses.answered || self.subscription == Subscription::OnDemand;
        addresses && self.policies.answered
    }

    /// What is rejected now, whether or not an earlier version is in force.
    pub fn rejected(&self) -> impl Iterator<Item = Rejection> {
        let feeds = [&self.addresses, &self.policies].into_iter();
        feeds.flat_map(|feed| {
            feed.rejected.iter().map(|(name, error)| Rejection {
                name: name.clone(),
                error: error.clone(),
            })
        })
    }

    /// The first requests of a stream, with the names that are asked for on demand. Addresses come first: our
    /// own server then sends all of them, in several responses if need be, before the first policies, so that one
    /// response of each type means that everything was told.
    pub fn open(&mut self, asked: &[Arc<str>]) -> [DeltaDiscoveryRequest; 2] {
        let mut addresses = self.addresses.open(&self.node, asked);
        if self.subscription == Subscription::OnDemand {
            // A first request without names means everything; this pair takes that back (xDS, "wildcard").
            addresses.resource_names_subscribe = std::iter::once(WILDCARD)
                .chain(asked.iter().map(|name| &**name))
                .map(str::to_owned)
                .collect();
            addresses.resource_names_unsubscribe = vec![WILDCARD.to_owned()];
        }
        [addresses, self.policies.open(&self.node, &[])]
    }

    /// The request that changes what is asked for on demand. What nothing asks for any more is forgotten; `asked`
    /// says what still is.
    pub fn ask(
        &mut self,
        added: &[Arc<str>],
        dropped: &[Arc<str>],
        asked: &impl Asked,
    ) -> DeltaDiscoveryRequest {
        let forgotten = match dropped.is_empty() {
            true => Vec::new(),
            false => self.forget_unasked(asked),
        };
        let names = |names: &[Arc<str>]| names.iter().map(|name| name.to_string()).collect();
        let mut unsubscribed: Vec<String> = names(dropped);
        // The server may have counted them as asked for, as istiod does with whatever it has sent.
        unsubscribed.extend(forgotten.iter().map(|name| name.to_string()));
        DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.to_owned(),
            resource_names_subscribe: names(added),
            resource_names_unsubscribe: unsubscribed,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Puts a response in force, resource by resource, resources before removals: one that cannot be taken leaves
    /// its last version in force and takes no other with it.
    pub fn apply(&mut self, batch: Batch) -> Outcome {
        let Batch {
            nonce,
            url,
            updates,
            removed,
        } = batch;
        let mut outcome = Outcome {
            reply: DeltaDiscoveryRequest {
                type_url: url.clone(),
                response_nonce: nonce,
                ..DeltaDiscoveryRequest::default()
            },
            answers: Vec::new(),
            rejections: Vec::new(),
        };
        match url.as_str() {
            ADDRESS_TYPE | AUTHORIZATION_TYPE => {
                for update in updates {
                    self.update(&url, update, &mut outcome);
                }
                for name in removed {
                    self.remove(&url, &name);
                    if self.subscription == Subscription::OnDemand {
                        outcome.answers.push(Answer::Name(name));
                    }
                }
                self.feed(&url).hear();
            }
            _ => outcome.rejections.push(Rejection {
                name: "(the response)".to_owned(),
                error: DecodeError::Type(url),
            }),
        }
        outcome.reply.error_detail = error_detail(&outcome.rejections);
        outcome
    }

    /// Takes up what an earlier run kept. It is no answer of the server.
    pub fn restore(&mut self, batch: Batch) {
        let answered = (self.addresses.answered, self.policies.answered);
        self.apply(batch);
        (self.addresses.answered, self.policies.answered) = answered;
    }

    /// Forgets what the server was not told of when the stream started and has not mentioned since. It is for the
    /// time when its first answer is over, see [`Self::is_unconfirmed`].
    pub fn sweep(&mut self) {
        for url in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
            for name in self.feed(url).take_unconfirmed() {
                self.remove(url, &name);
            }
        }
    }

    /// Whether something is in force that the server was not told of when the stream started, because it would not
    /// have fit in one request, and that it has not mentioned since, though it has answered.
    pub fn is_unconfirmed(&self) -> bool {
        self.addresses.is_unconfirmed() || self.policies.is_unconfirmed()
    }

    /// All resources in force, by type, for the cache.
    pub fn held(&self) -> [(&'static str, Resources); 2] {
        [&self.policies, &self.addresses].map(|feed| {
            let held = feed.held.iter();
            let pairs = held.map(|(name, held)| (Arc::clone(name), held.clone()));
            (feed.url, pairs.collect())
        })
    }

    fn feed(&mut self, url: &str) -> &mut Feed {
        if url == AUTHORIZATION_TYPE {
            &mut self.policies
        } else {
            &mut self.addresses
        }
    }

    fn update(&mut self, url: &str, update: Update, outcome: &mut Outcome) {
        let on_demand = self.subscription == Subscription::OnDemand;
        let feed = self.feed(url);
        feed.confirm(&update.name);
        let full = feed.held.len() >= MAX_RESOURCES && !feed.held.contains_key(&update.name);
        let decoded = match update.outcome {
            Ok(_) if full => Err(DecodeError::Count(MAX_RESOURCES)),
            decoded => decoded,
        };
        match (decoded, update.content) {
            (Ok(part), Some(content)) => {
                feed.rejected.remove(kept(&update.name));
                let held = Held {
                    version: update.version,
                    content,
                    stand_in: false,
                };
                feed.held.insert(Arc::clone(&update.name), held);
                if on_demand {
                    outcome.answers.push(Answer::Name(update.name.to_string()));
                    let aliases = update.aliases.into_iter().map(Answer::Name);
                    outcome.answers.extend(aliases);
                    outcome.answers.extend(part.answers());
                }
                self.put(part);
            }
            (Ok(_), None) => self.reject(url, update.name, DecodeError::Empty, None, outcome),
            (Err(error), content) => {
                if on_demand && !feed.held.contains_key(&update.name) {
                    let names = std::iter::once(update.name.to_string()).chain(update.aliases);
                    outcome.answers.extend(names.map(Answer::Rejected));
                }
                self.reject(url, update.name, error, content, outcome);
            }
        }
    }

    fn put(&mut self, part: Part) {
        match part {
            Part::Address(address) => self.store.put_address(address),
            Part::Policy(policy) => self.store.put_policy(policy),
        }
    }

    fn reject(
        &mut self,
        url: &str,
        name: Arc<str>,
        error: DecodeError,
        content: Option<Arc<Any>>,
        outcome: &mut Outcome,
    ) {
        let counted = self.feed(url).held.len();
        if url == AUTHORIZATION_TYPE && counted < MAX_RESOURCES {
            self.stand_in(&name, content);
        }
        let rejection = Rejection {
            name: kept(&name).to_owned(),
            error,
        };
        let feed = self.feed(url);
        if feed.rejected.len() < MAX_RESOURCES {
            feed.rejected
                .insert(rejection.name.clone(), rejection.error.clone());
        }
        outcome.rejections.push(rejection);
    }

    /// A policy that never had a version that can be enforced denies what it may select. It is kept with its bytes
    /// and without a version: the server sends it again at the next stream, and the next run rejects it again.
    fn stand_in(&mut self, name: &Arc<str>, content: Option<Arc<Any>>) {
        if self
            .policies
            .held
            .get(name)
            .is_some_and(|held| !held.stand_in)
        {
            return;
        }
        let Some(policy) = decode::stand_in(name, content.as_deref()) else {
            return;
        };
        self.store.put_policy(policy);
        let held = Held {
            version: Arc::from(""),
            content: content.unwrap_or_default(),
            stand_in: true,
        };
        self.policies.held.insert(Arc::clone(name), held);
    }

    fn remove(&mut self, url: &str, name: &str) {
        let feed = self.feed(url);
        feed.held.remove(name);
        feed.rejected.remove(kept(name));
        feed.confirm(name);
        if url == AUTHORIZATION_TYPE {
            self.store.remove_policy(name);
        } else {
            self.store.remove_address(name);
        }
    }

    fn forget_unasked(&mut self, asked: &impl Asked) -> Vec<Arc<str>> {
        let names: Vec<_> = self.addresses.held.keys().cloned().collect();
        let unasked = names.into_iter().filter(|name| !self.is_asked(name, asked));
        let unasked: Vec<_> = unasked.collect();
        for name in &unasked {
            self.remove(ADDRESS_TYPE, name);
        }
        unasked
    }

    /// A workload stays if it is of this node, or if it or a service of it was asked for; a service, if it was.
    fn is_asked(&self, name: &str, asked: &impl Asked) -> bool {
        if asked.name(name) {
            return true;
        }
        if let Some(workload) = self.store.workload(name) {
            let here = !self.node_name.is_empty() && workload.node == self.node_name;
            let mut addresses = workload.addresses.iter();
            return here
                || addresses.any(|address| asked.range(&workload.network, (*address).into()))
                || self
                    .store
                    .services_of(name)
                    .any(|service| asked.name(service));
        }
        self.store.service(name).is_some_and(|service| {
            let mut ranges = service.addresses.iter();
            ranges.any(|range| asked.range(&service.network, *range))
        })
    }
}

/// What is asked for on demand.
pub trait Asked {
    /// Whether this name is.
    fn name(&self, name: &str) -> bool;
    /// Whether an address on this network within this range is.
    fn range(&self, network: &str, range: IpNet) -> bool;
}

/// `name: reason; name2: reason`, cut where it grows too long.
fn error_detail(rejections: &[Rejection]) -> Option<Status> {
    if rejections.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (told, rejection) in rejections.iter().enumerate() {
        let text = rejection.to_string();
        if message.len() + text.len() > MAX_NACK_BYTES {
            message.push_str(&format!("; and {} more", rejections.len() - told));
            break;
        }
        if told > 0 {
            message.push_str("; ");
        }
        message.push_str(&text);
    }
    Some(Status {
        code: INVALID_ARGUMENT,
        message,
        details: Vec::new(),
    })
}

/// What is kept of the name of a rejected resource: a name of any length can be what is wrong with it.
fn kept(name: &str) -> &str {
    &name[..name.floor_char_boundary(decode::MAX_NAME_BYTES)]
}

#[cfg(test)]
mod tests;

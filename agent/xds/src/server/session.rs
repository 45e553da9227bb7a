//! One client's side of the conversation. No I/O, no clock: requests go in, responses come out.
use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{
    batch::Batch,
    catalog::{Catalog, Name},
    clients::{Acknowledgement, Rejection, SubscriptionReport},
    frame::Response,
    interests::{Follow, Topic},
    kind::Kind,
    shelf::Lagging,
    subscription::{MAX_NAME_BYTES, MAX_NAMES, Subscription, Wishes},
};
use crate::wire::discovery::{DeltaDiscoveryRequest, Status};

/// Why a conversation ends: the client asks for more than one client may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Too many names.
    #[error("more than {MAX_NAMES} names are asked for; subscribe to everything instead")]
    ManyNames,
    /// A name that is none.
    #[error("a name of {0} bytes is asked for; names have at most {MAX_NAME_BYTES}")]
    LongName(usize),
}

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It confirms a response.
    Acknowledged,
    /// It rejects resources of a response.
    Rejected,
    /// It changes what the client wants.
    Subscribed,
    /// It asks for a type that is not served, or says nothing new.
    Ignored,
}

/// A response with what is worth counting.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The message.
    pub response: Response,
    /// Time of the oldest change in it that the client had not asked for, as [`Catalog::apply`] was told.
    pub oldest: Option<Instant>,
}

/// One client: what it wants, what it has still to be told, and what it said of what it was told.
///
/// Responses do not wait for the acknowledgement of earlier ones, as in istiod: a client that does not read
/// stops the transport, and changes coalesce here meanwhile; one that reads and acknowledges late is not slowed down.
#[derive(Debug)]
pub struct Session {
    node: Arc<str>,
    addresses: Track,
    policies: Track,
    nonce: u64,
    follows: Vec<Follow>,
}

/// A type's subscription and the last words about it.
#[derive(Debug)]
struct Track {
    kind: Kind,
    subscription: Option<Subscription>,
    sent: u64,
    acknowledged: Option<Acknowledgement>,
    rejected: Option<Rejection>,
}

impl Session {
    /// A client on a node; an empty name stands for a client that does not say where it runs.
    pub fn new(node: Arc<str>) -> Self {
        let track = |kind| Track {
            kind,
            subscription: None,
            sent: 0,
            acknowledged: None,
            rejected: None,
        };
        Self {
            node,
            addresses: track(Kind::Address),
            policies: track(Kind::Authorization),
            nonce: 0,
            follows: Vec::new(),
        }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// When the client asks for more than one client may. The conversation is then over.
    pub fn receive(
        &mut self,
        request: DeltaDiscoveryRequest,
        catalog: &Catalog,
        now: SystemTime,
    ) -> Result<Receipt, Violation> {
        let Some(kind) = Kind::of(&request.type_url) else {
            return Ok(Receipt::Ignored);
        };
        let track = match kind {
            Kind::Address => &mut self.addresses,
            Kind::Authorization => &mut self.policies,
        };
        let reply = track.judge(&request.response_nonce, request.error_detail, now);
        let wishes = Wishes {
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            versions: request.initial_resource_versions,
        };
        let wants = track.want(wishes, &self.node, catalog, &mut self.follows)?;
        Ok(reply.or(wants).unwrap_or(Receipt::Ignored))
    }

    /// A resource that the client follows has changed.
    pub fn note(&mut self, name: &Name, catalog: &Catalog) {
        let track = match name {
            Name::Workload(_) | Name::Service(_) => &mut self.addresses,
            Name::Policy(_) => &mut self.policies,
        };
        if let Some(subscription) = &mut track.subscription {
            subscription.note(name, catalog, &mut self.follows);
        }
    }

    /// What the client follows differently since the last call.
    pub fn follows(&mut self) -> Vec<Follow> {
        std::mem::take(&mut self.follows)
    }

    /// All that the client follows.
    pub fn topics(&self) -> Vec<Topic> {
        let tracks = [&self.addresses, &self.policies].into_iter();
        let subscriptions = tracks.filter_map(|track| track.subscription.as_ref());
        subscriptions.flat_map(Subscription::topics).collect()
    }

    /// The next response; `None` when the client knows everything.
    ///
    /// Policies come before the workloads that name them, and go after the workloads that named them: ztunnel
    /// skips a policy that it does not know. Only a client that comes with nothing gets its policies last, since
    /// ztunnel serves as soon as it has one response of each type: by then it has every workload.
    ///
    /// # Errors
    /// When the client missed removals that are no longer remembered.
    pub fn take(&mut self, catalog: &Catalog) -> Result<Option<Outgoing>, Lagging> {
        let begins = self.addresses.is_incomplete();
        if !begins && let Some(batch) = self.policies.take(0, catalog)? {
            return Ok(Some(self.send(Kind::Authorization, batch)));
        }
        if let Some(batch) = self.addresses.take(u64::MAX, catalog)? {
            return Ok(Some(self.send(Kind::Address, batch)));
        }
        let told = self.addresses.told();
        let batch = self.policies.take(told, catalog)?;
        Ok(batch.map(|batch| self.send(Kind::Authorization, batch)))
    }

    /// What the client subscribes to, and how far it is.
    pub fn report(&self, catalog: &Catalog) -> Vec<SubscriptionReport> {
        let tracks = [&self.addresses, &self.policies].into_iter();
        tracks.filter_map(|track| track.report(catalog)).collect()
    }

    fn send(&mut self, kind: Kind, batch: Batch) -> Outgoing {
        self.nonce += 1;
        let track = match kind {
            Kind::Address => &mut self.addresses,
            Kind::Authorization => &mut self.policies,
        };
        track.sent = self.nonce;
        let oldest = batch.oldest;
        Outgoing {
            response: batch.into_response(kind, format!("{:x}", self.nonce)),
            oldest,
        }
    }
}

impl Track {
    fn judge(&mut self, nonce: &str, error: Option<Status>, now: SystemTime) -> Option<Receipt> {
        let nonce = u64::from_str_radix(nonce, 16).ok();
        let nonce = nonce.filter(|nonce| *nonce <= self.sent)?;
        if let Some(error) = error {
            self.rejected = Some(Rejection::new(nonce, &error.message, now));
            return Some(Receipt::Rejected);
        }
        self.acknowledged = Some(Acknowledgement { nonce, at: now });
        Some(Receipt::Acknowledged)
    }

    fn want(
        &mut self,
        wishes: Wishes,
        node: &Arc<str>,
        catalog: &Catalog,
        follows: &mut Vec<Follow>,
    ) -> Result<Option<Receipt>, Violation> {
        match &mut self.subscription {
            Some(_) if wishes.subscribe.is_empty() && wishes.unsubscribe.is_empty() => {
                return Ok(None);
            }
            Some(subscription) => subscription.change(wishes, catalog, follows)?,
            None => {
                let begun = Subscription::begin(self.kind, node, wishes, catalog, follows)?;
                self.subscription = Some(begun);
            }
        }
        Ok(Some(Receipt::Subscribed))
    }

    fn take(&mut self, removals: u64, catalog: &Catalog) -> Result<Option<Batch>, Lagging> {
        match &mut self.subscription {
            Some(subscription) => subscription.take(removals, catalog),
            None => Ok(None),
        }
    }

    fn is_incomplete(&self) -> bool {
        let subscription = self.subscription.as_ref();
        subscription.is_some_and(Subscription::is_incomplete)
    }

    fn told(&self) -> u64 {
        let subscription = self.subscription.as_ref();
        subscription.map_or(u64::MAX, Subscription::told)
    }

    fn report(&self, catalog: &Catalog) -> Option<SubscriptionReport> {
        let subscription = self.subscription.as_ref()?;
        Some(SubscriptionReport {
            kind: self.kind,
            everything: subscription.wants_everything(),
            names: subscription.asked(),
            behind: subscription.behind(catalog),
            sent: self.sent,
            acknowledged: self.acknowledged,
            rejected: self.rejected.clone(),
        })
    }
}

//! Which clients a change concerns, found without asking each of them.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{hub::ClientId, kind::Kind};

/// What a client can follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Everything of a type.
    All(Kind),
    /// A workload or a service by any key: uid, `network/ip`, `network/ip/length` or `namespace/hostname`. A
    /// service's own key covers its workloads too.
    Key(Arc<str>),
    /// The workloads of a node.
    Node(Arc<str>),
    /// A policy by its name.
    Policy(Arc<str>),
}

/// A change in what a client follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Follow {
    /// From now on.
    Begin(Topic),
    /// No longer.
    End(Topic),
}

/// Followers by topic.
#[derive(Debug, Default)]
pub(crate) struct Interests(HashMap<Topic, Vec<ClientId>>);

impl Interests {
    pub(crate) fn update(&mut self, client: ClientId, changes: impl IntoIterator<Item = Follow>) {
        for change in changes {
            match change {
                Follow::Begin(topic) => self.begin(client, topic),
                Follow::End(topic) => self.end(client, &topic),
            }
        }
    }

    /// Those that follow any of the topics.
    pub(crate) fn audience(&self, topics: &[Topic]) -> BTreeSet<ClientId> {
        let followed = topics.iter().filter_map(|topic| self.0.get(topic));
        followed.flatten().copied().collect()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn begin(&mut self, client: ClientId, topic: Topic) {
        let followers = self.0.entry(topic).or_default();
        if !followers.contains(&client) {
            followers.push(client);
        }
    }

    fn end(&mut self, client: ClientId, topic: &Topic) {
        let Some(followers) = self.0.get_mut(topic) else {
            return;
        };
        followers.retain(|follower| *follower != client);
        if followers.is_empty() {
            self.0.remove(topic);
        }
    }
}

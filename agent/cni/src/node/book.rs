//! What is known of the cluster and of captured pods, and what follows from it for one pod. No I/O.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Held, PodFacts, PodKey, Release, View};
use crate::{
    membership::{Outside, Rules},
    netns::NetnsId,
};

/// What is to be done for a pod next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Rest,
    /// Find its namespace and capture it; where it is held already, find out whether it is the same pod.
    Enroll(Wanted),
    /// Let it go. The view may be late: look again before.
    Release(Release),
    /// Tell the control plane that it is captured.
    Mark {
        /// The uid of the pod that is meant.
        uid: String,
    },
    /// Tell the control plane that it is not, or soon not any more.
    Unmark {
        /// The uid of the pod that is meant.
        uid: String,
    },
}

/// A running pod that is to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The uid that the API server gave it.
    pub uid: String,
    /// The uid in its cgroups.
    pub kubelet_uid: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What is known.
#[derive(Debug)]
pub struct Book {
    rules: Rules,
    /// The mode labels of the namespaces that have one.
    modes: BTreeMap<String, String>,
    pods: BTreeMap<PodKey, PodFacts>,
    /// Whose the captured namespaces are, as far as this agent has seen to it.
    owners: BTreeMap<PodKey, Owner>,
    pods_listed: bool,
    namespaces_listed: bool,
}

#[derive(Debug)]
struct Owner {
    netns: NetnsId,
    uid: String,
}

impl Book {
    /// Knows nothing yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            modes: BTreeMap::new(),
            pods: BTreeMap::new(),
            owners: BTreeMap::new(),
            pods_listed: false,
            namespaces_listed: false,
        }
    }

    /// A pod is there, or has changed.
    pub fn put_pod(&mut self, key: PodKey, facts: PodFacts) {
        self.pods.insert(key, facts);
    }

    /// A pod is gone, unless another one has its names by now.
    pub fn remove_pod(&mut self, key: &PodKey, uid: &str) {
        if self.pods.get(key).is_some_and(|pod| pod.uid == uid) {
            self.pods.remove(key);
        }
    }

    /// These are all pods of the node. Returns those that this concerns.
    pub fn list_pods(&mut self, pods: BTreeMap<PodKey, PodFacts>) -> BTreeSet<PodKey> {
        let before = std::mem::replace(&mut self.pods, pods);
        self.pods_listed = true;
        before
            .into_keys()
            .chain(self.pods.keys().cloned())
            .collect()
    }

    /// A namespace has this mode label, or none. Returns the pods that this concerns.
    pub fn put_namespace(&mut self, namespace: &str, mode: Option<String>) -> BTreeSet<PodKey> {
        if self.modes.get(namespace) == mode.as_ref() {
            return BTreeSet::new();
        }
        match mode {
            Some(mode) => self.modes.insert(namespace.to_owned(), mode),
            None => self.modes.remove(namespace),
        };
        let pods = self.pods.keys();
        pods.filter(|key| key.namespace() == namespace)
            .cloned()
            .collect()
    }

    /// These are all namespaces with a mode label. Returns the pods that this may concern.
    pub fn list_namespaces(&mut self, modes: BTreeMap<String, String>) -> BTreeSet<PodKey> {
        self.modes = modes;
        self.namespaces_listed = true;
        self.pods.keys().cloned().collect()
    }

    /// What the API server says of a pod just now.
    pub fn learn(&mut self, key: &PodKey, view: View) {
        let View { pod, mode } = view;
        match pod {
            Some(pod) => self.pods.insert(key.clone(), pod),
            None => self.pods.remove(key),
        };
        match mode {
            Some(mode) => self.modes.insert(key.namespace().to_owned(), mode),
            None => self.modes.remove(key.namespace()),
        };
    }

    /// Whether a pod is a member.
    pub fn judge(&self, key: &PodKey, pod: &PodFacts) -> Result<(), Outside> {
        let mode = self.modes.get(key.namespace()).map(String::as_str);
        self.rules.judge(&pod.traits, key.namespace(), mode)
    }

    /// This agent has seen that the namespace is the pod's, and captured it.
    pub fn own(&mut self, key: &PodKey, netns: NetnsId, uid: &str) {
        let uid = uid.to_owned();
        self.owners.insert(key.clone(), Owner { netns, uid });
    }

    /// The pod is not captured any more.
    pub fn disown(&mut self, key: &PodKey) {
        self.owners.remove(key);
    }

    /// The API server has taken the annotation.
    pub fn set_marked(&mut self, key: &PodKey, uid: &str, marked: bool) {
        if let Some(pod) = self.pods.get_mut(key).filter(|pod| pod.uid == uid) {
            pod.marked = marked;
        }
    }

    /// What is to be done for a pod next, given what is captured under its name.
    pub fn step(&self, key: &PodKey, held: Option<&Held>) -> Step {
        if !self.pods_listed || !self.namespaces_listed {
            return Step::Rest;
        }
        let Some(pod) = self.pods.get(key) else {
            return held.map_or(Step::Rest, |_| Step::Release(Release::Ended));
        };
        match (self.judge(key, pod), held) {
            (Ok(()), Some(held)) => self.keep(key, pod, held),
            (Ok(()), None) => enroll(pod),
            (Err(why), Some(held)) => self.part(key, pod, held, why),
            (Err(_), None) if pod.marked => Step::Unmark {
                uid: pod.uid.clone(),
            },
            (Err(_), None) => Step::Rest,
        }
    }

    fn keep(&self, key: &PodKey, pod: &PodFacts, held: &Held) -> Step {
        match self.owner(key, held) {
            Some(uid) if uid == pod.uid && held.service_account == pod.service_account => {
                if pod.marked {
                    return Step::Rest;
                }
                Step::Mark {
                    uid: pod.uid.clone(),
                }
            }
            Some(_) => Step::Release(Release::Ended),
            None => enroll(pod),
        }
    }

    fn part(&self, key: &PodKey, pod: &PodFacts, held: &Held, why: Outside) -> Step {
        let replaced = self.owner(key, held).is_some_and(|uid| uid != pod.uid);
        if replaced || why == Outside::Ended {
            return Step::Release(Release::Ended);
        }
        if pod.marked {
            // Peers are to stop tunnelling to it before its tunnel's end goes.
            return Step::Unmark {
                uid: pod.uid.clone(),
            };
        }
        Step::Release(Release::Left)
    }

    /// The uid of the pod that a captured namespace is known to be of.
    fn owner(&self, key: &PodKey, held: &Held) -> Option<&str> {
        let owner = self.owners.get(key)?;
        (owner.netns == held.netns).then_some(&*owner.uid)
    }
}

fn enroll(pod: &PodFacts) -> Step {
    // Before it has an address its sandbox is being made, and the plugin asks for it.
    if pod.addresses.is_empty() {
        return Step::Rest;
    }
    Step::Enroll(Wanted {
        uid: pod.uid.clone(),
        kubelet_uid: pod.kubelet_uid.clone(),
        service_account: pod.service_account.clone(),
        addresses: pod.addresses.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Traits;

    fn key() -> PodKey {
        PodKey::new("shop", "web-0").unwrap()
    }

    fn pod(uid: &str, change: impl FnOnce(&mut PodFacts)) -> PodFacts {
        let mut pod = PodFacts {
            uid: uid.to_owned(),
            kubelet_uid: uid.to_owned(),
            node: "n1".to_owned(),
            service_account: "web".to_owned(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            traits: Traits::default(),
            marked: false,
        };
        change(&mut pod);
        pod
    }

    fn held() -> Held {
        Held {
            pod: key(),
            service_account: "web".to_owned(),
            netns: NetnsId::made_up(7),
        }
    }

    fn book(mode: &str, pods: impl IntoIterator<Item = PodFacts>) -> Book {
        let mut book = Book::new(Rules::new("undermesh-system"));
        book.list_namespaces(BTreeMap::from([("shop".to_owned(), mode.to_owned())]));
        book.list_pods(pods.into_iter().map(|pod| (key(), pod)).collect());
        book
    }

    #[test]
    fn nothing_is_done_before_everything_was_listed() {
        let mut book = Book::new(Rules::new("undermesh-system"));
        assert_eq!(book.step(&key(), Some(&held())), Step::Rest);
        book.list_pods(BTreeMap::new());
        assert_eq!(book.step(&key(), Some(&held())), Step::Rest);
        book.list_namespaces(BTreeMap::new());
        let gone = Step::Release(Release::Ended);
        assert_eq!(book.step(&key(), Some(&held())), gone);
    }

    #[test]
    fn a_member_is_enrolled_then_marked() {
        let mut book = book("ambient", [pod("a", |_| {})]);
        let step = book.step(&key(), None);
        assert!(matches!(step, Step::Enroll(Wanted { ref uid, .. }) if uid == "a"));
        book.own(&key(), held().netns, "a");
        let mark = Step::Mark { uid: "a".into() };
        assert_eq!(book.step(&key(), Some(&held())), mark);
        book.set_marked(&key(), "b", true);
        assert_eq!(book.step(&key(), Some(&held())), mark);
        book.set_marked(&key(), "a", true);
        assert_eq!(book.step(&key(), Some(&held())), Step::Rest);
    }

    #[test]
    fn a_pod_without_an_address_waits_for_its_sandbox() {
        let book = book("ambient", [pod("a", |pod| pod.addresses.clear())]);
        assert_eq!(book.step(&key(), None), Step::Rest);
    }

    #[test]
    fn what_an_earlier_agent_captured_is_looked_at_before_it_is_trusted() {
        let mut book = book("ambient", [pod("a", |pod| pod.marked = true)]);
        assert!(matches!(book.step(&key(), Some(&held())), Step::Enroll(_)));
        book.own(&key(), NetnsId::made_up(8), "a");
        assert!(matches!(book.step(&key(), Some(&held())), Step::Enroll(_)));
        book.own(&key(), held().netns, "a");
        assert_eq!(book.step(&key(), Some(&held())), Step::Rest);
    }

    #[test]
    fn a_pod_replaced_under_its_name_is_let_go() {
        for mode in ["ambient", "none"] {
            let mut book = book(mode, [pod("b", |_| {})]);
            book.own(&key(), held().netns, "a");
            let gone = Step::Release(Release::Ended);
            assert_eq!(book.step(&key(), Some(&held())), gone, "{mode}");
        }
    }

    #[test]
    fn another_service_account_is_another_pod() {
        let mut book = book(
            "ambient",
            [pod("a", |pod| pod.service_account = "db".into())],
        );
        book.own(&key(), held().netns, "a");
        let gone = Step::Release(Release::Ended);
        assert_eq!(book.step(&key(), Some(&held())), gone);
    }

    #[test]
    fn a_pod_that_leaves_is_unmarked_before_it_is_released() {
        let mut book = book("ambient", [pod("a", |pod| pod.marked = true)]);
        book.own(&key(), held().netns, "a");
        assert_eq!(book.put_namespace("shop", None), BTreeSet::from([key()]));
        let unmark = Step::Unmark { uid: "a".into() };
        assert_eq!(book.step(&key(), Some(&held())), unmark);
        assert_eq!(book.step(&key(), None), unmark);
        book.set_marked(&key(), "a", false);
        let left = Step::Release(Release::Left);
        assert_eq!(book.step(&key(), Some(&held())), left);
        assert_eq!(book.step(&key(), None), Step::Rest);
    }

    #[test]
    fn a_pod_that_ended_is_let_go() {
        let mut book = book("ambient", [pod("a", |pod| pod.traits.ended = true)]);
        book.own(&key(), held().netns, "a");
        let gone = Step::Release(Release::Ended);
        assert_eq!(book.step(&key(), Some(&held())), gone);
    }

    #[test]
    fn a_late_end_of_an_older_pod_does_not_touch_the_newer() {
        let mut book = book("ambient", [pod("b", |_| {})]);
        book.remove_pod(&key(), "a");
        assert!(matches!(book.step(&key(), None), Step::Enroll(_)));
        book.remove_pod(&key(), "b");
        assert_eq!(book.step(&key(), None), Step::Rest);
    }
}

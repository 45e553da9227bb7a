//! Who leads: the rules of a Lease as a state machine without I/O or clock.
//!
//! As in client-go's leader election, another holder's time is judged by when its record was last *seen to change*
//! here, never by the times written in it, so that clocks may differ. A leader counts its own time from before the
//! request that renewed, and stops leading well before anyone else may take over.
use std::time::{Duration, Instant};

/// Longest lease of another holder that is believed.
const MAX_LEASE: Duration = Duration::from_secs(3600);

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait after the last change of the record before they take over.
    pub lease: Duration,
    /// How long a leader goes on leading after its last renewal; shorter than `lease`.
    pub renew_deadline: Duration,
    /// How long to wait between attempts.
    pub retry: Duration,
}

impl Default for Timing {
    /// client-go's usual times.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// What a Lease says, as far as the election needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `spec.holderIdentity`; empty when it was released.
    pub holder: String,
    /// `spec.leaseDurationSeconds`.
    pub lease: Duration,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
    /// `metadata.resourceVersion`: changes with every renewal.
    pub version: String,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the Lease with this node's name.
    Create,
    /// Write this node's name into the Lease that has this version.
    Write {
        /// The version that must still be in place.
        version: String,
        /// `spec.leaseTransitions` to write.
        transitions: i32,
        /// Whether the time of acquisition is now.
        acquires: bool,
    },
    /// Look again after this time.
    Wait(Duration),
}

/// A record and when it was first seen.
#[derive(Clone, Debug)]
struct Seen {
    record: Record,
    at: Instant,
}

/// One candidate's view of an election.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
    /// When the request that last renewed our lease was begun.
    renewed: Option<Instant>,
}

impl Election {
    /// A candidate with a name that no other has.
    pub fn new(identity: String, timing: Timing) -> Self {
        Self {
            identity,
            timing,
            seen: None,
            renewed: None,
        }
    }

    /// Whether this candidate leads now.
    pub fn is_leader(&self, now: Instant) -> bool {
        self.leads_until().is_some_and(|end| now < end)
    }

    /// When leading ends unless it is renewed.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|at| at + self.timing.renew_deadline)
    }

    /// The holder that was last seen, when there is one.
    pub fn holder(&self) -> Option<&str> {
        let holder = self.seen.as_ref().map(|seen| seen.record.holder.as_str());
        holder.filter(|holder| !holder.is_empty())
    }

    /// Takes what the Lease says now (`None`: there is none) and says what to do.
    pub fn observe(&mut self, now: Instant, record: Option<Record>) -> Step {
        let Some(record) = record else {
            self.seen = None;
            self.renewed = None;
            return Step::Create;
        };
        let is_same = |seen: &Seen| seen.record.version == record.version;
        if !self.seen.as_ref().is_some_and(is_same) {
            self.seen = Some(Seen {
                record: record.clone(),
                at: now,
            });
        }
        let ours = record.holder == self.identity;
        if !ours {
            self.renewed = None;
        }
        if ours || record.holder.is_empty() || self.has_expired(now) {
            return Step::Write {
                version: record.version,
                transitions: record.transitions.saturating_add(i32::from(!ours)),
                acquires: !ours,
            };
        }
        Step::Wait(self.timing.retry)
    }

    /// The Lease was written by the request that began at `begun`. Says when to renew.
    pub fn written(&mut self, begun: Instant, record: Record) -> Step {
        self.renewed = Some(begun);
        self.seen = Some(Seen { record, at: begun });
        Step::Wait(self.timing.retry)
    }

    /// The Lease could not be read or written. Says when to try again.
    pub fn failed(&mut self, now: Instant) -> Step {
        if !self.is_leader(now) {
            self.renewed = None;
        }
        Step::Wait(self.timing.retry)
    }

    /// Ends the candidacy: the version of the Lease to clear, when this candidate holds it.
    pub fn release(&mut self, now: Instant) -> Option<(String, i32)> {
        let leads = self.is_leader(now);
        self.renewed = None;
        let seen = self.seen.take()?;
        leads.then_some((seen.record.version, seen.record.transitions))
    }

    fn has_expired(&self, now: Instant) -> bool {
        self.seen.as_ref().is_some_and(|seen| {
            let lease = seen.record.lease.min(MAX_LEASE);
            now.saturating_duration_since(seen.at) >= lease
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(holder: &str, version: u64) -> Record {
        Record {
            holder: holder.to_owned(),
            lease: Timing::default().lease,
            transitions: 0,
            version: version.to_string(),
        }
    }

    fn candidate() -> (Election, Instant) {
        let election = Election::new("a".to_owned(), Timing::default());
        (election, Instant::now())
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_first_one_makes_the_lease_and_leads() {
        let (mut election, now) = candidate();
        assert_eq!(election.observe(now, None), Step::Create);
        assert!(!election.is_leader(now));
        election.written(now, record("a", 1));
        assert!(election.is_leader(now));
        assert_eq!(election.holder(), Some("a"));
    }

    #[test]
    fn a_holder_that_renews_is_left_alone_whatever_its_clock_says() {
        let (mut election, now) = candidate();
        for turn in 0..100 {
            let step = election.observe(now + seconds(2) * turn, Some(record("b", turn.into())));
            assert_eq!(step, Step::Wait(seconds(2)));
        }
    }

    #[test]
    fn a_holder_that_stands_still_is_replaced_after_its_lease() {
        let (mut election, now) = candidate();
        election.observe(now, Some(record("b", 1)));
        let early = election.observe(now + seconds(14), Some(record("b", 1)));
        assert_eq!(early, Step::Wait(seconds(2)));
        let step = election.observe(now + seconds(15), Some(record("b", 1)));
        let taken = Step::Write {
            version: "1".to_owned(),
            transitions: 1,
            acquires: true,
        };
        assert_eq!(step, taken);
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let (mut election, now) = candidate();
        let step = election.observe(now, Some(record("", 7)));
        assert!(matches!(step, Step::Write { acquires: true, .. }));
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_others_may_begin() {
        let (mut election, now) = candidate();
        election.written(now, record("a", 1));
        election.failed(now + seconds(9));
        assert!(election.is_leader(now + seconds(9)));
        election.failed(now + seconds(10));
        assert!(!election.is_leader(now + seconds(10)));
    }

    #[test]
    fn a_leader_that_sees_another_holder_stops_at_once() {
        let (mut election, now) = candidate();
        election.written(now, record("a", 1));
        election.observe(now + seconds(1), Some(record("b", 2)));
        assert!(!election.is_leader(now + seconds(1)));
    }

    #[test]
    fn only_a_leader_has_something_to_release() {
        let (mut election, now) = candidate();
        election.observe(now, Some(record("b", 1)));
        assert_eq!(election.release(now), None);
        election.written(now, record("a", 2));
        assert_eq!(election.release(now), Some(("2".to_owned(), 0)));
        assert!(!election.is_leader(now));
    }

    /// A Lease that checks versions, and candidates that act at random times and lose requests.
    #[derive(Debug)]
    struct World {
        lease: Option<Record>,
        next: u64,
        candidates: Vec<Election>,
    }

    impl World {
        fn act(&mut self, index: usize, now: Instant, lost: bool) {
            let candidate = &mut self.candidates[index];
            if lost {
                candidate.failed(now);
                return;
            }
            let step = candidate.observe(now, self.lease.clone());
            let transitions = match step {
                Step::Create => 0,
                Step::Write { transitions, .. } => transitions,
                Step::Wait(_) => return,
            };
            self.next += 1;
            let written = Record {
                transitions,
                ..record(&index.to_string(), self.next)
            };
            self.lease = Some(written.clone());
            candidate.written(now, written);
        }
    }

    proptest! {
        #[test]
        fn never_two_lead(acts in prop::collection::vec((0usize..3, 0u64..6000, any::<bool>()), 1..200)) {
            let timing = Timing::default();
            let candidates = (0..3).map(|it| Election::new(it.to_string(), timing)).collect();
            let mut world = World { lease: None, next: 0, candidates };
            let mut now = Instant::now();
            for (index, pause, lost) in acts {
                now += Duration::from_millis(pause);
                world.act(index, now, lost);
                let leaders = world.candidates.iter().filter(|it| it.is_leader(now)).count();
                prop_assert!(leaders <= 1);
            }
        }
    }
}

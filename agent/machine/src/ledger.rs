//! Which machines are connected to this replica, and what is to be written about them when. No I/O; the time is told.
//!
//! A machine that connects is registered at once, by whoever accepts it. What comes after is here: its entry is
//! refreshed as long as it is connected, so that the entry of a replica that died can be told; marked when it
//! disconnects; removed after a time of grace. If it connects again meanwhile, here or elsewhere, it stays.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{entry::Key, monitor::Verdict};

/// Number of a connection; a later one has a higher one.
pub type ConnectionId = u64;

/// How patient a ledger is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From a disconnection to the removal, as istiod's `PILOT_WORKLOAD_ENTRY_GRACE_PERIOD`.
    pub grace: Duration,
    /// From one refreshment to the next.
    pub refresh: Duration,
    /// From a failure to the next attempt; doubled with each one.
    pub first_retry: Duration,
    /// The longest such time.
    pub longest_retry: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(10),
            refresh: Duration::from_secs(300),
            first_retry: Duration::from_millis(500),
            longest_retry: Duration::from_secs(60),
        }
    }
}

/// What is to be done about an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Say again that it is connected here.
    Refresh,
    /// Say how its application is.
    Health(Verdict),
    /// Say that it is disconnected.
    Mark,
    /// Remove it.
    Remove,
}

/// A task that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Whose entry.
    pub key: Key,
    /// The connection that it is about.
    pub connection: ConnectionId,
    /// What to do.
    pub task: Task,
}

/// What came of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The entry is gone, or another replica has the machine.
    Lost,
    /// It is to be tried again.
    Failed,
}

/// The machines of this replica.
#[derive(Debug)]
pub struct Ledger {
    times: Times,
    last: ConnectionId,
    records: BTreeMap<Key, Record>,
}

#[derive(Debug)]
struct Record {
    connection: ConnectionId,
    presence: Presence,
    /// What has still to be written.
    health: Option<Verdict>,
    is_busy: bool,
    failures: u32,
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Connected { refresh: Instant },
    Leaving { removal: Instant },
    Left { removal: Instant },
}

impl Ledger {
    /// Nobody is connected.
    pub fn new(times: Times) -> Self {
        Self {
            times,
            last: 0,
            records: BTreeMap::new(),
        }
    }

    /// A machine has connected; an earlier connection of it counts no more. Its entry is written by the caller, after
    /// this, so that nothing that is done about the earlier one is done after that.
    pub fn connect(&mut self, key: Key, now: Instant) -> ConnectionId {
        self.last += 1;
        let record = self.records.entry(key).or_insert_with(|| Record::new(now));
        record.connection = self.last;
        record.presence = Presence::Connected {
            refresh: now + self.times.refresh,
        };
        record.health = None;
        record.failures = 0;
        record.not_before = now;
        self.last
    }

    /// A connection has ended.
    pub fn disconnect(&mut self, key: &Key, connection: ConnectionId, now: Instant) {
        let removal = now + self.times.grace;
        if let Some(record) = self.current(key, connection) {
            record.presence = Presence::Leaving { removal };
            record.health = None;
            record.failures = 0;
            record.not_before = now;
        }
    }

    /// A machine has said how its application is.
    pub fn report(&mut self, key: &Key, connection: ConnectionId, verdict: Verdict) {
        if let Some(record) = self.current(key, connection) {
            record.health = Some(verdict);
        }
    }

    /// Somebody may have taken an entry away: it is looked at soon.
    pub fn suspect(&mut self, key: &Key, now: Instant) {
        if let Some(record) = self.records.get_mut(key) {
            record.expect_refresh(now);
        }
    }

    /// Whether a machine is connected here.
    pub fn is_connected(&self, key: &Key) -> bool {
        let record = self.records.get(key);
        record.is_some_and(|record| matches!(record.presence, Presence::Connected { .. }))
    }

    /// The next task that is due. It counts as begun, and nothing else is done about its entry before
    /// [`Self::finish`].
    pub fn begin(&mut self, now: Instant) -> Option<Job> {
        let due = self.records.iter_mut();
        due.filter(|(_, record)| record.due(now).is_some_and(|due| due <= now))
            .find_map(|(key, record)| {
                let task = record.task(now)?;
                record.is_busy = true;
                Some(Job {
                    key: key.clone(),
                    connection: record.connection,
                    task,
                })
            })
    }

    /// When the next task is due.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let due = self.records.values().filter_map(|record| record.due(now));
        due.min()
    }

    /// Takes the outcome of a task. Returns the connection that is to be ended, if one is: its machine is registered no
    /// more, and may register anew.
    pub fn finish(&mut self, job: &Job, outcome: Outcome, now: Instant) -> Option<ConnectionId> {
        let times = self.times;
        let record = self.records.get_mut(&job.key)?;
        record.is_busy = false;
        let is_current = record.connection == job.connection;
        match outcome {
            Outcome::Failed => record.failed(job, times, now),
            Outcome::Done if is_current => {
                record.failures = 0;
                if record.done(&job.task, times, now) {
                    self.records.remove(&job.key);
                }
            }
            // What was done about an earlier connection may have undone what was written for this one.
            Outcome::Done => record.expect_refresh(now),
            Outcome::Lost => {
                let connected = matches!(record.presence, Presence::Connected { .. });
                let connection = record.connection;
                if connected && !is_current {
                    record.expect_refresh(now);
                    return None;
                }
                self.records.remove(&job.key);
                return connected.then_some(connection);
            }
        }
        None
    }

    fn current(&mut self, key: &Key, connection: ConnectionId) -> Option<&mut Record> {
        let record = self.records.get_mut(key)?;
        (record.connection == connection).then_some(record)
    }
}

impl Record {
    fn new(now: Instant) -> Self {
        Self {
            connection: 0,
            presence: Presence::Connected { refresh: now },
            health: None,
            is_busy: false,
            failures: 0,
            not_before: now,
        }
    }

    /// When there is something to do; `now` for what waits for nothing.
    fn due(&self, now: Instant) -> Option<Instant> {
        if self.is_busy {
            return None;
        }
        let wanted = match self.presence {
            Presence::Connected { .. } if self.health.is_some() => now,
            Presence::Connected { refresh } => refresh,
            Presence::Leaving { .. } => now,
            Presence::Left { removal } => removal,
        };
        Some(wanted.max(self.not_before))
    }

    fn task(&mut self, now: Instant) -> Option<Task> {
        match self.presence {
            // A refreshment that is due comes first: it may find that there is nothing left to write to.
            Presence::Connected { refresh } if refresh <= now => Some(Task::Refresh),
            Presence::Connected { .. } => self.health.take().map(Task::Health),
            Presence::Leaving { .. } => Some(Task::Mark),
            Presence::Left { .. } => Some(Task::Remove),
        }
    }

    /// Returns whether nothing is left to do.
    fn done(&mut self, task: &Task, times: Times, now: Instant) -> bool {
        match (task, self.presence) {
            (Task::Refresh, Presence::Connected { .. }) => {
                let refresh = now + times.refresh;
                self.presence = Presence::Connected { refresh };
            }
            (Task::Mark, Presence::Leaving { removal }) => {
                self.presence = Presence::Left { removal };
            }
            (Task::Remove, Presence::Left { .. }) => return true,
            _ => {}
        }
        false
    }

    fn failed(&mut self, job: &Job, times: Times, now: Instant) {
        if self.connection != job.connection {
            return;
        }
        if let Task::Health(verdict) = &job.task
            && matches!(self.presence, Presence::Connected { .. })
        {
            // What was said meanwhile is newer.
            self.health.get_or_insert_with(|| verdict.clone());
        }
        let wait = times.first_retry * 2_u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait.min(times.longest_retry);
    }

    fn expect_refresh(&mut self, now: Instant) {
        if let Presence::Connected { refresh } = &mut self.presence {
            *refresh = now.min(*refresh);
        }
    }
}

#[cfg(test)]
mod tests;

//! Failures that a test asks for, and the record of what was requested.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;
use tokio::sync::watch;

/// How requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Refused with this status; 429 asks to wait for a second.
    Refuse(StatusCode),
    /// Answered later by this much.
    Delay(Duration),
    /// The connection is closed without an answer.
    Reset,
    /// Never answered.
    Hang,
}

/// A failure in force; ends when dropped.
#[derive(Debug)]
pub struct Fault {
    rule: Arc<Rule>,
    rules: Arc<Rules>,
}

impl Fault {
    /// How many requests it has met.
    pub fn hits(&self) -> usize {
        *self.rule.hits.borrow()
    }

    /// Waits until it has met this many requests; give the wait a bound.
    pub async fn met(&self, requests: usize) {
        let mut hits = self.rule.hits.subscribe();
        // The sender lives in `self`, so the wait ends by the count alone.
        let _ = hits.wait_for(|hits| *hits >= requests).await;
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        self.rules
            .lock()
            .retain(|rule| !Arc::ptr_eq(rule, &self.rule));
    }
}

#[derive(Debug)]
struct Rule {
    matching: String,
    failure: Failure,
    hits: watch::Sender<usize>,
}

/// All failures in force.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Vec<Arc<Rule>>>);

impl Rules {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Rule>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets requests fail whose line (`GET /api/v1/pods?watch=true`) contains a text.
    pub fn add(self: &Arc<Self>, matching: &str, failure: Failure) -> Fault {
        let rule = Arc::new(Rule {
            matching: matching.to_owned(),
            failure,
            hits: watch::Sender::new(0),
        });
        self.lock().push(rule.clone());
        Fault {
            rule,
            rules: self.clone(),
        }
    }

    /// The failure for this request, the latest one first.
    pub fn meet(&self, line: &str) -> Option<Failure> {
        let rules = self.lock();
        let rule = rules
            .iter()
            .rev()
            .find(|rule| line.contains(&rule.matching))?;
        rule.hits.send_modify(|hits| *hits += 1);
        Some(rule.failure)
    }
}

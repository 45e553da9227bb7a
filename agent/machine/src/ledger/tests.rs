//! What is written about machines that come and go, and when.
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn key() -> Key {
    Key {
        namespace: "shop".to_owned(),
        name: "vm-10.0.0.7".to_owned(),
    }
}

fn ledger() -> (Ledger, Instant) {
    (Ledger::new(Times::default()), Instant::now())
}

/// Begins the task that is due, which must be this one.
fn expect(ledger: &mut Ledger, task: Task, now: Instant) -> Job {
    let job = ledger.begin(now).expect("a task is due");
    assert_eq!(job.task, task);
    job
}

fn perform(ledger: &mut Ledger, task: Task, now: Instant) {
    let job = expect(ledger, task, now);
    assert_eq!(ledger.finish(&job, Outcome::Done, now), None);
}

#[test]
fn a_machine_that_leaves_is_marked_and_removed_after_the_grace() {
    let (mut ledger, now) = ledger();
    let connection = ledger.connect(key(), now);
    assert_eq!(ledger.begin(now), None);
    ledger.disconnect(&key(), connection, now);
    perform(&mut ledger, Task::Mark, now);
    assert_eq!(ledger.begin(now + 9 * SECOND), None);
    assert_eq!(ledger.due(now), Some(now + 10 * SECOND));
    perform(&mut ledger, Task::Remove, now + 10 * SECOND);
    assert_eq!(ledger.due(now), None);
}

#[test]
fn a_machine_that_comes_back_in_time_stays() {
    let (mut ledger, now) = ledger();
    let first = ledger.connect(key(), now);
    ledger.disconnect(&key(), first, now);
    perform(&mut ledger, Task::Mark, now);
    let second = ledger.connect(key(), now + 5 * SECOND);
    assert!(ledger.is_connected(&key()));
    assert_eq!(ledger.begin(now + 20 * SECOND), None);
    // The end of the first connection is told late.
    ledger.disconnect(&key(), first, now + 20 * SECOND);
    assert!(ledger.is_connected(&key()) && second > first);
}

#[test]
fn a_removal_that_crosses_a_return_is_noticed_and_the_machine_registers_anew() {
    let (mut ledger, now) = ledger();
    let first = ledger.connect(key(), now);
    ledger.disconnect(&key(), first, now);
    perform(&mut ledger, Task::Mark, now);
    let late = now + 10 * SECOND;
    let removal = expect(&mut ledger, Task::Remove, late);
    let second = ledger.connect(key(), late);
    assert_eq!(ledger.finish(&removal, Outcome::Done, late), None);
    let look = expect(&mut ledger, Task::Refresh, late);
    assert_eq!(ledger.finish(&look, Outcome::Lost, late), Some(second));
    assert!(!ledger.is_connected(&key()));
}

#[test]
fn the_last_word_about_health_counts() {
    let (mut ledger, now) = ledger();
    let connection = ledger.connect(key(), now);
    ledger.report(&key(), connection, Verdict::Healthy);
    let job = expect(&mut ledger, Task::Health(Verdict::Healthy), now);
    let ill = Verdict::Unhealthy("refused".to_owned());
    ledger.report(&key(), connection, ill.clone());
    assert_eq!(ledger.begin(now), None, "one task at a time");
    ledger.finish(&job, Outcome::Failed, now);
    assert_eq!(ledger.begin(now), None, "after a failure comes a pause");
    perform(&mut ledger, Task::Health(ill), now + SECOND);
    assert_eq!(ledger.begin(now + SECOND), None);
}

#[test]
fn a_failed_report_is_made_again() {
    let (mut ledger, now) = ledger();
    let connection = ledger.connect(key(), now);
    ledger.report(&key(), connection, Verdict::Healthy);
    let job = expect(&mut ledger, Task::Health(Verdict::Healthy), now);
    ledger.finish(&job, Outcome::Failed, now);
    perform(&mut ledger, Task::Health(Verdict::Healthy), now + SECOND);
}

#[test]
fn a_connected_machine_is_refreshed() {
    let (mut ledger, now) = ledger();
    ledger.connect(key(), now);
    let later = now + Times::default().refresh;
    assert_eq!(ledger.due(now), Some(later));
    perform(&mut ledger, Task::Refresh, later);
    assert_eq!(ledger.due(later), Some(later + Times::default().refresh));
}

#[test]
fn an_entry_that_somebody_took_away_ends_the_connection() {
    let (mut ledger, now) = ledger();
    let connection = ledger.connect(key(), now);
    ledger.suspect(&key(), now);
    let job = expect(&mut ledger, Task::Refresh, now);
    assert_eq!(ledger.finish(&job, Outcome::Lost, now), Some(connection));
    // Its end changes nothing any more.
    ledger.disconnect(&key(), connection, now);
    assert_eq!(ledger.due(now), None);
}

#[test]
fn an_entry_that_another_replica_has_is_let_go() {
    let (mut ledger, now) = ledger();
    let connection = ledger.connect(key(), now);
    ledger.disconnect(&key(), connection, now);
    let job = expect(&mut ledger, Task::Mark, now);
    assert_eq!(ledger.finish(&job, Outcome::Lost, now), None);
    assert_eq!(ledger.due(now), None);
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Connect,
    Disconnect,
    Report,
    Suspect,
    Begin,
    Finish(Outcome),
    Pass(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Connect),
        Just(Event::Disconnect),
        Just(Event::Report),
        Just(Event::Suspect),
        Just(Event::Begin),
        Just(Event::Finish(Outcome::Done)),
        Just(Event::Finish(Outcome::Lost)),
        Just(Event::Finish(Outcome::Failed)),
        (1..900u16).prop_map(Event::Pass),
    ]
}

proptest! {
    /// Whatever happens: nothing is marked or removed that was connected when that began, nothing is removed before
    /// its grace is over, one thing is done at a time, and in the end nobody is forgotten.
    #[test]
    fn the_rules_hold_in_any_order_of_events(events in prop::collection::vec(event(), 0..80)) {
        let (mut ledger, mut now) = ledger();
        let mut connection = None;
        let mut left = None;
        let mut running: Option<Job> = None;
        for event in events {
            match event {
                Event::Connect => {
                    connection = Some(ledger.connect(key(), now));
                    left = None;
                }
                Event::Disconnect => if let Some(ended) = connection.take() {
                    ledger.disconnect(&key(), ended, now);
                    left = Some(now);
                }
                Event::Report => if let Some(connection) = connection {
                    ledger.report(&key(), connection, Verdict::Healthy);
                }
                Event::Suspect => ledger.suspect(&key(), now),
                Event::Begin => if let Some(job) = ledger.begin(now) {
                    prop_assert!(running.is_none(), "two at a time");
                    match job.task {
                        Task::Mark => prop_assert!(connection.is_none()),
                        Task::Remove => {
                            prop_assert!(connection.is_none());
                            prop_assert!(now >= left.unwrap() + Times::default().grace);
                        }
                        Task::Refresh | Task::Health(_) => prop_assert!(connection.is_some()),
                    }
                    running = Some(job);
                }
                Event::Finish(outcome) => if let Some(job) = running.take() {
                    let ended = ledger.finish(&job, outcome, now);
                    if ended.is_some() {
                        prop_assert_eq!(ended, connection);
                        connection = None;
                    }
                }
                Event::Pass(seconds) => now += SECOND * seconds.into(),
            }
            prop_assert_eq!(ledger.is_connected(&key()), connection.is_some());
        }
        if let Some(job) = running.take()
            && ledger.finish(&job, Outcome::Done, now).is_some()
        {
            connection = None;
        }
        if let Some(ended) = connection {
            ledger.disconnect(&key(), ended, now);
        }
        for _ in 0..8 {
            now += Times::default().refresh;
            while let Some(job) = ledger.begin(now) {
                ledger.finish(&job, Outcome::Done, now);
            }
        }
        prop_assert_eq!(ledger.due(now), None, "everything that began has ended");
    }
}

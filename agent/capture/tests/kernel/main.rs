//! Capture on the real kernel: needs root, and is skipped without it.
//!
//! The tests run one after another: this process moves into each test's cgroup.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod agent;
mod bed;
mod blind;
mod inbound;
mod lifecycle;
mod machine;
mod outbound;
mod probes;
mod slice;

use libtest_mimic::{Arguments, Completion, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let root = nix::unistd::geteuid().is_root();
    if root {
        bed::isolate();
    }
    let mut trials = Vec::new();
    for (name, test) in outbound::TESTS
        .iter()
        .chain(inbound::TESTS)
        .chain(blind::TESTS)
        .chain(lifecycle::TESTS)
        .chain(probes::TESTS)
        .chain(machine::TESTS)
        .chain(slice::TESTS)
    {
        trials.push(Trial::ignorable_test(*name, move || {
            if !root {
                return Ok(Completion::ignored_with("needs root"));
            }
            test();
            Ok(Completion::Completed)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// A test by its name.
type Test = (&'static str, fn());

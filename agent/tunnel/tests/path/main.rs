//! Whole connections through the workers: captured, routed, carried and handed to an application. Needs
//! root, for namespaces and marks, and is skipped without it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod bed;
mod inbound;
mod outbound;

use libtest_mimic::{Arguments, Completion, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let trials = outbound::TESTS
        .iter()
        .chain(inbound::TESTS)
        .map(|(name, test)| {
            Trial::ignorable_test(*name, move || {
                if !root {
                    return Ok(Completion::ignored_with("needs root"));
                }
                bed::in_namespace(*test);
                Ok(Completion::Completed)
            })
        });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// A test by its name.
type Test = (&'static str, fn());

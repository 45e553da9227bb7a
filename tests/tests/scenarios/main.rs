//! Scenarios: what users do, on real programs in pods, one file for each theme.
//!
//! Run as root: `cargo test -p undermesh-tests --test scenarios [FILTER]`. A scenario that lacks a
//! program, or root, is ignored with the reason.

#![allow(
    clippy::unwrap_used,
    reason = "in a scenario, an error that is unwrapped is a failure of the test"
)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use undermesh_tests::place::installed;
use undermesh_tests::{Error, Result, Sandbox, Testbed};

mod access_log;
mod addresses;
mod agent_failure;
mod authorization;
mod bad_manifests;
mod bulk;
mod certificates;
mod ciphertext;
mod conversations;
mod curl_reaches_nginx;
mod databases;
mod endpoints;
mod enrollment;
mod kubernetes;
mod many_connections;
mod mutual_tls;
mod outside_the_mesh;
mod testbed;

/// No scenario takes longer; one that does is stuck, and its logs are wanted.
const SCENARIO_LIMIT: Duration = Duration::from_secs(300);

/// How a scenario shares the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// It mostly waits, and others may run beside it.
    Light,
    /// It needs the machine for itself.
    Heavy,
}

/// A scenario: its name, the programs it needs and what it does.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    name: &'static str,
    needs: &'static [&'static str],
    given: Option<fn() -> std::result::Result<PathBuf, String>>,
    load: Load,
    body: fn(&Testbed) -> Result<()>,
}

impl Scenario {
    const fn new(name: &'static str, body: fn(&Testbed) -> Result<()>) -> Self {
        Self {
            name,
            needs: &[],
            given: None,
            load: Load::Light,
            body,
        }
    }

    const fn needs(mut self, programs: &'static [&'static str]) -> Self {
        self.needs = programs;
        self
    }

    /// What it needs beside programs of the system, or the reason why that is not there.
    const fn given(mut self, look: fn() -> std::result::Result<PathBuf, String>) -> Self {
        self.given = Some(look);
        self
    }

    const fn heavy(mut self) -> Self {
        self.load = Load::Heavy;
        self
    }
}

/// Every scenario, by file.
const SCENARIOS: &[&[Scenario]] = &[
    testbed::SCENARIOS,
    curl_reaches_nginx::SCENARIOS,
    ciphertext::SCENARIOS,
    access_log::SCENARIOS,
    mutual_tls::SCENARIOS,
    authorization::SCENARIOS,
    databases::SCENARIOS,
    conversations::SCENARIOS,
    addresses::SCENARIOS,
    enrollment::SCENARIOS,
    endpoints::SCENARIOS,
    agent_failure::SCENARIOS,
    outside_the_mesh::SCENARIOS,
    bad_manifests::SCENARIOS,
    certificates::SCENARIOS,
    bulk::SCENARIOS,
    many_connections::SCENARIOS,
];

/// What all scenarios share.
#[derive(Debug)]
struct Stage {
    sandbox: std::result::Result<Sandbox, String>,
    turns: RwLock<()>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let sandbox = if arguments.list {
        Err("only listed".to_owned())
    } else {
        match Sandbox::enter() {
            Ok(sandbox) => Ok(sandbox),
            Err(error @ Error::NotRoot) => Err(error.to_string()),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    };
    let stage = Arc::new(Stage {
        sandbox,
        turns: RwLock::new(()),
    });
    let trials = SCENARIOS
        .iter()
        .chain(kubernetes::SCENARIOS)
        .copied()
        .flatten()
        .map(|scenario| trial(*scenario, Arc::clone(&stage)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(scenario: Scenario, stage: Arc<Stage>) -> Trial {
    Trial::ignorable_test(scenario.name, move || play(scenario, &stage))
}

fn play(scenario: Scenario, stage: &Stage) -> std::result::Result<Completion, Failed> {
    let sandbox = match &stage.sandbox {
        Ok(sandbox) => sandbox,
        Err(reason) => return Ok(Completion::ignored_with(reason)),
    };
    if let Some(missing) = scenario.needs.iter().find(|program| !installed(program)) {
        return Ok(Completion::ignored_with(format!(
            "{missing} is not installed"
        )));
    }
    if let Some(Err(reason)) = scenario.given.map(|look| look()) {
        return Ok(Completion::ignored_with(reason));
    }
    match scenario.load {
        Load::Light => {
            let _turn = stage.turns.read().unwrap_or_else(PoisonError::into_inner);
            perform(scenario, sandbox)
        }
        Load::Heavy => {
            let _turn = stage.turns.write().unwrap_or_else(PoisonError::into_inner);
            perform(scenario, sandbox)
        }
    }
}

fn perform(scenario: Scenario, sandbox: &Sandbox) -> std::result::Result<Completion, Failed> {
    let bed = Testbed::new(sandbox, scenario.name)?;
    let outcome = within_limit(scenario, &bed);
    if !matches!(outcome, Ok(Ok(()))) {
        eprintln!("=== {} failed; its programs said:", scenario.name);
        bed.journal().print();
    }
    match outcome {
        Ok(result) => Ok(result.map(|()| Completion::Completed)?),
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs the scenario; one that is stuck ends the whole run, since its threads cannot be stopped.
fn within_limit(scenario: Scenario, bed: &Testbed) -> thread::Result<Result<()>> {
    let (done, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(SCENARIO_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("=== {} is stuck; its programs said:", scenario.name);
                bed.journal().print();
                std::process::exit(101);
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| (scenario.body)(bed)));
        drop(done);
        outcome
    })
}

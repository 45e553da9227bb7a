//! Runs every check in stages and adds up their results.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::command::{self, TaskError, cargo, run_reading, target};
use crate::tally::Tally;
use crate::{ebpf, setup};

/// What to test.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Run one stage only.
    #[arg(long, value_name = "STAGE")]
    only: Option<Stage>,
    /// Run only the tests whose names contain this word.
    filter: Option<String>,
}

/// A part of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// The format of the source.
    Format,
    /// Clippy, with warnings as errors.
    Lints,
    /// The build of the kernel programs.
    Programs,
    /// The tests beside the code of all crates.
    Unit,
    /// Real programs in pods, on a testbed of network namespaces.
    Scenarios,
    /// Of the scenarios those of Kubernetes: against the test's own API server, and against kube-apiserver and etcd
    /// where KUBEBUILDER_ASSETS names their folder.
    Kubernetes,
}

/// How the names of the scenarios of Kubernetes begin.
const KUBERNETES: &str = "kubernetes_";

impl Stage {
    fn title(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Lints => "lints",
            Self::Programs => "kernel programs",
            Self::Unit => "unit tests",
            Self::Scenarios => "scenarios",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// Runs the stages; the last line printed is the summary.
pub fn run(options: &Options) -> ExitCode {
    let start = Instant::now();
    let mut total = Tally::default();
    heading("set-up", start.elapsed());
    match setup::run() {
        Ok(()) => {
            let stages = Stage::value_variants().iter().copied();
            for stage in stages.filter(|stage| options.includes(*stage)) {
                heading(stage.title(), start.elapsed());
                total += perform(stage, options.filter.as_deref());
            }
        }
        Err(error) => {
            eprintln!("error: {error}");
            total += Tally::FAILED;
        }
    }
    heading("result", start.elapsed());
    println!("{total}");
    if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Options {
    /// Words for tests leave the stages out that have none.
    fn includes(&self, stage: Stage) -> bool {
        match self.only {
            Some(only) => only == stage,
            None if stage == Stage::Kubernetes => false,
            None if self.filter.is_none() => true,
            None => matches!(stage, Stage::Unit | Stage::Scenarios),
        }
    }
}

fn heading(title: &str, elapsed: Duration) {
    let seconds = elapsed.as_secs();
    println!(
        "\n==> {title} ({}:{:02} since the start)",
        seconds / 60,
        seconds % 60
    );
}

fn perform(stage: Stage, filter: Option<&str>) -> Tally {
    match stage {
        Stage::Format => check(format()),
        Stage::Lints => check(lints()),
        Stage::Programs => check(ebpf::run()),
        Stage::Unit => unit(filter),
        Stage::Scenarios => scenarios(filter),
        Stage::Kubernetes => scenarios(Some(filter.unwrap_or(KUBERNETES))),
    }
}

/// The result of a stage that is one check.
fn check(outcome: Result<(), TaskError>) -> Tally {
    match outcome {
        Ok(()) => Tally::PASSED,
        Err(error) => {
            eprintln!("error: {error}");
            Tally::FAILED
        }
    }
}

fn format() -> Result<(), TaskError> {
    let programs = [
        "fmt",
        "--manifest-path",
        "ebpf/programs/Cargo.toml",
        "--",
        "--check",
    ];
    command::run(&mut cargo(&["fmt", "--all", "--", "--check"]))?;
    command::run(&mut cargo(&programs))
}

fn lints() -> Result<(), TaskError> {
    command::run(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}

fn unit(filter: Option<&str>) -> Tally {
    let crates = [
        "test",
        "--workspace",
        "--exclude",
        "undermesh-tests",
        "--exclude",
        "undermesh-scale",
        "--no-fail-fast",
    ];
    let scale = ["test", "--package", "undermesh-scale", "--bins"];
    let testbed = [
        "test",
        "--package",
        "undermesh-tests",
        "--lib",
        "--test",
        "cleanup",
    ];
    let mut tally = tests(&mut cargo(&crates), filter);
    tally += tests(&mut cargo(&testbed), filter);
    tally += tests(&mut cargo(&scale), filter);
    tally
}

fn scenarios(filter: Option<&str>) -> Tally {
    if let Err(error) = command::run(&mut cargo(&["build", "--package", "undermesh"])) {
        return check(Err(error));
    }
    let run = [
        "test",
        "--package",
        "undermesh-tests",
        "--test",
        "scenarios",
    ];
    let small = ["test", "--package", "undermesh-scale", "--test", "small"];
    let binary = target().join("debug/undermesh");
    let mut tally = tests(with_agent(&mut cargo(&run), &binary), filter);
    tally += tests(with_agent(&mut cargo(&small), &binary), filter);
    tally
}

fn with_agent<'a>(command: &'a mut Command, binary: &Path) -> &'a mut Command {
    command.env("UNDERMESH_BIN", binary)
}

/// Runs tests and counts them. A run that fails without a failed test, such as
/// one that does not compile, counts as one failure.
fn tests(command: &mut Command, filter: Option<&str>) -> Tally {
    let mut tally = Tally::default();
    let outcome = run_reading(command.arg("--").args(filter), |line| {
        tally += Tally::of_line(line).unwrap_or_default();
    });
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        if tally.failed == 0 {
            tally += Tally::FAILED;
        }
    }
    tally
}

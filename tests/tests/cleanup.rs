//! A run that is killed leaves nothing behind.
//!
//! The test starts this same executable as a victim that builds a testbed, kills it without warning,
//! and looks for what is left.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, an error that is unwrapped is a failure of the test"
)]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;
use undermesh_tests::agent::poll;
use undermesh_tests::cgroup::{Hierarchy, is_empty};
use undermesh_tests::{Error, PodSpec, Result, Sandbox, Testbed};

/// The argument that makes this executable the victim.
const VICTIM: &str = "victim";

/// What the victim says once its pod runs.
const READY: &str = "ready";

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(VICTIM) {
        return match be_killed() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let trial = Trial::ignorable_test("a_killed_run_leaves_nothing_behind", || {
        if geteuid().is_root() {
            leaves_nothing()
        } else {
            Ok(Completion::ignored_with(Error::NotRoot))
        }
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// Builds a testbed with a program in a pod, says so and waits for the end.
fn be_killed() -> Result<()> {
    let sandbox = Sandbox::enter()?;
    let bed = Testbed::new(&sandbox, "victim")?;
    let pod = bed.node("node")?.pod(PodSpec::new("shop", "pod"))?;
    let _program = pod.spawn("sleep", ["3600"])?;
    println!("{READY}");
    loop {
        thread::park();
    }
}

fn leaves_nothing() -> Result<Completion, Failed> {
    let mut victim = Command::new(env::current_exe()?)
        .arg(VICTIM)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    BufReader::new(victim.stdout.take().unwrap()).read_line(&mut said)?;
    let hierarchy = Hierarchy::find()?;
    let run = run_of(hierarchy.root(), victim.id());
    assert_eq!(said.trim(), READY);
    assert!(!is_empty(&run), "the victim runs outside its cgroup");
    victim.kill()?;
    victim.wait()?;
    poll("wait until every process of the run is gone", || {
        Ok(is_empty(&run))
    })?;
    hierarchy.sweep();
    assert!(!run.exists(), "{} is left", run.display());
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    assert!(!mounts.contains("undermesh"), "{mounts}");
    Ok(Completion::Completed)
}

/// The cgroup of the run that process `pid` started.
fn run_of(root: &Path, pid: u32) -> PathBuf {
    let prefix = format!("undermesh-testbed.{pid}.");
    fs::read_dir(root)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .unwrap()
        .path()
}

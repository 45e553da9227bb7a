//! A small cluster: every change arrives at every node that needs it, and a controller that comes back makes no node
//! forget what it knows. Nothing here is about time.
//!
//! Run as root, with the binary that `UNDERMESH_BIN` names.

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;
use serde_json::Value;
use undermesh_tests::agent::binary;

/// The sizes, and all that follows from them.
const SIZES: [&str; 15] = [
    "--nodes",
    "20",
    "--pods",
    "500",
    "--services",
    "50",
    "--namespaces",
    "5",
    "--talks",
    "10",
    "--churn",
    "20",
    "--seconds",
    "3",
    "--without-node",
];
/// Pods that are replaced.
const REPLACED: f64 = 60.0;
/// Fewest nodes that run pods of a service or talk to it.
const AUDIENCE: f64 = 10.0;

fn main() -> ExitCode {
    let name = "kubernetes_every_change_arrives_everywhere_it_is_needed";
    let trials = vec![Trial::ignorable_test(name, every_change_arrives)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn every_change_arrives() -> Result<Completion, Failed> {
    if !geteuid().is_root() {
        return Ok(Completion::ignored_with("only root makes namespaces"));
    }
    if let Err(reason) = binary() {
        return Ok(Completion::ignored_with(reason.to_string()));
    }
    let output = Command::new(env!("CARGO_BIN_EXE_undermesh-scale"))
        .args(SIZES)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {words}", output.status).into());
    }
    let report: Value = serde_json::from_slice(&output.stdout)?;
    for (phase, figure) in [
        ("churn", "changes that did not arrive"),
        ("restart", "changes that did not arrive"),
        ("restart", "nodes that forgot"),
    ] {
        let value = value_of(&report, phase, figure)?;
        if value != 0.0 {
            return Err(format!("{phase}: {value} {figure}").into());
        }
    }
    // Each pod departs and arrives.
    let arrived = value_of(&report, "churn", "changes that arrived")?;
    if arrived < 2.0 * REPLACED * AUDIENCE {
        return Err(format!("only {arrived} changes arrived").into());
    }
    Ok(Completion::Completed)
}

fn value_of(report: &Value, phase: &str, figure: &str) -> Result<f64, Failed> {
    let mut rows = report["rows"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["phase"] == phase && row["figure"] == figure);
    let value = row.and_then(|row| row["value"].as_f64());
    value.ok_or_else(|| format!("there is no {figure} of {phase} in {report}").into())
}

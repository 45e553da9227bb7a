//! `cargo xtask bench scale`: the control plane at the size of a large cluster.
//!
//! The load driver, package `undermesh-scale`, is a program of its own: it brings an API server and a thousand
//! discovery clients, which nothing else here needs. It prints its figures as JSON; this shows them.

mod table;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use clap::Args;
use serde::{Deserialize, Serialize};
use undermesh_tests::agent::BINARY_VARIABLE;
use undermesh_tests::{Context, Error, Result};

use super::Format;
use super::machine::Machine;
use super::release;
use crate::command::command;

/// Measures the control plane on a generated cluster: memory, CPU, and the time from a change to the nodes.
///
/// The options that are not listed here are those of the driver: --nodes, --pods, --services, --namespaces, --talks,
/// --churn, --seconds and --without-node.
#[derive(Debug, Args)]
pub struct Options {
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Write the result as JSON to this file as well.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// The date to note in the result, taken as it is.
    #[arg(long, value_name = "TEXT")]
    date: Option<String>,
    /// Sizes, for example --nodes 100 --pods 5000 --services 500.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "SIZES"
    )]
    sizes: Vec<String>,
}

/// The result of a run.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    sizes: Vec<String>,
    #[serde(flatten)]
    figures: Figures,
}

/// What the driver prints.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    rows: Vec<Row>,
}

/// A figure.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    /// The part of the run.
    phase: String,
    /// What it is, with its unit.
    figure: String,
    /// Its value.
    value: f64,
    /// The most that it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
}

/// Runs the benchmark and prints its result. It fails when something cannot be built, started or measured; a
/// missed bound is no failure.
pub fn run(options: &Options) -> ExitCode {
    match try_run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: &Options) -> Result<()> {
    let driver = release::build("undermesh-scale")?;
    let agent = match env::var_os(BINARY_VARIABLE) {
        Some(binary) => PathBuf::from(binary),
        None => release::build("undermesh")?,
    };
    let report = Report {
        machine: Machine::read(options.date.clone()),
        sizes: options.sizes.clone(),
        figures: drive(&driver, &agent, &options.sizes)?,
    };
    let json = serde_json::to_string_pretty(&report).context(|| "write the result")? + "\n";
    if let Some(file) = &options.save {
        fs::write(file, &json).context(|| format!("write {}", file.display()))?;
    }
    match options.output {
        Format::Table => print!("{}", table::of(&report.figures.rows)),
        Format::Json => print!("{json}"),
    }
    Ok(())
}

fn drive(driver: &Path, agent: &Path, sizes: &[String]) -> Result<Figures> {
    let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
    let output = command(&driver.to_string_lossy(), &sizes)
        .env(BINARY_VARIABLE, agent)
        .stderr(Stdio::inherit())
        .output()
        .context(|| format!("start {}", driver.display()))?;
    if !output.status.success() {
        let cause = format!("{}; see its messages above", output.status);
        return Err(Error::step("measure the control plane", cause));
    }
    serde_json::from_slice(&output.stdout).context(|| "read what the driver printed")
}

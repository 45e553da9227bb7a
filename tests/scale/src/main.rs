//! Measures the control plane at scale: a generated cluster in an API server of this process, the real
//! `undermesh controller` beside it, and a discovery client for each node, all in namespaces of the run.
//!
//! Prints the figures as JSON. `UNDERMESH_BIN` names the binary to measure. `cargo xtask bench scale` builds both and
//! shows the figures to people.
#![forbid(unsafe_code)]

mod churn;
mod fleet;
mod ledger;
mod objects;
mod pair;
mod plan;
mod report;
mod run;
mod size;
mod world;

use std::process::ExitCode;

use clap::Parser;
use undermesh_tests::{Context, Error, Result, Sandbox, Testbed};

use crate::report::Report;
use crate::size::Size;

/// Measures the control plane on a generated cluster.
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    size: Size,
    /// Leave the real nodes out.
    #[arg(long)]
    without_node: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match measured(&options).and_then(|report| print(&report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measured(options: &Options) -> Result<Report> {
    let checked = options.size.check();
    checked.map_err(|misfit| Error::step("read the sizes", misfit))?;
    let sandbox = Sandbox::enter()?;
    let bed = Testbed::new(&sandbox, "scale")?;
    let outcome = run::run(&bed, &options.size, !options.without_node);
    outcome.inspect_err(|_| bed.journal().print())
}

fn print(report: &Report) -> Result<()> {
    let json = serde_json::to_string_pretty(report).context(|| "write the figures")?;
    println!("{json}");
    Ok(())
}

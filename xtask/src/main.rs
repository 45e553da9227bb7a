//! `cargo xtask`: builds and tests undermesh, and does all set-up that this takes.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod command;
mod demo;
mod ebpf;
mod fuzz;
mod kernel;
mod setup;
mod tally;
mod test;

/// Builds and tests undermesh, and does all set-up that this takes.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs the programs and the toolchain that building and testing need.
    Setup,
    /// Builds the kernel programs.
    Ebpf,
    /// Checks format and lints, builds everything and runs all tests.
    Test(test::Options),
    /// Shows the mesh at work on two nodes, step by step, with proofs.
    Demo(demo::Options),
    /// Measures the mesh against no mesh and against other proxies.
    Bench(bench::Options),
    /// Feeds a parser with inputs that grow with the code they reach.
    Fuzz(fuzz::Options),
    /// Runs the tests of capture under another kernel, in QEMU.
    Kernel(kernel::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Task::Ebpf => ebpf::run().map(|()| ExitCode::SUCCESS),
        Task::Test(options) => Ok(test::run(&options)),
        Task::Demo(options) => Ok(demo::run(&options)),
        Task::Bench(options) => Ok(bench::run(&options)),
        Task::Fuzz(options) => fuzz::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Kernel(options) => kernel::run(&options).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

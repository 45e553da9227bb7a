//! The undermesh binary: the node agent, and the commands that talk to it.
#![forbid(unsafe_code)]

mod api;
mod command;
mod duration;
mod node;
mod output;
mod verb;

use std::process::ExitCode;

use clap::Parser;

use crate::command::{Cli, Verb};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Node(options) => node::run(*options).map_err(|error| error.to_string()),
        Verb::Talk(talk) => verb::run(talk).map_err(|error| error.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

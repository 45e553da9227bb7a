//! The undermesh binary: the node agent, the controller, the CNI plugin, and the commands that talk to them.
#![forbid(unsafe_code)]

mod api;
mod cluster;
mod command;
mod controller;
mod duration;
mod grpc;
mod node;
mod output;
mod process;
mod token;
mod verb;

use std::process::ExitCode;

use clap::Parser;
use undermesh_cni::plugin;

use crate::command::{Cli, Verb};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Container runtimes run the plugin by the name of its file.
    if std::env::args_os()
        .next()
        .is_some_and(|name| plugin::is_called_by(&name))
    {
        return plugin::main();
    }
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Node(options) => node::run(*options).map_err(|error| error.to_string()),
        Verb::Controller(options) => controller::run(*options).map_err(|error| error.to_string()),
        Verb::Cni => return plugin::main(),
        Verb::Token(verb) => token::run(verb).map_err(|error| error.to_string()),
        Verb::Cluster(verb) => cluster::run(verb).map_err(|error| error.to_string()),
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

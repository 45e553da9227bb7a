//! `cargo xtask demo`: two nodes and a small shop on this machine, shown step by step with proofs.
//!
//! Two processes share the work. The stage (`stage.rs`) moves into namespaces of its own, builds the
//! shop and plays the acts. The caller, here, stays outside: it builds the agent, passes signals on,
//! and looks afterwards whether anything of the stage is left on the machine.

mod narrator;
mod operation;
mod policy;
mod remains;
mod signals;
mod stage;
mod town;
mod traffic;
mod visit;

use std::env;
use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use clap::{Args, Subcommand};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use undermesh_tests::agent::BINARY_VARIABLE;
use undermesh_tests::{Context, Error, Result};

use crate::command::{self, TaskError, cargo, target};
use crate::setup;
use narrator::Narrator;
use remains::Inventory;

/// This executable, even when a build has replaced its file meanwhile (proc_pid_exe(5)).
const THIS: &str = "/proc/self/exe";

/// Shows two nodes and a small shop in the mesh, step by step, with a proof beside each claim.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// Leave everything running until Ctrl-C, and print commands to try.
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Runs a command in a pod or on a node of a demo that was left running.
    Exec(visit::Options),
    /// Plays the acts; the demo starts this itself.
    #[command(hide = true)]
    Stage,
}

/// Runs the demo. Must be called while the process has one thread. It fails when something cannot be
/// built or started, or when a claim does not hold.
pub fn run(options: &Options) -> ExitCode {
    let outcome = match &options.action {
        Some(Action::Exec(options)) => visit::run(options),
        Some(Action::Stage) => stage::play().map(|()| ExitCode::SUCCESS),
        None => show(options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn show(options: &Options) -> Result<ExitCode> {
    if !geteuid().is_root() {
        return Err(Error::step(
            "the demo makes network namespaces and loads kernel programs, and so must run as root; run",
            "\n\n    sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo\n",
        ));
    }
    let narrator = Narrator::new();
    prepare(&narrator).context(|| "prepare the demo")?;
    signals::block()?;
    let (events, inbox) = mpsc::channel();
    let (mut child, stage) = start_stage(&events)?;
    signals::follow(events)?;
    let inventory = follow(&narrator, &inbox, &child, &stage, options)?;
    let status = child.wait().context(|| "wait for the stage")?;
    match inventory {
        Some(inventory) if status.success() => {
            finale(&narrator, &inventory)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => Ok(failed(status)),
    }
}

/// Installs what is missing and builds the agent, in the development profile: it is the quickest to
/// build, and `cargo xtask test` builds the same.
fn prepare(narrator: &Narrator) -> Result<(), TaskError> {
    narrator.prelude(
        "This demo builds two nodes and a small shop from namespaces of this machine. Each claim comes \
         with its proof, taken from what programs print and the kernel tells while it runs. The \
         machine's own network is not touched.",
    );
    narrator.prelude("\nFirst the set-up: programs, toolchain, agent.");
    setup::run()?;
    if env::var_os(BINARY_VARIABLE).is_none() {
        command::run(&mut cargo(&["build", "--package", "undermesh"]))?;
    }
    Ok(())
}

/// What happens while the stage plays.
#[derive(Debug)]
pub enum Event {
    /// All acts are over, and the stage waits.
    Done,
    /// No process of the stage is left.
    Ended,
    /// A signal asked this process to end.
    Interrupted,
}

/// Starts the stage in a process group of its own, so that a terminal's Ctrl-C reaches it through this
/// process only.
fn start_stage(events: &Sender<Event>) -> Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().context(|| "make a pair of sockets")?;
    let binary =
        env::var_os(BINARY_VARIABLE).unwrap_or_else(|| target().join("debug/undermesh").into());
    let child = Command::new(THIS)
        .args(["demo", "stage"])
        .env(BINARY_VARIABLE, binary)
        .stdin(OwnedFd::from(theirs))
        .process_group(0)
        .spawn()
        .context(|| "start the stage")?;
    let lines = ours.try_clone().context(|| "share a socket")?;
    let events = events.clone();
    thread::spawn(move || {
        for line in BufReader::new(lines).lines().map_while(Result::ok) {
            if line == stage::DONE {
                report(&events, Event::Done);
            }
        }
        report(&events, Event::Ended);
    });
    Ok((child, ours))
}

/// Sends an event to the main thread, which may have ended with an error.
fn report(events: &Sender<Event>, event: Event) {
    let _ = events.send(event);
}

/// Follows the stage to its end; returns what it was made of if it came through all acts.
fn follow(
    narrator: &Narrator,
    inbox: &Receiver<Event>,
    child: &Child,
    stage: &UnixStream,
    options: &Options,
) -> Result<Option<Inventory>> {
    let mut inventory = None;
    let close = || {
        stage
            .shutdown(Shutdown::Write)
            .context(|| "tell the stage to end")
    };
    for event in inbox {
        match event {
            Event::Done => {
                inventory = Some(Inventory::take(child.id())?);
                if options.keep {
                    visit::invite(narrator, child.id())?;
                } else {
                    close()?;
                }
            }
            Event::Interrupted if inventory.is_some() => close()?,
            Event::Interrupted => {
                let stage = Pid::from_raw(child.id().cast_signed());
                kill(stage, Signal::SIGTERM).context(|| "end the stage")?;
            }
            Event::Ended => break,
        }
    }
    Ok(inventory)
}

fn finale(narrator: &Narrator, inventory: &Inventory) -> Result<()> {
    narrator.step(9, "Nothing is left behind.");
    inventory.prove_gone(narrator)?;
    narrator.prelude("\nEvery claim held.");
    Ok(())
}

/// The exit code of a stage that did not come to its end; it has said why.
fn failed(status: ExitStatus) -> ExitCode {
    eprintln!("error: the demo ended early ({status})");
    ExitCode::FAILURE
}

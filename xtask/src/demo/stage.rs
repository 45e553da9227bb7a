//! Where the demo plays: inside the sandbox, one act after the other.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use undermesh_tests::process::Output;
use undermesh_tests::{Context, Place, Pod, Result, Sandbox, Testbed};

use super::narrator::Narrator;
use super::town::Town;
use super::{operation, policy, traffic};

/// The name of the testbed, and so of its folder and its cgroup.
pub const BED: &str = "demo";

/// What the stage says when all acts are over.
pub const DONE: &str = "done";

/// What the acts work with.
#[derive(Debug)]
pub struct Scene<'a> {
    /// Who speaks.
    pub narrator: Narrator,
    /// The fabric and the configuration.
    pub bed: &'a Testbed,
    /// The nodes and the pods.
    pub town: &'a Town,
}

impl Scene<'_> {
    /// Shows a command line and runs it in a place.
    ///
    /// # Errors
    /// When the program cannot be started; its own failure is in the output.
    pub fn run(&self, name: &str, place: &Place, words: &[&str]) -> Result<Output> {
        self.narrator.typed(name, command_line(words));
        self.quietly(place, words)
    }

    /// Runs a command line in a place.
    ///
    /// # Errors
    /// When the program cannot be started; its own failure is in the output.
    pub fn quietly(&self, place: &Place, words: &[&str]) -> Result<Output> {
        let (program, arguments) = words.split_first().context(|| "find the program to run")?;
        place.output(program, arguments)
    }

    /// Shows a command line and runs it in a pod.
    ///
    /// # Errors
    /// When the program cannot be started; its own failure is in the output.
    pub fn run_in(&self, pod: &Pod, words: &[&str]) -> Result<Output> {
        self.run(&pod.spec().name, pod, words)
    }
}

/// The words as a shell takes them.
pub fn command_line(words: &[&str]) -> String {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| {
            if word.contains(' ') {
                format!("'{word}'")
            } else {
                (*word).to_owned()
            }
        })
        .collect();
    quoted.join(" ")
}

/// Plays all acts, then says so to the caller at the other end of standard input and waits until that
/// end is closed.
///
/// # Errors
/// The first claim that does not hold, or the step that failed.
pub fn play() -> Result<()> {
    set_pdeathsig(Signal::SIGTERM).context(|| "ask to end with the caller")?;
    // The caller waits for its signals and so has blocked them; the mask came along.
    SigSet::empty()
        .thread_set_mask()
        .context(|| "unblock signals")?;
    let mut caller = caller()?;
    let sandbox = Sandbox::enter()?;
    let bed = Testbed::new(&sandbox, BED)?;
    let _town = perform(&bed).inspect_err(|_| bed.journal().print())?;
    writeln!(caller, "{DONE}").context(|| "tell the caller that all acts are over")?;
    caller
        .read_to_end(&mut Vec::new())
        .map(drop)
        .context(|| "wait for the caller")
}

/// Standard input, which the caller has made one end of a pair of sockets.
fn caller() -> Result<UnixStream> {
    let input = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context(|| "take standard input")?;
    Ok(input.into())
}

fn perform(bed: &Testbed) -> Result<Town> {
    let town = Town::build(bed)?;
    let scene = Scene {
        narrator: Narrator::new(),
        bed,
        town: &town,
    };
    traffic::enrolled(&scene)?;
    let crossing = traffic::captured(&scene)?;
    traffic::encrypted(&scene)?;
    traffic::identified(&scene, &crossing)?;
    policy::strict(&scene)?;
    policy::authorized(&scene)?;
    operation::observed(&scene)?;
    operation::killed(&scene)?;
    Ok(town)
}

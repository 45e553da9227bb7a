//! A demo that was left running: what to try in it, and how to run a command inside.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::unistd::geteuid;
use undermesh_tests::agent::binary;
use undermesh_tests::place::search_path;
use undermesh_tests::{Context, Error, Result};

use super::narrator::Narrator;
use super::remains::{below, name, run_of, runs, threads};
use super::stage::BED;
use super::town::{redis_addresses, web_addresses};

/// Where the stage keeps its files, as its own mount namespace shows them.
const FILES: &str = "/run/undermesh-testbed/demo";

/// Runs a command in a pod or on a node of a demo that was left running with --keep. On a node,
/// `undermesh` talks to the node's agent.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The pod (cart, web-a, web-b, redis, guest), the node (node-a, node-b) or visitor.
    place: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Replaces the calling process by the command.
///
/// # Errors
/// When no demo runs, or it has no such place.
pub fn run(options: &Options) -> Result<ExitCode> {
    if !geteuid().is_root() {
        return Err(Error::step(
            "enter a pod",
            "only root may; run it with sudo",
        ));
    }
    let run = runs()?
        .into_iter()
        .find(|run| run.join(BED).is_dir() && !threads_below(run).is_empty())
        .context(|| "find a running demo; start one with `cargo xtask demo --keep`")?;
    let place = Visited::find(&run, &options.place)?;
    place.join()?;
    let cause = place.nsenter(&options.command)?.exec();
    Err(Error::step("start nsenter", cause))
}

/// A place of a demo, seen from outside.
#[derive(Debug)]
struct Visited {
    name: String,
    cgroup: PathBuf,
    process: u32,
}

impl Visited {
    fn find(run: &Path, wanted: &str) -> Result<Self> {
        let places: Vec<Self> = below(&run.join(BED))
            .into_iter()
            .filter_map(Self::of_cgroup)
            .collect();
        let names: Vec<String> = places.iter().map(|place| place.name.clone()).collect();
        places
            .into_iter()
            .find(|place| place.name == wanted)
            .context(|| format!("find {wanted} among {}", names.join(", ")))
    }

    /// The place whose programs are in a cgroup: `<node>/agent`, `<node>/pods/<namespace>_<pod>`, or a
    /// host's own.
    fn of_cgroup(cgroup: PathBuf) -> Option<Self> {
        let process = *threads(&cgroup).first()?;
        let own = name(&cgroup);
        let name = match own.split_once('_') {
            Some((_, pod)) => pod.to_owned(),
            None if own == "agent" => name(cgroup.parent()?),
            None => own,
        };
        Some(Self {
            name,
            cgroup,
            process,
        })
    }

    /// Moves the calling process into the cgroup: this is what the kernel programs go by.
    fn join(&self) -> Result<()> {
        let file = self.cgroup.join("cgroup.procs");
        fs::write(&file, "0").context(|| format!("join {}", file.display()))
    }

    /// The command in the network, the mounts and the pids of the place. It ends with the demo.
    fn nsenter(&self, words: &[OsString]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.process.to_string(),
                "--mount",
                "--net",
                "--pid",
                "--",
            ])
            .args(words)
            .env("PATH", path_with_agent()?)
            .env(
                "UNDERMESH_SOCKET",
                format!("{FILES}/{}/run/api.sock", self.name),
            )
            .env("UNDERMESH_CONFIG", format!("{FILES}/config"));
        Ok(command)
    }
}

/// The search path, with the folder of the agent.
fn path_with_agent() -> Result<String> {
    let agent = binary()?;
    let folder = agent.parent().unwrap_or(Path::new("/"));
    Ok(format!("{}:{}", folder.display(), search_path()))
}

fn threads_below(run: &Path) -> Vec<u32> {
    below(run).iter().flat_map(|path| threads(path)).collect()
}

/// Prints commands that work in the demo whose stage was started as process `stage`.
///
/// # Errors
/// When a place of it is gone.
pub fn invite(narrator: &Narrator, stage: u32) -> Result<()> {
    let cart = Visited::find(&run_of(stage)?, "cart")?;
    let fetch = format!("curl -sS http://{}/name", web_addresses().v4);
    let count = format!("redis-cli -h {} INCR orders", redis_addresses().v4);
    let withdraw = "sh -c 'rm $UNDERMESH_CONFIG/only-cart.yaml'";
    narrator.prelude(
        "\nEverything is left running until Ctrl-C. Try these in another terminal, as root:",
    );
    for (place, command, result) in [
        ("cart", &*fetch, ""),
        ("guest", &fetch, "  # refused by only-cart"),
        ("node-a", withdraw, ""),
        ("guest", &fetch, "  # works now"),
        ("cart", &count, ""),
        ("node-a", "undermesh list", ""),
        ("node-a", "undermesh connections -o json", ""),
    ] {
        println!("   cargo xtask demo exec {place} -- {command}{result}");
    }
    narrator.prelude("The same without cargo: join the pod's cgroup, then its namespaces.");
    println!("   cd {}", cart.cgroup.display());
    println!(
        "   sh -c 'echo $$ > cgroup.procs; exec nsenter -t {} -m -n -p {fetch}'",
        cart.process
    );
    Ok(())
}

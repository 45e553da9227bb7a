//! What a result must be read together with: the machine and the version that was measured.

use std::fs;
use std::thread;

use serde::Serialize;

use crate::command::command;

/// Said of what could not be found out.
const UNKNOWN: &str = "unknown";

/// The machine and the version.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's model.
    pub processor: String,
    /// The cores that the run may use.
    pub cores: usize,
    /// The load average of the minute before the run: a busy machine makes unsteady figures.
    pub load_before: String,
    /// The congestion control of new TCP connections.
    pub tcp_congestion_control: String,
    /// The commit, with `-dirty` after it when files differ from it.
    pub commit: String,
    /// The date as it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

impl Machine {
    /// Reads the machine; what cannot be read is `unknown`.
    pub fn read(date: Option<String>) -> Self {
        Self {
            kernel: line("/proc/sys/kernel/osrelease"),
            processor: processor(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            load_before: load(),
            tcp_congestion_control: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            commit: commit(),
            date,
        }
    }
}

fn line(file: &str) -> String {
    fs::read_to_string(file).map_or_else(|_| UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

/// The first field of `proc_loadavg(5)`.
fn load() -> String {
    let averages = line("/proc/loadavg");
    match averages.split_once(' ') {
        Some((minute, _)) => minute.to_owned(),
        None => averages,
    }
}

fn processor() -> String {
    let table = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    table
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or_else(|| UNKNOWN.to_owned(), |(_, model)| model.to_owned())
}

fn commit() -> String {
    let Some(head) = git(&["rev-parse", "HEAD"]) else {
        return UNKNOWN.to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => head,
        _ => format!("{head}-dirty"),
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = command("git", arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

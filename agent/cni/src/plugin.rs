//! The CNI plugin: holds a new pod back until the node agent has captured it.
//!
//! It is chained behind the plugins that make the pod's network, asks the node agent over a unix socket, and
//! passes their result on unchanged (CNI specification 0.3.1 to 1.1.0). What it does without an agent:
//!
//! - `DEL`, `GC` and `STATUS` succeed. A pod can always be taken down, and the node stays ready, so that an
//!   agent can be started on it.
//! - `ADD` for a pod of an excluded namespace succeeds. The mesh's own namespace is one: agent and
//!   controller start on a node that has no agent.
//! - Any other `ADD` fails with code 11, "try again later", or passes where the configuration says
//!   `"whenAgentIsAway": "admit"`. The plugin sees no labels, so this concerns every pod that could be a member.
//!   A refused sandbox is tried again by kubelet until the agent is back; an admitted pod runs outside
//!   the mesh until then.
mod client;
mod failure;
mod input;
mod plan;

use std::{
    env,
    ffi::OsStr,
    io::{self, Read as _, Write},
    path::Path,
    process::ExitCode,
};

pub use input::WhenAway;
pub(crate) use input::{DEFAULT_TIMEOUT, Options};

use failure::{Code, Failure};
use input::{Call, Command, Config};
use plan::Plan;

/// The name of the plugin: its binary, and the `type` in a network configuration.
pub const NAME: &str = "undermesh-cni";
/// Versions of the CNI specification that the plugin speaks, newest last.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Longest network configuration that is read.
const MAX_CONFIG: u64 = 1024 * 1024;

/// Whether a program that was started under this name is meant to be the plugin.
pub fn is_called_by(argv0: &OsStr) -> bool {
    Path::new(argv0).file_name() == Some(OsStr::new(NAME))
}

/// Does what the container runtime asks by environment and standard input, and answers on standard output.
pub fn main() -> ExitCode {
    let variable = |name: &str| env::var_os(name).and_then(|value| value.into_string().ok());
    let mut text = Vec::new();
    let read = io::stdin()
        .lock()
        .take(MAX_CONFIG)
        .read_to_end(&mut text)
        .map_err(|error| {
            Failure::new(
                Code::Io,
                "the network configuration cannot be read",
                error.to_string(),
            )
        });
    let result = read.and_then(|_| run(variable, &text));
    report(result, &text, &mut io::stdout().lock())
}

/// The answer on standard output; a [`Failure`] is one too.
fn run(variable: impl Fn(&str) -> Option<String>, text: &[u8]) -> Result<String, Failure> {
    let call = Call::parse(variable)?;
    let config = match Config::parse(text) {
        // Whatever broke the configuration must not keep a pod from being taken down.
        Err(failure) if call.command == Command::Del => {
            eprintln!("{NAME}: {failure}");
            return Ok(String::new());
        }
        parsed => parsed?,
    };
    match plan::make(&call, &config)? {
        Plan::Answer(answer) => Ok(answer),
        Plan::Ask {
            verb,
            sandbox,
            answer,
        } => {
            let said = client::ask(&config.socket, verb, &sandbox, config.patience(verb));
            plan::settle(verb, &sandbox, said, config.when_agent_is_away)?;
            Ok(answer)
        }
    }
}

fn report(result: Result<String, Failure>, text: &[u8], output: &mut impl Write) -> ExitCode {
    let (answer, code) = match result {
        Ok(answer) if answer.is_empty() => return ExitCode::SUCCESS,
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => {
            eprintln!("{NAME}: {failure}");
            let version = input::version(text);
            (failure.to_json(&version), ExitCode::FAILURE)
        }
    };
    match writeln!(output, "{answer}").and_then(|()| output.flush()) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("{NAME}: the answer cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;

//! The decisions: what to answer, and what to ask the agent before. No I/O.
use serde_json::json;

use super::{
    NAME, VERSIONS,
    client::Unanswered,
    failure::{Code, Failure},
    input::{Call, Command, Config, PodArguments, WhenAway},
};
use crate::wire::{self, Answer, Sandbox, Verb};

/// What a call comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// This answer, without the agent.
    Answer(String),
    /// This answer, if the agent's word allows it.
    Ask {
        /// What to ask.
        verb: Verb,
        /// Of which sandbox.
        sandbox: Sandbox,
        /// The answer.
        answer: String,
    },
}

/// Decides what a call comes to.
pub fn make(call: &Call, config: &Config) -> Result<Plan, Failure> {
    let silence = || Plan::Answer(String::new());
    match call.command {
        Command::Version => {
            let newest = VERSIONS[VERSIONS.len() - 1];
            let answer = json!({"cniVersion": newest, "supportedVersions": VERSIONS});
            Ok(Plan::Answer(answer.to_string()))
        }
        Command::Status | Command::Gc => config.check_version().map(|()| silence()),
        Command::Del => Ok(pod(call, config).map_or_else(silence, |pod| Plan::Ask {
            verb: Verb::Del,
            sandbox: sandbox(pod, call.netns.clone(), Vec::new()),
            answer: String::new(),
        })),
        Command::Add => {
            config.check_version()?;
            let answer = config.needed_previous()?.get().to_owned();
            ask(Verb::Add, call, config, answer)
        }
        Command::Check => {
            config.check_version()?;
            config.needed_previous()?;
            ask(Verb::Check, call, config, String::new())
        }
    }
}

fn ask(verb: Verb, call: &Call, config: &Config, answer: String) -> Result<Plan, Failure> {
    let Some(pod) = pod(call, config) else {
        return Ok(Plan::Answer(answer));
    };
    Ok(Plan::Ask {
        verb,
        sandbox: sandbox(pod, Some(call.needed_netns()?), config.addresses()?),
        answer,
    })
}

/// The pod, if it could be in the mesh.
fn pod<'a>(call: &'a Call, config: &Config) -> Option<&'a PodArguments> {
    let pod = call.pod.as_ref()?;
    (!config.exclude_namespaces.contains(&pod.namespace)).then_some(pod)
}

fn sandbox(
    pod: &PodArguments,
    netns: Option<std::path::PathBuf>,
    addresses: Vec<std::net::IpAddr>,
) -> Sandbox {
    Sandbox {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        netns,
        addresses,
    }
}

/// Decides whether the agent's word, or its silence, lets the call succeed.
pub fn settle(
    verb: Verb,
    sandbox: &Sandbox,
    said: Result<Result<Answer, wire::Failure>, Unanswered>,
    when_away: WhenAway,
) -> Result<(), Failure> {
    let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
    let later = |message: &str, details: String| {
        Err(Failure::new(
            Code::TryAgainLater,
            format!("{message} {pod}"),
            details,
        ))
    };
    match (verb, said) {
        // A pod can always be taken down; the agent notices by itself that its namespace is gone.
        (Verb::Del, Ok(_)) => Ok(()),
        (Verb::Del, Err(error)) => {
            eprintln!("{NAME}: the mesh's agent was not told of the end of {pod}: {error}");
            Ok(())
        }
        (Verb::Add | Verb::Check, Ok(Ok(Answer::Enrolled | Answer::NotMember { .. }))) => Ok(()),
        (Verb::Add | Verb::Check, Ok(Ok(Answer::Released))) => later(
            "the mesh's agent let go of",
            "it was asked to take it in; update the plugin or the agent".to_owned(),
        ),
        (Verb::Add | Verb::Check, Ok(Err(failure))) => {
            later("the mesh's agent cannot take in", failure.error)
        }
        // What was captured stays captured while the agent is away.
        (Verb::Check, Err(_)) => Ok(()),
        (Verb::Add, Err(error)) if when_away == WhenAway::Admit => {
            eprintln!("{NAME}: {pod} starts outside the mesh: {error}");
            Ok(())
        }
        (Verb::Add, Err(error)) => later(
            "the mesh's agent does not answer for",
            format!("{error}; the pod starts when the agent is back"),
        ),
    }
}

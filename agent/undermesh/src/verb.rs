//! The verbs that ask the agent: one request each, shown as a table or as the answer itself.
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use undermesh_telemetry::{ConnectionView, PeerView, Security, http::encoded};

use crate::{
    api::{
        client::{Client, ClientError},
        types::{CertificateRow, EnrollRequest, LogLevel, Pod, Source, Status},
    },
    command::{ConfigVerb, EnrollArgs, Form, LogArgs, ReleaseArgs, Talk, TalkVerb},
    duration,
    output::{self, Table, bytes, or_none},
};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// The agent did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The agent's answer is not what this version expects.
    #[error(
        "the agent's answer cannot be shown ({0}); use -o json, and the undermesh command of the agent's version"
    )]
    Answer(#[from] serde_json::Error),
    /// No YAML form.
    #[error("the answer has no YAML form ({0}); use -o json")]
    Yaml(#[from] serde_norway::Error),
    /// No pod is enrolled with this network namespace.
    #[error("no enrolled pod has the network namespace {0}; see 'undermesh list'")]
    NoSuchNetns(String),
    /// The system refused.
    #[error("{0}; check the terminal and the limits of this process")]
    System(#[from] io::Error),
}

/// Runs a verb.
///
/// # Errors
/// When the agent does not answer or refuses, or the answer cannot be shown.
pub fn run(verb: TalkVerb) -> Result<(), VerbError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let text = runtime.block_on(answer(verb))?;
    Ok(output::print(&text)?)
}

/// What the verb shows.
async fn answer(verb: TalkVerb) -> Result<String, VerbError> {
    match verb {
        TalkVerb::Enroll(arguments) => enroll(arguments).await,
        TalkVerb::Release(arguments) => release(arguments).await,
        TalkVerb::List(talk) => show(&talk, "/v1/pods", pods).await,
        TalkVerb::Status(talk) => show(&talk, "/v1/status", status).await,
        TalkVerb::Connections(talk) => show(&talk, "/v1/connections", connections).await,
        TalkVerb::Certificates(talk) => show(&talk, "/v1/certificates", certificates).await,
        TalkVerb::Config(ConfigVerb::Dump(talk)) => config(talk).await,
        TalkVerb::Log(arguments) => log(arguments).await,
    }
}

async fn show<T: DeserializeOwned>(
    talk: &Talk,
    target: &str,
    table: fn(T) -> String,
) -> Result<String, VerbError> {
    rendered(talk, Client::new(&talk.socket).get(target).await?, table)
}

fn rendered<T: DeserializeOwned>(
    talk: &Talk,
    answer: Value,
    table: fn(T) -> String,
) -> Result<String, VerbError> {
    Ok(match talk.output.unwrap_or(Form::Table) {
        Form::Table => table(serde_json::from_value(answer)?),
        Form::Json => output::json(&answer),
        Form::Yaml => output::yaml(&answer)?,
    })
}

async fn enroll(arguments: EnrollArgs) -> Result<String, VerbError> {
    let request = EnrollRequest {
        netns: std::path::absolute(&arguments.netns)?,
        namespace: arguments.namespace,
        name: arguments.name,
        service_account: arguments.service_account,
    };
    let body = Bytes::from(serde_json::to_vec(&request)?);
    let client = Client::new(&arguments.talk.socket);
    let answer = client
        .ask(Method::POST, "/v1/pods", body, Duration::ZERO)
        .await?;
    rendered(&arguments.talk, answer, |pod: Pod| pods(vec![pod]))
}

async fn release(arguments: ReleaseArgs) -> Result<String, VerbError> {
    let client = Client::new(&arguments.talk.socket);
    let (namespace, name) = match (arguments.netns, arguments.namespace, arguments.name) {
        (_, Some(namespace), Some(name)) => (namespace, name),
        (netns, ..) => pod_in(&client, &netns.unwrap_or_default()).await?,
    };
    let timeout = duration::written(arguments.timeout);
    let target = format!(
        "/v1/pods/{}/{}?timeout={timeout}",
        encoded(&namespace),
        encoded(&name)
    );
    let answer = client
        .ask(Method::DELETE, &target, Bytes::new(), arguments.timeout)
        .await?;
    rendered(&arguments.talk, answer, |pod: Pod| {
        format!("pod {}/{} released\n", pod.namespace, pod.name)
    })
}

/// Namespace and name of the pod enrolled with a network namespace, whichever path names it.
async fn pod_in(client: &Client, netns: &Path) -> Result<(String, String), VerbError> {
    let pods: Vec<Pod> = serde_json::from_value(client.get("/v1/pods").await?)?;
    let pod = pods
        .into_iter()
        .find(|pod| pod.netns == netns || same_file(&pod.netns, netns));
    pod.map(|pod| (pod.namespace, pod.name))
        .ok_or_else(|| VerbError::NoSuchNetns(netns.display().to_string()))
}

fn same_file(one: &Path, other: &Path) -> bool {
    let file = |path| {
        fs::metadata(path)
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .ok()
    };
    file(one).is_some_and(|one| file(other) == Some(one))
}

async fn config(talk: Talk) -> Result<String, VerbError> {
    let talk = Talk {
        output: talk.output.or(Some(Form::Json)),
        ..talk
    };
    show(&talk, "/v1/config", configuration).await
}

async fn log(arguments: LogArgs) -> Result<String, VerbError> {
    let client = Client::new(&arguments.talk.socket);
    let answer = match arguments.level {
        None => client.get("/v1/log").await?,
        Some(level) => {
            let target = format!("/v1/log?level={}", encoded(&level));
            client
                .ask(Method::POST, &target, Bytes::new(), Duration::ZERO)
                .await?
        }
    };
    rendered(&arguments.talk, answer, |log: LogLevel| {
        format!("{}\n", log.level)
    })
}

fn pods(pods: Vec<Pod>) -> String {
    let headers = [
        "NAMESPACE",
        "NAME",
        "SERVICE ACCOUNT",
        "STATE",
        "ADDRESSES",
        "CONNECTIONS",
        "NETNS",
    ];
    let mut table = Table::new(headers);
    for pod in pods {
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        table.row([
            pod.namespace,
            pod.name,
            pod.service_account,
            pod.state.as_str().to_owned(),
            or_none(Some(&addresses.join(","))),
            pod.connections.to_string(),
            pod.netns.display().to_string(),
        ]);
    }
    or_nothing(&table, "no pods are enrolled\n")
}

fn connections(connections: Vec<ConnectionView>) -> String {
    let headers = [
        "DIRECTION",
        "SOURCE",
        "DESTINATION",
        "ADDRESS",
        "SERVICE",
        "SECURITY",
        "SENT",
        "RECEIVED",
        "AGE",
    ];
    let mut table = Table::new(headers);
    for connection in connections {
        let security = match connection.security {
            Security::MutualTls => "mTLS",
            Security::Unknown => "none",
        };
        let direction = match connection.direction {
            undermesh_telemetry::Direction::InboundPlaintext => "inbound-plaintext",
            other => other.as_str(),
        };
        let destination = &connection.destination;
        let address = destination.hbone_address.clone();
        table.row([
            direction.to_owned(),
            party(&connection.source),
            party(destination),
            address.unwrap_or_else(|| destination.address.to_string()),
            or_none(destination.service.as_deref()),
            security.to_owned(),
            bytes(connection.bytes_sent),
            bytes(connection.bytes_received),
            duration::age(Duration::from_millis(connection.age_ms)),
        ]);
    }
    or_nothing(&table, "no connections are open\n")
}

/// A workload as `namespace/name`, or the bare address of something else.
fn party(peer: &PeerView) -> String {
    match (&peer.namespace, &peer.workload) {
        (Some(namespace), Some(workload)) => format!("{namespace}/{workload}"),
        _ => peer.address.ip().to_string(),
    }
}

fn certificates(certificates: Vec<CertificateRow>) -> String {
    let now = SystemTime::now();
    let mut table = Table::new([
        "IDENTITY",
        "STATE",
        "SERIAL",
        "EXPIRES IN",
        "RENEWED IN",
        "LAST ERROR",
    ]);
    for certificate in certificates {
        table.row([
            certificate.identity,
            certificate.state,
            or_none(certificate.serial.as_deref()),
            until(certificate.not_after.as_deref(), now),
            until(certificate.renewal.as_deref(), now),
            or_none(certificate.last_error.as_deref()),
        ]);
    }
    or_nothing(&table, "no identities are in use\n")
}

fn until(moment: Option<&str>, now: SystemTime) -> String {
    let moment = moment.and_then(|moment| OffsetDateTime::parse(moment, &Rfc3339).ok());
    match moment.map(|moment| SystemTime::from(moment).duration_since(now)) {
        None => or_none(None),
        Some(Ok(left)) => duration::age(left),
        Some(Err(_)) => "now".to_owned(),
    }
}

fn status(status: Status) -> String {
    let mut text = String::new();
    let ready = match &status.waiting_for[..] {
        [] => "yes".to_owned(),
        waiting => format!("no, waiting for {}", waiting.join(", ")),
    };
    let source = &status.source;
    let pods = &status.pods;
    let lines = [
        ("Version", status.version),
        ("Node", status.node),
        ("Ready", ready),
        (
            "Uptime",
            duration::age(Duration::from_millis(status.uptime_ms)),
        ),
        (
            "Kernel",
            format!(
                "{} ({})",
                status.kernel.release,
                or_none(Some(&status.kernel.hooks.join(", ")))
            ),
        ),
        (
            "Pods",
            format!(
                "{} active, {} pending, {} draining",
                pods.active, pods.pending, pods.draining
            ),
        ),
        ("Connections", status.connections.to_string()),
        (
            "Certificates",
            counted(
                status
                    .certificates
                    .iter()
                    .map(|(state, count)| (state, *count as u64)),
            ),
        ),
        (
            "Capture",
            counted(status.capture.iter().map(|(name, count)| (name, *count))),
        ),
        (
            "Configuration",
            format!("{}, generation {}", origin(source), source.generation),
        ),
        (
            "Objects",
            counted(
                source
                    .counts
                    .iter()
                    .map(|(kind, count)| (kind, *count as u64)),
            ),
        ),
        ("Source error", or_none(source.error.as_deref())),
        ("Findings", source.diagnostics.len().to_string()),
    ];
    for (name, value) in lines {
        text.push_str(&format!(
            "{:<16}{}\n",
            format!("{name}:"),
            output::one_line(&value)
        ));
    }
    for rejected in source.control_plane.iter().flat_map(|it| &it.rejected) {
        text.push_str(&format!("  rejected {}\n", output::one_line(rejected)));
    }
    for finding in &source.diagnostics {
        text.push_str(&format!(
            "  {} {}\n",
            finding.severity,
            output::one_line(&finding.text)
        ));
    }
    text
}

/// Where the configuration comes from, and how that is going.
fn origin(source: &Source) -> String {
    if let Some(directory) = &source.directory {
        return directory.display().to_string();
    }
    let Some(plane) = &source.control_plane else {
        return "-".to_owned();
    };
    let state = match (plane.connected, &plane.error) {
        (true, _) => "connected".to_owned(),
        (false, Some(error)) => format!("not connected: {error}"),
        (false, None) => "not connected".to_owned(),
    };
    let rejected = match plane.rejected.len() {
        0 => String::new(),
        count => format!(", {count} resources rejected"),
    };
    format!("{} ({state}){rejected}", plane.address)
}

fn counted<'a>(counts: impl Iterator<Item = (&'a String, u64)>) -> String {
    let counts: Vec<_> = counts
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    or_none(Some(&counts.join(", ")))
}

/// How many objects of each kind the configuration holds; the objects themselves are for JSON and YAML.
fn configuration(config: Value) -> String {
    let mut table = Table::new(["SECTION", "OBJECTS"]);
    for (section, objects) in config.as_object().into_iter().flatten() {
        if let Some(objects) = objects.as_array() {
            table.row([section.clone(), objects.len().to_string()]);
        }
    }
    table.render()
}

fn or_nothing(table: &Table, nothing: &str) -> String {
    if table.is_empty() {
        nothing.to_owned()
    } else {
        table.render()
    }
}

#[cfg(test)]
mod tests;

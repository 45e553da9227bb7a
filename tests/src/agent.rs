//! The agent of a node: its process, its command line, its log and its metrics.

use std::env;
use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::http::{self, Answer};
use crate::process::{Output, Running};
use crate::{Context, Error, Node, Pod, Result};

/// Names the agent's binary; without it, the one beside the calling executable is taken.
pub const BINARY_VARIABLE: &str = "UNDERMESH_BIN";

/// How long an agent may take to start, to stop, or to take a change of the configuration.
const AGENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two questions to an agent about its state, which it does not announce.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// Where the agent says that it is ready.
const READINESS_PORT: u16 = 15_021;

/// Where the agent shows its metrics.
const STATS_PORT: u16 = 15_020;

/// One line of the access log.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    fields: Value,
}

impl Access {
    fn parse(line: &str) -> Option<Self> {
        let fields: Value = serde_json::from_str(line).ok()?;
        fields.get("src.addr")?;
        Some(Self { fields })
    }

    /// The text of a field, such as `src.identity`; empty when it is absent.
    pub fn text(&self, field: &str) -> &str {
        self.fields[field].as_str().unwrap_or_default()
    }

    /// The number of a field, such as `bytes_sent`; 0 when it is absent.
    pub fn number(&self, field: &str) -> u64 {
        self.fields[field].as_u64().unwrap_or_default()
    }

    /// Whether the destination's side wrote the line.
    pub fn inbound(&self) -> bool {
        self.text("direction").starts_with("inbound")
    }

    /// Whether the line tells of a failure.
    pub fn failed(&self) -> bool {
        self.fields.get("error").is_some()
    }
}

impl Node {
    /// Starts the agent and waits until it is ready. `extra` are more arguments of its command line.
    ///
    /// # Errors
    /// When there is no binary, or the agent does not become ready.
    pub fn start_agent<A: AsRef<OsStr>>(&self, extra: impl IntoIterator<Item = A>) -> Result<()> {
        let folder = self.folder();
        let bed = folder.parent().unwrap_or(folder);
        let mut arguments: Vec<PathBuf> = ["node", "--standalone"].map(PathBuf::from).into();
        for (flag, value) in [
            ("--config", bed.join("config")),
            ("--ca-dir", bed.join("ca")),
        ] {
            arguments.extend([flag.into(), value]);
        }
        arguments.extend(extra.into_iter().map(|argument| argument.as_ref().into()));
        self.run_agent(arguments)
    }

    /// Starts an agent that a control plane drives, and waits until it is ready.
    ///
    /// # Errors
    /// When there is no binary, or the agent does not become ready.
    pub fn start_driven_agent(&self, arguments: &[&str]) -> Result<()> {
        let arguments = ["node"].iter().chain(arguments);
        self.run_agent(arguments.map(PathBuf::from).collect())
    }

    /// As [`Self::start_driven_agent`], without waiting for an agent that will not become ready.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn launch_driven_agent(&self, arguments: &[&str]) -> Result<()> {
        let arguments = ["node"].iter().chain(arguments);
        self.launch_agent(arguments.map(PathBuf::from).collect())
    }

    fn run_agent(&self, arguments: Vec<PathBuf>) -> Result<()> {
        self.launch_agent(arguments)?;
        self.wait_ready()
    }

    fn launch_agent(&self, mut arguments: Vec<PathBuf>) -> Result<()> {
        let folder = self.folder();
        for (flag, value) in [
            ("--log-format", "json".into()),
            ("--node-name", self.name().into()),
            ("--run-dir", folder.join("run")),
            ("--bpffs", self.bpffs().into()),
            ("--cgroup", self.pods().path().into()),
        ] {
            arguments.extend([flag.into(), value]);
        }
        let label = format!("agent of {}", self.name());
        let mut command = self.command(binary()?, arguments)?;
        command.env("RUST_BACKTRACE", "1");
        let agent = Running::start(&label, &mut command, self.log.clone())?;
        *self.agent_slot() = Some(agent);
        Ok(())
    }

    /// Kills the agent at once, as a crash would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_agent(&self) -> Result<()> {
        self.end_agent(Signal::SIGKILL)
    }

    /// Asks the agent to end, and waits until it has.
    ///
    /// # Errors
    /// When there is none, or it goes on.
    pub fn stop_agent(&self) -> Result<()> {
        self.end_agent(Signal::SIGTERM)
    }

    /// Whether an agent was started here and not ended.
    pub fn has_agent(&self) -> bool {
        self.agent_slot().is_some()
    }

    /// Runs the command line against this node's agent, in the node's own namespace.
    ///
    /// # Errors
    /// When it cannot be started; its own failure is in the output.
    pub fn cli<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Output> {
        let binary = binary()?;
        let mut all = vec![OsStr::new("--socket").to_owned(), self.socket().into()];
        all.splice(
            0..0,
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self.output(&binary.to_string_lossy(), all)
    }

    /// Runs the command line with `-o json` and reads its answer.
    ///
    /// # Errors
    /// When it fails or does not print JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.cli([arguments, &["-o", "json"]].concat())?.success()?;
        serde_json::from_str(&text).context(|| format!("read JSON from {arguments:?}: {text}"))
    }

    /// Enrolls a pod of this node.
    ///
    /// # Errors
    /// When the agent refuses.
    pub fn enroll(&self, pod: &Pod) -> Result<()> {
        self.try_enroll(pod, pod.netns().path())?
            .success()
            .map(drop)
    }

    /// Tries to enroll the namespace at `netns` under the name of `pod`.
    ///
    /// # Errors
    /// When the command line cannot be started; a refusal is in the output.
    pub fn try_enroll(&self, pod: &Pod, netns: &Path) -> Result<Output> {
        let spec = pod.spec();
        self.cli([
            "enroll",
            "--netns",
            &netns.to_string_lossy(),
            "--namespace",
            &spec.namespace,
            "--name",
            &spec.name,
            "--service-account",
            &spec.service_account,
        ])
    }

    /// Releases a pod of this node and waits for its drain, at most for `timeout`, such as `5s`.
    ///
    /// # Errors
    /// When the agent refuses.
    pub fn release(&self, pod: &Pod, timeout: &str) -> Result<()> {
        let spec = pod.spec();
        self.cli([
            "release",
            "--namespace",
            &spec.namespace,
            "--name",
            &spec.name,
            "--timeout",
            timeout,
        ])?
        .success()
        .map(drop)
    }

    /// The generation of the configuration that the agent serves.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn generation(&self) -> Result<u64> {
        let stream =
            UnixStream::connect(self.socket()).context(|| "connect to the agent's socket")?;
        let answer = http::get(stream, "/v1/status")?;
        let status: Value = serde_json::from_str(&answer.body)
            .context(|| format!("read the status: {}", answer.body))?;
        status["source"]["generation"]
            .as_u64()
            .context(|| format!("find the generation in the status: {status}"))
    }

    /// Waits until the agent serves a generation after `before`.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_generation_after(&self, before: u64) -> Result<()> {
        let wait = format!("wait until {} takes generation {}", self.name(), before + 1);
        poll(&wait, || Ok(self.generation()? > before))
    }

    /// The metrics as the agent shows them to Prometheus.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn metrics(&self) -> Result<String> {
        Ok(self.fetch(STATS_PORT, "/metrics")?.body)
    }

    /// The sum of the samples of `metric` that carry all `labels`, each such as `reporter="source"`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn metric(&self, metric: &str, labels: &[&str]) -> Result<f64> {
        Ok(http::sum_of_samples(&self.metrics()?, metric, labels))
    }

    /// A mark in the agent's log, to wait from.
    pub fn log_mark(&self) -> usize {
        self.log.mark()
    }

    /// The access-log lines since `mark`.
    pub fn accesses(&self, mark: usize) -> Vec<Access> {
        let lines = self.log.since(mark);
        lines
            .iter()
            .filter_map(|line| Access::parse(line))
            .collect()
    }

    /// Waits for an access-log line since `mark` that is `wanted`.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_access(
        &self,
        mark: usize,
        mut wanted: impl FnMut(&Access) -> bool,
    ) -> Result<Access> {
        self.log
            .wait_for(mark, AGENT_TIMEOUT, |line| {
                Access::parse(line).filter(|access| wanted(access))
            })
            .context(|| format!("wait for an access-log line of {}", self.name()))
    }

    /// Where the agent's local API is.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("run/api.sock")
    }

    pub(crate) fn agent_slot(&self) -> MutexGuard<'_, Option<Running>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_ready(&self) -> Result<()> {
        poll(&format!("wait until {} is ready", self.name()), || {
            let status = match &mut *self.agent_slot() {
                Some(agent) => agent.exited()?,
                None => None,
            };
            if let Some(status) = status {
                let words = self.log.since(0).join(" | ");
                return Err(Error::step("start the agent", format!("{status}: {words}")));
            }
            Ok(self
                .fetch(READINESS_PORT, "/healthz/ready")
                .is_ok_and(|answer| answer.status == 200))
        })
    }

    fn fetch(&self, port: u16, path: &str) -> Result<Answer> {
        let answer = self.run(|| http::get_local(port, path))?;
        answer.context(|| format!("ask the agent of {}", self.name()))
    }

    fn end_agent(&self, signal: Signal) -> Result<()> {
        let mut agent = self
            .agent_slot()
            .take()
            .context(|| format!("end the agent of {}", self.name()))?;
        agent.signal(signal)?;
        agent.wait(AGENT_TIMEOUT).map(drop)
    }
}

/// Asks until the answer is yes, at most for [`AGENT_TIMEOUT`].
///
/// # Errors
/// The question's own error, or that the answer stayed no.
pub fn poll(wait: &str, ask: impl FnMut() -> Result<bool>) -> Result<()> {
    poll_within(AGENT_TIMEOUT, wait, ask)
}

/// Asks until the answer is yes, at most for `limit`.
///
/// # Errors
/// The question's own error, or that the answer stayed no.
pub fn poll_within(
    limit: Duration,
    wait: &str,
    mut ask: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ask()? {
        if Instant::now() > deadline {
            return Err(Error::step(wait, format!("not within {limit:?}")));
        }
        thread::sleep(ASK_INTERVAL);
    }
    Ok(())
}

/// The agent's binary.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let executable = env::current_exe().context(|| "find the calling executable")?;
    executable
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("undermesh"))
        .find(|path| path.is_file())
        .context(|| {
            format!("find the agent; run `cargo build -p undermesh` or set {BINARY_VARIABLE}")
        })
}

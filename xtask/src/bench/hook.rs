//! A proxy that somebody else brings: a command that starts it and captures the pods of its column.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Deserialize;
use undermesh_tests::process::Running;
use undermesh_tests::{Error, Node, Pod, Result, Testbed};

use super::topology::{NONE, Nodes, Pods, UNDERMESH};

/// What a command of `--proxy` can rely on and must do. It is a part of `--help`.
pub const CONTRACT: &str = "\
Measuring another proxy: --proxy NAME=COMMAND

COMMAND is one program with its arguments, quoted as for sh. It is started once, as root, inside the
namespaces of the run. It has two nodes and three pods of its own, wired like those of undermesh, and
becomes one more column of the same rounds. It must
  1. start its proxies and let them capture the pods; it enters a network namespace by its path
     (nsenter --net=$UNDERMESH_BENCH_NODE_A_NETNS ...),
  2. print one line of JSON, {\"pids\": [...]}, with the processes whose CPU and memory count, for both nodes
     together; a command without processes of its own prints an empty list,
  3. print the line `ready` once traffic of the pods goes through the proxies,
  4. run on until SIGTERM, then end with all that it started. What it leaves is killed.

Its environment, with every variable's name after UNDERMESH_BENCH_:
  NODE_A_x, NODE_B_x   a node; x is NAME, NETNS (path), IPV4, IPV6 (on the fabric), CGROUP (path of the cgroup
                       above its pods), BPFFS (path of a BPF file system), FOLDER (scratch space)
  POD_CLIENT_x         the pod that makes the load, on node A
  POD_NEAR_x           a server pod on node A
  POD_FAR_x            a server pod on node B; x is NAMESPACE, NAME, SERVICE_ACCOUNT, UID, NODE (name), NETNS
                       (path), IPV4, IPV6, CGROUP (path), FOLDER (scratch space)
  MANIFESTS            a folder of manifests with the nodes, namespaces and pods of all columns
The servers listen on 8080 (HTTP) and 5201 (iperf3).";

/// How long a proxy may take to be ready.
const START_TIMEOUT: Duration = Duration::from_mins(2);

/// Pause between two looks at whether a starting proxy has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a proxy may take to end.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest name: it becomes a part of the names of nodes and namespaces.
const MAX_NAME: usize = 20;

/// Processes that a proxy may name.
const MAX_PROCESSES: usize = 64;

/// The name of a proxy and the command that starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookSpec {
    /// Its column in the result.
    pub name: String,
    command: String,
}

impl FromStr for HookSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .ok_or("give NAME=COMMAND, such as other=./start-other")?;
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
            return Err(format!(
                "the name {name:?} must be 1 to {MAX_NAME} lower-case letters and digits"
            ));
        }
        if name == NONE || name == UNDERMESH {
            return Err(format!("the name {name} is taken; choose another"));
        }
        if command.trim().is_empty() {
            return Err(format!("the command of {name} is empty"));
        }
        Ok(Self {
            name: name.to_owned(),
            command: command.to_owned(),
        })
    }
}

/// Refuses two proxies of one name.
///
/// # Errors
/// The name that came twice.
pub fn require_distinct(specs: &[HookSpec]) -> Result<()> {
    let mut names = BTreeSet::new();
    match specs.iter().find(|spec| !names.insert(&spec.name)) {
        None => Ok(()),
        Some(twice) => Err(Error::step(
            format!("add the proxy {}", twice.name),
            "there is one of that name already; choose another",
        )),
    }
}

/// A proxy that is ready.
#[derive(Debug)]
pub struct Hook {
    running: Running,
    processes: BTreeSet<u32>,
}

impl Hook {
    /// Starts the command of `spec` and waits until its proxy is ready.
    ///
    /// # Errors
    /// When it ends, or does not say in time what the contract asks for.
    pub fn start(bed: &Testbed, spec: &HookSpec, nodes: &Nodes, pods: &Pods) -> Result<Self> {
        let label = format!("proxy {}", spec.name);
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("exec {}", spec.command)])
            .envs(environment(bed, nodes, pods));
        let mut running = Running::start(&label, &mut command, bed.journal().open(&label))?;
        let processes = wait_line(&mut running, "{\"pids\": [...]}", parse_processes)??;
        wait_line(&mut running, "ready", |line| {
            (line.trim() == "ready").then_some(())
        })?;
        Ok(Self { running, processes })
    }

    /// The processes that count.
    pub fn processes(&self) -> &BTreeSet<u32> {
        &self.processes
    }

    /// Asks the command to end and waits until it has.
    ///
    /// # Errors
    /// When it goes on after `timeout`.
    pub fn stop(mut self, timeout: Duration) -> Result<()> {
        self.running.signal(Signal::SIGTERM)?;
        self.running.wait(timeout).map(drop)
    }
}

/// Waits for a line that `pick` takes, as long as the command runs.
fn wait_line<T>(
    running: &mut Running,
    wanted: &str,
    pick: impl Fn(&str) -> Option<T>,
) -> Result<T> {
    let lines = Arc::clone(running.lines());
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        // Looked up first, so that the last words of a command that has ended still count.
        let ended = running.exited()?;
        if let Some(found) = lines.wait_for(0, LOOK_INTERVAL, &pick) {
            return Ok(found);
        }
        let cause = match ended {
            Some(status) => format!("it ended with {status}"),
            None if Instant::now() > deadline => format!("not within {START_TIMEOUT:?}"),
            None => continue,
        };
        return Err(Error::step(
            format!("wait for the proxy's line `{wanted}`"),
            cause,
        ));
    }
}

/// Reads the line of process ids; any other line is none.
fn parse_processes(line: &str) -> Option<Result<BTreeSet<u32>>> {
    #[derive(Deserialize)]
    struct Line {
        pids: Vec<u32>,
    }
    let Line { pids } = serde_json::from_str(line).ok()?;
    if pids.len() > MAX_PROCESSES {
        return Some(Err(Error::step(
            "count the processes of a proxy",
            format!("it names {}, more than {MAX_PROCESSES}", pids.len()),
        )));
    }
    Some(Ok(pids.into_iter().collect()))
}

fn environment(bed: &Testbed, nodes: &Nodes, pods: &Pods) -> Vec<(String, String)> {
    let mut variables = vec![(
        "UNDERMESH_BENCH_MANIFESTS".to_owned(),
        text(bed.manifests().folder()),
    )];
    let mut add = |owner: &str, values: Vec<(&str, String)>| {
        variables.extend(
            values
                .into_iter()
                .map(|(name, value)| (format!("UNDERMESH_BENCH_{owner}_{name}"), value)),
        );
    };
    add("NODE_A", node_values(&nodes.a));
    add("NODE_B", node_values(&nodes.b));
    add("POD_CLIENT", pod_values(&pods.client));
    add("POD_NEAR", pod_values(&pods.near));
    add("POD_FAR", pod_values(&pods.far));
    variables
}

fn node_values(node: &Node) -> Vec<(&'static str, String)> {
    vec![
        ("NAME", node.name().to_owned()),
        ("NETNS", text(node.netns().path())),
        ("IPV4", node.addresses().v4.to_string()),
        ("IPV6", node.addresses().v6.to_string()),
        ("CGROUP", text(node.pods().path())),
        ("BPFFS", text(node.bpffs())),
        ("FOLDER", text(node.folder())),
    ]
}

fn pod_values(pod: &Pod) -> Vec<(&'static str, String)> {
    let spec = pod.spec();
    vec![
        ("NAMESPACE", spec.namespace.clone()),
        ("NAME", spec.name.clone()),
        ("SERVICE_ACCOUNT", spec.service_account.clone()),
        ("UID", uid(pod)),
        ("NODE", pod.node().to_owned()),
        ("NETNS", text(pod.netns().path())),
        ("IPV4", pod.addresses().v4.to_string()),
        ("IPV6", pod.addresses().v6.to_string()),
        ("CGROUP", text(pod.cgroup().path())),
        ("FOLDER", text(pod.folder())),
    ]
}

/// An id in the form of a UUID that no other pod of the run has: it ends with the pod's address.
fn uid(pod: &Pod) -> String {
    let address = pod.addresses().v4.to_bits();
    format!("00000000-0000-4000-8000-{address:012x}")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_given_as_name_and_command() {
        let spec: HookSpec = "other=./start --mode=fast".parse().unwrap();
        assert_eq!(spec.name, "other");
        assert_eq!(spec.command, "./start --mode=fast");
    }

    #[test]
    fn a_name_that_is_taken_or_not_plain_is_refused() {
        for text in [
            "none=x",
            "undermesh=x",
            "Other=x",
            "a/b=x",
            "=x",
            "other",
            "other= ",
        ] {
            assert!(text.parse::<HookSpec>().is_err(), "{text}");
        }
        let spec: HookSpec = "other=x".parse().unwrap();
        assert!(require_distinct(&[spec.clone(), spec]).is_err());
    }

    #[test]
    fn the_line_of_processes_is_found_among_others() {
        assert!(parse_processes("starting").is_none());
        assert!(parse_processes(r#"{"level": "info"}"#).is_none());
        let found = parse_processes(r#"{"pids": [7, 9, 7]}"#).unwrap().unwrap();
        assert_eq!(found, BTreeSet::from([7, 9]));
        let many = format!(r#"{{"pids": {:?}}}"#, vec![1; MAX_PROCESSES + 1]);
        assert!(parse_processes(&many).unwrap().is_err());
    }
}

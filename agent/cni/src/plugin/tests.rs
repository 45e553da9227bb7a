//! Calls of the plugin as a container runtime makes them, against an agent of the test.
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::*;
use crate::wire::Sandbox;

const POD: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;\
                   K8S_POD_INFRA_CONTAINER_ID=c0;K8S_POD_UID=u-1";
/// Not in the order of its keys, and with spaces: an unchanged result keeps both.
const PREVIOUS: &str = r#"{ "ips": [{"interface": 2, "address": "10.88.0.2/16"}], "cniVersion": "1.0.0", "routes": [ ] }"#;

fn config(socket: &Path, more: Value) -> String {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": NAME, "socket": socket, "timeoutMs": 5000,
        "runtimeConfig": {"portMappings": []},
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    let config = config.to_string();
    format!(
        "{},\"prevResult\":{PREVIOUS}}}",
        &config[..config.len() - 1]
    )
}

fn environment<'a>(command: &'a str, arguments: &'a str) -> impl Fn(&str) -> Option<String> + 'a {
    move |name| {
        let value = match name {
            "CNI_COMMAND" => command,
            "CNI_ARGS" => arguments,
            "CNI_NETNS" => "/run/netns/cni-1",
            "CNI_CONTAINERID" => "c0",
            "CNI_IFNAME" => "eth0",
            _ => return None,
        };
        Some(value.to_owned())
    }
}

/// An agent that gives one answer and returns what it was asked.
fn agent(socket: &Path, answer: &'static str) -> JoinHandle<(String, Sandbox)> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(&stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line == "\r\n" {
                break;
            }
            head.push(line);
        }
        let length = head
            .iter()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.unwrap().trim().parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        (&stream).write_all(answer.as_bytes()).unwrap();
        let path = head[0].split(' ').nth(1).unwrap().to_owned();
        (path, serde_json::from_slice(&body).unwrap())
    })
}

const ENROLLED: &str = "HTTP/1.1 200 OK\r\n\r\n{\"outcome\":\"enrolled\"}";

#[test]
fn a_captured_pod_starts_with_the_result_of_the_plugins_before() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    let agent = agent(&socket, ENROLLED);
    let config = config(&socket, json!({}));
    let answer = run(environment("ADD", POD), config.as_bytes()).unwrap();
    assert_eq!(answer, PREVIOUS);
    let (path, sandbox) = agent.join().unwrap();
    assert_eq!(path, "/v1/add");
    assert_eq!((&*sandbox.namespace, &*sandbox.name), ("shop", "web-0"));
    assert_eq!(sandbox.uid.as_deref(), Some("u-1"));
    assert_eq!(
        sandbox.netns.as_deref(),
        Some(Path::new("/run/netns/cni-1"))
    );
    assert_eq!(
        sandbox.addresses,
        ["10.88.0.2".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn a_pod_that_cannot_be_captured_is_tried_again_later() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    let answer = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\":\"no certificate\"}";
    let _agent = agent(&socket, answer);
    // Even where pods are admitted while the agent is away: this agent is there.
    let config = config(&socket, json!({"whenAgentIsAway": "admit"}));
    let failure = run(environment("ADD", POD), config.as_bytes()).unwrap_err();
    assert_eq!(failure.code, Code::TryAgainLater);
    let json: Value = serde_json::from_str(&failure.to_json("1.0.0")).unwrap();
    assert_eq!(json["cniVersion"], "1.0.0");
    assert_eq!(json["code"], 11);
    assert_eq!(json["msg"], "the mesh's agent cannot take in shop/web-0");
    assert_eq!(json["details"], "no certificate");
}

#[test]
fn without_an_agent_pods_wait_or_start_as_configured() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    for (command, more, starts) in [
        ("ADD", json!({}), false),
        ("ADD", json!({"whenAgentIsAway": "refuse"}), false),
        ("ADD", json!({"whenAgentIsAway": "admit"}), true),
        ("ADD", json!({"excludeNamespaces": ["shop"]}), true),
        ("ADD", json!({"excludeNamespaces": ["kube-system"]}), false),
        ("CHECK", json!({}), true),
        ("DEL", json!({}), true),
        ("GC", json!({"cniVersion": "1.1.0"}), true),
        ("STATUS", json!({"cniVersion": "1.1.0"}), true),
    ] {
        let config = config(&socket, more.clone());
        let result = run(environment(command, POD), config.as_bytes());
        assert_eq!(result.is_ok(), starts, "{command} {more}: {result:?}");
        let printed = if command == "ADD" { PREVIOUS } else { "" };
        assert_eq!(result.unwrap_or(printed.to_owned()), printed, "{command}");
    }
}

#[test]
fn a_silent_agent_is_not_waited_for_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let config = config(&socket, json!({"timeoutMs": 50}));
    let start = Instant::now();
    let failure = run(environment("ADD", POD), config.as_bytes()).unwrap_err();
    assert!(failure.to_string().contains("too long"), "{failure}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(run(environment("DEL", POD), config.as_bytes()).unwrap(), "");
}

#[test]
fn containers_that_kubernetes_does_not_know_pass() {
    let config = config(Path::new("/nonexistent/cni.sock"), json!({}));
    for arguments in ["", "IgnoreUnknown=1", "K8S_POD_NAME=web-0", "a;=;b=c"] {
        let answer = run(environment("ADD", arguments), config.as_bytes()).unwrap();
        assert_eq!(answer, PREVIOUS, "{arguments}");
    }
}

#[test]
fn mistakes_are_told_by_the_codes_of_the_specification() {
    let config = config(Path::new("/nonexistent/cni.sock"), json!({}));
    let code = |variable: &dyn Fn(&str) -> Option<String>, text: &str| {
        run(variable, text.as_bytes()).unwrap_err().code
    };
    let add = environment("ADD", POD);
    assert_eq!(code(&|_| None, &config), Code::InvalidEnvironment);
    assert_eq!(
        code(&environment("JUMP", POD), &config),
        Code::InvalidEnvironment
    );
    let no_netns = |name: &str| add(name).filter(|_| name != "CNI_NETNS");
    assert_eq!(code(&no_netns, &config), Code::InvalidEnvironment);
    assert_eq!(code(&add, "{"), Code::Undecodable);
    assert_eq!(code(&add, r#"{"cniVersion":"1.0.0"}"#), Code::InvalidConfig);
    let old = config.replace(r#""cniVersion":"1.0.0""#, r#""cniVersion":"0.2.0""#);
    assert_eq!(code(&add, &old), Code::IncompatibleVersion);
    let relative = config.replace("/nonexistent/", "");
    assert_eq!(code(&add, &relative), Code::InvalidConfig);
}

#[test]
fn a_pod_can_be_taken_down_whatever_the_configuration_lacks() {
    for config in [
        r#"{"socket":"/nonexistent/cni.sock"}"#,
        r#"{"timeoutMs":"long"}"#,
        "{",
    ] {
        let answer = run(environment("DEL", POD), config.as_bytes());
        assert_eq!(answer.unwrap(), "", "{config}");
    }
}

#[test]
fn versions_are_told() {
    let answer = run(environment("VERSION", ""), br#"{"cniVersion":"1.1.0"}"#).unwrap();
    let expected = json!({
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    });
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap(), expected);
}

#[test]
fn the_name_of_the_program_makes_it_the_plugin() {
    assert!(is_called_by(OsStr::new("/opt/cni/bin/undermesh-cni")));
    assert!(is_called_by(OsStr::new("undermesh-cni")));
    assert!(!is_called_by(OsStr::new("/usr/bin/undermesh")));
}

#[test]
fn errors_go_to_standard_output_in_the_version_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let mut output = fs::File::create(&path).unwrap();
    let failure = Failure::new(Code::Io, "a", "b");
    let code = report(Err(failure), br#"{"cniVersion":"0.4.0"}"#, &mut output);
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
    let printed: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(printed["cniVersion"], "0.4.0");
}

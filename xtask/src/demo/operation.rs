//! The acts about operation: what can be seen from outside, and what happens without an agent.

use std::fs::File;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use undermesh_tests::agent::poll;
use undermesh_tests::apps::{NGINX_PORT, REDIS_PORT};
use undermesh_tests::process::Running;
use undermesh_tests::{Context, Error, Family, Pod, Result, tcp};

use super::narrator::columns;
use super::stage::{Scene, command_line};
use super::traffic::TUNNEL_PORT;

/// The file that is fetched slowly, so that its connection can be watched.
const CATALOGUE: (&str, u64) = ("catalogue", 256 << 20);

/// What is said while the agent is down.
const SECRET: &str = "nobody-may-read-this";

/// A refusal within this time is one at once: nobody waited for a timeout.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Act 7: connections, state and metrics.
///
/// # Errors
/// When a claim does not hold.
pub fn observed(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    narrator.step(7, "What runs can be seen: connections, state, metrics.");
    let redis = town.redis().to_string();
    let count = ["redis-cli", "-h", &redis, "INCR", "orders"];
    let answer = scene.run_in(&town.cart, &count)?.success()?;
    narrator.shown(&answer);
    narrator.proof(answer == "1", "redis has answered cart through the mesh.")?;
    let _long = [slow_fetch(scene)?, subscription(scene, &redis)?];
    show_connections(scene)?;
    narrator.typed("node-a", "undermesh status");
    let status = town.node_a.cli(["status"])?.success()?;
    narrator.shown(&status);
    let ready = status
        .lines()
        .any(|line| line.split_ascii_whitespace().eq(["Ready:", "yes"]));
    narrator.proof(ready, "node-a says that it is ready.")?;
    show_metrics(scene)
}

fn slow_fetch(scene: &Scene<'_>) -> Result<Running> {
    let (name, size) = CATALOGUE;
    let file = scene.town.web_b.folder().join("nginx").join(name);
    File::create(&file)
        .and_then(|file| file.set_len(size))
        .context(|| format!("make {}", file.display()))?;
    let url = format!(
        "http://{}:{NGINX_PORT}/{name}",
        scene.town.web_b.ip(Family::V4)
    );
    background(
        scene,
        &["curl", "-sS", "--limit-rate", "8M", "-o", "/dev/null", &url],
    )
}

fn subscription(scene: &Scene<'_>, redis: &str) -> Result<Running> {
    background(scene, &["redis-cli", "-h", redis, "SUBSCRIBE", "orders"])
}

fn background(scene: &Scene<'_>, words: &[&str]) -> Result<Running> {
    let cart = &scene.town.cart;
    scene
        .narrator
        .typed("cart", format!("{} &", command_line(words)));
    let (program, arguments) = words.split_first().context(|| "find the program to run")?;
    cart.spawn(program, arguments)
}

fn show_connections(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    let node = &town.node_a;
    let carries = |workload: &str| -> Result<bool> {
        let connections = node.json(&["connections"])?;
        Ok(connections
            .as_array()
            .into_iter()
            .flatten()
            .any(|connection| {
                connection["destination"]["workload"] == workload
                    && connection["security"] == "mutual_tls"
                    && connection["bytesReceived"].as_u64() > Some(0)
            }))
    };
    for pod in [&town.web_b, &town.redis] {
        let name = &pod.spec().name;
        poll(&format!("wait until bytes came from {name}"), || {
            carries(name)
        })?;
    }
    narrator.typed(node.name(), "undermesh connections");
    let table = node.cli(["connections"])?.success()?;
    narrator.shown(&columns(
        &table,
        &[
            "DIRECTION",
            "SOURCE",
            "DESTINATION",
            "ADDRESS",
            "SECURITY",
            "SENT",
            "RECEIVED",
            "AGE",
        ],
    ));
    narrator.proof(
        carries("web-b")? && carries("redis")?,
        "both transfers are in the table, under mutual TLS, and bytes have come back.",
    )
}

fn show_metrics(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    narrator.typed("node-b", "curl -s http://127.0.0.1:15020/metrics");
    let metrics = town.node_b.metrics()?;
    let labels = [
        "source_workload",
        "destination_workload",
        "response_flags",
        "connection_security_policy",
    ];
    for line in metrics.lines().filter(|line| {
        line.starts_with("istio_tcp_connections_opened_total{")
            && line.contains("destination_workload=\"web-b\"")
            || line.starts_with("istio_tcp_connections_failed_total{")
    }) {
        narrator.shown(&sample(line, &labels));
    }
    let opened = town.node_b.metric(
        "istio_tcp_connections_opened_total",
        &[
            "source_workload=\"cart\"",
            "destination_workload=\"web-b\"",
            "connection_security_policy=\"mutual_tls\"",
        ],
    )?;
    narrator.proof(
        opened >= 1.0,
        format!("Istio's metrics, with four of their labels: {opened} connections from cart to web-b under mutual TLS."),
    )
}

/// A line of metrics with only some of its labels.
fn sample(line: &str, labels: &[&str]) -> String {
    let (name, rest) = line.split_once('{').unwrap_or((line, ""));
    let (all, value) = rest.rsplit_once('}').unwrap_or((rest, ""));
    let kept: Vec<&str> = all
        .split(',')
        .filter(|label| {
            labels
                .iter()
                .any(|name| label.split('=').next() == Some(name))
        })
        .collect();
    format!("{name}{{{}}}{value}", kept.join(","))
}

/// Act 8: without its agent a pod is cut off; it is never left unprotected.
///
/// # Errors
/// When a claim does not hold.
pub fn killed(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    let web = town.web(Family::V4);
    let url = format!("http://{web}/echo/{SECRET}");
    let words = ["curl", "-sS", "--max-time", "10", &url];
    narrator.step(
        8,
        "Without its agent a pod fails closed. With a new agent it works again.",
    );
    let capture = scene.bed.capture_fabric()?;
    narrator.typed("node-a", "kill -9 <the agent>");
    town.node_a.kill_agent()?;
    let start = Instant::now();
    let refused = scene.run_in(&town.cart, &words)?;
    let taken = start.elapsed();
    narrator.shown(&refused.stderr);
    narrator.proof(
        !refused.status.success() && taken < AT_ONCE,
        format!(
            "connect() was refused at once: curl took {} ms.",
            taken.as_millis()
        ),
    )?;
    for target in [
        web,
        SocketAddr::new(town.web_b.ip(Family::V4), NGINX_PORT),
        SocketAddr::new(town.redis.ip(Family::V4), REDIS_PORT),
    ] {
        require_refused(&town.cart, target)?;
    }
    let recording = capture.finish()?;
    let clear = recording
        .segments()
        .iter()
        .filter(|segment| {
            ![segment.source.port(), segment.destination.port()].contains(&TUNNEL_PORT)
        })
        .count();
    narrator.proof(
        !recording.contains(SECRET) && clear == 0,
        format!("cart also tried the pods' own addresses. tcpdump saw {clear} TCP packets outside port {TUNNEL_PORT} on the fabric."),
    )?;
    restart(scene, &words)
}

fn require_refused(pod: &Pod, target: SocketAddr) -> Result<()> {
    match pod.run(|| tcp::ask(target, SECRET.as_bytes()))? {
        Err(_) => Ok(()),
        Ok(answer) => Err(Error::step(
            format!("require that {target} refuses without an agent"),
            format!("it took the connection and sent {} bytes", answer.len()),
        )),
    }
}

fn restart(scene: &Scene<'_>, words: &[&str]) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    narrator.typed("node-a", "undermesh node --standalone --config ... &");
    let start = Instant::now();
    town.node_a.start_agent::<&str>([])?;
    let ready = start.elapsed();
    let answer = scene.run_in(&town.cart, words)?.success()?;
    narrator.shown(&answer);
    narrator.proof(
        answer == format!("/echo/{SECRET}"),
        format!(
            "a new agent was ready after {} ms; it found its pods again, and cart works.",
            ready.as_millis()
        ),
    )
}

//! The acts about operation: what can be seen from outside, and what happens without an agent.

use std::fs::File;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use undermesh_tests::agent::poll;
use undermesh_tests::apps::{NGINX_PORT, REDIS_PORT};
use undermesh_tests::pcap::Segment;
use undermesh_tests::process::Running;
use undermesh_tests::{Context, Error, Family, Pod, Result, tcp};

use super::narrator::columns;
use super::remains::threads;
use super::stage::{Scene, command_line};
use super::traffic::TUNNEL_PORT;

/// The file that is fetched slowly, so that its connection can be watched.
const CATALOGUE: (&str, u64) = ("catalogue", 256 << 20);

/// The metrics that are shown, and the labels that tell them from others of the name.
const METRICS: [(&str, [&str; 3]); 2] = [
    (
        "istio_tcp_connections_opened_total",
        [
            "source_workload=\"cart\"",
            "destination_service_name=\"web\"",
            "connection_security_policy=\"mutual_tls\"",
        ],
    ),
    (
        "istio_tcp_connections_failed_total",
        [
            "source_workload=\"guest\"",
            "destination_workload=\"web-b\"",
            "response_flags=\"DENY\"",
        ],
    ),
];

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
        "both connections are in the table, under mutual TLS, and bytes have come back.",
    )
}

fn show_metrics(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    let node = &town.node_b;
    narrator.say("The metrics have Istio's names and labels. Two of them, with three labels each:");
    let fetch = ["curl", "-sS", "http://127.0.0.1:15020/metrics"];
    let metrics = scene.run(node.name(), node, &fetch)?.success()?;
    let mut counts = Vec::new();
    for (name, labels) in METRICS {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
            .context(|| format!("find {name} with {}", labels.join(" ")))?;
        narrator.shown(&sample(line, &labels));
        let count = line.rsplit(' ').next().unwrap_or_default();
        counts.push(count.parse::<f64>().context(|| format!("read {line}"))?);
    }
    narrator.proof(
        counts.iter().all(|count| *count >= 1.0),
        "node-b has counted cart's connections to the service, and guest's refused one.",
    )
}

/// A line of metrics with only some of its labels.
fn sample(line: &str, labels: &[&str]) -> String {
    let (name, rest) = line.split_once('{').unwrap_or((line, ""));
    let (_, value) = rest.rsplit_once('}').unwrap_or((rest, ""));
    format!("{name}{{{}}}{value}", labels.join(", "))
}

/// Act 8: without its agent a pod is cut off; it is never left unprotected.
///
/// # Errors
/// When a claim does not hold.
pub fn killed(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    let web = town.web(Family::V4);
    let url = format!("http://{}/echo/{SECRET}", web.ip());
    let words = ["curl", "-sS", "--max-time", "10", &url];
    narrator.step(
        8,
        "Without its agent a pod fails closed. With a new agent it works again.",
    );
    let capture = scene.bed.capture_fabric()?;
    let agent = threads(town.node_a.cgroup().path());
    let agent = agent.first().context(|| "find the agent of node-a")?;
    narrator.typed("node-a", format!("kill -9 {agent}"));
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
    let outside = |segment: &&Segment| {
        ![segment.source.port(), segment.destination.port()].contains(&TUNNEL_PORT)
    };
    let clear = recording.segments().iter().filter(outside).count();
    narrator.proof(
        !recording.contains(SECRET) && clear == 0,
        format!(
            "cart also tried the addresses of web-b and redis themselves, and was refused. tcpdump \
             saw {} TCP packets on the fabric meanwhile, {clear} of them outside port {TUNNEL_PORT}.",
            recording.segments().len()
        ),
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
    let node = &town.node_a;
    narrator.typed(node.name(), "undermesh node --standalone --config ... &");
    let start = Instant::now();
    node.start_agent::<&str>([])?;
    let ready = start.elapsed();
    let listed = node.json(&["list"])?;
    let found = listed.as_array().map_or(0, Vec::len);
    narrator.proof(
        found == town.nodes()[0].1.len(),
        format!(
            "the new agent was ready after {} ms and has found its {found} pods again.",
            ready.as_millis()
        ),
    )?;
    let answer = scene.run_in(&town.cart, words)?.success()?;
    narrator.shown(&answer);
    narrator.proof(answer == format!("/echo/{SECRET}"), "cart calls web again.")
}

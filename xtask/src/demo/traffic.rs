//! The acts about traffic: who is in the mesh, what is captured, what goes over the fabric, and under
//! which identities.

use std::collections::BTreeMap;

use undermesh_tests::agent::{Access, poll};
use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::capture::Recording;
use undermesh_tests::{Context, Family, Pod, Result};

use super::narrator::{columns, hex};
use super::stage::Scene;
use super::town::programs;

/// The port of the tunnel (HBONE).
pub const TUNNEL_PORT: u16 = 15_008;

/// The word that nobody on the fabric may read.
const WORD: &str = "swordfish";

/// Requests after which both pods of a service must have answered.
const MAX_REQUESTS: usize = 100;

/// The first bytes of a TLS 1.3 record that carries data (RFC 8446, 5.2).
const TLS_DATA: [u8; 3] = [0x17, 0x03, 0x03];

/// One connection between the nodes, as both of their logs tell of it.
#[derive(Debug)]
pub struct Crossing {
    sent: Access,
    received: Access,
}

/// Act 1: the pods are enrolled, and nothing was put into them.
///
/// # Errors
/// When a claim does not hold.
pub fn enrolled(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    narrator.step(
        1,
        "Two nodes run one agent each. Five pods are in the mesh.",
    );
    narrator.say(
        "Each node and each pod is a network namespace of its own; a bridge joins the nodes. The \
         service web has a pod on both nodes. Wide tables and log lines are cut to the columns and \
         fields that matter here.",
    );
    for (node, pods) in town.nodes() {
        narrator.typed(node.name(), "undermesh list");
        let table = node.cli(["list"])?.success()?;
        narrator.shown(&columns(
            &table,
            &["NAMESPACE", "NAME", "SERVICE ACCOUNT", "STATE"],
        ));
        let listed = node.json(&["list"])?;
        let active = listed
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["state"] == "active")
            .count();
        narrator.proof(
            active == pods.len(),
            format!(
                "active pods of {}: {active} of {}.",
                node.name(),
                pods.len()
            ),
        )?;
    }
    for (pod, program) in [(&town.cart, "sleep"), (&town.web_b, "nginx")] {
        let found = programs(pod);
        narrator.proof(
            found == [program],
            format!(
                "the pod {} runs {} and nothing else: no sidecar.",
                pod.spec().name,
                found.join(", ")
            ),
        )?;
    }
    Ok(())
}

/// Act 2: a connection to a service is captured and carried to one of its pods.
///
/// # Errors
/// When a claim does not hold.
pub fn captured(scene: &Scene<'_>) -> Result<Crossing> {
    let Scene { narrator, town, .. } = scene;
    let web = town.web(Family::V4);
    narrator.step(
        2,
        "cart calls the service web. The kernel hands the connection to the agent.",
    );
    let url = format!("http://{}/name", web.ip());
    let words = ["curl", "-sS", "-w", " (%{remote_ip}:%{remote_port})", &url];
    let answer = scene.run_in(&town.cart, &words)?.success()?;
    narrator.shown(&answer);
    narrator.proof(
        answer.ends_with(&format!("({web})")),
        format!(
            "web answered, and the address of the peer that curl was told (getpeername) is the one \
             it asked for, {web}."
        ),
    )?;
    let crossing = spread(scene, &url)?;
    show_crossing(scene, &crossing)?;
    let web6 = town.web(Family::V6);
    let answer = scene
        .run_in(&town.cart, &["curl", "-sS", &format!("http://{web6}/peer")])?
        .success()?;
    narrator.shown(&answer);
    narrator.proof(
        answer == town.cart.ip(Family::V6).to_string(),
        "the same over IPv6; nginx was asked whom it sees, and that is cart's own address.",
    )?;
    Ok(crossing)
}

/// Asks until both pods of the service have answered; returns a connection that went to the far one.
fn spread(scene: &Scene<'_>, url: &str) -> Result<Crossing> {
    let Scene { narrator, town, .. } = scene;
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut crossing = None;
    let mut requests = 0;
    while (answers.len() < 2 || crossing.is_none()) && requests < MAX_REQUESTS {
        let marks = (town.node_a.log_mark(), town.node_b.log_mark());
        let answer = scene
            .quietly(&town.cart, &["curl", "-sS", url])?
            .success()?;
        if answer == town.web_b.spec().name {
            crossing = Some(Crossing {
                sent: town
                    .node_a
                    .wait_access(marks.0, |line| line.text("dst.workload") == answer)?,
                received: town.node_b.wait_access(marks.1, Access::inbound)?,
            });
        }
        *answers.entry(answer).or_default() += 1;
        requests += 1;
    }
    let tally: Vec<String> = answers
        .iter()
        .map(|(pod, count)| format!("{pod} {count}"))
        .collect();
    narrator.proof(
        answers.len() == 2,
        format!(
            "{requests} more requests, and both pods of the service have answered: {}.",
            tally.join(", ")
        ),
    )?;
    crossing.context(|| "find a connection from node-a to node-b")
}

fn show_crossing(scene: &Scene<'_>, crossing: &Crossing) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    let Crossing { sent, received } = crossing;
    narrator.say("One of these connections went to web-b. Both nodes have logged it:");
    let names = [
        "direction",
        "src.workload",
        "src.addr",
        "dst.workload",
        "dst.addr",
        "dst.hbone_addr",
    ];
    for (node, line) in [(&town.node_a, sent), (&town.node_b, received)] {
        narrator.shown(&format!("{}: {}", node.name(), fields(line, &names)));
    }
    let tunnel = format!("{}:{TUNNEL_PORT}", town.web_b.ip(Family::V4));
    let server = format!("{}:{NGINX_PORT}", town.web_b.ip(Family::V4));
    narrator.proof(
        [sent, received]
            .iter()
            .all(|line| (line.text("dst.addr"), line.text("dst.hbone_addr")) == (&tunnel, &server)),
        format!(
            "curl asked for {}; the bytes went to {tunnel}, the tunnel's port on web-b, and from \
             there to {server}, its nginx.",
            town.web(Family::V4)
        ),
    )
}

/// Some fields of an access-log line, as its text form has them.
pub fn fields(line: &Access, names: &[&str]) -> String {
    let pairs: Vec<String> = names
        .iter()
        .map(|name| format!("{name}={}", line.text(name)))
        .collect();
    pairs.join(" ")
}

/// Act 3: on the fabric there is only ciphertext.
///
/// # Errors
/// When a claim does not hold.
pub fn encrypted(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    narrator.step(3, "Between the nodes there is only ciphertext.");
    narrator.say(format!(
        "tcpdump records the fabric while cart asks web-b for a path with the word {WORD} in it."
    ));
    let meshed = record(scene, &town.cart, &town.web_b)?;
    let bytes = meshed.payload_of_port(TUNNEL_PORT);
    narrator.proof(
        !meshed.contains(WORD) && bytes > 0 && meshed.payload_of_port(NGINX_PORT) == 0,
        format!(
            "{WORD} is in no packet. {bytes} bytes went over port {TUNNEL_PORT} and none over port \
             {NGINX_PORT}."
        ),
    )?;
    let packet = largest(&meshed, TUNNEL_PORT, &TLS_DATA).context(|| "find a TLS record")?;
    narrator.shown(&hex(&packet, 2));
    narrator.proof(
        packet.len() > TLS_DATA.len(),
        format!(
            "this packet of {} bytes begins with 17 03 03: a TLS record of encrypted data.",
            packet.len()
        ),
    )?;
    narrator.say("The same between two pods that are not enrolled, for contrast:");
    let plain = record(scene, &town.old_cart, &town.old_web)?;
    let bytes = plain.payload_of_port(NGINX_PORT);
    let request = largest(&plain, NGINX_PORT, b"GET ").context(|| "find the request")?;
    narrator.shown(&hex(&request, 2));
    narrator.proof(
        plain.contains(WORD) && plain.payload_of_port(TUNNEL_PORT) == 0,
        format!(
            "here anyone can read {WORD}. {bytes} bytes went over port {NGINX_PORT}, in the clear."
        ),
    )
}

/// Records the fabric while `client` asks `server` for the word, and gets it.
fn record(scene: &Scene<'_>, client: &Pod, server: &Pod) -> Result<Recording> {
    let capture = scene.bed.capture_fabric()?;
    let path = format!("/echo/{WORD}");
    let url = format!("http://{}:{NGINX_PORT}{path}", server.ip(Family::V4));
    let answer = scene.run_in(client, &["curl", "-sS", &url])?.success()?;
    scene.narrator.shown(&answer);
    scene.narrator.proof(
        answer == path,
        format!("{} has answered with the path.", server.spec().name),
    )?;
    capture.finish()
}

/// The largest packet to or from a port whose payload begins with `start`.
fn largest(recording: &Recording, port: u16, start: &[u8]) -> Option<Vec<u8>> {
    recording
        .segments()
        .iter()
        .filter(|segment| [segment.source.port(), segment.destination.port()].contains(&port))
        .map(|segment| segment.payload.clone())
        .filter(|payload| payload.starts_with(start))
        .max_by_key(Vec::len)
}

/// Act 4: both ends have proved who they are.
///
/// # Errors
/// When a claim does not hold.
pub fn identified(scene: &Scene<'_>, crossing: &Crossing) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    narrator.step(
        4,
        "Both ends prove who they are, with a certificate for their service account.",
    );
    narrator.say("The connection of step 2 once more, with the identities that both nodes logged:");
    let wanted = (town.cart.spec().identity(), town.web_b.spec().identity());
    let names = ["src.identity", "dst.identity"];
    for (node, line) in [
        (&town.node_a, &crossing.sent),
        (&town.node_b, &crossing.received),
    ] {
        narrator.shown(&format!("{}: {}", node.name(), fields(line, &names)));
    }
    narrator.proof(
        [&crossing.sent, &crossing.received]
            .iter()
            .all(|line| (line.text(names[0]), line.text(names[1])) == (&wanted.0, &wanted.1)),
        "both nodes agree, and these are the service accounts of cart and web-b.",
    )?;
    for (node, pods) in town.nodes() {
        narrator.typed(node.name(), "undermesh certificates");
        poll("wait for the certificates", || {
            let certificates = node.json(&["certificates"])?.to_string();
            Ok(pods
                .iter()
                .all(|pod| certificates.contains(&pod.spec().identity())))
        })?;
        let table = node.cli(["certificates"])?.success()?;
        narrator.shown(&columns(
            &table,
            &["IDENTITY", "STATE", "EXPIRES IN", "RENEWED IN"],
        ));
        let own = pods
            .iter()
            .filter(|pod| table.contains(&pod.spec().identity()))
            .count();
        narrator.proof(
            own == pods.len(),
            format!(
                "{} holds a certificate for each of its {own} pods.",
                node.name()
            ),
        )?;
    }
    Ok(())
}

//! The acts about policy: who must have an identity, and whose identity may call.

use undermesh_tests::agent::Access;
use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::process::Output;
use undermesh_tests::{Family, Pod, Result};

use super::stage::Scene;
use super::traffic::fields;

/// Refuses clients without an identity, in the whole mesh.
const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: istio-system
spec:
  mtls:
    mode: STRICT
";

/// Lets cart alone call web. An ALLOW policy would do the same, but whoever it does not allow is refused
/// without a policy's name.
const ONLY_CART: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: only-cart
  namespace: shop
spec:
  selector:
    matchLabels:
      service: web
  action: DENY
  rules:
  - from:
    - source:
        notPrincipals: [cluster.local/ns/shop/sa/cart]
";

/// What the access log says of a refused connection in plain text.
const PLAIN_REFUSAL: [&str; 4] = ["direction", "src.addr", "dst.addr", "error"];

/// What the access log says of a refused connection under mutual TLS.
const REFUSAL: [&str; 4] = ["direction", "src.identity", "dst.workload", "error"];

/// Act 5: STRICT refuses whoever has no identity.
///
/// # Errors
/// When a claim does not hold.
pub fn strict(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    let url = format!("http://{}:{NGINX_PORT}/name", town.web_b.ip(Family::V4));
    let words = ["curl", "-sS", "--max-time", "10", &url];
    let visit = || scene.run("visitor", &town.visitor.place, &words);
    narrator.step(5, "STRICT refuses a client that has no identity.");
    narrator.say("visitor is a host outside the mesh. By default (PERMISSIVE) it may call pods in plain text:");
    let answer = visit()?.success()?;
    narrator.shown(&answer);
    narrator.proof(
        answer == town.web_b.spec().name,
        "web-b has answered the visitor.",
    )?;
    narrator.say("Now this is applied, and both agents take it without a restart:");
    narrator.shown(STRICT);
    scene.bed.apply("strict", STRICT)?;
    let mark = town.node_b.log_mark();
    let refused = visit()?;
    show_refusal(scene, &refused)?;
    let line = town.node_b.wait_access(mark, refused_inbound)?;
    let from_visitor = line
        .text("src.addr")
        .starts_with(&town.visitor.addresses.v4.to_string());
    narrator.shown(&format!("node-b: {}", fields(&line, &PLAIN_REFUSAL)));
    narrator.proof(
        from_visitor && line.text("error").contains("strict"),
        "the log of node-b has the visitor's address and says that STRICT refused it.",
    )?;
    still_works(scene, &town.cart)
}

/// Act 6: only cart may call web.
///
/// # Errors
/// When a claim does not hold.
pub fn authorized(scene: &Scene<'_>) -> Result<()> {
    let Scene { narrator, town, .. } = scene;
    let url = format!("http://{}:{NGINX_PORT}/name", town.web_b.ip(Family::V4));
    let words = ["curl", "-sS", "--max-time", "10", &url];
    narrator.step(
        6,
        "An AuthorizationPolicy keeps everyone but cart away from web.",
    );
    narrator
        .say("guest is in the mesh too, in another namespace. Without a policy it may call web:");
    let answer = scene.run_in(&town.guest, &words)?.success()?;
    narrator.shown(&answer);
    narrator.proof(
        answer == town.web_b.spec().name,
        "web-b has answered guest.",
    )?;
    narrator.say("Now this is applied:");
    narrator.shown(ONLY_CART);
    scene.bed.apply("only-cart", ONLY_CART)?;
    let mark = town.node_b.log_mark();
    let refused = scene.run_in(&town.guest, &words)?;
    show_refusal(scene, &refused)?;
    let guest = town.guest.spec().identity();
    let line = town.node_b.wait_access(mark, refused_inbound)?;
    narrator.shown(&format!("node-b: {}", fields(&line, &REFUSAL)));
    narrator.proof(
        line.text("src.identity") == guest && line.text("error").contains("only-cart"),
        "the log of node-b names the caller and the policy, only-cart.",
    )?;
    still_works(scene, &town.cart)
}

fn refused_inbound(line: &Access) -> bool {
    line.inbound() && line.failed()
}

fn show_refusal(scene: &Scene<'_>, output: &Output) -> Result<()> {
    scene.narrator.shown(&output.stderr);
    scene.narrator.proof(
        !output.status.success() && output.text().is_empty(),
        format!("no byte came back, and curl failed ({}).", output.status),
    )
}

fn still_works(scene: &Scene<'_>, pod: &Pod) -> Result<()> {
    let url = format!("http://{}/name", scene.town.web(Family::V4).ip());
    let answer = scene.run_in(pod, &["curl", "-sS", &url])?.success()?;
    scene.narrator.shown(&answer);
    scene.narrator.proof(
        answer.starts_with("web-"),
        format!("{} still works.", pod.spec().name),
    )
}

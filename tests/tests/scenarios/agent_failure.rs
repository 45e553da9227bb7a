//! The agent is gone: pods fail closed, nothing goes out in the clear, and a new agent takes over.

use std::net::SocketAddr;

use undermesh_tests::agent::poll;
use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Node, Result, Shop, Testbed, tcp};

use crate::Scenario;

/// What clients say while an agent is down; it must not be seen on the fabric.
const SECRET: &[u8] = b"said while the agent was down";

/// Attempts of each family while an agent is down.
const ATTEMPTS: usize = 10;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("with_the_clients_agent_killed_nothing_leaves", |bed| {
        fail_closed(bed, |shop| &shop.first, Node::kill_agent)
    })
    .needs(&["tcpdump"]),
    Scenario::new("with_the_servers_agent_killed_nothing_enters", |bed| {
        fail_closed(bed, |shop| &shop.second, Node::kill_agent)
    })
    .needs(&["tcpdump"]),
    Scenario::new("with_the_agent_stopped_nothing_leaves", |bed| {
        fail_closed(bed, |shop| &shop.first, Node::stop_agent)
    })
    .needs(&["tcpdump"]),
    Scenario::new(
        "an_agent_killed_again_and_again_recovers",
        killed_again_and_again,
    ),
    Scenario::new(
        "a_stopping_agent_lets_connections_finish",
        stopping_lets_finish,
    ),
];

fn fail_closed(
    bed: &Testbed,
    node: fn(&Shop) -> &Node,
    end: fn(&Node) -> Result<()>,
) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    require_service(&shop)?;
    let accepted = server.accepted();
    let capture = bed.capture_fabric()?;
    end(node(&shop))?;
    for family in Family::BOTH {
        for target in [
            shop.far_service(family),
            SocketAddr::new(shop.far.ip(family), NGINX_PORT),
        ] {
            for _ in 0..ATTEMPTS {
                let answer = shop.client.run(|| tcp::ask(target, SECRET))?;
                assert!(answer.as_ref().is_ok_and(Vec::is_empty) || answer.is_err());
            }
        }
    }
    let recording = capture.finish()?;
    assert!(!recording.contains(&String::from_utf8_lossy(SECRET)));
    assert_eq!(recording.payload_of_port(NGINX_PORT), 0);
    assert_eq!(server.accepted(), accepted, "a client got through");
    node(&shop).start_agent::<&str>([])?;
    require_service(&shop)
}

fn killed_again_and_again(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    for round in 0..5 {
        let node = [&shop.first, &shop.second][round % 2];
        node.kill_agent()?;
        node.start_agent::<&str>([])?;
        require_service(&shop)?;
        let pods = node.json(&["list"])?;
        let expected = [2, 1][round % 2];
        assert_eq!(pods.as_array().map(Vec::len), Some(expected), "{pods}");
    }
    Ok(())
}

fn stopping_lets_finish(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh_with(bed, &["--drain-timeout", "20s"])?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let target = shop.far_service(Family::V4);
    let mut stream = shop.client.run(|| tcp::connect(target))?.unwrap();
    tcp::ping(&mut stream, b"before").unwrap();
    std::thread::scope(|scope| -> Result<()> {
        let stopping = scope.spawn(|| shop.first.stop_agent());
        poll("wait until new connections are refused", || {
            shop.client
                .run(|| tcp::expect(target, b"hello", b"hello").is_err())
        })?;
        for _ in 0..20 {
            tcp::ping(&mut stream, b"while it stops").unwrap();
        }
        drop(stream);
        stopping.join().unwrap()
    })
}

/// Waits until the client reaches `far`; the first connections after a restart may still be refused.
fn require_service(shop: &Shop) -> Result<()> {
    for family in Family::BOTH {
        let target = shop.far_service(family);
        poll(&format!("wait until the client reaches {target}"), || {
            shop.client
                .run(|| tcp::expect(target, b"hello", b"hello").is_ok())
        })?;
    }
    Ok(())
}

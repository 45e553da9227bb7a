//! Many connections, one after another and at once, and none is lost.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Result, Shop, Testbed, tcp};

use crate::Scenario;

/// Clients that open short connections beside each other.
const CLIENTS: usize = 8;

/// Short connections in all.
const SHORT: usize = 10_000;

/// Connections that are open at the same time.
const CONCURRENT: usize = 2_000;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "ten_thousand_short_connections_and_none_lost",
        short_connections,
    )
    .heavy(),
    Scenario::new("two_thousand_connections_at_once", concurrent_connections).heavy(),
];

fn short_connections(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let targets = Family::BOTH.map(|family| shop.far_service(family));
    let failures = shop.client.run(|| {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| scope.spawn(move || repeat(client, &targets)))
                .collect();
            clients
                .into_iter()
                .flat_map(|client| client.join().unwrap())
                .collect::<Vec<_>>()
        })
    })?;
    assert!(
        failures.is_empty(),
        "{} lost: {:?}",
        failures.len(),
        failures.first()
    );
    assert_eq!(server.accepted(), SHORT);
    Ok(())
}

/// One client's share of the connections; returns what went wrong.
fn repeat(client: usize, targets: &[SocketAddr; 2]) -> Vec<io::Error> {
    (0..SHORT / CLIENTS)
        .filter_map(|number| {
            let words = format!("client {client} number {number}");
            tcp::expect(targets[number % 2], words.as_bytes(), words.as_bytes()).err()
        })
        .collect()
}

fn concurrent_connections(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    for family in Family::BOTH {
        let before = server.accepted();
        let target = shop.far_service(family);
        shop.client
            .run(|| -> io::Result<()> {
                let mut open = (0..CONCURRENT)
                    .map(|_| tcp::connect(target))
                    .collect::<io::Result<Vec<TcpStream>>>()?;
                for round in 0..2 {
                    for (number, stream) in open.iter_mut().enumerate() {
                        tcp::ping(stream, format!("round {round} number {number}").as_bytes())?;
                    }
                }
                Ok(())
            })?
            .unwrap();
        assert_eq!(server.accepted() - before, CONCURRENT, "{family}");
    }
    Ok(())
}

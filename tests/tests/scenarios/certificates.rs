//! Certificates are replaced while traffic flows, and nothing is lost.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use undermesh_tests::agent::poll;
use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Result, Shop, Testbed, tcp};

use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "certificates_rotate_under_load_and_nothing_is_lost",
    rotate_under_load,
)];

/// Certificates that must be replaced in the course of the scenario.
const ROTATIONS: usize = 3;

fn rotate_under_load(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh_with(bed, &["--certificate-lifetime", "10s"])?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let target = shop.far_service(Family::V4);
    let stop = AtomicBool::new(false);
    let short = AtomicUsize::new(0);
    let outcomes = shop.client.run(|| {
        thread::scope(|scope| {
            let long = scope.spawn(|| one_long_connection(target, &stop));
            let many = scope.spawn(|| many_short_connections(target, &stop, &short));
            let rotated = wait_for_rotations(&shop);
            stop.store(true, Ordering::SeqCst);
            (long.join().unwrap(), many.join().unwrap(), rotated)
        })
    })?;
    outcomes.2?;
    outcomes.0.unwrap();
    outcomes.1.unwrap();
    let short = short.load(Ordering::SeqCst);
    assert!(short > 100, "only {short} short connections were made");
    Ok(())
}

fn one_long_connection(target: SocketAddr, stop: &AtomicBool) -> io::Result<()> {
    let mut stream = tcp::connect(target)?;
    while !stop.load(Ordering::SeqCst) {
        tcp::ping(&mut stream, b"still the same connection")?;
    }
    Ok(())
}

fn many_short_connections(
    target: SocketAddr,
    stop: &AtomicBool,
    made: &AtomicUsize,
) -> io::Result<()> {
    while !stop.load(Ordering::SeqCst) {
        tcp::expect(target, b"a new connection", b"a new connection")?;
        made.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

fn wait_for_rotations(shop: &Shop) -> Result<()> {
    let mut serving = shop.first.json(&["certificates"])?;
    for number in 1..=ROTATIONS {
        let wait = format!("wait for rotation {number} of the certificates");
        poll(&wait, || {
            let now = shop.first.json(&["certificates"])?;
            let rotated = now != serving;
            serving = now;
            Ok(rotated)
        })?;
    }
    Ok(())
}

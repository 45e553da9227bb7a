//! Pods join and leave the mesh while they run.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use undermesh_tests::agent::poll;
use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, PodSpec, Result, Shop, Testbed, manifests, tcp};

use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("enrolling_a_pod_twice_is_the_same_as_once", enrolled_twice),
    Scenario::new("a_namespace_holds_one_pod_only", one_pod_only),
    Scenario::new("the_hosts_own_namespace_is_refused", host_refused),
    Scenario::new(
        "running_connections_are_untouched_by_enrollment",
        running_untouched,
    ),
    Scenario::new("releasing_a_pod_drains_its_connections", release_drains),
    Scenario::new(
        "releasing_a_pod_cuts_what_does_not_end_in_time",
        release_cuts,
    ),
    Scenario::new(
        "open_connections_are_listed_with_their_identities",
        connections_listed,
    ),
];

fn enrolled_twice(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let before = shop.first.json(&["list"])?;
    let again = shop
        .first
        .try_enroll(&shop.client, shop.client.netns().path())?;
    again.success()?;
    assert_eq!(shop.first.json(&["list"])?, before);
    let target = shop.far_service(Family::V4);
    shop.client
        .run(|| tcp::expect(target, b"hello", b"hello"))?
        .unwrap();
    Ok(())
}

fn one_pod_only(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let other = shop.first.pod(PodSpec::new("shop", "other"))?;
    bed.apply("other", &manifests::pod(&other))?;
    let refused = shop.first.try_enroll(&other, shop.client.netns().path())?;
    require_refusal(&refused);
    let moved = shop.first.try_enroll(&shop.client, other.netns().path())?;
    require_refusal(&moved);
    Ok(())
}

fn host_refused(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let other = shop.first.pod(PodSpec::new("shop", "other"))?;
    bed.apply("other", &manifests::pod(&other))?;
    let refused = shop.first.try_enroll(&other, shop.first.netns().path())?;
    require_refusal(&refused);
    let no_namespace = shop
        .first
        .try_enroll(&other, "/proc/self/status".as_ref())?;
    require_refusal(&no_namespace);
    shop.first.enroll(&other)
}

fn require_refusal(output: &undermesh_tests::process::Output) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let errors = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("error:"));
    assert_eq!(errors.count(), 1, "{output:?}");
}

fn running_untouched(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    bed.manifests().write("shop", &shop.manifest())?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let mut open = Vec::new();
    for family in Family::BOTH {
        let target = SocketAddr::new(shop.far.ip(family), NGINX_PORT);
        let mut stream = shop.client.run(|| tcp::connect(target))?.unwrap();
        tcp::ping(&mut stream, b"before").unwrap();
        open.push((target, stream));
    }
    shop.join_mesh(&[])?;
    for (target, stream) in &mut open {
        tcp::ping(stream, b"after").unwrap();
        let mark = shop.second.log_mark();
        let new = shop.client.run(|| tcp::expect(*target, b"new", b"new"))?;
        new.unwrap();
        let line = shop.second.wait_access(mark, |line| line.inbound())?;
        assert_eq!(line.text("src.identity"), shop.client.spec().identity());
        tcp::ping(stream, b"and later").unwrap();
    }
    Ok(())
}

fn release_drains(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let target = shop.far_service(Family::V4);
    let mut stream = shop.client.run(|| tcp::connect(target))?.unwrap();
    tcp::ping(&mut stream, b"before").unwrap();
    std::thread::scope(|scope| -> Result<()> {
        let release = scope.spawn(|| shop.first.release(&shop.client, "20s"));
        poll("wait until the pod drains", || {
            let pods = shop.first.json(&["list"])?.to_string();
            Ok(pods.contains("draining"))
        })?;
        for _ in 0..20 {
            tcp::ping(&mut stream, b"while it drains").unwrap();
        }
        assert!(!release.is_finished(), "the release did not wait");
        drop(stream);
        release.join().unwrap()
    })?;
    let pods = shop.first.json(&["list"])?.to_string();
    assert!(!pods.contains("\"client\""), "{pods}");
    let service = shop.client.run(|| tcp::connect(target).is_err())?;
    assert!(service, "the pod is still captured");
    let plain = SocketAddr::new(shop.far.ip(Family::V4), NGINX_PORT);
    shop.client
        .run(|| tcp::expect(plain, b"plain", b"plain"))?
        .unwrap();
    Ok(())
}

fn release_cuts(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let target = shop.far_service(Family::V4);
    let mut stream = shop.client.run(|| tcp::connect(target))?.unwrap();
    tcp::ping(&mut stream, b"before").unwrap();
    let start = Instant::now();
    shop.first.release(&shop.client, "1s")?;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        tcp::ping(&mut stream, b"after").is_err(),
        "the connection goes on"
    );
    Ok(())
}

fn connections_listed(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let target = shop.far_service(Family::V4);
    let mut stream = shop.client.run(|| tcp::connect(target))?.unwrap();
    tcp::ping(&mut stream, b"hello").unwrap();
    for (node, direction) in [(&shop.first, "outbound"), (&shop.second, "inbound")] {
        let list = node.json(&["connections"])?;
        let found = list
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one["direction"] == direction)
            .unwrap_or_else(|| panic!("no {direction} connection in {list}"));
        assert_eq!(found["security"], "mutual_tls");
        assert_eq!(found["source"]["identity"], shop.client.spec().identity());
        assert_eq!(found["destination"]["identity"], shop.far.spec().identity());
    }
    drop(stream);
    poll("wait until the connection is off the list", || {
        let list = shop.first.json(&["connections"])?;
        Ok(list.as_array().is_some_and(Vec::is_empty))
    })
}

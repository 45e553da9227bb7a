//! Traffic to and from what the mesh does not know passes as it is.

use std::net::SocketAddr;

use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Place, PodSpec, Result, Shop, Testbed, tcp};

use crate::Scenario;

/// What is said in the clear, and so is seen on the fabric.
const WORDS: &str = "said in the clear";

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("a_pod_reaches_a_host_outside_the_mesh", pod_to_outside).needs(&["tcpdump"]),
    Scenario::new("a_host_outside_the_mesh_reaches_a_pod", outside_to_pod).needs(&["tcpdump"]),
    Scenario::new("a_pod_that_is_not_enrolled_is_left_alone", unenrolled_pod).needs(&["tcpdump"]),
];

fn pod_to_outside(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let outside = bed.outside("outside")?;
    let _server = tcp::Server::start(&outside.place, 9000, tcp::tell_peer)?;
    for family in Family::BOTH {
        let target = SocketAddr::new(outside.addresses.of(family), 9000);
        require_plain(bed, &shop.client, target, shop.client.ip(family))?;
    }
    Ok(())
}

fn outside_to_pod(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let outside = bed.outside("outside")?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::tell_peer)?;
    for family in Family::BOTH {
        let target = SocketAddr::new(shop.far.ip(family), NGINX_PORT);
        require_plain(bed, &outside.place, target, outside.addresses.of(family))?;
    }
    Ok(())
}

fn unenrolled_pod(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let plain = shop.second.pod(PodSpec::new("plain", "plain"))?;
    let _servers = [
        tcp::Server::start(&plain, NGINX_PORT, tcp::tell_peer)?,
        tcp::Server::start(&shop.near, NGINX_PORT, tcp::tell_peer)?,
    ];
    for family in Family::BOTH {
        let target = SocketAddr::new(plain.ip(family), NGINX_PORT);
        require_plain(bed, &shop.client, target, shop.client.ip(family))?;
        let target = SocketAddr::new(shop.near.ip(family), NGINX_PORT);
        require_plain(bed, &plain, target, plain.ip(family))?;
    }
    Ok(())
}

/// Requires that `client` reaches the server at `target`, that the server sees it as `seen_as`, and
/// that the words between them can be read on the fabric.
fn require_plain(
    bed: &Testbed,
    client: &Place,
    target: SocketAddr,
    seen_as: std::net::IpAddr,
) -> Result<()> {
    let capture = bed.capture_fabric()?;
    let peer = client.run(|| tcp::ask(target, WORDS.as_bytes()))?;
    let peer: SocketAddr = String::from_utf8_lossy(&peer.unwrap()).parse().unwrap();
    assert_eq!(peer.ip(), seen_as);
    assert!(capture.finish()?.contains(WORDS), "to {target}");
    Ok(())
}

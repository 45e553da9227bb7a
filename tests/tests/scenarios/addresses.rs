//! Applications see the addresses they expect: the peer they asked for, the source they bound.

use std::net::{IpAddr, SocketAddr};

use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Result, Shop, Testbed, tcp};

use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "getpeername_answers_the_address_that_was_asked_for",
        getpeername,
    ),
    Scenario::new("an_ipv6_socket_reaches_an_ipv4_service", mapped_address),
    Scenario::new("an_app_that_binds_its_source_connects", bound_source),
    Scenario::new("a_pod_reaches_its_own_address", own_address),
];

fn getpeername(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    for family in Family::BOTH {
        for target in [
            shop.far_service(family),
            SocketAddr::new(shop.far.ip(family), NGINX_PORT),
        ] {
            let mut stream = shop.client.run(|| tcp::connect(target))?.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), target, "{family}");
            tcp::ping(&mut stream, b"hello").unwrap();
            assert_eq!(stream.peer_addr().unwrap(), target, "{family}");
        }
    }
    Ok(())
}

fn mapped_address(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::tell_peer)?;
    let SocketAddr::V4(target) = shop.far_service(Family::V4) else {
        panic!("the IPv4 service has an IPv6 address");
    };
    let mapped = SocketAddr::from((target.ip().to_ipv6_mapped(), target.port()));
    let peer = shop.client.run(|| tcp::ask(mapped, b""))?;
    let peer: SocketAddr = String::from_utf8_lossy(&peer.unwrap()).parse().unwrap();
    assert_eq!(peer.ip(), shop.client.ip(Family::V4));
    let stream = shop.client.run(|| tcp::connect(mapped))?.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), mapped);
    Ok(())
}

fn bound_source(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::tell_peer)?;
    for family in Family::BOTH {
        let own: IpAddr = shop.client.ip(family);
        let target = shop.far_service(family);
        for port in [0, 40_404] {
            let source = SocketAddr::new(own, port);
            let stream = shop
                .client
                .run(|| tcp::connect_from(source, target))?
                .unwrap();
            assert_eq!(stream.local_addr().unwrap().ip(), own);
            assert_eq!(stream.peer_addr().unwrap(), target);
            let peer = tcp::read_to_end(stream).unwrap();
            let peer: SocketAddr = String::from_utf8_lossy(&peer).parse().unwrap();
            assert_eq!(peer.ip(), own, "{family}, source port {port}");
        }
    }
    Ok(())
}

fn own_address(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::tell_peer)?;
    for (number, family) in Family::BOTH.into_iter().enumerate() {
        let own = shop.far.ip(family);
        for target in [SocketAddr::new(own, NGINX_PORT), shop.far_service(family)] {
            let peer = shop.far.run(|| tcp::ask(target, b""))?;
            let peer = peer.unwrap_or_else(|error| panic!("{target}: {error}"));
            let peer: SocketAddr = String::from_utf8_lossy(&peer).parse().unwrap();
            assert_eq!(peer.ip(), own, "{target}");
        }
        assert_eq!(
            server.accepted(),
            2 * (number + 1),
            "a connection went in circles"
        );
    }
    Ok(())
}

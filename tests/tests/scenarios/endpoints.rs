//! Pods die; connections to them end, the service goes on with the pods that are left.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::time::Duration;

use undermesh_tests::agent::poll;
use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::manifests::{self, ServicePort};
use undermesh_tests::shop::{NAMESPACE, SERVICE_PORT, service_addresses};
use undermesh_tests::{Family, Pod, PodSpec, Result, Shop, Testbed, tcp};

use crate::Scenario;

/// A dead peer is noticed by keepalive: a ping every 10 s, 20 s for its answer, and some slack.
const NOTICED: Duration = Duration::from_secs(45);

/// Connections that must all find a living endpoint.
const TRIES: usize = 40;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "a_pod_gone_in_the_middle_ends_its_connections_only",
        pod_gone,
    ),
    Scenario::new("a_client_pod_gone_in_the_middle_harms_nobody", client_gone),
    Scenario::new("connections_spread_over_the_endpoints", connections_spread),
    Scenario::new("a_dead_server_is_passed_over", dead_server_passed_over),
    Scenario::new(
        "endpoints_of_a_dead_agent_are_passed_over",
        dead_agent_passed_over,
    ),
];

fn pod_gone(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _servers = [
        tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?,
        tcp::Server::start(&shop.near, NGINX_PORT, tcp::echo)?,
    ];
    let connect = |target: SocketAddr| shop.client.run(move || tcp::connect(target));
    let mut doomed = connect(shop.far_service(Family::V4))?.unwrap();
    let mut living = connect(shop.near_service(Family::V4))?.unwrap();
    for stream in [&mut doomed, &mut living] {
        tcp::ping(stream, b"before").unwrap();
    }
    shop.far.lose_network()?;
    doomed.set_read_timeout(Some(NOTICED)).unwrap();
    let end = doomed.read(&mut [0]);
    let timed_out = matches!(&end, Err(error) if error.kind() == ErrorKind::WouldBlock);
    assert!(
        !timed_out && !matches!(end, Ok(1)),
        "the connection goes on: {end:?}"
    );
    tcp::ping(&mut living, b"after").unwrap();
    let target = shop.near_service(Family::V4);
    shop.client
        .run(|| tcp::expect(target, b"new", b"new"))?
        .unwrap();
    let next = shop.add_pod(bed, &shop.second, PodSpec::new(NAMESPACE, "next"))?;
    let _server = tcp::Server::start(&next, NGINX_PORT, tcp::echo)?;
    let target = SocketAddr::new(next.ip(Family::V4), NGINX_PORT);
    shop.client
        .run(|| tcp::expect(target, b"new", b"new"))?
        .unwrap();
    Ok(())
}

fn client_gone(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let target = shop.far_service(Family::V4);
    let mut stream = shop.client.run(|| tcp::connect(target))?.unwrap();
    tcp::ping(&mut stream, b"before").unwrap();
    shop.client.lose_network()?;
    drop(stream);
    let other = shop.near.run(|| tcp::expect(target, b"hello", b"hello"))?;
    other.unwrap();
    Ok(())
}

/// The shop with a service `web` whose endpoints are two more pods, one on each node. Each says its
/// name.
struct Web {
    shop: Shop,
    _pods: Vec<Pod>,
    servers: Vec<tcp::Server>,
    address: SocketAddr,
}

impl Web {
    fn open(bed: &Testbed) -> Result<Self> {
        let shop = Shop::in_mesh(bed)?;
        let (mut pods, mut servers) = (Vec::new(), Vec::new());
        for (node, name) in [(&shop.first, "web-one"), (&shop.second, "web-two")] {
            let pod = shop.add_pod(bed, node, PodSpec::new(NAMESPACE, name).behind("web"))?;
            servers.push(tcp::Server::start(&pod, NGINX_PORT, tcp::greet(name))?);
            pods.push(pod);
        }
        let addresses = service_addresses(9);
        let ports = [ServicePort {
            port: SERVICE_PORT,
            target: NGINX_PORT,
        }];
        bed.apply(
            "web",
            &manifests::service(NAMESPACE, "web", addresses, &ports),
        )?;
        Ok(Self {
            shop,
            _pods: pods,
            servers,
            address: SocketAddr::new(addresses.of(Family::V4), SERVICE_PORT),
        })
    }

    /// The names of the pods that answered; every try must be answered.
    fn answering(&self) -> Result<BTreeSet<String>> {
        (0..TRIES)
            .map(|number| {
                let answer = self.shop.client.run(|| tcp::ask(self.address, b""))?;
                let answer = answer.unwrap_or_default();
                assert!(!answer.is_empty(), "try {number} was not answered");
                Ok(String::from_utf8_lossy(&answer).into_owned())
            })
            .collect()
    }
}

fn connections_spread(bed: &Testbed) -> Result<()> {
    let web = Web::open(bed)?;
    let names = ["web-one", "web-two"].map(str::to_owned);
    assert_eq!(web.answering()?, BTreeSet::from(names));
    Ok(())
}

fn dead_server_passed_over(bed: &Testbed) -> Result<()> {
    let mut web = Web::open(bed)?;
    web.servers.remove(0);
    assert_eq!(web.answering()?, BTreeSet::from(["web-two".to_owned()]));
    Ok(())
}

fn dead_agent_passed_over(bed: &Testbed) -> Result<()> {
    let web = Web::open(bed)?;
    web.shop.second.kill_agent()?;
    assert_eq!(web.answering()?, BTreeSet::from(["web-one".to_owned()]));
    web.shop.second.start_agent::<&str>([])?;
    poll("wait until the other endpoint is used again", || {
        Ok(web.answering()?.len() == 2)
    })
}

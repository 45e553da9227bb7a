//! The testbed itself, with no mesh: what the other scenarios take for granted.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use undermesh_tests::apps::{self, NGINX_PORT, PAGE_SIZE};
use undermesh_tests::{Family, Pod, Result, Shop, Testbed, tcp};

use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("testbed_curl_reaches_nginx_by_pod_ip", curl_reaches_nginx)
        .needs(&["nginx", "curl"]),
    Scenario::new("testbed_tcpdump_sees_plaintext", tcpdump_sees_plaintext)
        .needs(&["nginx", "curl", "tcpdump"]),
    Scenario::new(
        "testbed_service_addresses_lead_nowhere",
        service_addresses_lead_nowhere,
    ),
    Scenario::new(
        "testbed_outside_host_reaches_pods",
        outside_host_reaches_pods,
    ),
    Scenario::new(
        "testbed_programs_stand_in_their_pod",
        programs_stand_in_their_pod,
    ),
    Scenario::new(
        "testbed_a_dead_pod_does_not_answer",
        dead_pod_does_not_answer,
    ),
    Scenario::new("testbed_redis_answers", redis_answers).needs(&["redis-server", "redis-cli"]),
    Scenario::new("testbed_postgres_answers", postgres_answers)
        .needs(&["initdb", "postgres", "psql", "setpriv"]),
    Scenario::new("testbed_iperf3_measures", iperf3_measures)
        .needs(&["iperf3"])
        .heavy(),
    Scenario::new("testbed_wrk_measures", wrk_measures)
        .needs(&["nginx", "wrk"])
        .heavy(),
];

fn curl_reaches_nginx(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let _servers = [apps::nginx(&shop.near)?, apps::nginx(&shop.far)?];
    for family in Family::BOTH {
        for server in [&shop.near, &shop.far] {
            let page = shop.client.curl(server.ip(family), NGINX_PORT, "/")?;
            page.success()?;
            assert_eq!(page.stdout.len(), PAGE_SIZE);
            let peer = shop.client.curl(server.ip(family), NGINX_PORT, "/peer")?;
            assert_eq!(peer.success()?, shop.client.ip(family).to_string());
        }
    }
    Ok(())
}

fn tcpdump_sees_plaintext(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let _server = apps::nginx(&shop.far)?;
    for (family, token) in [(Family::V4, "token-four"), (Family::V6, "token-six")] {
        let fabric = bed.capture_fabric()?;
        let pods = shop.first.capture_pods()?;
        let path = format!("/echo/{token}");
        shop.client
            .curl(shop.far.ip(family), NGINX_PORT, &path)?
            .success()?;
        for capture in [fabric, pods] {
            let recording = capture.finish()?;
            assert!(recording.contains(token));
            assert!(recording.payload_of_port(NGINX_PORT) > token.len());
            assert!(!recording.contains("token-never-sent"));
        }
    }
    Ok(())
}

fn service_addresses_lead_nowhere(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    for family in Family::BOTH {
        let refused = shop.client.run(|| tcp::connect(shop.far_service(family)))?;
        assert!(refused.is_err(), "{family}: {refused:?}");
    }
    Ok(())
}

fn outside_host_reaches_pods(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let outside = bed.outside("outside")?;
    let _server = tcp::Server::start(&shop.far, 9000, tcp::tell_peer)?;
    for family in Family::BOTH {
        let address = SocketAddr::new(shop.far.ip(family), 9000);
        let peer = outside.place.run(|| tcp::ask(address, b""))?;
        let peer = String::from_utf8_lossy(&peer.unwrap()).parse::<SocketAddr>();
        assert_eq!(peer.unwrap().ip(), outside.addresses.of(family));
    }
    Ok(())
}

fn programs_stand_in_their_pod(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let cgroup_of = |pod: &Pod, table: &str| {
        let name = pod.cgroup().path().file_name().unwrap().to_owned();
        let name = name.to_string_lossy().into_owned();
        assert!(
            table
                .lines()
                .any(|line| line.starts_with("0::") && line.ends_with(&name))
        );
    };
    let program = shop.client.output("cat", ["/proc/self/cgroup"])?;
    cgroup_of(&shop.client, &program.success()?);
    let code = shop
        .client
        .run(|| fs::read_to_string("/proc/thread-self/cgroup"))?;
    cgroup_of(&shop.client, &code.unwrap());
    let addresses = shop
        .client
        .output("ip", ["-o", "addr", "show", "dev", "eth0"])?;
    let addresses = addresses.success()?;
    for family in Family::BOTH {
        let address: IpAddr = shop.client.ip(family);
        assert!(addresses.contains(&address.to_string()), "{addresses}");
    }
    Ok(())
}

fn dead_pod_does_not_answer(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let _server = tcp::Server::start(&shop.near, 9000, tcp::echo)?;
    let address = SocketAddr::new(shop.near.ip(Family::V4), 9000);
    shop.client
        .run(|| tcp::expect(address, b"hello", b"hello"))?
        .unwrap();
    shop.near.lose_network()?;
    let limit = Duration::from_secs(2);
    let refused = shop.client.run(|| tcp::connect_within(limit, address))?;
    assert!(refused.is_err(), "{refused:?}");
    Ok(())
}

fn redis_answers(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let redis = apps::redis(&shop.far)?;
    for family in Family::BOTH {
        let pong = apps::redis_cli(&shop.client, shop.far.ip(family), redis.port, &["PING"])?;
        assert_eq!(pong.success()?, "PONG");
    }
    Ok(())
}

fn postgres_answers(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let postgres = apps::postgres(&shop.far)?;
    for family in Family::BOTH {
        let sum = apps::psql(
            &shop.client,
            shop.far.ip(family),
            postgres.port,
            "select 40 + 2",
        )?;
        assert_eq!(sum.success()?, "42");
    }
    Ok(())
}

fn iperf3_measures(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let iperf = apps::iperf3(&shop.far)?;
    let report = apps::iperf3_client(&shop.client, shop.far.ip(Family::V4), iperf.port, 1, &[])?;
    assert!(report.success()?.contains("sum_received"));
    Ok(())
}

fn wrk_measures(bed: &Testbed) -> Result<()> {
    let shop = Shop::without_mesh(bed)?;
    let nginx = apps::nginx(&shop.far)?;
    let url = format!("http://{}:{}/", shop.far.ip(Family::V4), nginx.port);
    let report = apps::wrk(&shop.client, &url, 4, 1)?;
    assert!(report.success()?.contains("Requests/sec"));
    Ok(())
}

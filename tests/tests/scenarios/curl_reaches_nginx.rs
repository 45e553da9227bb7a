//! curl in one pod fetches a page from nginx in another, and nginx sees the client's own address.

use std::net::SocketAddr;

use undermesh_tests::apps::{self, NGINX_PORT, PAGE_SIZE};
use undermesh_tests::{Family, Pod, Result, Shop, Testbed};

use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("curl_reaches_nginx_across_nodes_by_service", |bed| {
        fetch(bed, |shop| &shop.far, Shop::far_service)
    })
    .needs(&["nginx", "curl"]),
    Scenario::new("curl_reaches_nginx_across_nodes_by_pod_ip", |bed| {
        fetch(
            bed,
            |shop| &shop.far,
            |shop, family| by_ip(&shop.far, family),
        )
    })
    .needs(&["nginx", "curl"]),
    Scenario::new("curl_reaches_nginx_on_one_node_by_service", |bed| {
        fetch(bed, |shop| &shop.near, Shop::near_service)
    })
    .needs(&["nginx", "curl"]),
    Scenario::new("curl_reaches_nginx_on_one_node_by_pod_ip", |bed| {
        fetch(
            bed,
            |shop| &shop.near,
            |shop, family| by_ip(&shop.near, family),
        )
    })
    .needs(&["nginx", "curl"]),
];

fn fetch(
    bed: &Testbed,
    server: fn(&Shop) -> &Pod,
    address: fn(&Shop, Family) -> SocketAddr,
) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _nginx = apps::nginx(server(&shop))?;
    for family in Family::BOTH {
        let target = address(&shop, family);
        let page = shop.client.curl(target.ip(), target.port(), "/")?;
        page.success()?;
        assert_eq!(page.stdout.len(), PAGE_SIZE, "{family}");
        let peer = shop.client.curl(target.ip(), target.port(), "/peer")?;
        assert_eq!(peer.success()?, shop.client.ip(family).to_string());
    }
    let tunnelled = shop.first.metric(
        "istio_tcp_connections_opened_total",
        &[
            "reporter=\"source\"",
            "connection_security_policy=\"mutual_tls\"",
        ],
    )?;
    assert!(
        tunnelled >= 4.0,
        "{tunnelled} connections were tunnelled, not 4"
    );
    Ok(())
}

fn by_ip(pod: &Pod, family: Family) -> SocketAddr {
    SocketAddr::new(pod.ip(family), NGINX_PORT)
}

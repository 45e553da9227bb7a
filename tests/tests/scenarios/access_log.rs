//! Each connection leaves one line on each side, with both identities, and is counted.

use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Result, Shop, Testbed, tcp};

use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "the_access_log_names_both_identities",
        names_both_identities,
    ),
    Scenario::new("the_access_log_tells_why_a_connection_failed", tells_why),
    Scenario::new("metrics_count_connections_and_bytes", metrics_count),
];

fn names_both_identities(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    for family in Family::BOTH {
        let marks = [shop.first.log_mark(), shop.second.log_mark()];
        let target = shop.far_service(family);
        shop.client
            .run(|| tcp::expect(target, b"twelve bytes", b"twelve bytes"))?
            .unwrap();
        let sent = shop.first.wait_access(marks[0], |line| !line.inbound())?;
        let received = shop.second.wait_access(marks[1], |line| line.inbound())?;
        for line in [&sent, &received] {
            assert_eq!(line.text("src.identity"), shop.client.spec().identity());
            assert_eq!(line.text("dst.identity"), shop.far.spec().identity());
            assert_eq!(line.text("src.workload"), "client");
            assert_eq!(line.text("dst.workload"), "far");
            assert_eq!(line.text("dst.service"), "far.shop.svc.cluster.local");
            assert_eq!(
                (line.number("bytes_sent"), line.number("bytes_recv")),
                (12, 12)
            );
            assert!(!line.failed(), "{line:?}");
        }
        let address = shop.client.ip(family).to_string();
        assert!(sent.text("src.addr").contains(&address), "{sent:?}");
    }
    Ok(())
}

fn tells_why(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let mark = shop.second.log_mark();
    let target = shop.far_service(Family::V4);
    let refused = shop
        .client
        .run(|| tcp::expect(target, b"hello", b"hello"))?;
    assert!(refused.is_err(), "nobody listens, and yet: {refused:?}");
    let line = shop.second.wait_access(mark, |line| line.inbound())?;
    assert!(line.failed(), "{line:?}");
    assert!(!line.text("error").is_empty(), "{line:?}");
    Ok(())
}

fn metrics_count(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let mark = shop.second.log_mark();
    let target = shop.far_service(Family::V4);
    for _ in 0..5 {
        shop.client
            .run(|| tcp::expect(target, &[7; 1000], &[7; 1000]))?
            .unwrap();
    }
    let mut lines = 0;
    shop.second.wait_access(mark, |line| {
        lines += usize::from(line.inbound());
        lines == 5
    })?;
    let labels = [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/far\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    for (metric, expected) in [
        ("istio_tcp_connections_opened_total", 5.0),
        ("istio_tcp_connections_closed_total", 5.0),
        ("istio_tcp_received_bytes_total", 5000.0),
        ("istio_tcp_sent_bytes_total", 5000.0),
    ] {
        let counted = shop.second.metric(metric, &labels)?;
        assert!(
            (counted - expected).abs() < 0.5,
            "{metric} is {counted}, not {expected}"
        );
    }
    Ok(())
}

//! What the mesh carries is unreadable for whoever records packets on the way.

use std::net::SocketAddr;

use undermesh_tests::apps::{self, NGINX_PORT};
use undermesh_tests::capture::Capture;
use undermesh_tests::{Family, Pod, Result, Shop, Testbed};

use crate::Scenario;

/// The port of the tunnel.
const HBONE_PORT: u16 = 15_008;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("the_fabric_carries_only_ciphertext", |bed| {
        record(bed, |bed, _| bed.capture_fabric(), |shop| &shop.far)
    })
    .needs(&["nginx", "curl", "tcpdump"]),
    Scenario::new("pods_of_one_node_exchange_only_ciphertext", |bed| {
        record(bed, |_, shop| shop.first.capture_pods(), |shop| &shop.near)
    })
    .needs(&["nginx", "curl", "tcpdump"]),
];

fn record(
    bed: &Testbed,
    capture: fn(&Testbed, &Shop) -> Result<Capture>,
    server: fn(&Shop) -> &Pod,
) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let server = server(&shop);
    let _nginx = apps::nginx(server)?;
    for (family, token) in [
        (Family::V4, "secret-number-four"),
        (Family::V6, "secret-number-six"),
    ] {
        let target = SocketAddr::new(server.ip(family), NGINX_PORT);
        let capture = capture(bed, &shop)?;
        let path = format!("/echo/{token}");
        let answer = shop.client.curl(target.ip(), target.port(), &path)?;
        assert_eq!(answer.success()?, path);
        let recording = capture.finish()?;
        assert!(
            !recording.contains(token),
            "{token} went over the wire in the clear"
        );
        let tunnelled = recording.payload_of_port(HBONE_PORT);
        assert!(
            tunnelled > 500,
            "only {tunnelled} bytes to the tunnel's port"
        );
        assert_eq!(recording.payload_of_port(NGINX_PORT), 0);
    }
    Ok(())
}

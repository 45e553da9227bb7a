//! STRICT refuses clients without an identity, PERMISSIVE lets them in, at every level.

use std::net::SocketAddr;

use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::testbed::Outside;
use undermesh_tests::{Family, Result, Shop, Testbed, tcp};

use crate::Scenario;

/// A second port of the server, for rules of one port.
const OTHER_PORT: u16 = 9090;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("permissive_lets_plain_clients_in", permissive_lets_in),
    Scenario::new(
        "strict_refuses_plain_clients_and_lets_the_mesh_in",
        strict_refuses,
    ),
    Scenario::new(
        "strict_for_one_workload_leaves_the_others_open",
        strict_for_one_workload,
    ),
    Scenario::new(
        "strict_with_a_permissive_port",
        strict_with_a_permissive_port,
    ),
    Scenario::new(
        "a_pod_that_is_not_who_the_mesh_says_is_refused",
        impostor_refused,
    ),
];

/// The shop with an echo server in `far` on two ports and one in `near`, and a host outside the mesh.
struct Stage {
    shop: Shop,
    outside: Outside,
    _servers: [tcp::Server; 3],
}

impl Stage {
    fn set(bed: &Testbed) -> Result<Self> {
        let shop = Shop::in_mesh(bed)?;
        Ok(Self {
            outside: bed.outside("outside")?,
            _servers: [
                tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?,
                tcp::Server::start(&shop.far, OTHER_PORT, tcp::echo)?,
                tcp::Server::start(&shop.near, NGINX_PORT, tcp::echo)?,
            ],
            shop,
        })
    }

    fn plain(&self, target: SocketAddr) -> Result<bool> {
        self.outside
            .place
            .run(|| tcp::expect(target, b"hello", b"hello").is_ok())
    }

    fn meshed(&self, target: SocketAddr) -> Result<bool> {
        self.shop
            .client
            .run(|| tcp::expect(target, b"hello", b"hello").is_ok())
    }
}

fn permissive_lets_in(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    for family in Family::BOTH {
        let target = SocketAddr::new(stage.shop.far.ip(family), NGINX_PORT);
        assert!(stage.plain(target)?, "by default, {family}");
    }
    bed.apply(
        "mtls",
        &peer_authentication("istio-system", "mode: STRICT", ""),
    )?;
    bed.apply(
        "namespace",
        &peer_authentication("shop", "mode: PERMISSIVE", ""),
    )?;
    for family in Family::BOTH {
        let target = SocketAddr::new(stage.shop.far.ip(family), NGINX_PORT);
        assert!(
            stage.plain(target)?,
            "the namespace has the last word, {family}"
        );
    }
    Ok(())
}

fn strict_refuses(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    bed.apply(
        "mtls",
        &peer_authentication("istio-system", "mode: STRICT", ""),
    )?;
    for family in Family::BOTH {
        let target = SocketAddr::new(stage.shop.far.ip(family), NGINX_PORT);
        let from = stage.outside.addresses.of(family).to_string();
        let mark = stage.shop.second.log_mark();
        assert!(!stage.plain(target)?, "a plain client came in, {family}");
        let line = stage.shop.second.wait_access(mark, |line| {
            line.inbound() && line.text("src.addr").contains(&from)
        })?;
        assert!(
            line.failed() && line.text("src.identity").is_empty(),
            "{line:?}"
        );
        assert!(stage.meshed(target)?, "{family}");
    }
    bed.withdraw("mtls")?;
    let target = SocketAddr::new(stage.shop.far.ip(Family::V4), NGINX_PORT);
    assert!(stage.plain(target)?, "after the policy was withdrawn");
    Ok(())
}

fn strict_for_one_workload(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    let selector = "\n  selector:\n    matchLabels:\n      app: far";
    bed.apply(
        "mtls",
        &peer_authentication("shop", "mode: STRICT", selector),
    )?;
    for family in Family::BOTH {
        let port = NGINX_PORT;
        assert!(
            !stage.plain(SocketAddr::new(stage.shop.far.ip(family), port))?,
            "{family}"
        );
        assert!(
            stage.plain(SocketAddr::new(stage.shop.near.ip(family), port))?,
            "{family}"
        );
    }
    Ok(())
}

fn strict_with_a_permissive_port(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    let more = format!(
        "\n  selector:\n    matchLabels:\n      app: far\n  portLevelMtls:\n    \
         {OTHER_PORT}:\n      mode: PERMISSIVE"
    );
    bed.apply("mtls", &peer_authentication("shop", "mode: STRICT", &more))?;
    for family in Family::BOTH {
        let ip = stage.shop.far.ip(family);
        assert!(!stage.plain(SocketAddr::new(ip, NGINX_PORT))?, "{family}");
        assert!(stage.plain(SocketAddr::new(ip, OTHER_PORT))?, "{family}");
    }
    Ok(())
}

fn peer_authentication(namespace: &str, mode: &str, more: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: {namespace}
spec:
  mtls:
    {mode}{more}
"
    )
}

fn impostor_refused(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?;
    let target = shop.far_service(Family::V4);
    shop.client
        .run(|| tcp::expect(target, b"hello", b"hello"))?
        .unwrap();
    // The mesh now says that somebody else has the address; the pod there still proves to be `far`.
    let expected = shop.far.spec().identity().replace("/sa/far", "/sa/other");
    let manifest = shop.manifest();
    let changed = manifest.replace("serviceAccountName: far", "serviceAccountName: other");
    assert_ne!(manifest, changed);
    bed.apply("shop", &changed)?;
    let mark = shop.first.log_mark();
    assert!(
        shop.client
            .run(|| tcp::expect(target, b"hello", b"hello"))?
            .is_err()
    );
    let line = shop
        .first
        .wait_access(mark, |line| !line.inbound() && line.failed())?;
    let error = line.text("error");
    assert!(error.contains(&expected), "{line:?}");
    assert!(error.contains(&shop.far.spec().identity()), "{line:?}");
    Ok(())
}

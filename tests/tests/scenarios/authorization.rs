//! AuthorizationPolicy at layer 4: who may connect, by principal, namespace, address and port.

use std::net::SocketAddr;

use undermesh_tests::apps::NGINX_PORT;
use undermesh_tests::{Family, Pod, PodSpec, Result, Shop, Testbed, tcp};

use crate::Scenario;

/// A second port of the server, for rules of one port.
const OTHER_PORT: u16 = 9090;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("a_policy_allows_one_principal_only", allows_one_principal),
    Scenario::new(
        "a_policy_denies_a_principal_and_says_so",
        denies_a_principal,
    ),
    Scenario::new("a_policy_allows_a_namespace", allows_a_namespace),
    Scenario::new("a_policy_allows_a_port", allows_a_port),
    Scenario::new("a_policy_denies_an_address_block", denies_an_address_block),
    Scenario::new("a_policy_allows_all_but_a_service_account", allows_all_but),
    Scenario::new("a_deny_policy_beats_an_allow_policy", deny_beats_allow),
    Scenario::new(
        "a_policy_that_needs_http_fails_closed",
        needs_http_fails_closed,
    ),
    Scenario::new("an_allow_policy_without_rules_allows_nobody", allows_nobody),
    Scenario::new(
        "a_policy_change_cuts_the_connections_that_it_denies",
        change_cuts_connections,
    ),
];

/// The shop with an echo server in `far` on two ports.
struct Stage {
    shop: Shop,
    _servers: [tcp::Server; 2],
}

impl Stage {
    fn set(bed: &Testbed) -> Result<Self> {
        let shop = Shop::in_mesh(bed)?;
        Ok(Self {
            _servers: [
                tcp::Server::start(&shop.far, NGINX_PORT, tcp::echo)?,
                tcp::Server::start(&shop.far, OTHER_PORT, tcp::echo)?,
            ],
            shop,
        })
    }

    /// Whether `pod` reaches `far` on `port`; the answer must be the same for IPv4 and IPv6.
    fn reaches(&self, pod: &Pod, port: u16) -> Result<bool> {
        let mut answers = Vec::new();
        for family in Family::BOTH {
            let target = SocketAddr::new(self.shop.far.ip(family), port);
            answers.push(pod.run(|| tcp::expect(target, b"hello", b"hello").is_ok())?);
        }
        assert_eq!(answers[0], answers[1], "IPv4 and IPv6 differ");
        Ok(answers[0])
    }
}

fn allows_one_principal(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    assert!(
        stage.reaches(&stage.shop.near, NGINX_PORT)?,
        "before any policy"
    );
    bed.apply(
        "policy",
        &policy(
            "ALLOW",
            "  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/client]
",
        ),
    )?;
    assert!(stage.reaches(&stage.shop.client, NGINX_PORT)?);
    assert!(!stage.reaches(&stage.shop.near, NGINX_PORT)?);
    bed.withdraw("policy")?;
    assert!(
        stage.reaches(&stage.shop.near, NGINX_PORT)?,
        "after the policy was withdrawn"
    );
    Ok(())
}

fn denies_a_principal(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    bed.apply(
        "policy",
        &policy(
            "DENY",
            "  - from:
    - source:
        principals: ['*/sa/client']
",
        ),
    )?;
    let mark = stage.shop.second.log_mark();
    assert!(!stage.reaches(&stage.shop.client, NGINX_PORT)?);
    assert!(stage.reaches(&stage.shop.near, NGINX_PORT)?);
    let line = stage
        .shop
        .second
        .wait_access(mark, |line| line.inbound() && line.failed())?;
    assert_eq!(
        line.text("src.identity"),
        stage.shop.client.spec().identity()
    );
    assert!(
        line.text("error").contains("shop/rule"),
        "the log does not name the policy: {line:?}"
    );
    let denied = stage.shop.second.metric(
        "istio_tcp_connections_failed_total",
        &["response_flags=\"DENY\""],
    )?;
    assert!(denied >= 2.0, "{denied} denials were counted, not 2");
    Ok(())
}

fn allows_a_namespace(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    let stranger = PodSpec::new("elsewhere", "client");
    let stranger = stage.shop.add_pod(bed, &stage.shop.first, stranger)?;
    assert!(stage.reaches(&stranger, NGINX_PORT)?, "before any policy");
    bed.apply(
        "policy",
        &policy(
            "ALLOW",
            "  - from:
    - source:
        namespaces: [shop]
",
        ),
    )?;
    assert!(stage.reaches(&stage.shop.client, NGINX_PORT)?);
    assert!(!stage.reaches(&stranger, NGINX_PORT)?);
    Ok(())
}

fn allows_a_port(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    bed.apply(
        "policy",
        &policy(
            "ALLOW",
            &format!(
                "  - to:
    - operation:
        ports: ['{NGINX_PORT}']
"
            ),
        ),
    )?;
    assert!(stage.reaches(&stage.shop.client, NGINX_PORT)?);
    assert!(!stage.reaches(&stage.shop.client, OTHER_PORT)?);
    Ok(())
}

fn denies_an_address_block(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    let client = stage.shop.client.addresses();
    bed.apply(
        "policy",
        &policy(
            "DENY",
            &format!(
                "  - from:
    - source:
        ipBlocks: [{}/32, '{}/128']
",
                client.v4, client.v6
            ),
        ),
    )?;
    assert!(!stage.reaches(&stage.shop.client, NGINX_PORT)?);
    assert!(stage.reaches(&stage.shop.near, NGINX_PORT)?);
    Ok(())
}

fn allows_all_but(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    bed.apply(
        "policy",
        &policy(
            "ALLOW",
            "  - from:
    - source:
        notPrincipals: [cluster.local/ns/shop/sa/near]
    when:
    - key: destination.port
      values: ['8080']
",
        ),
    )?;
    assert!(stage.reaches(&stage.shop.client, NGINX_PORT)?);
    assert!(!stage.reaches(&stage.shop.near, NGINX_PORT)?);
    assert!(!stage.reaches(&stage.shop.client, OTHER_PORT)?);
    Ok(())
}

fn deny_beats_allow(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    bed.apply(
        "allow",
        &policy("ALLOW", "  - {}\n").replace("name: rule", "name: everyone"),
    )?;
    assert!(stage.reaches(&stage.shop.client, NGINX_PORT)?);
    bed.apply(
        "deny",
        &policy(
            "DENY",
            "  - from:
    - source:
        namespaces: [shop]
",
        ),
    )?;
    assert!(!stage.reaches(&stage.shop.client, NGINX_PORT)?);
    Ok(())
}

fn needs_http_fails_closed(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    bed.apply(
        "policy",
        &policy(
            "ALLOW",
            "  - to:
    - operation:
        methods: [GET]
",
        ),
    )?;
    assert!(!stage.reaches(&stage.shop.client, NGINX_PORT)?);
    let status = stage.shop.second.json(&["status"])?.to_string();
    assert!(
        status.contains("methods"),
        "the status does not name the field: {status}"
    );
    Ok(())
}

fn allows_nobody(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    let nobody = policy("ALLOW", "").replace("  rules:\n", "");
    bed.apply("policy", &nobody)?;
    assert!(!stage.reaches(&stage.shop.client, NGINX_PORT)?);
    assert!(!stage.reaches(&stage.shop.near, NGINX_PORT)?);
    Ok(())
}

fn change_cuts_connections(bed: &Testbed) -> Result<()> {
    let stage = Stage::set(bed)?;
    let target = SocketAddr::new(stage.shop.far.ip(Family::V4), NGINX_PORT);
    let mut denied = stage.shop.client.run(|| tcp::connect(target))?.unwrap();
    let mut other = stage.shop.near.run(|| tcp::connect(target))?.unwrap();
    tcp::ping(&mut denied, b"before").unwrap();
    tcp::ping(&mut other, b"before").unwrap();
    let mark = stage.shop.second.log_mark();
    let rule = "  - from:
    - source:
        principals: ['*/sa/client']
";
    bed.apply("policy", &policy("DENY", rule))?;
    let line = stage
        .shop
        .second
        .wait_access(mark, |line| line.inbound() && line.failed())?;
    assert!(line.text("error").contains("policy change"), "{line:?}");
    assert!(line.text("error").contains("shop/rule"), "{line:?}");
    assert!(tcp::ping(&mut denied, b"after").is_err());
    tcp::ping(&mut other, b"after").unwrap();
    Ok(())
}

/// The policy `shop/rule` on the pod `far`.
fn policy(action: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: rule
  namespace: shop
spec:
  selector:
    matchLabels:
      app: far
  action: {action}
  rules:
{rules}"
    )
}

//! Tests of the translation of AuthorizationPolicies and PeerAuthentications.
use super::*;

fn policy_in(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

fn policy(spec: &str) -> Policy {
    Arc::unwrap_or_clone(builder(&policy_in("shop", spec)).policies.remove(0))
}

/// Whether a policy's rules match a connection, judged by the model itself.
fn denied(text: &str, identity: Option<&str>, source: &str, port: u16) -> bool {
    let builder = mesh(&format!("{text}{}", pod("web", "10.0.0.1", "app: web"))).builder;
    let workload = builder.workloads[0].clone();
    let identity: Option<Identity> = identity.map(|text| text.parse().unwrap());
    let mesh = builder.build(&Mesh::empty());
    let request = Request {
        identity: identity.as_ref(),
        source: source.parse().unwrap(),
        destination: "10.0.0.1".parse().unwrap(),
        port,
    };
    !matches!(
        mesh.evaluate(&workload, &request).decision,
        Decision::Allow { .. }
    )
}

const ALICE: Option<&str> = Some("spiffe://cluster.local/ns/a/sa/alice");
const BOB: Option<&str> = Some("spiffe://cluster.local/ns/b/sa/bob");

#[test]
fn the_scope_follows_selector_and_namespace() {
    assert_eq!(policy("  {}\n").scope, Scope::Namespace);
    assert_eq!(
        policy("  selector: {matchLabels: {app: web}}\n").scope,
        Scope::WorkloadSelector
    );
    assert_eq!(
        builder(&policy_in("istio-system", "  {}\n")).policies[0].scope,
        Scope::Global
    );
}

#[test]
fn selected_workloads_name_the_policy() {
    let pods = format!(
        "{}{}",
        pod("a", "10.0.0.1", "app: web"),
        pod("b", "10.0.0.2", "app: x")
    );
    for (namespace, expected) in [("shop", "shop/p"), ("istio-system", "istio-system/p")] {
        let text = format!(
            "{pods}{}",
            policy_in(namespace, "  selector: {matchLabels: {app: web}}\n")
        );
        let workloads = builder(&text).workloads;
        assert_eq!(workloads[0].policies, [expected.into()]);
        assert_eq!(workloads[1].policies, []);
    }
    let elsewhere = format!(
        "{pods}{}",
        policy_in("other", "  selector: {matchLabels: {app: web}}\n")
    );
    assert_eq!(builder(&elsewhere).workloads[0].policies, []);
}

#[test]
fn every_l4_condition_is_enforced() {
    for (rule, matching, other) in [
        (
            "from: [{source: {principals: [cluster.local/ns/a/sa/alice]}}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {principals: ['*/alice']}}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {principals: ['cluster.local/ns/a/*']}}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {principals: ['*']}}]",
            (ALICE, "10.5.0.1", 80),
            (None, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {notPrincipals: ['*']}}]",
            (None, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {namespaces: [a]}}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {notNamespaces: [b]}}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {serviceAccounts: [a/alice]}}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {notServiceAccounts: [b/bob]}}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "from: [{source: {ipBlocks: [10.5.0.0/16]}}]",
            (None, "10.5.0.1", 80),
            (None, "10.6.0.1", 80),
        ),
        (
            "from: [{source: {notIpBlocks: [10.6.0.1]}}]",
            (None, "10.5.0.1", 80),
            (None, "10.6.0.1", 80),
        ),
        (
            "to: [{operation: {ports: ['80', '81']}}]",
            (None, "10.5.0.1", 81),
            (None, "10.5.0.1", 82),
        ),
        (
            "to: [{operation: {notPorts: ['82']}}]",
            (None, "10.5.0.1", 81),
            (None, "10.5.0.1", 82),
        ),
        (
            "when: [{key: source.ip, values: [10.5.0.0/16], notValues: [10.5.9.0/24]}]",
            (None, "10.5.0.1", 80),
            (None, "10.5.9.1", 80),
        ),
        (
            "when: [{key: source.namespace, values: [a]}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "when: [{key: source.principal, notValues: ['*/bob']}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "when: [{key: source.serviceAccount, values: [a/alice]}]",
            (ALICE, "10.5.0.1", 80),
            (BOB, "10.5.0.1", 80),
        ),
        (
            "when: [{key: destination.ip, values: [10.0.0.1]}, {key: destination.port, values: ['80']}]",
            (None, "10.5.0.1", 80),
            (None, "10.5.0.1", 82),
        ),
        (
            "from: [{source: {namespaces: [a]}}, {source: {ipBlocks: [10.7.0.0/16]}}]\n    to: [{operation: {ports: ['80']}}]",
            (BOB, "10.7.0.1", 80),
            (ALICE, "10.5.0.1", 81),
        ),
    ] {
        let text = policy_in("shop", &format!("  action: DENY\n  rules:\n  - {rule}\n"));
        assert!(denied(&text, matching.0, matching.1, matching.2), "{rule}");
        assert!(!denied(&text, other.0, other.1, other.2), "{rule}");
        let text = policy_in("shop", &format!("  action: ALLOW\n  rules:\n  - {rule}\n"));
        assert!(!denied(&text, matching.0, matching.1, matching.2), "{rule}");
        assert!(denied(&text, other.0, other.1, other.2), "{rule}");
    }
}

#[test]
fn an_account_without_a_namespace_is_of_the_policys_own() {
    let text = policy_in(
        "shop",
        "  action: DENY\n  rules: [{from: [{source: {serviceAccounts: [web]}}]}]\n",
    );
    assert!(denied(
        &text,
        Some("spiffe://td/ns/shop/sa/web"),
        "10.5.0.1",
        80
    ));
    assert!(!denied(
        &text,
        Some("spiffe://td/ns/other/sa/web"),
        "10.5.0.1",
        80
    ));
}

#[test]
fn a_policy_without_rules_allows_nothing_and_one_with_an_empty_rule_everything() {
    assert!(denied(&policy_in("shop", "  {}\n"), ALICE, "10.5.0.1", 80));
    assert!(!denied(
        &policy_in("shop", "  rules: [{}]\n"),
        None,
        "10.5.0.1",
        80
    ));
    assert!(!denied(
        &policy_in("shop", "  action: DENY\n"),
        None,
        "10.5.0.1",
        80
    ));
}

#[test]
fn an_allow_rule_that_needs_http_allows_nothing() {
    let text = policy_in(
        "shop",
        "  rules:\n  - to:\n    - operation:\n        methods: [GET]\n  - from: [{source: {namespaces: [a]}}]\n",
    );
    assert_eq!(
        findings(&text),
        [
            "Warning f.yaml:9: AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.methods: rule 0 needs HTTP and allows nothing at L4; needs a waypoint"
        ]
    );
    assert!(denied(&text, BOB, "10.5.0.1", 80));
    assert!(!denied(&text, ALICE, "10.5.0.1", 80));
}

#[test]
fn a_deny_rule_that_needs_http_denies_without_regard_to_it() {
    for (rule, spared) in [
        (
            "from: [{source: {namespaces: [a]}}]\n    to: [{operation: {paths: [/admin]}}]",
            BOB,
        ),
        (
            "from: [{source: {namespaces: [a], requestPrincipals: ['*']}}]",
            BOB,
        ),
        (
            "from: [{source: {namespaces: [a]}}]\n    when: [{key: 'request.headers[x]', values: [y]}]",
            BOB,
        ),
        (
            "from: [{source: {namespaces: [a], remoteIpBlocks: [10.0.0.0/8]}}]",
            BOB,
        ),
    ] {
        let text = policy_in("shop", &format!("  action: DENY\n  rules:\n  - {rule}\n"));
        assert_eq!(findings(&text).len(), 1, "{rule}");
        assert!(
            findings(&text)[0].contains("denies at L4 without regard to it"),
            "{rule}"
        );
        assert!(denied(&text, ALICE, "10.5.0.1", 80), "{rule}");
        assert!(!denied(&text, spared, "10.5.0.1", 80), "{rule}");
    }
    for rule in [
        "to: [{operation: {methods: [GET]}}]",
        "to: [{operation: {ports: ['81']}}, {operation: {hosts: [x]}}]",
        "when: [{key: remote.ip, notValues: [10.0.0.0/8]}]",
    ] {
        let text = policy_in("shop", &format!("  action: DENY\n  rules:\n  - {rule}\n"));
        assert!(denied(&text, ALICE, "10.5.0.1", 80), "{rule}");
    }
}

#[test]
fn custom_denies_and_audit_does_nothing() {
    let custom = policy_in(
        "shop",
        "  action: CUSTOM\n  provider: {name: x}\n  rules: [{to: [{operation: {paths: [/a]}}]}]\n",
    );
    assert!(denied(&custom, ALICE, "10.5.0.1", 80));
    assert!(
        findings(&custom)[0]
            .starts_with("Error f.yaml:6: AuthorizationPolicy shop/p: spec.action: ")
    );
    let audit = policy_in("shop", "  action: AUDIT\n  rules: [{}]\n");
    assert_eq!(mesh(&audit).builder.policies, []);
    assert!(findings(&audit)[0].contains("AUDIT is not supported"));
}

#[test]
fn dry_run_policies_do_not_decide() {
    let text = policy_in("shop", "  action: DENY\n  rules: [{}]\n").replace(
        "{name: p",
        "{annotations: {istio.io/dry-run: 'true'}, name: p",
    );
    assert_eq!(builder(&text).policies[0].enforcement, Enforcement::DryRun);
    assert!(!denied(&text, ALICE, "10.5.0.1", 80));
}

#[test]
fn policies_for_waypoints_are_reported() {
    let text = policy_in(
        "shop",
        "  targetRefs:\n  - {kind: Service, group: '', name: web}\n  rules: [{}]\n",
    )
    .replace("group: '', ", "");
    assert_eq!(
        findings(&text),
        [
            "Error f.yaml:6: AuthorizationPolicy shop/p: spec.targetRefs: not enforced here: Service/web is governed at its waypoint; use spec.selector to govern workloads at L4"
        ]
    );
    assert_eq!(mesh(&text).builder.policies, []);
}

#[test]
fn actions_are_kept() {
    assert_eq!(policy("  rules: [{}]\n").action, Action::Allow);
    assert_eq!(policy("  action: DENY\n").action, Action::Deny);
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

/// Whether plain connections are refused on ports 80 and 81.
fn strict(text: &str) -> (bool, bool) {
    assert!(!denied(text, ALICE, "10.5.0.1", 80));
    (
        denied(text, None, "10.5.0.1", 80),
        denied(text, None, "10.5.0.1", 81),
    )
}

#[test]
fn the_narrowest_peer_authentication_counts() {
    let mesh = peer("istio-system", "m", "  mtls: {mode: STRICT}\n");
    let open = peer("shop", "n", "  mtls: {mode: PERMISSIVE}\n");
    let disabled = peer("shop", "n", "  mtls: {mode: DISABLE}\n");
    let unset = peer("shop", "n", "  mtls: {mode: UNSET}\n");
    let web = peer(
        "shop",
        "w",
        "  selector: {matchLabels: {app: web}}\n  mtls: {mode: STRICT}\n",
    );
    let other = peer(
        "shop",
        "w",
        "  selector: {matchLabels: {app: x}}\n  mtls: {mode: STRICT}\n",
    );
    for (text, expected) in [
        (mesh.clone(), true),
        (format!("{mesh}{open}"), false),
        (format!("{mesh}{disabled}"), false),
        (format!("{mesh}{unset}"), true),
        (format!("{mesh}{open}{web}"), true),
        (format!("{mesh}{open}{other}"), false),
        (open.clone(), false),
        (String::new(), false),
    ] {
        assert_eq!(strict(&text), (expected, expected), "{text}");
    }
}

#[test]
fn ports_can_differ_from_their_workload() {
    let web = |mtls: &str, port: &str| {
        peer(
            "shop",
            "w",
            &format!(
                "  selector: {{matchLabels: {{app: web}}}}\n{mtls}  portLevelMtls: {{81: {{mode: {port}}}}}\n"
            ),
        )
    };
    let mesh = peer("istio-system", "m", "  mtls: {mode: STRICT}\n");
    assert_eq!(
        strict(&web("  mtls: {mode: STRICT}\n", "PERMISSIVE")),
        (true, false)
    );
    assert_eq!(
        strict(&web("  mtls: {mode: STRICT}\n", "STRICT")),
        (true, true)
    );
    assert_eq!(
        strict(&web("  mtls: {mode: STRICT}\n", "UNSET")),
        (true, true)
    );
    assert_eq!(
        strict(&web("  mtls: {mode: PERMISSIVE}\n", "STRICT")),
        (false, true)
    );
    assert_eq!(strict(&web("", "DISABLE")), (false, false));
    assert_eq!(
        strict(&format!("{mesh}{}", web("", "DISABLE"))),
        (true, false)
    );
}

#[test]
fn converted_policies_have_istios_names() {
    let text = peer(
        "shop",
        "w",
        "  selector: {matchLabels: {app: web}}\n  mtls: {mode: STRICT}\n  portLevelMtls: {81: {mode: PERMISSIVE}}\n",
    );
    let builder = builder(&format!("{text}{}", pod("web", "10.0.0.1", "app: web")));
    let names: Vec<String> = builder.policies.iter().map(|it| it.key()).collect();
    assert_eq!(
        names,
        [
            "istio-system/istio_converted_static_strict",
            "shop/converted_peer_authentication_w"
        ]
    );
    assert_eq!(
        builder.workloads[0].policies,
        ["shop/converted_peer_authentication_w".into()]
    );
}

#[test]
fn peer_authentications_without_effect_are_reported() {
    let first = peer("shop", "a", "  mtls: {mode: STRICT}\n");
    let second = peer("shop", "b", "  mtls: {mode: PERMISSIVE}\n");
    let root = peer(
        "istio-system",
        "r",
        "  selector: {matchLabels: {app: web}}\n  mtls: {mode: STRICT}\n",
    );
    assert_eq!(
        findings(&format!("{first}{second}{root}")),
        [
            "Error f.yaml:18: PeerAuthentication istio-system/r: spec.selector: has no effect: in the root namespace a selector is not allowed; move it to the workloads' namespace, or remove the selector",
            "Error f.yaml:8: PeerAuthentication shop/b: has no effect: PeerAuthentication shop/a has the same scope and wins; remove one of the two",
        ]
    );
}

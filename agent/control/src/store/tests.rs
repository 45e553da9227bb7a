//! Tests of reading: exact messages, last good versions, duplicates, arbitrary input.
use proptest::prelude::*;
use undermesh_model::policy::{Action, Scope};

use super::*;
use crate::{
    fixture::{admit, messages, written},
    settings::Settings,
    translate::translate,
};

fn policy(spec: &str) -> String {
    let header = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n";
    format!("{header}metadata: {{name: p, namespace: shop}}\nspec:\n{spec}")
}

/// The messages of a wrong policy, without the one about what stands in for it.
fn policy_messages(spec: &str) -> Vec<String> {
    let mut messages = messages(&policy(spec));
    messages.retain(|message| !message.contains("until it can be read"));
    messages
}

#[test]
fn mistakes_in_policies_are_told_with_place_and_remedy() {
    let head = "AuthorizationPolicy shop/p: spec";
    for (spec, expected) in [
        (
            "  rules:\n  - from:\n    - source:\n        princpals: [a]\n",
            format!(
                "Error f.yaml:8: {head}.rules[0].from[0].source.princpals: is not a field of this kind; did you mean 'principals'?"
            ),
        ),
        (
            "  action: PERMIT\n",
            format!(
                "Error f.yaml:5: {head}.action: 'PERMIT' is not known; write ALLOW, DENY, AUDIT, CUSTOM"
            ),
        ),
        (
            "  rules:\n  - to:\n    - operation:\n        ports:\n        - \"80\"\n        - \"99999\"\n",
            format!(
                "Error f.yaml:10: {head}.rules[0].to[0].operation.ports[1]: '99999' is not a port; write a number from 1 to 65535"
            ),
        ),
        (
            "  rules:\n  - to:\n    - operation: {ports: [80]}\n",
            format!(
                "Error f.yaml:7: {head}.rules[0].to[0].operation.ports[0]: is a number; put it in quotes"
            ),
        ),
        (
            "  rules:\n  - from:\n    - source:\n        ipBlocks: [10.0.0.0/33]\n",
            format!(
                "Error f.yaml:8: {head}.rules[0].from[0].source.ipBlocks[0]: '10.0.0.0/33' is neither an IP address nor a CIDR; write one such as 10.0.0.7 or 10.0.0.0/8"
            ),
        ),
        (
            "  rules:\n  - from:\n    - source: {principals: ['spiffe://td/ns/a/sa/b']}\n",
            format!(
                "Error f.yaml:7: {head}.rules[0].from[0].source.principals[0]: begins with spiffe://, which would never match; write 'td/ns/a/sa/b'"
            ),
        ),
        (
            "  rules:\n  - from:\n    - source: {namespaces: ['a*b']}\n",
            format!(
                "Error f.yaml:7: {head}.rules[0].from[0].source.namespaces[0]: 'a*b' has '*' in the middle; use one '*', at the beginning or the end"
            ),
        ),
        (
            "  rules:\n  - from:\n    - source: {serviceAccounts: ['a/b/c']}\n",
            format!(
                "Error f.yaml:7: {head}.rules[0].from[0].source.serviceAccounts[0]: 'a/b/c' is not a service account; write <namespace>/<name>, or <name> for one of the policy's namespace"
            ),
        ),
        (
            "  rules:\n  - from:\n    - source: {}\n",
            format!(
                "Error f.yaml:7: {head}.rules[0].from[0].source: says nothing; give it a field with a value, or remove it"
            ),
        ),
        (
            "  rules:\n  - from: []\n",
            format!(
                "Error f.yaml:6: {head}.rules[0].from: is empty; add an item, or remove it to match everything"
            ),
        ),
        (
            "  rules:\n  - when:\n    - key: source.prt\n      values: ['80']\n",
            format!(
                "Error f.yaml:7: {head}.rules[0].when[0].key: 'source.prt' is not a known key; did you mean 'source.ip'?"
            ),
        ),
        (
            "  rules:\n  - when:\n    - key: source.ip\n",
            format!(
                "Error f.yaml:7: {head}.rules[0].when[0]: has neither values nor notValues; add one"
            ),
        ),
        (
            "  rules:\n  - from:\n    - source:\n        namespaces: [a]\n        principals:\n",
            format!(
                "Error f.yaml:9: {head}.rules[0].from[0].source.principals: has no value; give it one or remove it"
            ),
        ),
        (
            "  rules:\n  - from:\n    - source:\n        namespaces: [a]\n        notPrincipals: []\n",
            format!(
                "Error f.yaml:9: {head}.rules[0].from[0].source.notPrincipals: is empty; give it a value or remove it"
            ),
        ),
        (
            "  rules: {}\n",
            format!("Error f.yaml:5: {head}.rules: is a map; write a list"),
        ),
        (
            "  selector: {matchLabels: {app: 'w*'}}\n",
            format!(
                "Error f.yaml:5: {head}.selector.matchLabels.app: '*' is no wildcard here; write the label in full"
            ),
        ),
        (
            "  selector: {matchLabels: {app: web}}\n  targetRefs: [{kind: Service, name: web}]\n",
            format!(
                "Error f.yaml:6: {head}.targetRefs[0]: stands beside a selector; keep one of the two"
            ),
        ),
    ] {
        assert_eq!(policy_messages(spec), [expected], "{spec}");
    }
}

#[test]
fn mistakes_in_other_kinds_are_told_with_place_and_remedy() {
    let pa = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\n";
    for (text, expected) in [
        (
            "kind: Pod\nmetadata: {name: a}\n".to_owned(),
            "Error f.yaml:1: apiVersion: is missing; add it",
        ),
        (
            "apiVersion: v1\nkind: Pdo\nmetadata: {name: a}\n".to_owned(),
            "Error f.yaml:2: kind: 'Pdo' is not a kind of the core group; did you mean 'Pod'?",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {namespace: a}\nspec: {}\n".to_owned(),
            "Error f.yaml:3: metadata.name: is missing; add it",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: Web_1}\nspec: {}\n".to_owned(),
            "Error f.yaml:3: metadata.name: 'Web_1' is not a valid name; use up to 253 lower-case letters, digits, '-' and '.' (RFC 1123)",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\nstatus:\n  podIP: 10.0.0.300\n".to_owned(),
            "Error f.yaml:6: Pod default/a: status.podIP: '10.0.0.300' is not an IP address; write one such as 10.0.0.7 or fd00::7",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    version: 1\nspec: {}\n".to_owned(),
            "Error f.yaml:6: Pod default/a: metadata.labels.version: is a number; put it in quotes",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: 80\n  - port: 70000\n".to_owned(),
            "Error f.yaml:7: Service default/a: spec.ports[1].port: 70000 is not a port; write a number from 1 to 65535",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  selectr: {app: a}\n".to_owned(),
            "Warning f.yaml:5: Service default/a: spec.selectr: is not a field of this kind; did you mean 'selector'?",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hosts: [a.example]\n  resolution: STATC\n".to_owned(),
            "Error f.yaml:6: ServiceEntry default/a: spec.resolution: 'STATC' is not known; write NONE, STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec:\n  address: 10.0.0.300\n".to_owned(),
            "Error f.yaml:5: WorkloadEntry default/a: spec.address: '10.0.0.300' is not an IP address; write one such as 10.0.0.7",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: FQDN\n".to_owned(),
            "Error f.yaml:4: EndpointSlice default/a: addressType: host names as endpoints are not supported; list IP addresses",
        ),
        (
            format!("{pa}spec:\n  portLevelMtls:\n    8080: {{mode: STRICT}}\n"),
            "Error f.yaml:5: PeerAuthentication shop/p: spec.portLevelMtls: needs a selector; add spec.selector.matchLabels, or use spec.mtls",
        ),
        (
            format!("{pa}spec:\n  mtls: {{mode: strict}}\n"),
            "Error f.yaml:5: PeerAuthentication shop/p: spec.mtls.mode: 'strict' is not known; write UNSET, DISABLE, PERMISSIVE, STRICT",
        ),
        (
            "a: 1\n---\n\n# broken\nkind: [\n".to_owned(),
            "Error f.yaml:5: not YAML: did not find expected node content, while parsing a flow node; correct the syntax",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n".to_owned(),
            "Info f.yaml:1: Deployment shop/web: not used by the L4 data plane",
        ),
        (
            "{\n\"keys\": []\n}".to_owned(),
            "Warning f.yaml:1: is no Kubernetes object and has no effect; move it elsewhere, or add apiVersion, kind and metadata",
        ),
        (
            "just words".to_owned(),
            "Error f.yaml:1: is a text; write a map",
        ),
    ] {
        assert!(messages(&text).contains(&expected.to_owned()), "{text}\n{:#?}", messages(&text));
    }
}

const DENY_WEB: &str = "  selector: {matchLabels: {app: web}}\n  action: DENY\n  rules:\n  - from: [{source: {namespaces: [x]}}]\n";

#[test]
fn a_policy_that_was_never_good_denies_what_it_selects() {
    let mut store = Store::default();
    let text = policy("  selector: {matchLabels: {app: web}}\n  rules:\n  - fro: []\n");
    let diagnostics = written(&admit(&mut store, &[("f.yaml", &text)]));
    assert_eq!(
        diagnostics[1],
        "Error f.yaml:1: AuthorizationPolicy shop/p: denies everything it selects until it can be read; correct the errors above"
    );
    let policies = translate(store.resources(), &Settings::default())
        .builder
        .policies;
    assert_eq!(policies[0].action, Action::Deny);
    assert_eq!(policies[0].scope, Scope::WorkloadSelector);
    assert_eq!(
        policies[0].rules,
        [undermesh_model::policy::Rule::default()]
    );
}

#[test]
fn a_policy_that_was_never_good_with_a_doubtful_selection_is_only_reported() {
    for spec in [
        "  selector: {matchLabels: {app: 7}}\n  rules: [{}]\n",
        "  selectr: {matchLabels: {app: web}}\n  rules: [{}]\n",
        "  targetRefs: [{kind: Service}]\n  rules: [{}]\n",
    ] {
        let mut store = Store::default();
        let diagnostics = admit(&mut store, &[("f.yaml", &policy(spec))]);
        assert_eq!(store.resources().count(), 0, "{spec}");
        assert!(
            diagnostics
                .iter()
                .all(|it| !it.message.contains("denies everything")),
            "{spec}"
        );
    }
}

#[test]
fn a_good_document_that_goes_bad_keeps_its_last_good_version() {
    let mut store = Store::default();
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\nstatus: {podIP: 10.0.0.1}\n";
    assert!(
        admit(
            &mut store,
            &[("f.yaml", &format!("{}---\n{pod}", policy(DENY_WEB)))]
        )
        .is_empty()
    );
    let bad = format!(
        "{}---\n{}",
        policy("  action: DNEY\n"),
        pod.replace("10.0.0.1", "10.0.0.2")
    );
    for _ in 0..2 {
        let diagnostics = written(&admit(&mut store, &[("f.yaml", &bad)]));
        assert!(
            diagnostics[1]
                .contains("AuthorizationPolicy shop/p: its last good version stays in force")
        );
        let builder = translate(store.resources(), &Settings::default()).builder;
        assert_eq!(builder.policies[0].rules[0].clauses.len(), 1);
        assert_eq!(builder.workloads[0].addresses[0].to_string(), "10.0.0.2");
    }
}

#[test]
fn a_document_without_a_readable_name_keeps_what_its_file_gave() {
    let mut store = Store::default();
    admit(&mut store, &[("f.yaml", &policy(DENY_WEB))]);
    for text in [
        policy(DENY_WEB).replace("rules:", "rules: ["),
        policy(DENY_WEB).replace("name: p", "nam: p"),
    ] {
        let diagnostics = written(&admit(&mut store, &[("f.yaml", &text)]));
        assert_eq!(store.resources().count(), 1);
        assert!(
            diagnostics.contains(
                &"Error f.yaml: the last good version stays in force of AuthorizationPolicy shop/p; correct the errors in this file"
                    .to_owned()
            ),
            "{diagnostics:#?}"
        );
    }
    admit(&mut store, &[("f.yaml", "# nothing\n")]);
    assert_eq!(store.resources().count(), 0);
}

#[test]
fn an_unreadable_file_keeps_what_it_gave_and_a_removed_one_does_not() {
    let mut store = Store::default();
    admit(&mut store, &[("f.yaml", &policy(DENY_WEB))]);
    let unreadable = File::Unreadable {
        message: "cannot be read".to_owned(),
        remedy: "r",
    };
    store.admit(&BTreeMap::from([(Arc::from("f.yaml"), unreadable)]));
    assert_eq!(store.resources().count(), 1);
    store.admit(&BTreeMap::new());
    assert_eq!(store.resources().count(), 0);
}

#[test]
fn of_duplicates_the_first_file_wins() {
    let mut store = Store::default();
    let service = |port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: {port}}}]}}\n"
        )
    };
    let diagnostics = admit(
        &mut store,
        &[("b.yaml", &service(2)), ("a.yaml", &service(1))],
    );
    assert_eq!(
        written(&diagnostics),
        [
            "Error b.yaml:1: Service default/a: is also in a.yaml:1, which wins; remove one of the two"
        ]
    );
    assert_eq!(
        translate(store.resources(), &Settings::default())
            .builder
            .services[0]
            .ports[0]
            .port,
        1
    );
}

#[test]
fn lists_and_json_are_read_with_their_lines() {
    let text = "{\n\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}},\n{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"b\"},\n\"spec\": {\"ports\": [{\"port\": 0}]}}]}\n";
    let mut store = Store::default();
    let diagnostics = admit(&mut store, &[("f.json", text)]);
    assert_eq!(
        written(&diagnostics),
        [
            "Error f.json:5: Service default/b: spec.ports[0].port: 0 is not a port; write a number from 1 to 65535"
        ]
    );
    assert_eq!(
        store.counts(),
        BTreeMap::from([("Namespace".to_owned(), 1)])
    );
}

#[test]
fn the_first_steps_of_a_newcomer_are_accepted() {
    let mut store = Store::default();
    let text = r#"
apiVersion: v1
kind: Namespace
metadata:
  name: default
  labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: booking, namespace: default}
---
apiVersion: v1
kind: Service
metadata: {name: booking-service, namespace: default}
spec:
  selector: {app: booking-service}
  ports:
  - {name: http, port: 8080, targetPort: 8080, protocol: TCP}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: v, namespace: default}
spec: {hosts: [booking-service], http: [{route: [{destination: {host: booking-service}}]}]}
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec:
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1beta1
kind: RequestAuthentication
metadata: {name: jwt, namespace: default}
spec: {jwtRules: [{issuer: i, jwks: '{}'}]}
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: require-jwt, namespace: default}
spec:
  selector:
    matchLabels: {app: booking-service}
  action: ALLOW
  rules:
  - from:
    - source:
        requestPrincipals: ["testing@secure.istio.io/testing@secure.istio.io"]
"#;
    let diagnostics = admit(&mut store, &[("f.yaml", text)]);
    let severities: Vec<Severity> = diagnostics.iter().map(|it| it.severity).collect();
    assert_eq!(
        severities,
        [Severity::Info, Severity::Info, Severity::Warning],
        "{:#?}",
        written(&diagnostics)
    );
    let counts = store.counts();
    assert_eq!(counts.values().sum::<usize>(), 4, "{counts:?}");
    let builder = translate(store.resources(), &Settings::default()).builder;
    assert!(
        builder
            .policies
            .iter()
            .any(|policy| &*policy.name == "require-jwt" && policy.rules.is_empty())
    );
}

/// Words that manifests are made of, so that arbitrary texts reach deep into the readers.
fn soup() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "apiVersion: ",
        "kind: ",
        "v1\n",
        "security.istio.io/v1\n",
        "AuthorizationPolicy\n",
        "Pod\n",
        "metadata:\n",
        "  name: a\n",
        "spec:\n",
        "  rules:\n",
        "  - from:\n",
        "    - source:\n",
        "        principals: ",
        "[\"*\"]\n",
        "---\n",
        "...\n",
        "- ",
        "&a ",
        "*a ",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "'",
        "<<: ",
        "!t ",
        "| \n",
        "\t",
        "\n",
        "  ",
        "%YAML 1.1\n",
        "\u{feff}",
        "\u{0}",
        "80",
        "é",
    ]);
    prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        admit(&mut Store::default(), &[("f", &String::from_utf8_lossy(&bytes))]);
    }

    #[test]
    fn arbitrary_manifests_never_panic_and_stay_on_their_lines(text in soup()) {
        let mut store = Store::default();
        let lines = text.split('\n').count();
        for diagnostic in admit(&mut store, &[("f", &text)]) {
            prop_assert!(diagnostic.line <= lines + 1, "{diagnostic} of {lines} lines");
            prop_assert_eq!(diagnostic.to_string().lines().count(), 1);
        }
        translate(store.resources(), &Settings::default());
    }

    #[test]
    fn a_bad_document_never_disturbs_a_good_one(text in soup()) {
        let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n";
        let mut store = Store::default();
        admit(&mut store, &[("a", good), ("b", &text), ("c", &format!("{good}---\n"))]);
        prop_assert!(store.resources().any(|it| &**it.metadata().name() == "good"));
    }
}

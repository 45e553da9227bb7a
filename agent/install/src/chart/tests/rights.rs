//! What the chart's roles allow: what the code uses, and no more.
use std::collections::BTreeSet;

use clap::ValueEnum as _;
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicy,
    apps::v1::DaemonSet,
    rbac::v1::{ClusterRole, PolicyRule},
};

use super::{ALL, Profile, rendered, typed};

/// The rights that the code uses: group, resource, names, verbs. Rights that it gets to use are added here and
/// in the chart.
const CONTROLLER: &[Rule] = &[
    (
        "",
        &["namespaces", "nodes", "pods", "serviceaccounts", "services"],
        &[],
        READ,
    ),
    ("discovery.k8s.io", &["endpointslices"], &[], READ),
    (
        "networking.istio.io",
        &[
            "destinationrules",
            "envoyfilters",
            "gateways",
            "proxyconfigs",
            "serviceentries",
            "sidecars",
            "virtualservices",
            "workloadentries",
            "workloadgroups",
        ],
        &[],
        READ,
    ),
    (
        "security.istio.io",
        &[
            "authorizationpolicies",
            "peerauthentications",
            "requestauthentications",
        ],
        &[],
        READ,
    ),
    (
        "gateway.networking.k8s.io",
        &["gatewayclasses", "gateways"],
        &[],
        READ,
    ),
    (
        "apiextensions.k8s.io",
        &["customresourcedefinitions"],
        &[],
        READ,
    ),
    (
        "networking.istio.io",
        &["serviceentries/status", "workloadentries/status"],
        &[],
        &["patch"],
    ),
    (
        "security.istio.io",
        &["authorizationpolicies/status", "peerauthentications/status"],
        &[],
        &["patch"],
    ),
    (
        "networking.istio.io",
        &["workloadentries"],
        &[],
        &["create", "patch", "delete"],
    ),
    ("authentication.k8s.io", &["tokenreviews"], &[], &["create"]),
    (
        "authorization.k8s.io",
        &["subjectaccessreviews"],
        &[],
        &["create"],
    ),
    ("", &["configmaps"], &[], &["create"]),
    (
        "",
        &["configmaps"],
        &["istio-ca-root-cert"],
        &["list", "watch", "patch"],
    ),
    (
        "admissionregistration.k8s.io",
        &["validatingwebhookconfigurations"],
        &["undermesh"],
        &["get", "list", "watch", "patch"],
    ),
];
/// Group, resources, names, verbs.
type Rule = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);
const READ: &[&str] = &["get", "list", "watch"];

type Right = (String, String, String, String);

fn rights(rules: &[PolicyRule]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        let any = vec![String::new()];
        for group in rule.api_groups.as_ref().unwrap() {
            for resource in rule.resources.as_ref().unwrap() {
                for name in rule.resource_names.as_ref().unwrap_or(&any) {
                    for verb in &rule.verbs {
                        let right = [group, resource, name, verb].map(Clone::clone);
                        let [group, resource, name, verb] = right;
                        assert!(
                            rights.insert((group, resource, name, verb)),
                            "{rule:?} repeats"
                        );
                    }
                }
            }
        }
    }
    rights
}

#[test]
fn the_controller_has_the_rights_that_it_uses_and_no_others() {
    let role: ClusterRole = typed(
        &rendered(Profile::Default, &[]),
        "ClusterRole",
        "undermesh-controller",
    );
    let owned = |items: &[&str]| items.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    let wanted: Vec<PolicyRule> = CONTROLLER
        .iter()
        .map(|(group, resources, names, verbs)| PolicyRule {
            api_groups: Some(owned(&[group])),
            resources: Some(owned(resources)),
            resource_names: (!names.is_empty()).then(|| owned(names)),
            verbs: owned(verbs),
            ..PolicyRule::default()
        })
        .collect();
    assert_eq!(rights(&role.rules.unwrap()), rights(&wanted));
}

#[test]
fn a_node_can_write_the_status_of_pods_and_nothing_else() {
    for profile in [Profile::Default, Profile::Istiod] {
        let manifests = rendered(profile, &[]);
        let role: ClusterRole = typed(&manifests, "ClusterRole", "undermesh-node");
        let writes: Vec<_> = rights(&role.rules.unwrap())
            .into_iter()
            .filter(|(_, _, _, verb)| !READ.contains(&verb.as_str()))
            .collect();
        let [(_, resource, _, verb)] = &writes[..] else {
            panic!("{writes:?}")
        };
        assert_eq!((resource.as_str(), verb.as_str()), ("pods/status", "patch"));
        let set: DaemonSet = typed(&manifests, "DaemonSet", "undermesh-node");
        let account = set
            .spec
            .unwrap()
            .template
            .spec
            .unwrap()
            .service_account_name
            .unwrap();
        let policy: ValidatingAdmissionPolicy =
            typed(&manifests, "ValidatingAdmissionPolicy", "undermesh-node");
        let condition = &policy.spec.unwrap().match_conditions.unwrap()[0].expression;
        assert!(condition.contains(&format!("system:serviceaccount:istio-system:{account}'")));
    }
}

#[test]
fn no_role_names_everything_or_reads_secrets_that_it_does_not_name() {
    for profile in Profile::value_variants() {
        for manifest in rendered(*profile, &ALL) {
            if !matches!(manifest.kind().kind, "Role" | "ClusterRole") {
                continue;
            }
            let rules = manifest.object().data["rules"].clone();
            let rules: Vec<PolicyRule> = serde_json::from_value(rules).unwrap();
            for (group, resource, name, verb) in rights(&rules) {
                assert!(
                    ![&group, &resource, &verb].iter().any(|it| *it == "*"),
                    "{manifest}"
                );
                if matches!(resource.as_str(), "secrets" | "configmaps" | "leases") {
                    assert!(
                        !name.is_empty() || verb == "create",
                        "{manifest}: {verb} {resource}"
                    );
                }
                assert!(
                    resource != "secrets" || manifest.kind().kind == "Role",
                    "{manifest}"
                );
            }
        }
    }
}

//! Evaluation by example.
use super::*;
use crate::{
    fixture::{identity, pod, policy},
    mesh::{Mesh, MeshBuilder},
    policy::Scope,
};

fn plain_request() -> Request<'static> {
    Request {
        identity: None,
        source: "10.0.0.9".parse().unwrap(),
        destination: "10.0.0.1".parse().unwrap(),
        port: 8080,
    }
}

fn mesh(policies: Vec<Policy>) -> Mesh {
    MeshBuilder {
        policies: policies.into_iter().map(Arc::new).collect(),
        ..MeshBuilder::default()
    }
    .build(&Mesh::empty())
}

fn verdict(policies: Vec<Policy>, request: &Request<'_>) -> Verdict {
    mesh(policies).evaluate(&pod("web", &["10.0.0.1"]), request)
}

fn matched(wanted: Match, request: &Request<'_>) -> bool {
    let allow = policy("p", Scope::Global, Action::Allow, wanted);
    verdict(vec![allow], request).decision.allows()
}

fn port(port: u16) -> Match {
    Match {
        destination_ports: vec![port],
        ..Match::default()
    }
}

fn any_principal() -> Vec<StringMatch> {
    vec![StringMatch::Presence]
}

#[test]
fn without_policies_everything_goes_through() {
    let verdict = verdict(Vec::new(), &plain_request());
    assert_eq!(verdict.decision, Decision::Allow { policy: None });
}

#[test]
fn a_deny_wins_over_an_allow() {
    let allow = policy("a", Scope::Namespace, Action::Allow, port(8080));
    let deny = policy("d", Scope::Namespace, Action::Deny, port(8080));
    let verdict = verdict(vec![allow, deny], &plain_request());
    assert_eq!(
        verdict.decision,
        Decision::Denied {
            policy: "shop/d".into()
        }
    );
}

#[test]
fn with_an_allow_policy_nothing_else_goes_through() {
    let allow = || policy("a", Scope::Namespace, Action::Allow, port(443));
    assert_eq!(
        verdict(vec![allow()], &plain_request()).decision,
        Decision::NotAllowed {
            policies: vec!["shop/a".into()]
        }
    );
    let request = Request {
        port: 443,
        ..plain_request()
    };
    assert_eq!(
        verdict(vec![allow()], &request).decision,
        Decision::Allow {
            policy: Some("shop/a".into())
        }
    );
}

#[test]
fn an_allow_policy_without_rules_denies_all_and_a_deny_policy_without_rules_denies_none() {
    let empty = |action| {
        let policy = policy("p", Scope::Namespace, action, Match::default());
        Policy {
            rules: Vec::new(),
            ..policy
        }
    };
    assert_eq!(
        verdict(vec![empty(Action::Allow)], &plain_request()).decision,
        Decision::NotAllowed {
            policies: vec!["shop/p".into()]
        }
    );
    assert!(
        verdict(vec![empty(Action::Deny)], &plain_request())
            .decision
            .allows()
    );
}

#[test]
fn empty_rules_and_clauses_match_and_an_empty_match_does_not() {
    let deny = |rules| {
        let policy = policy("p", Scope::Namespace, Action::Deny, Match::default());
        verdict(vec![Policy { rules, ..policy }], &plain_request())
            .decision
            .allows()
    };
    assert!(!deny(vec![Rule::default()]));
    assert!(!deny(vec![Rule {
        clauses: vec![Clause::default()]
    }]));
    assert!(deny(vec![Rule {
        clauses: vec![Clause {
            matches: vec![Match::default()]
        }]
    }]));
}

#[test]
fn strict_mutual_tls_is_a_deny_of_peers_without_a_principal() {
    let strict = Match {
        not_principals: any_principal(),
        ..Match::default()
    };
    assert!(matched(strict.clone(), &plain_request()));
    let peer = identity("shop", "cart");
    assert!(!matched(
        strict,
        &Request {
            identity: Some(&peer),
            ..plain_request()
        }
    ));
}

#[test]
fn principals_are_compared_without_the_scheme() {
    let peer = identity("shop", "cart");
    let request = Request {
        identity: Some(&peer),
        ..plain_request()
    };
    let principal = |wanted| Match {
        principals: vec![wanted],
        ..Match::default()
    };
    for wanted in [
        StringMatch::Exact("cluster.local/ns/shop/sa/cart".into()),
        StringMatch::Prefix("cluster.local/ns/shop/".into()),
        StringMatch::Suffix("/sa/cart".into()),
        StringMatch::Presence,
    ] {
        assert!(matched(principal(wanted.clone()), &request), "{wanted:?}");
        assert!(
            !matched(principal(wanted.clone()), &plain_request()),
            "{wanted:?} without an identity"
        );
    }
    assert!(!matched(
        principal(StringMatch::Exact(
            "spiffe://cluster.local/ns/shop/sa/cart".into()
        )),
        &request
    ));
}

#[test]
fn service_accounts_match_in_any_trust_domain() {
    let wanted = Match {
        service_accounts: vec![ServiceAccountMatch {
            namespace: "shop".into(),
            service_account: "cart".into(),
        }],
        ..Match::default()
    };
    let elsewhere = Identity::new("other.example".parse().unwrap(), "shop", "cart").unwrap();
    assert!(matched(
        wanted.clone(),
        &Request {
            identity: Some(&elsewhere),
            ..plain_request()
        }
    ));
    let other = identity("shop", "cart2");
    assert!(!matched(
        wanted.clone(),
        &Request {
            identity: Some(&other),
            ..plain_request()
        }
    ));
    assert!(!matched(wanted, &plain_request()));
}

#[test]
fn mapped_addresses_are_ipv4() {
    let nets = |text: &str| Match {
        source_ips: vec![text.parse().unwrap()],
        ..Match::default()
    };
    let mapped = Request {
        source: "::ffff:10.0.0.9".parse().unwrap(),
        ..plain_request()
    };
    assert!(matched(nets("10.0.0.0/8"), &mapped));
    assert!(matched(nets("::ffff:10.0.0.0/104"), &plain_request()));
    assert!(!matched(nets("::/0"), &mapped));
}

#[test]
fn a_selector_policy_governs_those_who_name_it_alone() {
    let deny = policy("d", Scope::WorkloadSelector, Action::Deny, port(8080));
    let mesh = mesh(vec![deny]);
    let mut web = pod("web", &["10.0.0.1"]);
    assert!(mesh.evaluate(&web, &plain_request()).decision.allows());
    web.policies = vec!["shop/d".into()];
    assert!(!mesh.evaluate(&web, &plain_request()).decision.allows());
}

#[test]
fn namespace_policies_stay_in_their_namespace_and_global_ones_do_not() {
    let mut elsewhere = pod("web", &["10.0.0.1"]);
    elsewhere.namespace = "bank".into();
    for (scope, allowed) in [(Scope::Namespace, true), (Scope::Global, false)] {
        let mesh = mesh(vec![policy("d", scope, Action::Deny, port(8080))]);
        assert_eq!(
            mesh.evaluate(&elsewhere, &plain_request())
                .decision
                .allows(),
            allowed,
            "{scope:?}"
        );
    }
}

#[test]
fn a_named_policy_that_is_missing_refuses() {
    let mut web = pod("web", &["10.0.0.1"]);
    web.policies = vec!["shop/gone".into()];
    let allow = policy("a", Scope::Namespace, Action::Allow, port(8080));
    let decision = mesh(vec![allow]).evaluate(&web, &plain_request()).decision;
    assert_eq!(
        decision,
        Decision::Unenforceable {
            policy: "shop/gone".into()
        }
    );
    assert!(!decision.allows());
}

#[test]
fn a_dry_run_policy_is_reported_and_decides_nothing() {
    let dry = |name, action, wanted| {
        let policy = policy(name, Scope::Namespace, action, wanted);
        Policy {
            enforcement: Enforcement::DryRun,
            ..policy
        }
    };
    let policies = vec![
        dry("a", Action::Allow, port(443)),
        dry("b", Action::Allow, port(8080)),
        dry("c", Action::Deny, port(8080)),
        dry("d", Action::Deny, port(443)),
    ];
    let verdict = verdict(policies, &plain_request());
    assert_eq!(verdict.decision, Decision::Allow { policy: None });
    assert_eq!(verdict.dry_run, ["shop/c".into(), "shop/a".into()]);
}

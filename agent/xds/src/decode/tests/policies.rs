//! Tests of policies: one that cannot be read whole is not read at all, and what it selects is denied.
use undermesh_model::policy::{Action, Enforcement, Scope};

use super::*;

fn policy(wire: security::Authorization) -> Result<Policy, DecodeError> {
    let content = packed(AUTHORIZATION_TYPE, &wire);
    decoder()
        .policy("shop/deny", &content)
        .map_err(|rejection| rejection.error)
}

fn condition(condition: security::Match) -> Result<Policy, DecodeError> {
    let clause = security::Clause {
        matches: vec![condition],
    };
    policy(security::Authorization {
        rules: vec![security::Rule {
            clauses: vec![clause],
        }],
        ..wire_policy()
    })
}

#[test]
fn a_policy_comes_out_with_every_condition() {
    use security::string_match::MatchType;

    let text = |kind| security::StringMatch {
        match_type: Some(kind),
    };
    let decoded = condition(security::Match {
        principals: vec![
            text(MatchType::Presence(())),
            text(MatchType::Exact("a".into())),
        ],
        not_namespaces: vec![text(MatchType::Prefix("b".into()))],
        source_ips: vec![security::Address {
            address: Bytes::from_static(&[10, 0, 0, 0]),
            length: 8,
        }],
        not_destination_ports: vec![9000],
        service_accounts: vec![security::ServiceAccountMatch {
            namespace: "shop".into(),
            service_account: "web".into(),
        }],
        ..security::Match::default()
    })
    .unwrap();
    assert_eq!(
        (decoded.scope, decoded.action, decoded.enforcement),
        (Scope::Namespace, Action::Deny, Enforcement::Enforced)
    );
    let condition = &decoded.rules[0].clauses[0].matches[0];
    assert_eq!(condition.principals.len(), 2);
    assert_eq!(condition.not_namespaces.len(), 1);
    assert_eq!(condition.source_ips, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(condition.not_destination_ports, [9000]);
    assert_eq!(condition.service_accounts.len(), 1);
}

#[test]
fn a_policy_with_a_condition_that_cannot_be_read_is_rejected_whole() {
    let range = |address: &'static [u8], length| security::Address {
        address: Bytes::from_static(address),
        length,
    };
    let cases = [
        (
            security::Match {
                source_ips: vec![range(&[10, 0, 0, 0], 8), range(&[10, 0, 0], 8)],
                ..security::Match::default()
            },
            DecodeError::Address("source_ips", 3),
        ),
        (
            security::Match {
                not_source_ips: vec![range(&[10, 0, 0, 0], 33)],
                ..security::Match::default()
            },
            DecodeError::Prefix("not_source_ips", 33),
        ),
        (
            security::Match {
                principals: vec![security::StringMatch::default()],
                ..security::Match::default()
            },
            DecodeError::StringMatch("principals"),
        ),
        (
            security::Match {
                destination_ports: vec![70000],
                ..security::Match::default()
            },
            DecodeError::Port("destination_ports", 70000),
        ),
        (
            security::Match {
                not_service_accounts: vec![security::ServiceAccountMatch::default()],
                ..security::Match::default()
            },
            DecodeError::Missing("not_service_accounts"),
        ),
    ];
    for (wire, error) in cases {
        assert_eq!(condition(wire).unwrap_err(), error);
    }
}

#[test]
fn unknown_scopes_and_actions_of_policies_are_rejected() {
    let unknown = |scope, action| security::Authorization {
        scope,
        action,
        ..wire_policy()
    };
    assert_eq!(
        policy(unknown(3, 0)).unwrap_err(),
        DecodeError::Number("scope", 3)
    );
    assert_eq!(
        policy(unknown(0, 2)).unwrap_err(),
        DecodeError::Number("action", 2)
    );
}

#[test]
fn what_stands_in_for_a_policy_denies_all_that_it_may_select() {
    let scoped = |scope, dry_run| {
        let wire = security::Authorization {
            scope,
            dry_run,
            ..wire_policy()
        };
        stand_in("root/deny", Some(&packed(AUTHORIZATION_TYPE, &wire)))
    };
    for (scope, stands_in) in [
        (0, Some(Scope::Global)),
        (1, Some(Scope::Namespace)),
        (2, None),
        (9, Some(Scope::Namespace)),
    ] {
        let policy = scoped(scope, false);
        assert_eq!(policy.as_ref().map(|policy| policy.scope), stands_in);
        if let Some(policy) = policy {
            assert_eq!(policy.action, Action::Deny);
            assert_eq!(policy.rules, [Default::default()]);
            assert_eq!(policy.key(), "root/deny");
        }
    }
    assert_eq!(scoped(0, true), None);
    let unread = stand_in("shop/a", None).unwrap();
    assert_eq!(unread.scope, Scope::Namespace);
}

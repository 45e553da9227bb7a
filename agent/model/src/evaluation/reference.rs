//! Evaluation against a reference model: the semantics once more, as plainly as they can be written and
//! sharing no code with the evaluation.
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    fixture::pod,
    mesh::{Mesh, MeshBuilder},
    policy::Scope,
    workload::Workload,
};

fn decide(policies: &[Policy], workload: &Workload, request: &Request<'_>) -> &'static str {
    let named = |policy: &Policy| workload.policies.iter().any(|key| **key == *policy.key());
    let governs = |policy: &Policy| match policy.scope {
        Scope::Global => true,
        Scope::Namespace => policy.namespace == workload.namespace || named(policy),
        Scope::WorkloadSelector => named(policy),
    };
    let of = |action| {
        let all = policies
            .iter()
            .filter(move |policy| policy.action == action);
        all.filter(|policy| policy.enforcement == Enforcement::Enforced && governs(policy))
    };
    let known = |key: &Arc<str>| policies.iter().any(|policy| *policy.key() == **key);
    if of(Action::Deny).any(|policy| holds(policy, request)) {
        "denied"
    } else if !workload.policies.iter().all(known) {
        "unenforceable"
    } else if of(Action::Allow).count() == 0
        || of(Action::Allow).any(|policy| holds(policy, request))
    {
        "allowed"
    } else {
        "not allowed"
    }
}

fn holds(policy: &Policy, request: &Request<'_>) -> bool {
    for rule in &policy.rules {
        let mut clauses = true;
        for clause in &rule.clauses {
            let mut any = clause.matches.is_empty();
            for one in &clause.matches {
                any |= conditions(one, request).is_some_and(|all| all);
            }
            clauses &= any;
        }
        if clauses {
            return true;
        }
    }
    false
}

/// All set conditions of a match, joined by AND; `None` when it has none.
fn conditions(one: &Match, request: &Request<'_>) -> Option<bool> {
    let id = request.identity.map(ToString::to_string);
    let parts: Option<Vec<&str>> = id.as_ref().map(|id| id.split('/').collect());
    let namespace = parts.as_ref().map_or("", |parts| parts[4]);
    let principal = id.as_ref().map(|id| &id[9..]);
    let account = |wanted: &ServiceAccountMatch| {
        parts.as_ref().is_some_and(|parts| {
            parts[4] == &*wanted.namespace && parts[6] == &*wanted.service_account
        })
    };
    let is_principal =
        |wanted: &StringMatch| principal.is_some_and(|principal| text(wanted, principal));
    let lists = [
        positive(&one.namespaces, |wanted| text(wanted, namespace)),
        negative(&one.not_namespaces, |wanted| text(wanted, namespace)),
        positive(&one.principals, is_principal),
        negative(&one.not_principals, is_principal),
        positive(&one.source_ips, |net| inside(net, request.source)),
        negative(&one.not_source_ips, |net| inside(net, request.source)),
        positive(&one.destination_ips, |net| inside(net, request.destination)),
        negative(&one.not_destination_ips, |net| {
            inside(net, request.destination)
        }),
        positive(&one.destination_ports, |port| *port == request.port),
        negative(&one.not_destination_ports, |port| *port == request.port),
        positive(&one.service_accounts, account),
        negative(&one.not_service_accounts, account),
    ];
    lists.into_iter().flatten().reduce(|all, one| all && one)
}

fn positive<T>(list: &[T], holds: impl FnMut(&T) -> bool) -> Option<bool> {
    (!list.is_empty()).then(|| list.iter().any(holds))
}

fn negative<T>(list: &[T], holds: impl FnMut(&T) -> bool) -> Option<bool> {
    positive(list, holds).map(|any| !any)
}

fn text(wanted: &StringMatch, text: &str) -> bool {
    match wanted {
        StringMatch::Exact(wanted) => wanted.as_bytes() == text.as_bytes(),
        StringMatch::Prefix(wanted) => {
            text.len() >= wanted.len() && text[..wanted.len()] == **wanted
        }
        StringMatch::Suffix(wanted) => {
            text.len() >= wanted.len() && text[text.len() - wanted.len()..] == **wanted
        }
        StringMatch::Presence => !text.is_empty(),
    }
}

/// Compares bits in the IPv6 form, where IPv4 is below `::ffff:0:0/96`; no family holds the other.
fn inside(net: &IpNet, address: IpAddr) -> bool {
    let (net_bits, length) = match net {
        IpNet::V4(net) => (wide(net.addr().into()), u32::from(net.prefix_len()) + 96),
        IpNet::V6(net) => (wide(net.addr().into()), u32::from(net.prefix_len())),
    };
    let is_ipv4 = wide(address) >> 32 == 0xffff;
    let net_is_ipv4 = length >= 96 && net_bits >> 32 == 0xffff;
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    is_ipv4 == net_is_ipv4 && net_bits & mask == wide(address) & mask
}

fn wide(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

// Few distinct values, so that conditions meet the request about as often as not.

fn names() -> impl Strategy<Value = &'static str> {
    select(vec!["shop", "bank", "a"])
}

fn identities() -> impl Strategy<Value = Option<Identity>> {
    let domains = select(vec!["cluster.local", "other"]);
    proptest::option::of(
        (domains, names(), names()).prop_map(|(domain, namespace, account)| {
            Identity::new(domain.parse().unwrap(), namespace, account).unwrap()
        }),
    )
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    let low = 0..4u32;
    prop_oneof![
        low.clone()
            .prop_map(|low| Ipv4Addr::from_bits(0x0a00_0000 | low).into()),
        low.clone()
            .prop_map(|low| Ipv4Addr::from_bits(0x0a00_0000 | low)
                .to_ipv6_mapped()
                .into()),
        low.prop_map(|low| Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(low)).into()),
    ]
}

fn nets() -> impl Strategy<Value = IpNet> {
    (
        addresses(),
        select(vec![0, 8, 30, 31, 32, 96, 104, 126, 127, 128]),
    )
        .prop_filter_map("the length fits the family", |(address, length)| {
            IpNet::new(address, length).ok()
        })
}

fn texts() -> impl Strategy<Value = StringMatch> {
    let words = || {
        let words = [
            "",
            "s",
            "shop",
            "bank",
            "/sa/a",
            "cluster.local/ns/shop/sa/a",
            "other/ns/",
        ];
        select(words.to_vec()).prop_map(Arc::from)
    };
    prop_oneof![
        words().prop_map(StringMatch::Exact),
        words().prop_map(StringMatch::Prefix),
        words().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

fn accounts() -> impl Strategy<Value = ServiceAccountMatch> {
    (names(), names()).prop_map(|(namespace, account)| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: account.into(),
    })
}

/// Mostly empty, as in real policies.
fn few<S: Strategy + Clone + 'static>(of: S) -> impl Strategy<Value = Vec<S::Value>>
where
    S::Value: Clone,
{
    prop_oneof![4 => Just(Vec::new()), 1 => vec(of, 1..3)]
}

fn matches() -> impl Strategy<Value = Match> {
    let ports = || 80..83u16;
    let texts = || texts().boxed();
    let nets = || nets().boxed();
    let accounts = || accounts().boxed();
    let positive = (
        few(texts()),
        few(texts()),
        few(nets()),
        few(nets()),
        few(ports()),
        few(accounts()),
    );
    let negative = (
        few(texts()),
        few(texts()),
        few(nets()),
        few(nets()),
        few(ports()),
        few(accounts()),
    );
    (positive, negative).prop_map(|(positive, negative)| Match {
        namespaces: positive.0,
        not_namespaces: negative.0,
        principals: positive.1,
        not_principals: negative.1,
        source_ips: positive.2,
        not_source_ips: negative.2,
        destination_ips: positive.3,
        not_destination_ips: negative.3,
        destination_ports: positive.4,
        not_destination_ports: negative.4,
        service_accounts: positive.5,
        not_service_accounts: negative.5,
    })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let clauses = vec(matches(), 0..3).prop_map(|matches| Clause { matches });
    let rules = vec(
        vec(clauses, 0..3).prop_map(|clauses| Rule { clauses }),
        0..3,
    );
    let scopes = select(vec![
        Scope::Global,
        Scope::Namespace,
        Scope::WorkloadSelector,
    ]);
    let actions = select(vec![Action::Allow, Action::Deny]);
    let enforcements = select(vec![
        Enforcement::Enforced,
        Enforcement::Enforced,
        Enforcement::DryRun,
    ]);
    let policy = (names(), scopes, actions, enforcements, rules);
    vec(policy, 0..4).prop_map(|parts| {
        let policy = |(index, (namespace, scope, action, enforcement, rules)): (
            usize,
            (&str, _, _, _, _),
        )| Policy {
            name: format!("p{index}").into(),
            namespace: namespace.into(),
            scope,
            action,
            enforcement,
            rules,
        };
        parts.into_iter().enumerate().map(policy).collect()
    })
}

fn named() -> impl Strategy<Value = Vec<Arc<str>>> {
    let key =
        (names(), 0..4).prop_map(|(namespace, index)| Arc::from(format!("{namespace}/p{index}")));
    vec(key, 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn decides_as_the_reference_model_does(
        policies in policies(),
        named in named(),
        peer in identities(),
        source in addresses(),
        destination in addresses(),
        port in 80..83u16,
    ) {
        let workload = Workload { policies: named, ..pod("web", &["10.0.0.1"]) };
        let builder = MeshBuilder {
            policies: policies.iter().cloned().map(Arc::new).collect(),
            ..MeshBuilder::default()
        };
        let mesh = builder.build(&Mesh::empty());
        let request = Request { identity: peer.as_ref(), source, destination, port };
        let said = match mesh.evaluate(&workload, &request).decision {
            Decision::Allow { .. } => "allowed",
            Decision::Denied { .. } => "denied",
            Decision::NotAllowed { .. } => "not allowed",
            Decision::Unenforceable { .. } => "unenforceable",
        };
        prop_assert_eq!(said, decide(&policies, &workload, &request));
    }

    #[test]
    fn policies_survive_the_way_through_json(policies in policies()) {
        let text = serde_json::to_string(&policies).unwrap();
        prop_assert_eq!(serde_json::from_str::<Vec<Policy>>(&text).unwrap(), policies);
    }
}

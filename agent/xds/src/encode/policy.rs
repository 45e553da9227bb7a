//! Policies. Model and wire evaluate alike, so each part has exactly one form on the wire.
use ipnet::IpNet;
use undermesh_model::{
    Policy,
    policy::{Action, Clause, Enforcement, Match, Rule, Scope, ServiceAccountMatch, StringMatch},
};

use super::{canonical, octets};
use crate::wire::security as wire;

/// A policy.
///
/// A client that does not know `dry_run` enforces a policy under trial: it refuses more than it should, never less.
pub fn policy(policy: &Policy) -> wire::Authorization {
    wire::Authorization {
        name: policy.name.to_string(),
        namespace: policy.namespace.to_string(),
        scope: scope(policy.scope).into(),
        action: action(policy.action).into(),
        rules: policy.rules.iter().map(rule).collect(),
        dry_run: policy.enforcement == Enforcement::DryRun,
        extensions: Vec::new(),
    }
}

/// What stands in for a policy that a workload names and that does not exist: it refuses everything.
///
/// The model lets nothing into such a workload. ztunnel would skip the name, which opens the workload.
pub fn refusal(key: &str) -> wire::Authorization {
    let (namespace, name) = key.split_once('/').unwrap_or_default();
    wire::Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: wire::Scope::WorkloadSelector.into(),
        action: wire::Action::Deny.into(),
        // A rule without clauses always matches.
        rules: vec![wire::Rule::default()],
        dry_run: false,
        extensions: Vec::new(),
    }
}

fn rule(rule: &Rule) -> wire::Rule {
    wire::Rule {
        clauses: rule.clauses.iter().map(clause).collect(),
    }
}

fn clause(clause: &Clause) -> wire::Clause {
    wire::Clause {
        matches: clause.matches.iter().map(condition).collect(),
    }
}

fn condition(wanted: &Match) -> wire::Match {
    wire::Match {
        namespaces: texts(&wanted.namespaces),
        not_namespaces: texts(&wanted.not_namespaces),
        principals: texts(&wanted.principals),
        not_principals: texts(&wanted.not_principals),
        source_ips: ranges(&wanted.source_ips),
        not_source_ips: ranges(&wanted.not_source_ips),
        destination_ips: ranges(&wanted.destination_ips),
        not_destination_ips: ranges(&wanted.not_destination_ips),
        destination_ports: ports(&wanted.destination_ports),
        not_destination_ports: ports(&wanted.not_destination_ports),
        service_accounts: accounts(&wanted.service_accounts),
        not_service_accounts: accounts(&wanted.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn texts(matches: &[StringMatch]) -> Vec<wire::StringMatch> {
    use wire::string_match::MatchType;

    let kinds = matches.iter().map(|text| match text {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    });
    kinds
        .map(|kind| wire::StringMatch {
            match_type: Some(kind),
        })
        .collect()
}

fn ranges(nets: &[IpNet]) -> Vec<wire::Address> {
    let nets = nets.iter().copied().map(canonical);
    nets.map(|net| wire::Address {
        address: octets(net.addr()),
        length: net.prefix_len().into(),
    })
    .collect()
}

fn ports(ports: &[u16]) -> Vec<u32> {
    ports.iter().copied().map(u32::from).collect()
}

fn accounts(matches: &[ServiceAccountMatch]) -> Vec<wire::ServiceAccountMatch> {
    let accounts = matches.iter().map(|account| wire::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.service_account.to_string(),
    });
    accounts.collect()
}

fn scope(scope: Scope) -> wire::Scope {
    match scope {
        Scope::Global => wire::Scope::Global,
        Scope::Namespace => wire::Scope::Namespace,
        Scope::WorkloadSelector => wire::Scope::WorkloadSelector,
    }
}

fn action(action: Action) -> wire::Action {
    match action {
        Action::Allow => wire::Action::Allow,
        Action::Deny => wire::Action::Deny,
    }
}

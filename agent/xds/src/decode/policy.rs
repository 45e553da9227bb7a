//! `istio.security.Authorization` to [`Policy`].
//!
//! ztunnel leaves out a range or a text that it cannot read, which makes the match wider, or void. Neither is what
//! its author wrote: an ALLOW would let more through, a DENY would stop less. Such a policy is rejected whole, and
//! [`stand_in`] closes the gap that it leaves.
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message;
use prost_types::Any;
use undermesh_model::{
    Policy,
    policy::{Action, Clause, Enforcement, Match, Rule, Scope, ServiceAccountMatch, StringMatch},
};

use super::{
    DecodeError,
    field::{number, port, range, required},
    names::Names,
};
use crate::wire::security as wire;

/// What takes the place of a policy that was rejected and has no earlier version: it denies all that the policy
/// may select. `None` where nothing must: workloads that name a policy which is not there refuse by themselves,
/// and a policy under trial never decides.
///
/// What cannot be read of it is taken to be the widest that its name admits: its namespace.
pub fn stand_in(name: &str, content: Option<&Any>) -> Option<Policy> {
    let (namespace, own) = name.split_once('/')?;
    let message = content.and_then(|any| wire::Authorization::decode(any.value.as_slice()).ok());
    let scope = match &message {
        Some(message) if message.dry_run => return None,
        Some(message) => self::scope(message.scope).unwrap_or(Scope::Namespace),
        None => Scope::Namespace,
    };
    if scope == Scope::WorkloadSelector {
        return None;
    }
    Some(Policy {
        name: Arc::from(own),
        namespace: Arc::from(namespace),
        scope,
        action: Action::Deny,
        enforcement: Enforcement::Enforced,
        rules: vec![Rule::default()],
    })
}

/// Reads a policy.
pub(super) fn policy(wire: wire::Authorization, names: &mut Names) -> Result<Policy, DecodeError> {
    let enforcement = if wire.dry_run {
        Enforcement::DryRun
    } else {
        Enforcement::Enforced
    };
    let action = match number(wire.action, "action")? {
        wire::Action::Allow => Action::Allow,
        wire::Action::Deny => Action::Deny,
    };
    Ok(Policy {
        name: names.get(required(&wire.name, "name")?),
        namespace: names.get(required(&wire.namespace, "namespace")?),
        scope: scope(wire.scope)?,
        action,
        enforcement,
        rules: list(wire.rules, |rule| self::rule(rule, names))?,
    })
}

fn scope(value: i32) -> Result<Scope, DecodeError> {
    match number(value, "scope")? {
        wire::Scope::Global => Ok(Scope::Global),
        wire::Scope::Namespace => Ok(Scope::Namespace),
        wire::Scope::WorkloadSelector => Ok(Scope::WorkloadSelector),
    }
}

fn rule(wire: wire::Rule, names: &mut Names) -> Result<Rule, DecodeError> {
    Ok(Rule {
        clauses: list(wire.clauses, |clause| self::clause(clause, names))?,
    })
}

fn clause(wire: wire::Clause, names: &mut Names) -> Result<Clause, DecodeError> {
    Ok(Clause {
        matches: list(wire.matches, |condition| self::condition(condition, names))?,
    })
}

fn condition(wire: wire::Match, names: &mut Names) -> Result<Match, DecodeError> {
    let mut texts = |listed, field| list(listed, |text| string_match(text, field, names));
    Ok(Match {
        namespaces: texts(wire.namespaces, "namespaces")?,
        not_namespaces: texts(wire.not_namespaces, "not_namespaces")?,
        principals: texts(wire.principals, "principals")?,
        not_principals: texts(wire.not_principals, "not_principals")?,
        source_ips: ranges(wire.source_ips, "source_ips")?,
        not_source_ips: ranges(wire.not_source_ips, "not_source_ips")?,
        destination_ips: ranges(wire.destination_ips, "destination_ips")?,
        not_destination_ips: ranges(wire.not_destination_ips, "not_destination_ips")?,
        destination_ports: ports(wire.destination_ports, "destination_ports")?,
        not_destination_ports: ports(wire.not_destination_ports, "not_destination_ports")?,
        service_accounts: list(wire.service_accounts, |account| {
            service_account(&account, "service_accounts", names)
        })?,
        not_service_accounts: list(wire.not_service_accounts, |account| {
            service_account(&account, "not_service_accounts", names)
        })?,
    })
}

fn string_match(
    wire: wire::StringMatch,
    field: &'static str,
    names: &mut Names,
) -> Result<StringMatch, DecodeError> {
    use wire::string_match::MatchType;

    match wire.match_type.ok_or(DecodeError::StringMatch(field))? {
        MatchType::Exact(text) => Ok(StringMatch::Exact(names.get(&text))),
        MatchType::Prefix(text) => Ok(StringMatch::Prefix(names.get(&text))),
        MatchType::Suffix(text) => Ok(StringMatch::Suffix(names.get(&text))),
        MatchType::Presence(_) => Ok(StringMatch::Presence),
    }
}

fn service_account(
    wire: &wire::ServiceAccountMatch,
    field: &'static str,
    names: &mut Names,
) -> Result<ServiceAccountMatch, DecodeError> {
    Ok(ServiceAccountMatch {
        namespace: names.get(required(&wire.namespace, field)?),
        service_account: names.get(required(&wire.service_account, field)?),
    })
}

fn ranges(listed: Vec<wire::Address>, field: &'static str) -> Result<Vec<IpNet>, DecodeError> {
    list(listed, |address| {
        range(&address.address, Some(address.length), field)
    })
}

fn ports(listed: Vec<u32>, field: &'static str) -> Result<Vec<u16>, DecodeError> {
    list(listed, |number| port(number, field))
}

fn list<W, M>(
    wire: Vec<W>,
    read: impl FnMut(W) -> Result<M, DecodeError>,
) -> Result<Vec<M>, DecodeError> {
    wire.into_iter().map(read).collect()
}

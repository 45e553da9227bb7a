//! How one connection is judged: matches, rules and policies, with the semantics of `istio.security`.
use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    address::canonical,
    identity::Identity,
    policy::{
        Action, Clause, Decision, Enforcement, Match, Policy, Request, Rule, ServiceAccountMatch,
        StringMatch, Verdict,
    },
};

/// A policy with its key, `<namespace>/<name>`.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) key: Arc<str>,
    pub(crate) policy: Arc<Policy>,
}

/// Judges a connection by all policies that govern its destination. `missing` is a policy that should be
/// among them and is not known.
pub(crate) fn judge<'a>(
    governing: impl Iterator<Item = &'a Named>,
    missing: Option<&Arc<str>>,
    request: &Request<'_>,
) -> Verdict {
    let facts = Facts::of(request);
    let mut count = Count::default();
    for named in governing {
        count.add(named, facts.meet(&named.policy));
    }
    count.verdict(missing)
}

/// What the policies said so far.
#[derive(Default)]
struct Count<'a> {
    denied: Option<&'a Arc<str>>,
    allowed: Option<&'a Arc<str>>,
    not_met: Vec<&'a Arc<str>>,
    dry_denials: Vec<Arc<str>>,
    dry_refusals: Vec<Arc<str>>,
}

impl<'a> Count<'a> {
    fn add(&mut self, named: &'a Named, met: bool) {
        match (named.policy.enforcement, named.policy.action, met) {
            (Enforcement::Enforced, Action::Deny, true) => {
                self.denied.get_or_insert(&named.key);
            }
            (Enforcement::Enforced, Action::Allow, true) => {
                self.allowed.get_or_insert(&named.key);
            }
            (Enforcement::Enforced, Action::Allow, false) => self.not_met.push(&named.key),
            (Enforcement::DryRun, Action::Deny, true) => {
                self.dry_denials.push(Arc::clone(&named.key))
            }
            (Enforcement::DryRun, Action::Allow, false) => {
                self.dry_refusals.push(Arc::clone(&named.key))
            }
            (_, Action::Deny, false) | (Enforcement::DryRun, Action::Allow, true) => {}
        }
    }

    fn verdict(mut self, missing: Option<&Arc<str>>) -> Verdict {
        let decision = match (self.denied, missing, self.allowed) {
            (Some(policy), _, _) => Decision::Denied {
                policy: Arc::clone(policy),
            },
            (None, Some(policy), _) => Decision::Unenforceable {
                policy: Arc::clone(policy),
            },
            (None, None, Some(policy)) => Decision::Allow {
                policy: Some(Arc::clone(policy)),
            },
            (None, None, None) if self.not_met.is_empty() => Decision::Allow { policy: None },
            (None, None, None) => Decision::NotAllowed {
                policies: self.not_met.into_iter().cloned().collect(),
            },
        };
        if decision == (Decision::Allow { policy: None }) {
            self.dry_denials.append(&mut self.dry_refusals);
        }
        Verdict {
            decision,
            dry_run: self.dry_denials,
        }
    }
}

/// A request in the form that matches compare with.
struct Facts<'a> {
    identity: Option<&'a Identity>,
    principal: Option<String>,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
}

impl<'a> Facts<'a> {
    fn of(request: &Request<'a>) -> Self {
        Self {
            identity: request.identity,
            principal: request.identity.map(Identity::principal),
            source: request.source.to_canonical(),
            destination: request.destination.to_canonical(),
            port: request.port,
        }
    }

    fn meet(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| self.meet_rule(rule))
    }

    fn meet_rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.meet_clause(clause))
    }

    fn meet_clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty()
            || clause
                .matches
                .iter()
                .any(|alternative| self.meet_match(alternative))
    }

    fn meet_match(&self, wanted: &Match) -> bool {
        *wanted != Match::default()
            && family(&wanted.namespaces, &wanted.not_namespaces, |text| {
                self.has_namespace(text)
            })
            && family(&wanted.principals, &wanted.not_principals, |text| {
                self.has_principal(text)
            })
            && family(&wanted.source_ips, &wanted.not_source_ips, |net| {
                within(self.source, *net)
            })
            && family(
                &wanted.destination_ips,
                &wanted.not_destination_ips,
                |net| within(self.destination, *net),
            )
            && family(
                &wanted.destination_ports,
                &wanted.not_destination_ports,
                |port| self.port == *port,
            )
            && family(
                &wanted.service_accounts,
                &wanted.not_service_accounts,
                |account| self.has_account(account),
            )
    }

    /// Without an identity the namespace is the empty text.
    fn has_namespace(&self, wanted: &StringMatch) -> bool {
        wanted.admits(self.identity.map_or("", |identity| &identity.namespace))
    }

    /// Without an identity there is no principal, and nothing compares with it.
    fn has_principal(&self, wanted: &StringMatch) -> bool {
        self.principal
            .as_deref()
            .is_some_and(|principal| wanted.admits(principal))
    }

    fn has_account(&self, wanted: &ServiceAccountMatch) -> bool {
        self.identity.is_some_and(|identity| {
            identity.namespace == wanted.namespace
                && identity.service_account == wanted.service_account
        })
    }
}

/// The two lists of a family: one of `any` unless that is empty, and none of `none`.
fn family<T>(any: &[T], none: &[T], holds: impl Fn(&T) -> bool) -> bool {
    (any.is_empty() || any.iter().any(&holds)) && !none.iter().any(&holds)
}

fn within(address: IpAddr, net: IpNet) -> bool {
    canonical(net).contains(&address)
}

impl StringMatch {
    fn admits(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => text == &**wanted,
            Self::Prefix(wanted) => text.starts_with(&**wanted),
            Self::Suffix(wanted) => text.ends_with(&**wanted),
            Self::Presence => !text.is_empty(),
        }
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

//! AuthorizationPolicies to policies at L4, as istiod converts them, but failing closed.
//!
//! Two differences to istiod, both on the safe side:
//! * A condition of a DENY rule that needs HTTP counts as true, so the rule denies more than written. istiod
//!   drops the condition and can thereby turn the whole rule off.
//! * Ports and addresses that cannot be read make the document invalid; they are never dropped.
use std::sync::Arc;

use undermesh_model::policy::{Action, Clause, Policy, Rule, Scope};

use super::{Findings, Inventory, spec, workloads::Member};
use crate::{
    diagnostic::Severity,
    path::Path,
    resources::{
        field::Labels,
        security::{AuthorizationPolicy, Effect, PolicyTarget, rules},
    },
    settings::Settings,
};

/// Translates all policies and lists those with a selector in the workloads they select.
pub(super) fn translate(
    inventory: &Inventory<'_>,
    settings: &Settings,
    members: &mut [Member<'_>],
    findings: &mut Findings,
) -> Vec<Policy> {
    let mut policies = Vec::new();
    for source in &inventory.authorization_policies {
        let Some((policy, labels)) = translate_policy(source, settings, findings) else {
            continue;
        };
        if policy.scope == Scope::WorkloadSelector {
            let is_mesh_wide = policy.namespace == settings.root_namespace;
            list(members, &policy, |member| {
                (is_mesh_wide || member.workload.namespace == policy.namespace)
                    && member.labels.include(labels)
            });
        }
        policies.push(policy);
    }
    policies
}

fn list(members: &mut [Member<'_>], policy: &Policy, selects: impl Fn(&Member<'_>) -> bool) {
    let key: Arc<str> = policy.key().into();
    for member in members.iter_mut().filter(|member| selects(member)) {
        member.workload.policies.push(key.clone());
    }
}

fn translate_policy<'a>(
    source: &'a AuthorizationPolicy,
    settings: &Settings,
    findings: &mut Findings,
) -> Option<(Policy, &'a Labels)> {
    let labels = match &source.target {
        PolicyTarget::Workloads(labels) => labels,
        PolicyTarget::Waypoint(targets) => {
            let message = format!(
                "not enforced here: {} is governed at its waypoint",
                targets.join(", ")
            );
            let remedy = "use spec.selector to govern workloads at L4";
            findings.add(
                &source.metadata,
                Severity::Error,
                spec("targetRefs"),
                message,
                remedy,
            );
            return None;
        }
    };
    let (action, rules) = effect(source, findings)?;
    let is_mesh_wide = *source.metadata.namespace() == settings.root_namespace;
    let policy = Policy {
        name: source.metadata.name().clone(),
        namespace: source.metadata.namespace().clone(),
        scope: match (labels.is_empty(), is_mesh_wide) {
            (false, _) => Scope::WorkloadSelector,
            (true, true) => Scope::Global,
            (true, false) => Scope::Namespace,
        },
        action,
        enforcement: source.enforcement,
        rules,
    };
    Some((policy, labels))
}

fn effect(source: &AuthorizationPolicy, findings: &mut Findings) -> Option<(Action, Vec<Rule>)> {
    // A rule without clauses matches everything.
    let everything = || vec![Rule::default()];
    match &source.effect {
        Effect::Allow(rules) => Some((Action::Allow, allow_rules(source, rules, findings))),
        Effect::Deny(rules) => Some((Action::Deny, deny_rules(source, rules, findings))),
        Effect::Unreadable => Some((Action::Deny, everything())),
        Effect::Custom => {
            let message = "an external authorizer is asked at a waypoint; here, everything selected is denied";
            findings.add(
                &source.metadata,
                Severity::Error,
                spec("action"),
                message,
                "needs a waypoint",
            );
            Some((Action::Deny, everything()))
        }
        Effect::Audit => {
            let message = "AUDIT is not supported and has no effect";
            findings.add(
                &source.metadata,
                Severity::Warning,
                spec("action"),
                message,
                "remove the policy",
            );
            None
        }
    }
}

/// Rules that need HTTP are left out: what they would allow stays refused.
fn allow_rules(
    source: &AuthorizationPolicy,
    rules: &[rules::Rule],
    findings: &mut Findings,
) -> Vec<Rule> {
    let mut allowed = Vec::new();
    for (position, rule) in rules.iter().enumerate() {
        match http_fields(rule).next() {
            Some(field) => {
                let message = format!("rule {position} needs HTTP and allows nothing at L4");
                findings.add(
                    &source.metadata,
                    Severity::Warning,
                    field.clone(),
                    message,
                    "needs a waypoint",
                );
            }
            None => allowed.push(l4_rule(rule)),
        }
    }
    allowed
}

/// Conditions that need HTTP count as true: what they might deny is refused.
fn deny_rules(
    source: &AuthorizationPolicy,
    rules: &[rules::Rule],
    findings: &mut Findings,
) -> Vec<Rule> {
    for (position, rule) in rules.iter().enumerate() {
        if let Some(field) = http_fields(rule).next() {
            let message = format!(
                "rule {position} needs HTTP and denies at L4 without regard to it, so more than written"
            );
            findings.add(
                &source.metadata,
                Severity::Warning,
                field.clone(),
                message,
                "needs a waypoint",
            );
        }
    }
    rules.iter().map(l4_rule).collect()
}

fn http_fields(rule: &rules::Rule) -> impl Iterator<Item = &Path> {
    rule.clauses
        .iter()
        .flat_map(|clause| &clause.alternatives)
        .flat_map(|alternative| &alternative.http)
}

fn l4_rule(rule: &rules::Rule) -> Rule {
    Rule {
        clauses: rule.clauses.iter().filter_map(l4_clause).collect(),
    }
}

/// The clause without its HTTP conditions; nothing when one alternative is thereby always true, and the clause
/// with it.
fn l4_clause(clause: &rules::Clause) -> Option<Clause> {
    let is_always_true = |alternative: &rules::Alternative| alternative.l4 == Default::default();
    if clause.alternatives.iter().any(is_always_true) {
        return None;
    }
    Some(Clause {
        matches: clause
            .alternatives
            .iter()
            .map(|alternative| alternative.l4.clone())
            .collect(),
    })
}

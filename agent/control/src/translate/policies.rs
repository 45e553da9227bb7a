//! AuthorizationPolicies to policies at L4, as istiod converts them, but failing closed.
//!
//! Two differences to istiod, both on the safe side:
//! * A condition of a DENY rule that needs HTTP counts as true, so the rule denies more than written. istiod
//!   drops the condition and can thereby turn the whole rule off.
//! * Ports and addresses that cannot be read make the document invalid; they are never dropped.
use std::sync::Arc;

use undermesh_model::policy::{Action, Clause, Policy, Rule, Scope};

use super::{
    findings::{Findings, spec},
    inventory::Inventory,
};
use crate::{
    diagnostic::Severity,
    path::Path,
    resources::{
        field::Labels,
        security::{AuthorizationPolicy, Effect, PolicyTarget, rules},
    },
    settings::Settings,
};

/// The keys of the policies that select a workload by its labels, in their order.
pub(super) fn selecting(namespace: &str, labels: &Labels, inventory: &Inventory) -> Vec<Arc<str>> {
    let root = &*inventory.settings.root_namespace;
    let above = (namespace != root).then(|| inventory.scope(root)).flatten();
    let scopes = inventory.scope(namespace).into_iter().chain(above);
    let listed = scopes
        .flat_map(|scope| scope.rulings.values())
        .filter_map(|ruling| ruling.listed.as_ref());
    let mut keys: Vec<Arc<str>> = listed
        .filter(|(_, selector)| labels.include(selector))
        .map(|(key, _)| key.clone())
        .collect();
    keys.sort();
    keys
}

/// The policy of an AuthorizationPolicy, and the labels it selects workloads by; empty labels select all.
pub(crate) fn policy<'a>(
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
            findings.add(Severity::Error, spec("targetRefs"), message, remedy);
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
    let mut l4 = |action, rules| Some((action, l4_rules(action, rules, findings)));
    match &source.effect {
        Effect::Allow(rules) => l4(Action::Allow, rules),
        Effect::Deny(rules) => l4(Action::Deny, rules),
        Effect::Unreadable => Some((Action::Deny, everything())),
        Effect::Custom => {
            let message = "an external authorizer is asked at a waypoint; here, everything selected is denied";
            let remedy = "needs a waypoint";
            findings.add(Severity::Error, spec("action"), message, remedy);
            Some((Action::Deny, everything()))
        }
        Effect::Audit => {
            let message = "AUDIT is not supported and has no effect";
            let remedy = "remove the policy";
            findings.add(Severity::Warning, spec("action"), message, remedy);
            None
        }
    }
}

/// The rules as far as they can be judged at L4. An ALLOW rule that needs HTTP is left out: what it would allow
/// stays refused. In a DENY rule, what needs HTTP counts as true: what it might deny is refused.
fn l4_rules(action: Action, rules: &[rules::Rule], findings: &mut Findings) -> Vec<Rule> {
    let mut kept = Vec::new();
    for (position, rule) in rules.iter().enumerate() {
        let field = http_fields(rule).next();
        if let Some(field) = field {
            let consequence = match action {
                Action::Allow => "allows nothing at L4",
                Action::Deny => "denies at L4 without regard to it, so more than written",
            };
            let message = format!("rule {position} needs HTTP and {consequence}");
            findings.add(
                Severity::Warning,
                field.clone(),
                message,
                "needs a waypoint",
            );
        }
        if field.is_none() || action == Action::Deny {
            kept.push(l4_rule(rule));
        }
    }
    kept
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

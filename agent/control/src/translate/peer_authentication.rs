//! PeerAuthentications to policies that refuse peers without an identity, as istiod converts them.
use std::{collections::BTreeMap, sync::Arc};

use undermesh_model::policy::{
    Action, Clause, Enforcement, Match, Policy, Rule, Scope, StringMatch,
};

use super::{
    findings::{Findings, spec},
    inventory::Inventory,
};
use crate::{
    diagnostic::Severity,
    path::Path,
    resources::{
        field::Labels,
        security::{Mode, PeerAuthentication},
    },
    settings::Settings,
};

/// Istio's name, in the root namespace, of the policy that every strict workload lists.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// The policy that every strict workload lists. There is one as soon as there is any PeerAuthentication.
pub(crate) fn static_strict(settings: &Settings) -> Policy {
    let rules = vec![anonymous(Match::default())];
    deny(&settings.root_namespace, STATIC_STRICT, rules)
}

/// The key of the policy that a workload must list, if any.
pub(super) fn demanded(
    namespace: &str,
    labels: &Labels,
    inventory: &Inventory,
) -> Option<Arc<str>> {
    let own = inventory.scope(namespace).map(|scope| &scope.ranking);
    let selected = own.and_then(|ranking| ranking.selected(labels));
    let demand = selected.map_or_else(|| wide_mode(namespace, inventory).into(), Clone::clone);
    match demand {
        Demand::Nowhere => None,
        Demand::Policy(key) => Some(key),
        Demand::Everywhere => {
            let root = &inventory.settings.root_namespace;
            Some(inventory.strings.get(&format!("{root}/{STATIC_STRICT}")))
        }
    }
}

/// The mode of a namespace, or else of the mesh.
pub(crate) fn wide_mode(namespace: &str, inventory: &Inventory) -> Mode {
    let mode = |namespace: &str| {
        let scope = inventory.scope(namespace);
        scope.map_or(Mode::Unset, |scope| scope.ranking.wide)
    };
    let mesh = mode(&inventory.settings.root_namespace);
    or(or(mode(namespace), mesh), Mode::Permissive)
}

/// Which PeerAuthentication of a namespace counts: one with a selector before the one without, and of several of
/// one kind the oldest.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Ranking {
    /// What the one without a selector says.
    pub(crate) wide: Mode,
    /// Those with a selector, oldest first.
    selected: Vec<(Labels, Demand)>,
    /// The policies that they were converted to.
    pub(crate) policies: Vec<Arc<Policy>>,
}

/// What the workloads of a PeerAuthentication list.
#[derive(Clone, Debug, PartialEq)]
enum Demand {
    /// Nothing: plain connections are accepted.
    Nowhere,
    /// The policy that refuses them on every port.
    Everywhere,
    /// A policy of its own, by key.
    Policy(Arc<str>),
}

impl From<Mode> for Demand {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Strict => Self::Everywhere,
            Mode::Permissive | Mode::Unset => Self::Nowhere,
        }
    }
}

impl Ranking {
    fn selected(&self, labels: &Labels) -> Option<&Demand> {
        let mut fitting = self.selected.iter();
        let found = fitting.find(|(selector, _)| labels.include(selector))?;
        Some(&found.1)
    }
}

/// The PeerAuthentication of a namespace that has no selector and counts.
fn widest<'a>(sources: &[&'a PeerAuthentication]) -> Option<&'a PeerAuthentication> {
    sources
        .iter()
        .find(|source| source.selector.is_empty())
        .copied()
}

/// Ranks the PeerAuthentications of a namespace; `mesh` is the mode of the mesh, unless this is the root namespace.
/// What is found is told by the name of each.
pub(crate) fn rank<'a>(
    sources: impl Iterator<Item = &'a PeerAuthentication>,
    is_root: bool,
    mesh: Mode,
) -> (Ranking, BTreeMap<&'a Arc<str>, Findings>) {
    let mut sources: Vec<&PeerAuthentication> = sources.collect();
    sources.sort_by_key(|source| source.metadata.age());
    let widest = widest(&sources);
    let wide = widest.map_or(Mode::Unset, |source| source.mode);
    let mut ranking = Ranking {
        wide,
        ..Ranking::default()
    };
    let mut findings: BTreeMap<&Arc<str>, Findings> = BTreeMap::new();
    for source in sources {
        let found = findings.entry(source.metadata.name()).or_default();
        match widest {
            Some(first) if source.selector.is_empty() => report_second(source, first, found),
            _ if source.selector.is_empty() => {}
            _ if is_root => report_root_selector(found),
            _ => ranking.add(source, or(wide, mesh)),
        }
    }
    (ranking, findings)
}

fn report_second(source: &PeerAuthentication, first: &PeerAuthentication, findings: &mut Findings) {
    if source.metadata.key != first.metadata.key {
        let message = format!(
            "has no effect: {} has the same scope and wins",
            first.metadata.key
        );
        let remedy = "remove one of the two";
        findings.add(Severity::Error, Path::root(), message, remedy);
    }
}

fn report_root_selector(findings: &mut Findings) {
    let message = "has no effect: in the root namespace a selector is not allowed";
    let remedy = "move it to the workloads' namespace, or remove the selector";
    findings.add(Severity::Error, spec("selector"), message, remedy);
}

impl Ranking {
    fn add(&mut self, source: &PeerAuthentication, wider: Mode) {
        let mode = or(or(source.mode, wider), Mode::Permissive);
        let deviating = source
            .ports
            .iter()
            .filter(|(_, own)| or(*own, mode) != mode)
            .map(|(port, _)| *port);
        let deviating: Vec<u16> = deviating.collect();
        let rules = match (mode, &deviating[..]) {
            (_, []) => return self.selected.push((source.selector.clone(), mode.into())),
            (Mode::Strict, ports) => vec![strict_except(ports)],
            (_, ports) => ports.iter().map(|port| strict_on(*port)).collect(),
        };
        let name = format!("converted_peer_authentication_{}", source.metadata.name());
        let policy = deny(source.metadata.namespace(), &name, rules);
        let demand = Demand::Policy(policy.key().into());
        self.selected.push((source.selector.clone(), demand));
        self.policies.push(Arc::new(policy));
    }
}

fn or(mode: Mode, wider: Mode) -> Mode {
    if mode == Mode::Unset { wider } else { mode }
}

fn deny(namespace: &Arc<str>, name: &str, rules: Vec<Rule>) -> Policy {
    Policy {
        name: Arc::from(name),
        namespace: namespace.clone(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        enforcement: Enforcement::Enforced,
        rules,
    }
}

/// Matches peers without an identity, narrowed by `further`.
fn anonymous(further: Match) -> Rule {
    let only = Match {
        not_principals: vec![StringMatch::Presence],
        ..further
    };
    Rule {
        clauses: vec![Clause {
            matches: vec![only],
        }],
    }
}

fn strict_on(port: u16) -> Rule {
    anonymous(Match {
        destination_ports: vec![port],
        ..Match::default()
    })
}

fn strict_except(ports: &[u16]) -> Rule {
    let mut rule = anonymous(Match::default());
    rule.clauses.extend(ports.iter().map(|port| Clause {
        matches: vec![Match {
            not_destination_ports: vec![*port],
            ..Match::default()
        }],
    }));
    rule
}

//! PeerAuthentications to policies that refuse peers without an identity, as istiod converts them.
use std::{collections::HashMap, sync::Arc};

use undermesh_model::policy::{
    Action, Clause, Enforcement, Match, Policy, Rule, Scope, StringMatch,
};

use super::{Findings, Inventory, spec, workloads::Member};
use crate::{
    diagnostic::Severity,
    path::Path,
    resources::security::{Mode, PeerAuthentication},
    settings::Settings,
};

/// Istio's name, in the root namespace, of the policy that every strict workload lists.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// Makes the policies and lists them in the workloads they are for.
pub(super) fn translate(
    inventory: &Inventory<'_>,
    settings: &Settings,
    members: &mut [Member<'_>],
    findings: &mut Findings,
) -> Vec<Policy> {
    if inventory.peer_authentications.is_empty() {
        return Vec::new();
    }
    let ranking = Ranking::new(inventory, settings, findings);
    let all_ports = deny(
        &settings.root_namespace,
        STATIC_STRICT,
        vec![anonymous(Match::default())],
    );
    let strict: Arc<str> = all_ports.key().into();
    let mut policies = vec![all_ports];
    for (source, demand) in &ranking.selected {
        policies.extend(demand.policy(source));
    }
    for member in members {
        let demanded = match ranking.winner(member) {
            Some((source, Demand::Ports(_))) => Some(converted_key(source)),
            Some((_, Demand::Everywhere)) => Some(strict.clone()),
            Some((_, Demand::Nowhere)) => None,
            None => (ranking.wide_mode(&member.workload.namespace) == Mode::Strict)
                .then(|| strict.clone()),
        };
        member.workload.policies.extend(demanded);
    }
    policies
}

/// Which PeerAuthentication counts where: one with a selector before its namespace's before the mesh's, and of
/// several on one level the oldest.
struct Ranking<'a> {
    mesh: Mode,
    namespaces: HashMap<&'a str, Mode>,
    /// Those with a selector, oldest first.
    selected: Vec<(&'a PeerAuthentication, Demand)>,
}

/// Where the workloads of a PeerAuthentication with a selector refuse plain connections.
enum Demand {
    Everywhere,
    Nowhere,
    /// On some ports only, by these rules.
    Ports(Vec<Rule>),
}

impl<'a> Ranking<'a> {
    fn new(inventory: &Inventory<'a>, settings: &Settings, findings: &mut Findings) -> Self {
        let mut sources = inventory.peer_authentications.clone();
        sources.sort_by_key(|source| source.metadata.age());
        let mut wide: HashMap<&str, &PeerAuthentication> = HashMap::new();
        let mut narrow = Vec::new();
        for source in sources {
            let namespace = &**source.metadata.namespace();
            let is_root = *namespace == *settings.root_namespace;
            match (source.selector.is_empty(), wide.get(namespace)) {
                (true, Some(first)) => report_second(source, first, findings),
                (true, None) => {
                    wide.insert(namespace, source);
                }
                (false, _) if is_root => report_root_selector(source, findings),
                (false, _) => narrow.push(source),
            }
        }
        let mesh = wide
            .remove(&*settings.root_namespace)
            .map_or(Mode::Unset, |source| source.mode);
        let namespaces = wide
            .into_iter()
            .map(|(namespace, source)| (namespace, source.mode))
            .collect();
        let mut ranking = Self {
            mesh,
            namespaces,
            selected: Vec::new(),
        };
        let demand = |source: &'a PeerAuthentication| {
            (
                source,
                Demand::new(source, ranking.wide_mode(source.metadata.namespace())),
            )
        };
        ranking.selected = narrow.into_iter().map(demand).collect();
        ranking
    }

    /// The mode of a namespace, or else of the mesh.
    fn wide_mode(&self, namespace: &str) -> Mode {
        let own = self.namespaces.get(namespace).copied().unwrap_or_default();
        or(or(own, self.mesh), Mode::Permissive)
    }

    fn winner(&self, member: &Member<'_>) -> Option<&(&'a PeerAuthentication, Demand)> {
        self.selected.iter().find(|(source, _)| {
            *source.metadata.namespace() == member.workload.namespace
                && member.labels.include(&source.selector)
        })
    }
}

fn report_second(source: &PeerAuthentication, first: &PeerAuthentication, findings: &mut Findings) {
    let message = format!(
        "has no effect: {} has the same scope and wins",
        first.metadata.key
    );
    findings.add(
        &source.metadata,
        Severity::Error,
        Path::root(),
        message,
        "remove one of the two",
    );
}

fn report_root_selector(source: &PeerAuthentication, findings: &mut Findings) {
    let message = "has no effect: in the root namespace a selector is not allowed";
    let remedy = "move it to the workloads' namespace, or remove the selector";
    findings.add(
        &source.metadata,
        Severity::Error,
        spec("selector"),
        message,
        remedy,
    );
}

fn or(mode: Mode, wider: Mode) -> Mode {
    if mode == Mode::Unset { wider } else { mode }
}

impl Demand {
    fn new(source: &PeerAuthentication, wider: Mode) -> Self {
        let mode = or(source.mode, wider);
        let deviating = source
            .ports
            .iter()
            .filter(|(_, own)| or(*own, mode) != mode)
            .map(|(port, _)| *port);
        let deviating: Vec<u16> = deviating.collect();
        match (mode, deviating.is_empty()) {
            (Mode::Strict, true) => Self::Everywhere,
            (_, true) => Self::Nowhere,
            (Mode::Strict, false) => Self::Ports(vec![strict_except(&deviating)]),
            (_, false) => Self::Ports(deviating.iter().map(|port| strict_on(*port)).collect()),
        }
    }

    fn policy(&self, source: &PeerAuthentication) -> Option<Policy> {
        let Self::Ports(rules) = self else {
            return None;
        };
        Some(deny(
            source.metadata.namespace(),
            &converted_name(source),
            rules.clone(),
        ))
    }
}

fn converted_name(source: &PeerAuthentication) -> String {
    format!("converted_peer_authentication_{}", source.metadata.name())
}

fn converted_key(source: &PeerAuthentication) -> Arc<str> {
    format!("{}/{}", source.metadata.namespace(), converted_name(source)).into()
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

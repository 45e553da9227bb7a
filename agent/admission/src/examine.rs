//! A set of objects, judged together: what reading and translation find, and what only the whole set shows.
use std::collections::BTreeMap;

use undermesh_control::{
    Change, Diagnostic, Engine, Settings, Severity,
    path::Path,
    resources::{Decoded, Key, Outcome, Resource, field::Problem, metadata::Origin},
    value::Value,
};

use crate::{checks, network::NetworkPolicy};

/// Most objects that are judged together.
pub const MAX_OBJECTS: usize = 1_000_000;

/// Objects that are being gathered to be judged together.
#[derive(Debug)]
pub struct Examination {
    settings: Settings,
    engine: Engine,
    /// Where each object of a kind that is used was found.
    origins: BTreeMap<Key, Origin>,
    resources: Vec<Resource>,
    network_policies: Vec<NetworkPolicy>,
    /// Findings that the engine does not hold.
    findings: Vec<Diagnostic>,
    objects: usize,
}

/// What an examination has come to.
#[derive(Debug)]
pub struct Verdict {
    /// What was found, by file and object.
    pub findings: Vec<Diagnostic>,
    /// How many objects were judged, those without a part in the mesh included.
    pub objects: usize,
}

impl Examination {
    /// An examination without objects yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            engine: Engine::new(settings.clone()),
            settings,
            origins: BTreeMap::new(),
            resources: Vec::new(),
            network_policies: Vec::new(),
            findings: Vec::new(),
            objects: 0,
        }
    }

    /// Whether no further object can be taken.
    pub fn is_full(&self) -> bool {
        self.objects.max(self.network_policies.len()) >= MAX_OBJECTS
    }

    /// Adds an object. Of two objects with the same kind and name, the first one counts.
    pub fn add(&mut self, decoded: Decoded) {
        self.objects += 1;
        let Some(key) = decoded.key.clone() else {
            return self.findings.extend(decoded.diagnostics());
        };
        if matches!(decoded.outcome, Outcome::Noted) {
            return self.findings.extend(decoded.diagnostics());
        }
        if let Some(first) = self.origins.get(&key) {
            let problem = Problem {
                severity: Severity::Error,
                path: Path::root(),
                message: format!("is also in {}, which wins", first.place()),
                remedy: "remove one of the two".to_owned(),
            };
            self.findings.extend(decoded.diagnostics());
            return self
                .findings
                .push(decoded.origin.diagnostic(Some(key), problem));
        }
        self.origins.insert(key, decoded.origin.clone());
        if let Outcome::Good(resource) = &decoded.outcome {
            self.resources.push(resource.clone());
        }
        self.engine.apply(Change::Applied(decoded));
    }

    /// Adds what a NetworkPolicy lets in. It is no part of the mesh, which has to live with it.
    pub(crate) fn add_network_policy(&mut self, object: &Value, origin: &Origin) {
        self.network_policies
            .extend(NetworkPolicy::read(object, origin));
    }

    /// Adds a finding about something that is no object, such as a file that cannot be read.
    pub fn note(&mut self, finding: Diagnostic) {
        self.findings.push(finding);
    }

    /// Judges what was added.
    pub fn finish(mut self) -> Verdict {
        self.engine.commit();
        let mut findings = self.findings;
        findings.extend(self.engine.diagnostics().cloned());
        findings.extend(checks::run(
            &self.settings,
            &self.resources,
            &self.network_policies,
            &self.engine.parts(),
        ));
        findings.sort_by(|a, b| order(a).cmp(&order(b)));
        Verdict {
            findings,
            objects: self.objects,
        }
    }
}

/// By file and object; what is said of an object as a whole refers to what is said of its fields, and comes after it.
fn order(finding: &Diagnostic) -> impl Ord + '_ {
    let severity = std::cmp::Reverse(finding.severity);
    let is_whole = finding.field.is_root();
    (
        &finding.file,
        &finding.resource,
        is_whole,
        finding.line,
        severity,
    )
}

//! `undermesh analyze`: judges manifests in files, or the objects of a cluster, and prints what is wrong.
use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use kube::Client;
use undermesh_control::{Diagnostic, Settings, Severity, Source};
use undermesh_model::TrustDomain;

use crate::examine::Examination;

mod cluster;
mod files;
mod print;
#[cfg(test)]
mod tests;

/// Arguments of `undermesh analyze`.
#[derive(Clone, Debug, Args)]
pub struct AnalyzeArgs {
    /// Manifests: files, directories, or - for standard input. Without any, the objects of the cluster.
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Show only findings about objects of this namespace; the others are read, too.
    #[arg(short, long, value_name = "NS")]
    pub namespace: Option<String>,
    /// Hide findings that are less severe.
    #[arg(long, value_name = "SEVERITY", default_value = "info")]
    pub level: Level,
    /// Form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub output: OutputForm,
    /// Namespace whose policies govern the whole mesh.
    #[arg(long, value_name = "NS", default_value = "istio-system")]
    pub root_namespace: String,
    /// Trust domain of the mesh.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
}

/// The least severe finding that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// All.
    Info,
    /// What is not in force as written.
    Warning,
    /// What is not in force at all, or wrong.
    Error,
}

impl Level {
    fn admits(self, severity: Severity) -> bool {
        let least = match self {
            Self::Info => Severity::Info,
            Self::Warning => Severity::Warning,
            Self::Error => Severity::Error,
        };
        severity >= least
    }
}

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// A line for each finding, and a summary.
    Table,
    /// One JSON object.
    Json,
}

/// How many findings were shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Objects that were judged.
    pub objects: usize,
    /// What is not in force, in whole or in part.
    pub errors: usize,
    /// What is in force, but not quite as written.
    pub warnings: usize,
    /// What has no effect by design.
    pub infos: usize,
}

impl Summary {
    fn of(findings: &[Diagnostic], objects: usize) -> Self {
        let count = |severity| findings.iter().filter(|it| it.severity == severity).count();
        Self {
            objects,
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            infos: count(Severity::Info),
        }
    }

    /// Whether the command fails.
    pub fn is_failure(&self) -> bool {
        self.errors > 0
    }
}

/// Why nothing was analyzed.
#[derive(Debug, thiserror::Error)]
pub enum AnalyzeError {
    /// There is no way to the cluster.
    #[error("cannot reach the cluster: {0}; name files to analyze them instead")]
    Access(Box<dyn std::error::Error + Send + Sync>),
    /// Objects of the cluster cannot be read.
    #[error("cannot list {plural}: {error}; check that you may list them in all namespaces")]
    List {
        /// What was to be listed.
        plural: &'static str,
        /// What the API server said.
        error: Box<kube::Error>,
    },
    /// The API server does not say what it has.
    #[error("cannot ask the API server which kinds it has: {0}; check that it is reachable")]
    Discovery(#[source] Box<kube::Error>),
    /// The cluster is too large.
    #[error("the cluster has more than {0} objects; write some to files and analyze those")]
    TooMany(usize),
    /// The answer cannot be written.
    #[error("cannot write the findings: {0}")]
    Write(#[from] io::Error),
}

/// Analyzes what the arguments name, and writes the findings to `out`. `client` is awaited only when no files are
/// named.
///
/// # Errors
/// When the cluster cannot be read, or the findings cannot be written. A file that cannot be read is a finding.
pub async fn run<E>(
    args: &AnalyzeArgs,
    client: impl Future<Output = Result<Client, E>>,
    out: &mut impl Write,
) -> Result<Summary, AnalyzeError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut examination = Examination::new(args.settings());
    if args.paths.is_empty() {
        let client = client
            .await
            .map_err(|error| AnalyzeError::Access(error.into()))?;
        cluster::read(&client, &mut examination).await?;
    } else {
        files::read(&args.paths, &mut io::stdin().lock(), &mut examination);
    }
    let verdict = examination.finish();
    let mut findings = verdict.findings;
    findings.retain(|finding| args.shows(finding));
    let summary = Summary::of(&findings, verdict.objects);
    match args.output {
        OutputForm::Table => print::table(&findings, &summary, out)?,
        OutputForm::Json => print::json(&findings, &summary, out)?,
    }
    Ok(summary)
}

impl AnalyzeArgs {
    fn settings(&self) -> Settings {
        Settings {
            trust_domain: self.trust_domain.clone(),
            root_namespace: self.root_namespace.as_str().into(),
            source: if self.paths.is_empty() {
                Source::Kubernetes
            } else {
                Source::Manifests
            },
            ..Settings::default()
        }
    }

    /// Whether a finding is shown. Those about no object, such as a broken file, count for every namespace.
    fn shows(&self, finding: &Diagnostic) -> bool {
        let is_within = |namespace: &String| {
            finding.resource.as_ref().is_none_or(|key| {
                let is_itself = key.kind == "Namespace" && *key.name == **namespace;
                *key.namespace == **namespace || is_itself
            })
        };
        self.level.admits(finding.severity) && self.namespace.as_ref().is_none_or(is_within)
    }
}

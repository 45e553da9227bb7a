//! What is found in the course of translating one resource.
use crate::{
    diagnostic::Severity,
    path::Path,
    resources::{field::Problem, metadata::Metadata},
};

/// The findings about one resource.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Problem>);

impl Findings {
    pub(super) fn add(
        &mut self,
        severity: Severity,
        path: Path,
        message: impl Into<String>,
        remedy: &str,
    ) {
        self.0.push(Problem {
            severity,
            path,
            message: message.into(),
            remedy: remedy.to_owned(),
        });
    }

    /// The findings as they are reported.
    pub(crate) fn diagnostics(self, metadata: &Metadata) -> Vec<crate::Diagnostic> {
        let about = |problem| metadata.diagnostic(problem);
        self.0.into_iter().map(about).collect()
    }
}

/// The path of a field of `spec`.
pub(super) fn spec(field: &'static str) -> Path {
    Path::root().key("spec").key(field)
}

/// The path of a label.
pub(super) fn label(name: &'static str) -> Path {
    Path::root().key("metadata").key("labels").key(name)
}

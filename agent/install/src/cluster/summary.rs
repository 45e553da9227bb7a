//! What came of it, for the end of the output.
use std::fmt;

use super::Change;

/// What an installation or upgrade did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Where the mesh is.
    pub namespace: String,
    /// The version that is installed now.
    pub version: String,
    /// The version that was installed before.
    pub previous: Option<String>,
    /// Objects made.
    pub created: usize,
    /// Objects changed.
    pub updated: usize,
    /// Objects that were as they should be.
    pub unchanged: usize,
    /// Definitions of others that were left alone.
    pub kept: usize,
    /// Objects of the earlier version that are not part of this one.
    pub removed: usize,
    /// Node agents that are ready; `None` when the profile has none.
    pub nodes: Option<i32>,
}

impl Summary {
    pub(super) fn count(&mut self, change: Change) {
        let counter = match change {
            Change::Created => &mut self.created,
            Change::Updated => &mut self.updated,
            Change::Unchanged => &mut self.unchanged,
            Change::Kept => &mut self.kept,
        };
        *counter += 1;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "undermesh {} runs in {}", self.version, self.namespace)?;
        if let Some(previous) = self.previous.as_ref().filter(|it| **it != self.version) {
            write!(f, " (before: {previous})")?;
        }
        write!(
            f,
            ": {} created, {} updated, {} unchanged, {} removed",
            self.created, self.updated, self.unchanged, self.removed
        )?;
        if self.kept > 0 {
            write!(f, ", {} definitions of others kept", self.kept)?;
        }
        if let Some(nodes) = self.nodes {
            write!(
                f,
                "\nNode agents ready: {nodes}. Take a namespace into the mesh with"
            )?;
            write!(
                f,
                "\n  kubectl label namespace NAMESPACE istio.io/dataplane-mode=ambient"
            )?;
        }
        Ok(())
    }
}

/// What an uninstallation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Where the mesh was.
    pub namespace: String,
    /// What is gone.
    pub objects: Vec<String>,
    /// What stays, and how to remove it.
    pub left: Vec<String>,
    /// Pods, as `namespace/name`, that no agent released.
    pub captured: Vec<String>,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "undermesh is gone from {}: {} objects removed",
            self.namespace,
            self.objects.len()
        )?;
        for left in &self.left {
            write!(f, "\nleft: {left}")?;
        }
        if !self.captured.is_empty() {
            write!(
                f,
                "\nThese pods were not released and cannot connect; restart them: {}",
                self.captured.join(", ")
            )?;
        }
        Ok(())
    }
}

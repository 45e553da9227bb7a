//! What was measured, row by row.

use serde::Serialize;

/// A figure.
#[derive(Debug, Serialize)]
pub struct Row {
    /// When it was taken.
    pub phase: Phase,
    /// What it is, with its unit.
    pub figure: String,
    /// Its value.
    pub value: f64,
    /// The most that it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
}

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The controller lists the cluster.
    Start,
    /// All nodes connect at once and know nothing.
    Join,
    /// Pods are replaced.
    Churn,
    /// The controller is killed and started again; all nodes come back at once.
    Restart,
    /// A real node talks to its services.
    Node,
}

/// The figures of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a figure.
    pub fn note(&mut self, phase: Phase, figure: &str, value: f64) {
        self.push(phase, figure, value, None);
    }

    /// Adds a figure that should be no larger than `at_most`.
    pub fn note_bounded(&mut self, phase: Phase, figure: &str, value: f64, at_most: f64) {
        self.push(phase, figure, value, Some(at_most));
    }

    fn push(&mut self, phase: Phase, figure: &str, value: f64, at_most: Option<f64>) {
        let figure = figure.to_owned();
        self.rows.push(Row {
            phase,
            figure,
            value,
            at_most,
        });
    }
}

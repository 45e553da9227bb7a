//! The values of all rounds, by what was measured and for whom.

use std::collections::BTreeMap;

use super::case::{Case, Figure, Route};

/// What a series of values is about; memory has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// The case.
    pub case: Case,
    /// The route of the traffic.
    pub route: Option<Route>,
    /// What the values mean.
    pub figure: Figure,
}

/// The values and failures of a run.
#[derive(Debug, Default)]
pub struct Series {
    columns: Vec<String>,
    values: BTreeMap<Subject, BTreeMap<String, Vec<f64>>>,
    failures: BTreeMap<(Case, Route, String), u64>,
}

impl Series {
    /// A run without values yet; `columns` gives the order in which they are shown.
    pub fn new(columns: impl IntoIterator<Item = String>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Adds the value of one round.
    pub fn note(&mut self, subject: Subject, column: &str, value: f64) {
        self.values
            .entry(subject)
            .or_default()
            .entry(column.to_owned())
            .or_default()
            .push(value);
    }

    /// Adds requests or connections that failed.
    pub fn note_failures(&mut self, case: Case, route: Route, column: &str, count: u64) {
        if count > 0 {
            *self
                .failures
                .entry((case, route, column.to_owned()))
                .or_default() += count;
        }
    }

    /// The columns in their order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What was measured, in the order of measurement.
    pub fn subjects(&self) -> impl Iterator<Item = Subject> {
        self.values.keys().copied()
    }

    /// The values of `column`, in the order of the rounds; empty when it has none.
    pub fn values(&self, subject: Subject, column: &str) -> &[f64] {
        self.values
            .get(&subject)
            .and_then(|columns| columns.get(column))
            .map_or(&[], Vec::as_slice)
    }

    /// What failed, with the case, the route and the column.
    pub fn failures(&self) -> impl Iterator<Item = (Case, Route, &str, u64)> {
        self.failures
            .iter()
            .map(|((case, route, column), count)| (*case, *route, column.as_str(), *count))
    }
}

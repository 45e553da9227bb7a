//! The floors: what istio/ztunnel reaches in this topology on a machine with two cores.
//!
//! They are for information. A run that misses one is still a good run.

use std::fmt;

use serde::Serialize;

use super::case::{Case, Figure, Route};

/// A bound that a figure of undermesh should keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Floor {
    /// The least ratio to no mesh.
    RatioAtLeast(f64),
    /// The greatest ratio to no mesh.
    RatioAtMost(f64),
    /// The greatest value.
    ValueAtMost(f64),
}

impl Floor {
    /// The floor of a figure, where there is one.
    pub fn of(case: Case, route: Option<Route>, figure: Figure) -> Option<Self> {
        if route == Some(Route::One) {
            return None;
        }
        match (case, figure) {
            (Case::Http1, Figure::LatencyP50) => Some(Self::RatioAtMost(2.0)),
            (Case::Http64, Figure::Requests) => Some(Self::RatioAtLeast(0.19)),
            (Case::Http64, Figure::CpuPerRequest) => Some(Self::ValueAtMost(53.0)),
            (Case::Connect, Figure::Connections) => Some(Self::RatioAtLeast(0.25)),
            (Case::Bulk1, Figure::Throughput) => Some(Self::RatioAtLeast(0.31)),
            (Case::Bulk1, Figure::CpuPerGigabyte) => Some(Self::ValueAtMost(1.8)),
            (Case::Bulk8, Figure::Throughput) => Some(Self::RatioAtLeast(0.20)),
            (Case::Memory, Figure::RssLoaded) => Some(Self::ValueAtMost(34.0)),
            _ => None,
        }
    }

    /// Whether a figure with this value and ratio keeps the floor; unknown without a ratio where the
    /// floor is one.
    pub fn reached(self, value: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::RatioAtLeast(floor) => ratio.map(|ratio| ratio >= floor),
            Self::RatioAtMost(floor) => ratio.map(|ratio| ratio <= floor),
            Self::ValueAtMost(floor) => Some(value <= floor),
        }
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtLeast(floor) => write!(formatter, "ratio >= {floor:.2}"),
            Self::RatioAtMost(floor) => write!(formatter, "ratio <= {floor:.2}"),
            Self::ValueAtMost(floor) => write!(formatter, "<= {floor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_hold_across_nodes_and_for_memory() {
        let across = Some(Route::Across);
        assert_eq!(
            Floor::of(Case::Http64, across, Figure::Requests),
            Some(Floor::RatioAtLeast(0.19))
        );
        assert_eq!(
            Floor::of(Case::Http64, Some(Route::One), Figure::Requests),
            None
        );
        assert!(Floor::of(Case::Memory, None, Figure::RssLoaded).is_some());
        assert_eq!(Floor::of(Case::Memory, None, Figure::RssIdle), None);
    }

    #[test]
    fn a_floor_is_reached_from_its_right_side() {
        assert_eq!(Floor::RatioAtLeast(0.2).reached(0.0, Some(0.2)), Some(true));
        assert_eq!(
            Floor::RatioAtLeast(0.2).reached(0.0, Some(0.1)),
            Some(false)
        );
        assert_eq!(Floor::RatioAtMost(2.0).reached(0.0, Some(1.5)), Some(true));
        assert_eq!(Floor::RatioAtMost(2.0).reached(0.0, Some(2.5)), Some(false));
        assert_eq!(Floor::ValueAtMost(53.0).reached(60.0, None), Some(false));
        assert_eq!(Floor::RatioAtLeast(0.2).reached(9.0, None), None);
    }
}

//! Istio's own ztunnel as a peer: our controller drives it, and it talks with our nodes over the wire.
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[];

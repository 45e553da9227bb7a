//! Where a workload runs, for endpoint preference.
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Region, zone and subzone.
///
/// An empty part is unknown. Two unknown parts compare as equal, as in Istio: most clusters have no
/// subzones, and a preference that goes on to the node must not stop there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Locality {
    /// For example `eu-west`.
    pub region: Arc<str>,
    /// For example `eu-west-1a`.
    pub zone: Arc<str>,
    /// Often empty.
    pub subzone: Arc<str>,
}

//! Where a workload runs, for endpoint preference.
use std::sync::Arc;

use serde::Serialize;

/// Region, zone and subzone; an empty part is unknown and matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// For example `eu-west`.
    pub region: Arc<str>,
    /// For example `eu-west-1a`.
    pub zone: Arc<str>,
    /// Often empty.
    pub subzone: Arc<str>,
}

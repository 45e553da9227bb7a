//! How a machine says whether its application is well: Istio's `istio.v1.HealthInformation`, a request without a
//! response on the stream of discovery.
//!
//! Source: istiod's `workloadentry` controller and pilot-agent; an `error_detail` means that the application is ill.
use crate::wire::{
    HEALTH_TYPE,
    discovery::{DeltaDiscoveryRequest, Status},
};

/// Longest reason that is sent or taken, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;
/// `UNAVAILABLE` (`google.rpc.Code`); pilot-agent sends the status of the probe here, and nobody reads it.
const UNAVAILABLE: i32 = 14;

/// Whether an application is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It may have traffic.
    Healthy,
    /// It may have none, for this reason.
    Unhealthy(String),
}

impl Health {
    /// The message that says so.
    pub fn to_request(&self) -> DeltaDiscoveryRequest {
        let error_detail = match self {
            Self::Healthy => None,
            Self::Unhealthy(reason) => Some(Status {
                code: UNAVAILABLE,
                message: bounded(reason),
                details: Vec::new(),
            }),
        };
        DeltaDiscoveryRequest {
            type_url: HEALTH_TYPE.to_owned(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// What a message says, if it is about health.
    pub fn of_request(request: &DeltaDiscoveryRequest) -> Option<Self> {
        (request.type_url == HEALTH_TYPE).then(|| match &request.error_detail {
            None => Self::Healthy,
            Some(error) => Self::Unhealthy(bounded(&error.message)),
        })
    }
}

fn bounded(reason: &str) -> String {
    reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_said_is_what_is_heard(reason in "\\PC{0,600}") {
            for health in [Health::Healthy, Health::Unhealthy(reason)] {
                let heard = Health::of_request(&health.to_request()).unwrap();
                match (&health, &heard) {
                    (Health::Unhealthy(said), Health::Unhealthy(heard)) => {
                        prop_assert!(said.starts_with(heard.as_str()));
                        prop_assert!(heard.len() <= MAX_REASON_BYTES);
                    }
                    _ => prop_assert_eq!(&health, &heard),
                }
            }
        }
    }

    #[test]
    fn other_requests_say_nothing_of_health() {
        let request = DeltaDiscoveryRequest::default();
        assert_eq!(Health::of_request(&request), None);
    }
}

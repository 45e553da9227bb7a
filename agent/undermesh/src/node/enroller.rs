//! Enrolls the pods that the cluster's rules name.
use std::{os::fd::AsFd as _, sync::Arc};

use undermesh_capture::{Enrollment, Phase};
use undermesh_cni::{
    netns::NetnsId,
    node::{EnrollError, Enroller, Held, PodKey, Release, Target},
};

use super::{fault::PodError, pods::Pods};
use crate::api::types::PodKey as Key;

/// Captures through the node's pods.
pub struct Captor(pub Arc<Pods>);

impl Enroller for Captor {
    async fn enroll(&self, target: Target) -> Result<(), EnrollError> {
        let enrollment = Enrollment::new(
            &target.path,
            target.pod.namespace(),
            target.pod.name(),
            &target.service_account,
        )
        .map_err(EnrollError::new)?;
        let enrolled = self.0.enroll_in(enrollment, target.netns_id).await;
        enrolled.map_err(EnrollError::new)
    }

    async fn release(&self, pod: &PodKey, why: Release) -> Result<(), EnrollError> {
        let key = Key {
            namespace: pod.namespace().into(),
            name: pod.name().into(),
        };
        let released = match why {
            Release::Left => self.0.give_back(&key).await,
            Release::Ended => self.0.abandon(&key).await,
        };
        match released {
            Ok(()) | Err(PodError::Unknown(_)) => Ok(()),
            Err(error) => Err(EnrollError::new(error)),
        }
    }

    fn enrolled(&self) -> Vec<Held> {
        let pods = self.0.capture.pods().into_iter();
        pods.filter(|(_, phase)| matches!(phase, Phase::Prepared | Phase::Active))
            .filter_map(|(pod, _)| {
                let enrollment = pod.enrollment();
                Some(Held {
                    pod: PodKey::new(enrollment.namespace(), enrollment.name()).ok()?,
                    service_account: enrollment.service_account().to_owned(),
                    netns: NetnsId::of(pod.netns().as_fd()).ok()?,
                })
            })
            .collect()
    }
}

//! Keeps the control plane's own serving certificate fresh: at half of its life, and whenever the CA changes.
use std::{sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use tokio::{sync::watch, time::sleep};
use undermesh_identity::{Clock, ServingCertificate, ServingError, schedule::Schedule};

use crate::live::LiveAuthority;

/// How long a serving certificate holds.
pub const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The names under which the control plane is called: by nodes of ours, and by ztunnel in istiod's place.
pub fn names(namespace: &str) -> Vec<String> {
    let mut names = Vec::new();
    for service in ["undermesh", "istiod"] {
        for form in ["svc", "svc.cluster.local"] {
            names.push(format!("{service}.{namespace}.{form}"));
        }
    }
    names.push("localhost".to_owned());
    names
}

/// A serving certificate that is kept fresh by [`Serving::run`].
pub struct Serving {
    certificate: Arc<ServingCertificate>,
    authority: Arc<LiveAuthority>,
    clock: Arc<dyn Clock>,
    changes: watch::Receiver<u64>,
}

impl Serving {
    /// Has the first certificate signed for `names`.
    ///
    /// # Errors
    /// When a name is wrong or the CA cannot sign.
    pub fn new(
        authority: Arc<LiveAuthority>,
        names: &[String],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ServingError> {
        // What changes from here on is not in the certificate that is made now.
        let changes = authority.subscribe();
        let lifetime = SERVING_LIFETIME.min(authority.lifetimes().max);
        let certificate = ServingCertificate::new(&authority.current(), names, lifetime)?;
        Ok(Self {
            certificate: Arc::new(certificate),
            authority,
            clock,
            changes,
        })
    }

    /// For rustls: the `ResolvesServerCert` of each TLS server.
    pub fn certificate(&self) -> Arc<ServingCertificate> {
        Arc::clone(&self.certificate)
    }

    /// Renews the certificate for as long as it is polled.
    pub async fn run(mut self) {
        let mut rng: StdRng = StdRng::from_rng(&mut rand::rng());
        let mut schedule = Schedule::new(self.clock.now());
        self.certificate
            .plan(&mut schedule, self.clock.now(), &mut rng);
        loop {
            tokio::select! {
                () = until_due(&schedule, &*self.clock) => {}
                Ok(()) = self.changes.changed() => {}
            }
            let now = self.clock.now();
            match self.certificate.renew(&self.authority.current()) {
                Ok(()) => self.certificate.plan(&mut schedule, now, &mut rng),
                Err(error) => {
                    tracing::warn!(%error, "the serving certificate is not renewed; trying again");
                    schedule.failed(now, &mut rng);
                }
            }
        }
    }
}

async fn until_due(schedule: &Schedule, clock: &dyn Clock) {
    loop {
        let wait = schedule.wait(clock.now());
        if wait.is_zero() {
            return;
        }
        sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixtures::live_authority, live::Lifetimes};
    use undermesh_identity::{SystemClock, testing::TokioClock};

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_at_half_life_and_when_the_ca_changes() {
        let authority = live_authority(Lifetimes::default());
        let clock = TokioClock::new(SystemClock.now());
        let serving = Serving::new(Arc::clone(&authority), &names("mesh"), clock).unwrap();
        let certificate = serving.certificate();
        let first = certificate.certificate();
        let task = tokio::spawn(serving.run());
        sleep(SERVING_LIFETIME * 4 / 10).await;
        assert_eq!(certificate.certificate().serial(), first.serial());
        sleep(SERVING_LIFETIME * 2 / 10).await;
        let second = certificate.certificate();
        assert_ne!(second.serial(), first.serial());
        let next = undermesh_identity::Authority::ephemeral(
            undermesh_model::TrustDomain::cluster_local(),
            Arc::new(SystemClock),
        );
        authority.replace(next.unwrap());
        sleep(Duration::from_millis(1)).await;
        assert_ne!(certificate.certificate().serial(), second.serial());
        task.abort();
    }
}

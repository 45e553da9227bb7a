//! Machines in the controller: the registrar, as discovery, the certificate service and the source meet it.
use std::{net::IpAddr, sync::Arc};

use futures::future::BoxFuture;
use tokio::sync::watch;
use undermesh_ca::access;
use undermesh_identity::{Authenticator, Caller, CallerError};
use undermesh_kubernetes::tokens::TokenReviewer;
use undermesh_machine::{
    cluster::Cluster,
    entry::Key,
    monitor::Verdict,
    registrar::{self, Holders, Registrar},
};
use undermesh_model::{Delta, Identity};
use undermesh_xds::{
    health::Health,
    server::{Attendance, Claim, Hub, Machines, RegistrationError},
};

/// Knows everybody by a token, and machines by a certificate too, as long as their account and a group of it exist.
pub struct Callers {
    /// Judges tokens.
    pub tokens: TokenReviewer,
    /// Knows accounts and groups.
    pub cluster: Cluster,
}

impl Authenticator for Callers {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        cluster: &'a str,
    ) -> BoxFuture<'a, Result<Caller, CallerError>> {
        self.tokens.authenticate(token, cluster)
    }

    fn certified<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Caller, CallerError>> {
        Box::pin(async move {
            let (namespace, account) = (&identity.namespace, &identity.service_account);
            match self.cluster.has_machines(namespace, account).await {
                Ok(true) => Ok(Caller {
                    namespace: namespace.to_string(),
                    service_account: account.to_string(),
                    pod: None,
                }),
                Ok(false) => Err(CallerError::Invalid(format!(
                    "{identity} is not the identity of a WorkloadGroup and of a service account that exist"
                ))),
                Err(error) => Err(CallerError::Unavailable(error.to_string())),
            }
        })
    }
}

/// Which machines are registered, as the certificate service asks.
pub struct Registered(pub Cluster);

impl access::Machines for Registered {
    fn is_registered<'a>(
        &'a self,
        namespace: &'a str,
        service_account: &'a str,
    ) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            let registered = self.0.is_registered(namespace, service_account).await;
            registered.map_err(|error| error.to_string())
        })
    }
}

/// Where machines register, as discovery sees it.
pub struct Desk(pub Arc<Registrar>);

impl Machines for Desk {
    fn register(
        &self,
        caller: Caller,
        claim: Claim,
    ) -> BoxFuture<'_, Result<Box<dyn Attendance>, RegistrationError>> {
        Box::pin(async move {
            let claim = registrar::Claim {
                group: claim.group,
                address: claim.address,
                network: claim.network,
            };
            match self.0.register(&caller, &claim).await {
                Ok(attendance) => Ok(Box::new(Present(attendance)) as Box<dyn Attendance>),
                Err(error) if error.is_temporary() => {
                    Err(RegistrationError::Unavailable(error.to_string()))
                }
                Err(error) => Err(RegistrationError::Refused(error.to_string())),
            }
        })
    }
}

/// A registered machine.
struct Present(registrar::Attendance);

impl Attendance for Present {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn report(&self, health: Health) {
        self.0.report(match health {
            Health::Healthy => Verdict::Healthy,
            Health::Unhealthy(reason) => Verdict::Unhealthy(reason),
        });
    }

    fn withdrawn(&self) -> BoxFuture<'_, ()> {
        self.0.withdrawn()
    }
}

/// Who has which address, as far as the hub knows.
pub struct Known {
    /// What the cluster has said.
    pub hub: Arc<Hub>,
    /// Whether all of it was listed once.
    pub listed: watch::Receiver<bool>,
}

impl Holders for Known {
    fn holders(&self, network: &str, address: IpAddr) -> Option<Vec<String>> {
        if !*self.listed.borrow() {
            return None;
        }
        let holders = self.hub.holders(network, address);
        Some(holders.iter().map(ToString::to_string).collect())
    }
}

/// Tells the registrar of entries that are gone from the mesh.
pub fn note_removals(registrar: &Registrar, delta: &Delta) {
    let keys = delta.removed_workloads.iter().filter_map(|uid| entry(uid));
    keys.for_each(|key| registrar.suspect(&key));
}

/// The entry that a workload's uid names: `<cluster>/networking.istio.io/WorkloadEntry/<namespace>/<name>`.
fn entry(uid: &str) -> Option<Key> {
    let (_, rest) = uid.split_once("/networking.istio.io/WorkloadEntry/")?;
    let (namespace, name) = rest.split_once('/')?;
    Some(Key {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_from_pods_by_their_uids() {
        let key = entry("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm-10.0.0.7").unwrap();
        assert_eq!(key.to_string(), "shop/vm-10.0.0.7");
        assert_eq!(entry("Kubernetes//Pod/shop/web"), None);
    }
}

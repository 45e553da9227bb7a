//! Who may have which certificate: everybody their own, a node agent those of the pods on its node. A machine may ask
//! by its certificate for the next one, as long as it is registered.
//!
//! Source: Istio's node authorization (`CA_TRUSTED_NODE_ACCOUNTS`).
use std::{collections::HashSet, fmt, str::FromStr, sync::Arc};

use futures::future::BoxFuture;
use undermesh_identity::{Authenticator, Caller, CallerError};
use undermesh_model::{Identity, TrustDomain};

use crate::refusal::Refusal;

/// Where a pod runs and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlace {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its node; empty before it is scheduled.
    pub node: String,
}

/// What is known of the cluster's pods.
pub trait Pods: Send + Sync {
    /// The pod of this uid, if it exists.
    fn pod(&self, uid: &str) -> Option<PodPlace>;

    /// Whether a pod of this service account is bound to `node` and has not failed (`status.phase`).
    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool;
}

/// What is known of the machines outside the cluster.
pub trait Machines: Send + Sync {
    /// Whether a machine of this service account is registered (a WorkloadEntry that the control plane has made).
    ///
    /// # Errors
    /// When that cannot be found out at present; the text says why.
    fn is_registered<'a>(
        &'a self,
        namespace: &'a str,
        service_account: &'a str,
    ) -> BoxFuture<'a, Result<bool, String>>;
}

/// A service account whose pods are node agents, written `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeAccount {
    namespace: String,
    name: String,
}

/// A text that is no service account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a service account; write namespace/name")]
pub struct NodeAccountError(String);

impl FromStr for NodeAccount {
    type Err = NodeAccountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NodeAccountError(text.to_owned());
        let (namespace, name) = text.split_once('/').ok_or_else(wrong)?;
        Identity::new(TrustDomain::cluster_local(), namespace, name).map_err(|_| wrong())?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for NodeAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Judges callers.
pub struct Access {
    /// The mesh that certificates are for.
    pub trust_domain: TrustDomain,
    /// The accounts of node agents; none of them means that nobody may ask for others.
    pub node_accounts: HashSet<NodeAccount>,
    /// Knows callers by their tokens.
    pub authenticator: Arc<dyn Authenticator>,
    /// Knows pods.
    pub pods: Arc<dyn Pods>,
    /// Knows machines.
    pub machines: Arc<dyn Machines>,
}

impl Access {
    /// Who called, by a token.
    pub(crate) async fn caller(&self, token: &str, cluster: &str) -> Result<Caller, Refusal> {
        let caller = self.authenticator.authenticate(token, cluster).await;
        caller.map_err(refusal)
    }

    /// Who called, by a certificate: a machine that is registered. It is bound to no pod, and so gets its own identity
    /// and no other, whatever its account is trusted with elsewhere.
    pub(crate) async fn machine(&self, identity: &Identity) -> Result<Caller, Refusal> {
        let caller = self.authenticator.certified(identity).await;
        let caller = caller.map_err(refusal)?;
        let registered = self
            .machines
            .is_registered(&caller.namespace, &caller.service_account)
            .await;
        match registered {
            Ok(true) => Ok(caller),
            Ok(false) => Err(Refusal::Unregistered(identity.clone())),
            Err(reason) => Err(Refusal::Unchecked(reason)),
        }
    }

    /// The identity that `caller` gets a certificate for: the one it asks for, else its own.
    pub(crate) fn grant(
        &self,
        caller: &Caller,
        impersonated: Option<&str>,
    ) -> Result<Identity, Refusal> {
        let Some(text) = impersonated else {
            let (namespace, account) = (&caller.namespace, &caller.service_account);
            return Identity::new(self.trust_domain.clone(), namespace, account)
                .map_err(Refusal::Account);
        };
        let identity: Identity =
            text.parse()
                .map_err(|error: undermesh_model::IdentityError| {
                    Refusal::Impersonated(error.to_string())
                })?;
        if identity.trust_domain != self.trust_domain {
            return Err(Refusal::TrustDomain(identity));
        }
        self.check_node_agent(caller, identity)
    }

    fn check_node_agent(&self, caller: &Caller, identity: Identity) -> Result<Identity, Refusal> {
        let account = NodeAccount {
            namespace: caller.namespace.clone(),
            name: caller.service_account.clone(),
        };
        if !self.node_accounts.contains(&account) {
            return Err(Refusal::NotNodeAgent {
                caller: account.to_string(),
                identity,
            });
        }
        let node = self.node_of(caller).map_err(|detail| Refusal::Pod {
            caller: account.to_string(),
            detail,
        })?;
        if !self
            .pods
            .runs_on(&node, &identity.namespace, &identity.service_account)
        {
            return Err(Refusal::NotOnNode { identity, node });
        }
        Ok(identity)
    }

    /// Where the caller's pod runs, if the token is bound to one that is what it says.
    fn node_of(&self, caller: &Caller) -> Result<String, String> {
        let bound = caller
            .pod
            .as_ref()
            .ok_or("it is bound to no pod; use a projected service account token")?;
        let pod = self
            .pods
            .pod(&bound.uid)
            .ok_or_else(|| format!("no pod has the uid {}", bound.uid))?;
        if pod.namespace != caller.namespace || pod.service_account != caller.service_account {
            return Err(format!(
                "the pod {} runs as {}/{}",
                bound.uid, pod.namespace, pod.service_account
            ));
        }
        if pod.node.is_empty() {
            return Err(format!("the pod {} is on no node yet", bound.uid));
        }
        Ok(pod.node)
    }
}

fn refusal(error: CallerError) -> Refusal {
    match error {
        CallerError::Invalid(_) => Refusal::Caller(error.to_string()),
        CallerError::Unavailable(_) => Refusal::Unchecked(error.to_string()),
    }
}

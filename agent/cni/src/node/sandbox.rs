//! What the CNI plugin asks: new sandboxes are captured before anything runs in them.
use std::future::Future;

use super::{
    Cluster, ClusterError, Controller, EnrollError, Enroller, InvalidKey, Namespaces, PodFacts,
    PodKey, Release, controller::StepError,
};
use crate::{
    discovery::{DiscoveryError, Found},
    netns::NetnsId,
    server::Desk,
    wire::{Answer, Failure, Sandbox, Verb},
};

/// Why a sandbox cannot be taken in now.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The names are none.
    #[error(transparent)]
    Invalid(#[from] InvalidKey),
    /// The API server knows no such pod on this node.
    #[error("the API server knows no pod {0} on this node; it may have been deleted meanwhile")]
    Unknown(PodKey),
    /// The name is another pod's.
    #[error(
        "the API server knows {pod} with uid {known}, but the sandbox is of {asked}; the pod was replaced"
    )]
    Replaced {
        /// The pod.
        pod: PodKey,
        /// The uid at the API server.
        known: String,
        /// The uid that the container runtime gave.
        asked: String,
    },
    /// The runtime gives no uid, and the sandbox cannot be told by its processes.
    #[error(
        "the container runtime does not say which {0} the sandbox is of; use one that gives K8S_POD_UID to CNI plugins"
    )]
    Unidentified(PodKey),
    /// The runtime gives no namespace or no address.
    #[error(
        "the sandbox of {0} has no network namespace or no address; put the plugin behind the one that makes the network"
    )]
    NoNetwork(PodKey),
    /// The sandbox is a member's and is not captured.
    #[error("{0} is in the mesh and its sandbox is not captured; it will be, in a moment")]
    NotCaptured(PodKey),
    /// The API server does not answer.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The namespace cannot be used.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// Capture was refused.
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    /// The work broke off.
    #[error("the work for the sandbox broke off: {0}; see the agent's log")]
    Broken(#[from] tokio::task::JoinError),
}

impl From<StepError> for SandboxError {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Cluster(error) => Self::Cluster(error),
            StepError::Discovery(error) => Self::Discovery(error),
            StepError::Enroll(error) => Self::Enroll(error),
            StepError::Search(error) => Self::Broken(error),
        }
    }
}

impl<E: Enroller, C: Cluster, N: Namespaces> Desk for Controller<E, C, N> {
    /// Runs on a task of its own: a plugin that goes away in the middle does not leave a pod half enrolled.
    fn handle(
        &self,
        verb: Verb,
        sandbox: Sandbox,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send {
        let controller = self.clone();
        let work = tokio::spawn(async move {
            match verb {
                Verb::Add => controller.add(sandbox).await,
                Verb::Check => controller.check(sandbox).await,
                Verb::Del => controller.del(sandbox).await,
            }
        });
        async move {
            let result = work.await.map_err(SandboxError::from).flatten();
            result.map_err(|error| Failure {
                error: error.to_string(),
            })
        }
    }
}

impl<E: Enroller, C: Cluster, N: Namespaces> Controller<E, C, N> {
    /// Captures a new sandbox, if its pod is a member. The API server is asked, for watches may be late.
    ///
    /// # Errors
    /// When it is not certain what the pod is, or it cannot be captured: then it must not run.
    pub async fn add(&self, sandbox: Sandbox) -> Result<Answer, SandboxError> {
        let key = PodKey::new(&sandbox.namespace, &sandbox.name)?;
        let _turn = self.turns().take(&key).await;
        let pod = self.fresh(&key, &sandbox).await?;
        let judged = self.book().judge(&key, &pod);
        if let Err(why) = judged {
            // The sandbox that is captured under this name, if it is another one, has ended.
            if self.held(&key).is_some() && !self.is_held(&key, &sandbox) {
                self.let_go(&key, Release::Ended).await?;
            }
            self.look_at(key);
            let reason = why.to_string();
            return Ok(Answer::NotMember { reason });
        }
        let found = self.network(&key, &pod, &sandbox).await?;
        self.enroll(&key, pod.uid, pod.service_account, sandbox.addresses, found)
            .await?;
        tracing::info!(pod = %key, "captured before its first packet");
        self.look_at(key);
        Ok(Answer::Enrolled)
    }

    /// Tells whether a sandbox is as it should be.
    ///
    /// # Errors
    /// When it is not, or nobody can tell.
    pub async fn check(&self, sandbox: Sandbox) -> Result<Answer, SandboxError> {
        let key = PodKey::new(&sandbox.namespace, &sandbox.name)?;
        if self.is_held(&key, &sandbox) {
            return Ok(Answer::Enrolled);
        }
        let pod = self.fresh(&key, &sandbox).await?;
        let judged = self.book().judge(&key, &pod);
        let Err(why) = judged else {
            self.look_at(key.clone());
            return Err(SandboxError::NotCaptured(key));
        };
        let reason = why.to_string();
        Ok(Answer::NotMember { reason })
    }

    /// Lets go of a sandbox whose network is about to be taken down, before its address can be another's.
    ///
    /// # Errors
    /// When the enroller cannot let go; it learns by itself that the namespace is gone.
    pub async fn del(&self, sandbox: Sandbox) -> Result<Answer, SandboxError> {
        let key = PodKey::new(&sandbox.namespace, &sandbox.name)?;
        let _turn = self.turns().take(&key).await;
        // The name may be another sandbox's by now.
        if self.is_held(&key, &sandbox) {
            self.let_go(&key, Release::Ended).await?;
            self.look_at(key);
        }
        Ok(Answer::Released)
    }

    /// The pod as the API server knows it just now, if the sandbox is its own.
    async fn fresh(&self, key: &PodKey, sandbox: &Sandbox) -> Result<PodFacts, SandboxError> {
        let view = self.cluster().look(key).await?;
        let pod = view.pod.clone();
        self.book().learn(key, view);
        let pod = pod.ok_or_else(|| SandboxError::Unknown(key.clone()))?;
        match &sandbox.uid {
            Some(asked) if *asked != pod.uid && *asked != pod.kubelet_uid => {
                Err(SandboxError::Replaced {
                    pod: key.clone(),
                    known: pod.uid,
                    asked: asked.clone(),
                })
            }
            _ => Ok(pod),
        }
    }

    /// The network namespace of a sandbox.
    async fn network(
        &self,
        key: &PodKey,
        pod: &PodFacts,
        sandbox: &Sandbox,
    ) -> Result<Found, SandboxError> {
        let Sandbox {
            netns, addresses, ..
        } = sandbox;
        let Some(path) = netns.clone().filter(|_| !addresses.is_empty()) else {
            return Err(SandboxError::NoNetwork(key.clone()));
        };
        let (uid, addresses) = (pod.uid.clone(), addresses.clone());
        let found = self
            .search(move |namespaces| namespaces.at(&path, &uid, &addresses))
            .await?;
        if sandbox.uid.is_none() {
            self.identify(key, pod, found.id).await?;
        }
        Ok(found)
    }

    /// Tells by the sandbox's processes whose it is: runtimes that give no uid start one before they ask.
    async fn identify(
        &self,
        key: &PodKey,
        pod: &PodFacts,
        id: NetnsId,
    ) -> Result<(), SandboxError> {
        let uid = pod.kubelet_uid.clone();
        let own = self
            .search(move |namespaces| namespaces.of_pod(&uid, &[]))
            .await;
        match own {
            Ok(own) if own.id == id => Ok(()),
            _ => Err(SandboxError::Unidentified(key.clone())),
        }
    }

    /// Whether this very sandbox is captured.
    fn is_held(&self, key: &PodKey, sandbox: &Sandbox) -> bool {
        let Some(held) = self.held(key) else {
            return false;
        };
        let path = sandbox.netns.as_deref();
        let id = path.and_then(|path| self.identify_at(path).ok());
        id == Some(held.netns)
    }
}

//! Keeps the CA in step with its Secrets: every replica follows them, the leader creates, repairs and rotates.
use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{sync::watch, time::sleep};
use undermesh_identity::{
    Authority, AuthorityError, CaParts, CertificateError, Clock, NewRoot, material::MaterialError,
};
use undermesh_model::TrustDomain;

use crate::{
    live::{Lifetimes, LiveAuthority},
    role::Role,
    root::{self, OWN_SECRET, PLUGGED_SECRET, RootError},
    rotation::{Overlap, Root, Roots},
};

/// Longest wait before the clock and failed writes are looked at again.
pub const MAX_NAP: Duration = Duration::from_secs(60);

const CONFLICT: u16 = 409;

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The API server did not do it.
    #[error("cannot {action} the Secret {namespace}/{name}: {error}")]
    Api {
        /// What was tried.
        action: &'static str,
        /// In which namespace.
        namespace: String,
        /// On which Secret.
        name: &'static str,
        /// What the API server said.
        error: Box<kube::Error>,
    },
    /// A Secret holds no CA.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What the Secret holds cannot sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No root could be made.
    #[error(transparent)]
    Make(#[from] MaterialError),
    /// The root that was made cannot be read.
    #[error("the root that was made cannot be read: {0}")]
    Certificate(#[from] CertificateError),
}

/// What the CA depends on.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// The controller's own namespace, where the Secrets are.
    pub namespace: String,
    /// The mesh that certificates are for.
    pub trust_domain: TrustDomain,
    /// How long certificates hold.
    pub lifetimes: Lifetimes,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

/// How the CA stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootStatus {
    /// The Secret that signs.
    pub secret: &'static str,
    /// How far a rotation of our own root is; `None` with a plugged-in intermediate.
    pub phase: Option<&'static str>,
    /// Why the latest content of the Secret is not in force.
    pub problem: Option<String>,
}

/// What the two Secrets hold.
#[derive(Default)]
struct Seen {
    own: Option<Secret>,
    plugged: Option<Secret>,
}

/// The CA that the Secrets say.
struct Chosen {
    parts: CaParts,
    status: RootStatus,
}

/// Follows the Secrets.
pub struct Keeper {
    api: Api<Secret>,
    options: KeeperOptions,
    live: Arc<LiveAuthority>,
    status: watch::Sender<RootStatus>,
    seen: Seen,
    /// The last good content of our own Secret, from which a deleted one is restored.
    roots: Option<Roots>,
    in_force: CaParts,
}

impl Keeper {
    /// Reads the CA, or makes one if there is none; of several replicas that do so at once, one wins for all.
    ///
    /// # Errors
    /// When the API server cannot be reached, or a Secret holds no usable CA.
    pub async fn open(client: Client, options: KeeperOptions) -> Result<Self, KeeperError> {
        let api: Api<Secret> = Api::namespaced(client, &options.namespace);
        let store = Store {
            api: &api,
            options: &options,
        };
        let mut seen = Seen {
            plugged: store.get(PLUGGED_SECRET).await?,
            own: None,
        };
        if !is_plugged(seen.plugged.as_ref())? {
            seen.own = Some(store.get_or_create().await?);
        }
        let chosen = choose(&seen, &options.namespace)?.ok_or_else(|| RootError::Missing {
            place: OWN_SECRET.into(),
            key: "ca-cert.pem",
        })?;
        let authority = authority(&chosen.parts, &options)?;
        Ok(Self {
            live: LiveAuthority::new(authority, options.lifetimes),
            status: watch::Sender::new(chosen.status),
            roots: seen.own.as_ref().map(root::read).transpose()?,
            in_force: chosen.parts,
            seen,
            api,
            options,
        })
    }

    /// The CA in force.
    pub fn authority(&self) -> Arc<LiveAuthority> {
        Arc::clone(&self.live)
    }

    /// How the CA stands.
    pub fn status(&self) -> watch::Receiver<RootStatus> {
        self.status.subscribe()
    }

    /// Follows the Secrets until `role` ends; writes while it says leader.
    pub async fn run(mut self, mut role: watch::Receiver<Role>) {
        let mut own = pin!(follow(self.api.clone(), OWN_SECRET));
        let mut plugged = pin!(follow(self.api.clone(), PLUGGED_SECRET));
        loop {
            tokio::select! {
                secret = next(own.as_mut()) => self.seen.own = secret,
                secret = next(plugged.as_mut()) => self.seen.plugged = secret,
                changed = role.changed() => if changed.is_err() { return },
                () = sleep(self.nap()) => {}
            }
            self.refresh();
            let leads = *role.borrow_and_update() == Role::Leader;
            if leads && let Err(error) = self.lead().await {
                tracing::warn!(%error, "the CA's Secret is not as it should be; trying again");
            }
        }
    }

    /// Puts in force what the Secrets say now. What cannot be used is reported, and the CA stays as it is.
    fn refresh(&mut self) {
        if let Some(Ok(roots)) = self.seen.own.as_ref().map(root::read) {
            self.roots = Some(roots);
        }
        let problem = self.adopt().err().map(|error| error.to_string());
        if let Some(problem) = &problem {
            tracing::error!(problem, "the CA stays as it was");
        }
        self.status.send_if_modified(|status| {
            let changed = status.problem != problem;
            status.problem = problem;
            changed
        });
    }

    fn adopt(&mut self) -> Result<(), KeeperError> {
        let Some(chosen) = choose(&self.seen, &self.options.namespace)? else {
            return Ok(());
        };
        if same(&chosen.parts, &self.in_force) {
            return Ok(());
        }
        self.live.replace(authority(&chosen.parts, &self.options)?);
        tracing::info!(
            secret = chosen.status.secret,
            phase = chosen.status.phase,
            "the CA has changed"
        );
        self.in_force = chosen.parts;
        self.status.send_replace(chosen.status);
        Ok(())
    }

    /// What the leader does: our own Secret exists unless an intermediate is plugged in, and its rotation goes on.
    async fn lead(&mut self) -> Result<(), KeeperError> {
        if is_plugged(self.seen.plugged.as_ref())? {
            return Ok(());
        }
        let store = Store {
            api: &self.api,
            options: &self.options,
        };
        let Some(secret) = &self.seen.own else {
            return match &self.roots {
                // A lost root would cut every connection: the one in memory goes back.
                Some(roots) => store.create(roots).await.map(drop),
                None => store.get_or_create().await.map(drop),
            };
        };
        store.rotate(secret).await
    }

    fn nap(&self) -> Duration {
        let overlap = Overlap::from(self.options.lifetimes);
        let due = self.roots.as_ref().map(|roots| roots.due(overlap));
        let wait = due.and_then(|due| due.duration_since(self.options.clock.now()).ok());
        wait.unwrap_or(MAX_NAP)
            .clamp(Duration::from_secs(1), MAX_NAP)
    }
}

/// Our own Secret in the API server.
struct Store<'a> {
    api: &'a Api<Secret>,
    options: &'a KeeperOptions,
}

impl Store<'_> {
    async fn get(&self, name: &'static str) -> Result<Option<Secret>, KeeperError> {
        let found = self.api.get_opt(name).await;
        found.map_err(|error| self.failed("read", name, error))
    }

    async fn get_or_create(&self) -> Result<Secret, KeeperError> {
        if let Some(secret) = self.get(OWN_SECRET).await? {
            return Ok(secret);
        }
        let roots = Roots::steady(self.make()?);
        self.create(&roots).await
    }

    /// Creates the Secret, or takes that of another replica that was faster.
    async fn create(&self, roots: &Roots) -> Result<Secret, KeeperError> {
        let secret = root::new_secret(roots, &self.options.namespace);
        match self.api.create(&PostParams::default(), &secret).await {
            Ok(created) => {
                tracing::info!(secret = OWN_SECRET, "the CA's root has been stored");
                Ok(created)
            }
            Err(kube::Error::Api(status)) if status.code == CONFLICT => self
                .get(OWN_SECRET)
                .await?
                .ok_or_else(|| self.failed("create", OWN_SECRET, kube::Error::Api(status))),
            Err(error) => Err(self.failed("create", OWN_SECRET, error)),
        }
    }

    /// Writes the next step of a rotation if its time has come. The version that was read must still be the newest:
    /// else another replica has been faster, and the watch will tell.
    async fn rotate(&self, secret: &Secret) -> Result<(), KeeperError> {
        let roots = root::read(secret)?;
        let (now, overlap) = (self.options.clock.now(), self.options.lifetimes.into());
        let Some(next) = roots.step(now, overlap, root::wish(secret), || self.make())? else {
            return Ok(());
        };
        // A step that cannot sign must not be stored.
        authority(&root::parts(&next, &self.options.namespace), self.options)?;
        let mut changed = secret.clone();
        root::write(&mut changed, &next);
        match self
            .api
            .replace(OWN_SECRET, &PostParams::default(), &changed)
            .await
        {
            Ok(_) => {
                tracing::info!(phase = next.phase.label(), "root rotation");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == CONFLICT => Ok(()),
            Err(error) => Err(self.failed("write", OWN_SECRET, error)),
        }
    }

    fn make(&self) -> Result<Root, KeeperError> {
        let new = NewRoot::make(&self.options.trust_domain, self.options.clock.now())?;
        Ok(new.try_into()?)
    }

    fn failed(&self, action: &'static str, name: &'static str, error: kube::Error) -> KeeperError {
        KeeperError::Api {
            action,
            namespace: self.options.namespace.clone(),
            name,
            error: Box::new(error),
        }
    }
}

fn is_plugged(secret: Option<&Secret>) -> Result<bool, RootError> {
    let parts = secret.map(root::plugged).transpose()?;
    Ok(parts.flatten().is_some())
}

fn choose(seen: &Seen, namespace: &str) -> Result<Option<Chosen>, RootError> {
    if let Some(parts) = seen
        .plugged
        .as_ref()
        .map(root::plugged)
        .transpose()?
        .flatten()
    {
        let status = RootStatus {
            secret: PLUGGED_SECRET,
            phase: None,
            problem: None,
        };
        return Ok(Some(Chosen { parts, status }));
    }
    let Some(roots) = seen.own.as_ref().map(root::read).transpose()? else {
        return Ok(None);
    };
    let status = RootStatus {
        secret: OWN_SECRET,
        phase: Some(roots.phase.label()),
        problem: None,
    };
    let parts = root::parts(&roots, namespace);
    Ok(Some(Chosen { parts, status }))
}

fn authority(parts: &CaParts, options: &KeeperOptions) -> Result<Authority, AuthorityError> {
    let clock = Arc::clone(&options.clock);
    Authority::from_parts(parts, options.trust_domain.clone(), clock)
}

fn same(one: &CaParts, other: &CaParts) -> bool {
    one.place == other.place
        && one.key == other.key
        && one.certificate == other.certificate
        && one.chain == other.chain
        && one.roots == other.roots
}

fn follow(
    api: Api<Secret>,
    name: &'static str,
) -> impl Stream<Item = Result<Option<Secret>, watcher::Error>> {
    watcher::watch_object(api, name).default_backoff()
}

/// The next state of a followed Secret; failures of the watch are waited out.
async fn next(
    mut secrets: Pin<&mut impl Stream<Item = Result<Option<Secret>, watcher::Error>>>,
) -> Option<Secret> {
    loop {
        match secrets.next().await {
            Some(Ok(secret)) => return secret,
            Some(Err(error)) => {
                tracing::warn!(%error, "a Secret of the CA cannot be watched; trying again")
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests;

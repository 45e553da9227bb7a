//! Pods on their way into the mesh, in it, and out of it.
use std::{collections::HashMap, io, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::timeout,
};
use undermesh_capture::{
    Announcements, Capture, CaptureError, Counters, Destinations, EnrolledPod, Enrollment, Phase,
    Prepared, Recovery, Watch,
};
use undermesh_cni::{netns::NetnsId, node::Turns};
use undermesh_identity::CertificateCache;
use undermesh_model::{Identity, IdentityError, SharedMesh, TrustDomain};
use undermesh_telemetry::Telemetry;
use undermesh_tunnel::{Announce, OriginalDestinations, PodConfig, WorkerListeners, Workers};

use super::fault::PodError;
use crate::api::{
    Refusal,
    types::{Pod, PodCounts, PodKey, PodState},
};

/// How long an enrollment waits for the first certificate of its identity.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(10);

/// Destinations that the kernel filed, for the tunnel.
pub struct Filed(pub Destinations);

impl OriginalDestinations for Filed {
    fn take(&self, netns_cookie: u64, source: SocketAddr) -> Option<SocketAddr> {
        self.0.take(netns_cookie, source)
    }
}

/// Connections to applications, told to the kernel by the tunnel.
pub struct Announced(pub Announcements);

impl Announce for Announced {
    fn announce(&self, source: SocketAddr, target: SocketAddr) -> io::Result<()> {
        self.0.announce(source, target)
    }

    fn withdraw(&self, source: SocketAddr, target: SocketAddr) {
        self.0.withdraw(source, target);
    }
}

/// What a pod waits for before it is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// Its certificate: a new pod has nothing to lose by waiting.
    Certificate,
    /// Not for ever: a pod that is captured already is better refused with a reason than left hanging.
    Bounded,
}

/// The pods of this node, and the rooms that serve them.
pub struct Pods {
    /// The kernel's side.
    pub capture: Arc<Capture>,
    /// The data plane.
    pub workers: Workers,
    /// Certificates of the pods' identities.
    pub certificates: CertificateCache,
    /// What the configuration says.
    pub mesh: SharedMesh,
    /// Where pods are counted.
    pub telemetry: Telemetry,
    /// Tells when a pod's namespace is gone.
    pub watch: Watch,
    /// Trust domain of the pods' identities.
    pub trust_domain: TrustDomain,
    /// How long a release drains unless it says otherwise.
    pub drain: Duration,
    /// One enrollment or release of a pod at a time.
    pub turns: Turns<PodKey>,
}

impl Pods {
    /// Takes a pod into the mesh; the same pod again is no error.
    pub async fn enroll(&self, enrollment: Enrollment) -> Result<Pod, Refusal> {
        let _turn = self.turns.take(&PodKey::of(&enrollment)).await;
        let enrolled = self.take_up(enrollment, None).await;
        self.count();
        Ok(self.view(&enrolled?))
    }

    /// As [`Self::enroll`], and only if the namespace at the enrollment's path is `netns`.
    pub async fn enroll_in(&self, enrollment: Enrollment, netns: NetnsId) -> Result<(), PodError> {
        let _turn = self.turns.take(&PodKey::of(&enrollment)).await;
        let enrolled = self.take_up(enrollment, Some(netns)).await;
        self.count();
        enrolled.map(drop)
    }

    /// As [`Self::enroll`], for the machine that the agent runs on.
    pub async fn enroll_machine(&self, enrollment: Enrollment) -> Result<(), PodError> {
        let _turn = self.turns.take(&PodKey::of(&enrollment)).await;
        let enrolled = self.take_up(enrollment, None).await;
        self.count();
        enrolled.map(drop)
    }

    /// Takes a pod out of the mesh after its connections ended, or after `drain`.
    pub async fn release(&self, key: PodKey, drain: Option<Duration>) -> Result<Pod, Refusal> {
        let _turn = self.turns.take(&key).await;
        let released = self.give_up(&key, drain.unwrap_or(self.drain)).await;
        self.count();
        Ok(released?)
    }

    /// As [`Self::release`], with the usual time to drain.
    pub async fn give_back(&self, key: &PodKey) -> Result<(), PodError> {
        let _turn = self.turns.take(key).await;
        let released = self.give_up(key, self.drain).await;
        self.count();
        released.map(drop)
    }

    /// Takes all pods out of the mesh, at once, each with the usual time to drain.
    pub async fn release_all(&self) {
        let pods = self.capture.pods().into_iter();
        let keys: Vec<PodKey> = pods.map(|(pod, _)| PodKey::of(pod.enrollment())).collect();
        let released = join_all(keys.iter().map(|key| self.give_back(key))).await;
        for (key, result) in keys.iter().zip(released) {
            if let Err(error) = result {
                tracing::error!(%error, pod = %key, "could not be released");
            }
        }
    }

    /// Stops serving a pod that has ended. Its namespace stays captured until it is gone, so that nothing that still
    /// runs in there leaves it unprotected, and its name is free for another pod.
    pub async fn abandon(&self, key: &PodKey) -> Result<(), PodError> {
        let _turn = self.turns.take(key).await;
        let (pod, _) = self
            .find(key)
            .ok_or_else(|| PodError::Unknown(key.clone()))?;
        let cookie = pod.cookie();
        self.watch.remove(cookie).await;
        self.workers.remove_pod(cookie, Duration::ZERO).await;
        self.blocking(move |capture| capture.vanished(cookie))
            .await?;
        self.telemetry.metrics().proxies_stopped.inc();
        tracing::info!(pod = %pod.enrollment(), "it has ended; it is no longer served");
        self.count();
        Ok(())
    }

    /// Serves the pods of an earlier agent again, all at once.
    pub async fn recover(&self, recovery: Recovery) {
        for problem in &recovery.problems {
            tracing::error!("{problem}");
        }
        join_all(
            recovery
                .prepared
                .into_iter()
                .map(|prepared| self.recover_pod(prepared)),
        )
        .await;
        self.count();
    }

    /// Ends all connections within `drain`. The pods stay captured, so that nothing leaves them unprotected.
    pub async fn stop(&self, drain: Duration) {
        let cookies = self.capture.pods().into_iter().map(|(pod, _)| pod.cookie());
        join_all(cookies.map(|cookie| self.workers.remove_pod(cookie, drain))).await;
    }

    /// Lets go of pods whose network namespaces are gone, as they are reported.
    pub async fn follow_vanished(self: Arc<Self>, mut vanished: mpsc::Receiver<u64>) {
        while let Some(cookie) = vanished.recv().await {
            let pods = Arc::clone(&self);
            tokio::spawn(async move { pods.let_go(cookie).await });
        }
    }

    /// Tells of enrolled pods that a changed configuration does not fit.
    pub async fn follow_mesh(self: Arc<Self>, mut changes: watch::Receiver<u64>) {
        while changes.changed().await.is_ok() {
            for (pod, _) in self.capture.pods() {
                if let Err(error) = self.checked_identity(pod.enrollment()) {
                    tracing::warn!(%error, "connections of this pod are refused");
                }
            }
            self.count();
        }
    }

    /// All pods, in the order of their names.
    pub fn list(&self) -> Vec<Pod> {
        let open = self.telemetry.connections_by_id();
        let mut pods: Vec<Pod> = self
            .capture
            .pods()
            .iter()
            .map(|(pod, phase)| self.shown(pod, *phase, &open))
            .collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.capture.pods().len()
    }

    /// How many pods are in which state.
    pub fn counts(&self) -> PodCounts {
        let mut counts = PodCounts::default();
        for (pod, phase) in self.capture.pods() {
            match self.state(pod.enrollment(), phase) {
                PodState::Active => counts.active += 1,
                PodState::Pending => counts.pending += 1,
                PodState::Draining => counts.draining += 1,
            }
        }
        counts
    }

    /// What the kernel's programs have counted.
    pub fn captured(&self) -> Result<Counters, CaptureError> {
        self.capture.counters()
    }

    /// Tunnels open to peers.
    pub fn tunnels(&self) -> usize {
        self.workers.tunnels()
    }

    /// The certificates of the pods' identities.
    pub fn certificates(&self) -> &CertificateCache {
        &self.certificates
    }

    /// What the manifests say.
    pub fn mesh(&self) -> &SharedMesh {
        &self.mesh
    }

    async fn take_up(
        &self,
        enrollment: Enrollment,
        netns: Option<NetnsId>,
    ) -> Result<EnrolledPod, PodError> {
        self.checked_identity(&enrollment)?;
        let prepared = match self
            .blocking(move |capture| capture.prepare(&enrollment))
            .await
        {
            Ok(prepared) => prepared,
            Err(PodError::Capture(CaptureError::AlreadyEnrolled(pod))) => {
                return expect(&pod, netns).and_then(|()| self.served(pod));
            }
            Err(error) => return Err(error),
        };
        let cookie = prepared.pod().cookie();
        let served = match expect(prepared.pod(), netns) {
            Ok(()) => self.serve(prepared, Patience::Certificate).await,
            Err(error) => Err(error),
        };
        if served.is_err() {
            self.workers.remove_pod(cookie, Duration::ZERO).await;
            if let Err(error) = self.blocking(move |capture| capture.forget(cookie)).await {
                tracing::error!(%error, cookie, "an enrollment could not be undone");
            }
        }
        served
    }

    /// From an open, uncaptured namespace to a pod that is served and captured.
    async fn serve(
        &self,
        mut prepared: Prepared,
        patience: Patience,
    ) -> Result<EnrolledPod, PodError> {
        let pod = prepared.pod().clone();
        let identity = self.identity(pod.enrollment())?;
        let certificate = self.certificates.acquire(&identity);
        if timeout(FIRST_CERTIFICATE, certificate.ready())
            .await
            .is_err()
        {
            let reason = certificate
                .load()
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            match patience {
                Patience::Certificate => return Err(PodError::Certificate { reason }),
                Patience::Bounded => {
                    tracing::error!(%reason, pod = %pod.enrollment(), "served without a certificate: its connections are refused until it comes")
                }
            }
        }
        let netns = pod.netns().as_fd().try_clone_to_owned();
        let netns = netns.map_err(|error| PodError::System {
            what: "opening a namespace again",
            error,
        })?;
        self.workers
            .add_pod(PodConfig {
                id: pod.cookie(),
                namespace: pod.enrollment().namespace().into(),
                name: pod.enrollment().name().into(),
                identity,
                certificate,
                netns: Arc::new(netns),
                outbound_mark: pod.outbound_mark(),
                listeners: prepared
                    .take_listeners()
                    .into_iter()
                    .map(listeners)
                    .collect(),
            })
            .await?;
        let pod = self
            .blocking(move |capture| capture.activate(prepared))
            .await?;
        self.watch.add(&pod).await;
        self.telemetry.metrics().proxies_started.inc();
        tracing::info!(pod = %pod.enrollment(), netns = %pod.netns().path().display(), "enrolled");
        Ok(pod)
    }

    async fn recover_pod(&self, prepared: Prepared) {
        let enrollment = prepared.pod().enrollment().clone();
        let _turn = self.turns.take(&PodKey::of(&enrollment)).await;
        if let Err(error) = self.serve(prepared, Patience::Bounded).await {
            tracing::error!(%error, pod = %enrollment, "cannot be served again; its connections are refused");
        }
    }

    async fn give_up(&self, key: &PodKey, drain: Duration) -> Result<Pod, PodError> {
        let (pod, phase) = self
            .find(key)
            .ok_or_else(|| PodError::Unknown(key.clone()))?;
        let cookie = pod.cookie();
        self.watch.remove(cookie).await;
        if phase == Phase::Active {
            self.blocking(move |capture| capture.deactivate(cookie))
                .await?;
        }
        self.count();
        self.workers.remove_pod(cookie, drain).await;
        self.blocking(move |capture| capture.forget(cookie)).await?;
        self.telemetry.metrics().proxies_stopped.inc();
        tracing::info!(pod = %pod.enrollment(), "released");
        Ok(self.shown(&pod, Phase::Draining, &HashMap::new()))
    }

    async fn let_go(&self, cookie: u64) {
        let pods = self.capture.pods();
        let Some((pod, _)) = pods.into_iter().find(|(pod, _)| pod.cookie() == cookie) else {
            return;
        };
        let _turn = self.turns.take(&PodKey::of(pod.enrollment())).await;
        self.workers.remove_pod(cookie, Duration::ZERO).await;
        match self.blocking(move |capture| capture.vanished(cookie)).await {
            Ok(()) => {
                self.telemetry.metrics().proxies_stopped.inc();
                tracing::info!(pod = %pod.enrollment(), "its network namespace is gone; it is no longer enrolled");
            }
            // It was released while this waited for its turn.
            Err(PodError::Capture(CaptureError::NotEnrolled(_))) => {}
            Err(error) => tracing::error!(%error, pod = %pod.enrollment(), "cannot be let go"),
        }
        self.count();
    }

    /// The pod, if an earlier enrollment of just the same brought it all the way.
    fn served(&self, pod: EnrolledPod) -> Result<EnrolledPod, PodError> {
        let key = PodKey::of(pod.enrollment());
        match self.find(&key) {
            Some((_, Phase::Prepared)) => Err(PodError::Unserved(key)),
            _ => Ok(pod),
        }
    }

    fn find(&self, key: &PodKey) -> Option<(EnrolledPod, Phase)> {
        let pods = self.capture.pods();
        pods.into_iter()
            .find(|(pod, _)| PodKey::of(pod.enrollment()) == *key)
    }

    fn identity(&self, enrollment: &Enrollment) -> Result<Identity, IdentityError> {
        let trust_domain = self.trust_domain.clone();
        Identity::new(
            trust_domain,
            enrollment.namespace(),
            enrollment.service_account(),
        )
    }

    /// The pod's identity, unless the manifests give it another one.
    fn checked_identity(&self, enrollment: &Enrollment) -> Result<Identity, PodError> {
        let wanted = self.identity(enrollment)?;
        let mesh = self.mesh.load();
        match mesh.workload_named(enrollment.namespace(), enrollment.name()) {
            Some(workload) if workload.is_pod() && workload.identity != wanted => {
                Err(PodError::OtherIdentity {
                    key: PodKey::of(enrollment),
                    wanted: Box::new(wanted),
                    declared: Box::new(workload.identity.clone()),
                })
            }
            _ => Ok(wanted),
        }
    }

    fn state(&self, enrollment: &Enrollment, phase: Phase) -> PodState {
        let declared = || {
            let mesh = self.mesh.load();
            let workload = mesh.workload_named(enrollment.namespace(), enrollment.name());
            workload.is_some_and(|workload| {
                self.identity(enrollment)
                    .is_ok_and(|identity| identity == workload.identity)
            })
        };
        match phase {
            Phase::Draining => PodState::Draining,
            Phase::Active if declared() => PodState::Active,
            Phase::Active | Phase::Prepared => PodState::Pending,
        }
    }

    fn view(&self, pod: &EnrolledPod) -> Pod {
        self.shown(pod, Phase::Active, &self.telemetry.connections_by_id())
    }

    fn shown(&self, pod: &EnrolledPod, phase: Phase, open: &HashMap<u64, usize>) -> Pod {
        let enrollment = pod.enrollment();
        let identity = self
            .identity(enrollment)
            .map(|identity| identity.to_string());
        Pod {
            namespace: enrollment.namespace().to_owned(),
            name: enrollment.name().to_owned(),
            service_account: enrollment.service_account().to_owned(),
            identity: identity.unwrap_or_default(),
            netns: enrollment.netns().to_owned(),
            netns_cookie: pod.cookie(),
            addresses: pod.addresses().all().to_vec(),
            state: self.state(enrollment, phase),
            connections: open.get(&pod.cookie()).copied().unwrap_or(0),
        }
    }

    fn count(&self) {
        let counts = self.counts();
        let metrics = self.telemetry.metrics();
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.proxies_active.set(gauge(counts.active));
        metrics.proxies_pending.set(gauge(counts.pending));
    }

    /// Does what blocks for some milliseconds where it delays nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Capture) -> Result<T, CaptureError> + Send + 'static,
    ) -> Result<T, PodError> {
        let capture = Arc::clone(&self.capture);
        match spawn_blocking(move || work(&capture)).await {
            Ok(result) => Ok(result?),
            Err(error) => {
                let error = std::io::Error::other(error);
                Err(PodError::System {
                    what: "a step of capture",
                    error,
                })
            }
        }
    }
}

/// Whether a pod's namespace is the one that was meant: a path can lead elsewhere by the time it is opened.
fn expect(pod: &EnrolledPod, netns: Option<NetnsId>) -> Result<(), PodError> {
    let Some(meant) = netns else { return Ok(()) };
    match NetnsId::of(pod.netns().as_fd()) {
        Ok(found) if found == meant => Ok(()),
        Ok(_) => Err(PodError::OtherNamespace(PodKey::of(pod.enrollment()))),
        Err(error) => Err(PodError::System {
            what: "looking at a namespace",
            error,
        }),
    }
}

fn listeners(opened: undermesh_capture::WorkerListeners) -> WorkerListeners {
    let undermesh_capture::WorkerListeners {
        outbound,
        plaintext,
        hbone,
    } = opened;
    WorkerListeners {
        outbound,
        plaintext,
        hbone,
    }
}

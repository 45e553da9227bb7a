//! Enrollment and release of pods and of the machine itself, in the order that leaves no moment of half capture.
//!
//! Enrolling: listeners, settings, routes ([`Capture::prepare`]); then the caller gets the identity and
//! serves; then inbound and, last, outbound capture ([`Capture::activate`]). The last step is one write
//! of a map entry. Releasing is the reverse: [`Capture::deactivate`], drain, [`Capture::forget`].
//! What is to be done is on disk before it is done, so that an agent that stops at any step leaves a
//! pod that the next one finishes or undoes ([`Capture::recover`]).
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use undermesh_abi::{MAX_PODS, Pod};

use crate::{
    announcements::Announcements,
    counters::{Counters, Counts},
    destinations::Destinations,
    enrolled::{EnrolledPod, Phase, Prepared},
    enrollment::{Enrollment, Scope},
    error::{CaptureError, Problem},
    features::{self, Devices},
    ground::{Ground, Ready},
    log::KernelLog,
    machine,
    netns::{Netns, NetnsError},
    pod::{self, Life, Taken},
    probes::{self, Probes},
    programs::{self, ANNOUNCED, Pins, Programs},
    routes::Addresses,
    state::{Intent, PodState, Store},
    sysctl::{Previous, Sysctls},
};

/// Where capture works and keeps what outlives the agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A mounted BPF file system; everything is pinned in `undermesh` below it.
    pub bpffs: PathBuf,
    /// The cgroup v2 folder above the pods; for a machine that of its workload, such as
    /// `/sys/fs/cgroup/mesh.slice`, in which the agent must not be.
    pub cgroup: PathBuf,
    /// Where the state of the pods is kept.
    pub state_dir: PathBuf,
    /// A `/proc` whose `sys` may be written: the host's, where the agent's own is read-only.
    pub proc: PathBuf,
    /// Number of workers that accept connections, each with its own listeners; at least one.
    pub workers: usize,
    /// What the kernel shows to `sk_lookup`.
    pub devices: Devices,
}

/// What [`Capture::recover`] found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Pods to be served and activated again.
    pub prepared: Vec<Prepared>,
    /// What needs a look; traffic that it concerns is refused meanwhile.
    pub problems: Vec<Problem>,
}

/// Capture on one node.
pub struct Capture {
    pins: Pins,
    cgroup: PathBuf,
    /// The agent's own namespace, which is a machine's.
    own: Netns,
    ground: Ground,
    destinations: Destinations,
    devices: Devices,
    announcements: Option<Announcements>,
    outbound_mark: u32,
    /// Changes are made one at a time.
    inner: Mutex<Inner>,
}

struct Inner {
    programs: Programs,
    store: Store,
    pods: BTreeMap<u64, Entry>,
    /// Counts of pods that are gone.
    retired: Counts,
}

struct Entry {
    pod: EnrolledPod,
    phase: Phase,
    previous: Previous,
}

impl Capture {
    /// Checks the node, and loads the programs or takes over those of an earlier agent.
    ///
    /// The calling thread must be in the agent's own network namespace.
    ///
    /// # Errors
    /// When the node lacks something (the error names it and the remedy), or another agent is running.
    pub fn open(settings: Settings) -> Result<Self, CaptureError> {
        features::probe(&settings.bpffs, &settings.cgroup)?;
        let store = Store::open(&settings.state_dir)?;
        let pins = Pins::new(&settings.bpffs);
        let programs = Programs::load(&pins, &settings.cgroup)?;
        let announcements = match settings.devices {
            Devices::Seen => None,
            Devices::Unseen => Some(Announcements::open(&pins.maps().join(ANNOUNCED))?),
        };
        Ok(Self {
            pins,
            devices: settings.devices,
            announcements,
            own: Netns::own()?,
            ground: Ground::new(
                Sysctls::new(&settings.proc),
                settings.workers,
                settings.cgroup.clone(),
            ),
            cgroup: settings.cgroup,
            destinations: Destinations::new(programs.pending().map_err(CaptureError::Network)?),
            outbound_mark: programs.outbound_mark(),
            inner: Mutex::new(Inner {
                programs,
                store,
                pods: BTreeMap::new(),
                retired: Counts::default(),
            }),
        })
    }

    /// The destinations of captured connections.
    pub fn destinations(&self) -> Destinations {
        self.destinations.clone()
    }

    /// Where connections to applications must be announced; `None` where the kernel knows them itself.
    pub fn announcements(&self) -> Option<Announcements> {
        self.announcements.clone()
    }

    /// The messages of the kernel programs; the first call alone gets them.
    pub fn take_log(&self) -> Option<KernelLog> {
        self.lock().programs.take_log()
    }

    /// All pods, by cookie.
    pub fn pods(&self) -> Vec<(EnrolledPod, Phase)> {
        self.lock()
            .pods
            .values()
            .map(|entry| (entry.pod.clone(), entry.phase))
            .collect()
    }

    /// Says by what kubelet's probes are known, which reach the applications past the agent; they do so while the
    /// agent is away too. Call it at the start, and again when kubelet's cgroup is another one: systemd makes
    /// it anew with each start of kubelet. What is in force already is no work.
    ///
    /// # Errors
    /// When the cgroup cannot be opened, or the kernel refuses.
    pub fn pass_probes(&self, probes: &Probes) -> Result<(), CaptureError> {
        probes::set(&mut self.lock().programs, &self.pins, probes)
    }

    /// Follows the cgroup of the settings: where another one is at its path now, since systemd makes a slice anew with
    /// each start, capture moves there. The listeners of a machine are compared with the kernel's list once more.
    ///
    /// Connections made and accepted in the new cgroup before this call stay as they are. Have the agent's unit require
    /// the slice, so that it never stops.
    ///
    /// # Errors
    /// When the cgroup cannot be opened, or the kernel refuses.
    pub fn follow_cgroup(&self) -> Result<(), CaptureError> {
        let mut inner = self.lock();
        inner.programs.attach(&self.pins, &self.cgroup)?;
        let machine = inner.pods.values().find(|entry| entry.is_active_machine());
        let Some(netns) = machine.map(|entry| entry.pod.clone()) else {
            return Ok(());
        };
        machine::watch(&mut inner.programs, &self.pins, &self.cgroup, netns.netns())
    }

    /// Opens the listeners of a pod or machine and makes its namespace ready. Blocks for some milliseconds.
    ///
    /// Of a machine, connections that stay on it are left alone: over loopback, and those that its own processes make
    /// to its own addresses.
    ///
    /// # Errors
    /// [`CaptureError::AlreadyEnrolled`] carries the pod when it is enrolled just so;
    /// [`CaptureError::Conflict`] when its name or namespace is taken. After any error nothing is left behind.
    pub fn prepare(&self, enrollment: &Enrollment) -> Result<Prepared, CaptureError> {
        let netns = self.open_netns(enrollment.scope())?;
        let mut inner = self.lock();
        inner.check_free(enrollment, netns.cookie())?;
        inner.sweep(&self.pins)?;
        if inner.pods.len() >= MAX_PODS as usize {
            return Err(CaptureError::Full);
        }
        // A pod that could not be recovered has its settings changed already.
        let previous = match inner.store.previous(netns.cookie()) {
            Some(previous) => previous,
            None => self.ground.survey(enrollment.scope(), &netns)?,
        };
        inner
            .store
            .save(netns.cookie(), Intent::Enroll, enrollment, &previous)?;
        match self.ground.set_up(enrollment, &netns) {
            Ok(ready) => Ok(self.enter(&mut inner, enrollment, netns, ready, previous)),
            Err(error) => {
                if let Err(error) = self.ground.undo(enrollment.scope(), &netns, &previous) {
                    tracing::warn!(pod = %enrollment, %error, "cannot put the namespace back");
                }
                inner.store.remove(netns.cookie())?;
                Err(error)
            }
        }
    }

    /// Captures a prepared pod's connections: inbound first, then, by one map entry, outbound.
    ///
    /// # Errors
    /// When the pod was forgotten meanwhile or the kernel refuses; then call [`Capture::forget`].
    pub fn activate(&self, prepared: Prepared) -> Result<EnrolledPod, CaptureError> {
        let mut inner = self.lock();
        let pod = prepared.pod;
        let cookie = pod.cookie();
        if inner.entry(cookie)?.phase != Phase::Prepared {
            return Err(CaptureError::AlreadyEnrolled(pod));
        }
        let taken = match pod.enrollment().scope() {
            Scope::Pod(_) => Taken::All,
            Scope::Machine(_) => {
                machine::watch(&mut inner.programs, &self.pins, &self.cgroup, pod.netns())?;
                Taken::Noted
            }
        };
        pod::attach(
            &self.pins,
            pod.netns(),
            &prepared.plaintext,
            taken,
            self.devices,
        )?;
        inner
            .programs
            .pods
            .insert(cookie, kernel_entry(pod.addresses()), 0)?;
        inner.entry(cookie)?.phase = Phase::Active;
        Ok(pod)
    }

    /// Ends the capture of new connections; those that run go on through the agent.
    ///
    /// # Errors
    /// When the pod is not enrolled, or the state or the kernel's maps cannot be written.
    pub fn deactivate(&self, cookie: u64) -> Result<(), CaptureError> {
        self.lock().deactivate(&self.pins, cookie)
    }

    /// Undoes everything of a pod whose connections have drained, in whatever phase it is.
    ///
    /// # Errors
    /// When the pod is not enrolled, or something could not be undone; it can be called again then.
    pub fn forget(&self, cookie: u64) -> Result<(), CaptureError> {
        let mut inner = self.lock();
        inner.deactivate(&self.pins, cookie)?;
        let entry = inner.entry(cookie)?;
        let scope = entry.pod.enrollment().scope();
        self.ground
            .undo(scope, entry.pod.netns(), &entry.previous)?;
        inner.retire(&self.pins, cookie)?;
        inner.store.remove(cookie)?;
        inner.pods.remove(&cookie);
        Ok(())
    }

    /// Lets go of a pod whose network namespace is not at its path any more.
    ///
    /// What may still run in that namespace stays captured and refused; the kernel's entries go when
    /// the namespace itself is gone, with the next enrollment or recovery.
    ///
    /// # Errors
    /// When the pod is not enrolled or its state cannot be removed.
    pub fn vanished(&self, cookie: u64) -> Result<(), CaptureError> {
        let mut inner = self.lock();
        inner.entry(cookie)?;
        inner.store.remove(cookie)?;
        inner.pods.remove(&cookie);
        Ok(())
    }

    /// Takes over the pods of an earlier agent; call it once, before the first enrollment.
    ///
    /// # Errors
    /// When the state folder or the BPF file system cannot be read. What concerns one pod is in [`Recovery::problems`].
    pub fn recover(&self) -> Result<Recovery, CaptureError> {
        let mut inner = self.lock();
        let mut recovery = Recovery::default();
        for state in inner.store.list()? {
            match state {
                Ok(state) => self.recover_pod(&mut inner, state, &mut recovery)?,
                Err(error) => recovery.problems.push(Problem::State(error)),
            }
        }
        for cookie in inner.sweep(&self.pins)? {
            recovery.problems.push(Problem::Stray(cookie));
        }
        Ok(recovery)
    }

    /// The counters of the kernel programs.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn counters(&self) -> Result<Counters, CaptureError> {
        let inner = self.lock();
        let mut counts = inner.programs.counts()?;
        counts.add(inner.retired);
        for cookie in inner.pods.keys() {
            counts.add(pod::counts(&self.pins, *cookie)?);
        }
        Ok(counts.into())
    }

    fn recover_pod(
        &self,
        inner: &mut Inner,
        state: PodState,
        recovery: &mut Recovery,
    ) -> Result<(), CaptureError> {
        let PodState {
            cookie,
            intent,
            enrollment,
            previous,
            ..
        } = state;
        let netns = self
            .open_netns(enrollment.scope())
            .ok()
            .filter(|netns| netns.cookie() == cookie);
        match (intent, netns) {
            (Intent::Enroll, Some(netns)) => match self.ground.set_up(&enrollment, &netns) {
                Ok(ready) => {
                    let prepared = self.enter(inner, &enrollment, netns, ready, previous);
                    recovery.prepared.push(prepared);
                }
                Err(error) => {
                    let error = Box::new(error);
                    recovery.problems.push(Problem::Pod {
                        pod: enrollment,
                        error,
                    });
                }
            },
            // The sweep tells whether the namespace is gone, or lives on without its path.
            (Intent::Enroll, None) => inner.store.remove(cookie)?,
            (Intent::Release, netns) => {
                inner.uncapture(&self.pins, cookie)?;
                if let Some(netns) = netns {
                    self.ground.undo(enrollment.scope(), &netns, &previous)?;
                }
                inner.retire(&self.pins, cookie)?;
                inner.store.remove(cookie)?;
            }
        }
        Ok(())
    }

    fn open_netns(&self, scope: &Scope) -> Result<Netns, NetnsError> {
        match scope {
            Scope::Pod(path) => Netns::open(path),
            Scope::Machine(_) => self.own.try_clone(),
        }
    }

    /// Takes a namespace that is ready into the table.
    fn enter(
        &self,
        inner: &mut Inner,
        enrollment: &Enrollment,
        netns: Netns,
        ready: Ready,
        previous: Previous,
    ) -> Prepared {
        let Ready {
            addresses,
            listeners,
            plaintext,
        } = ready;
        let pod = EnrolledPod::new(enrollment.clone(), netns, addresses, self.outbound_mark);
        let entry = Entry {
            pod: pod.clone(),
            phase: Phase::Prepared,
            previous,
        };
        inner.pods.insert(pod.cookie(), entry);
        Prepared {
            pod,
            listeners,
            plaintext,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_active_machine(&self) -> bool {
        self.phase == Phase::Active && matches!(self.pod.enrollment().scope(), Scope::Machine(_))
    }
}

impl Inner {
    fn entry(&mut self, cookie: u64) -> Result<&mut Entry, CaptureError> {
        self.pods
            .get_mut(&cookie)
            .ok_or(CaptureError::NotEnrolled(cookie))
    }

    fn check_free(&self, enrollment: &Enrollment, cookie: u64) -> Result<(), CaptureError> {
        let holder = self.pods.values().find(|entry| {
            entry.pod.cookie() == cookie || entry.pod.enrollment().has_same_name(enrollment)
        });
        let Some(Entry { pod, .. }) = holder else {
            return Ok(());
        };
        if pod.cookie() == cookie && pod.enrollment().is_same_pod(enrollment) {
            return Err(CaptureError::AlreadyEnrolled(pod.clone()));
        }
        Err(CaptureError::Conflict {
            wanted: Box::new(enrollment.clone()),
            holder: Box::new(pod.enrollment().clone()),
        })
    }

    fn deactivate(&mut self, pins: &Pins, cookie: u64) -> Result<(), CaptureError> {
        let entry = self
            .pods
            .get(&cookie)
            .ok_or(CaptureError::NotEnrolled(cookie))?;
        self.store.save(
            cookie,
            Intent::Release,
            entry.pod.enrollment(),
            &entry.previous,
        )?;
        self.uncapture(pins, cookie)?;
        self.entry(cookie)?.phase = Phase::Draining;
        Ok(())
    }

    /// Takes the map entry away, then the programs; any may be gone already.
    fn uncapture(&mut self, pins: &Pins, cookie: u64) -> Result<(), CaptureError> {
        programs::absent_is_fine(self.programs.pods.remove(&cookie))?;
        pod::detach(pins, cookie)?;
        if machine::is_machine(&self.programs, cookie)? {
            machine::release(&mut self.programs, pins)?;
        }
        Ok(())
    }

    /// Removes what is pinned for a pod, keeping its counts.
    fn retire(&mut self, pins: &Pins, cookie: u64) -> Result<(), CaptureError> {
        self.retired.add(pod::counts(pins, cookie)?);
        Ok(pod::remove(pins, cookie)?)
    }

    /// Removes what the kernel keeps of namespaces that are gone, and returns the cookies of unknown
    /// pods that are not: their connections stay refused.
    fn sweep(&mut self, pins: &Pins) -> Result<Vec<u64>, CaptureError> {
        let mut unknown = pod::pinned(pins)?;
        for cookie in self.programs.pods.keys() {
            unknown.push(cookie?);
        }
        unknown.sort_unstable();
        unknown.dedup();
        unknown.retain(|cookie| !self.pods.contains_key(cookie));
        let mut stray = Vec::new();
        for cookie in unknown {
            let captured = self.programs.pods.get(&cookie, 0).is_ok();
            match pod::life(pins, cookie)? {
                // Without an entry it is a remnant of an activation or release that was cut short.
                Life::Alive | Life::Unknown if captured => stray.push(cookie),
                _ => {
                    self.uncapture(pins, cookie)?;
                    self.retire(pins, cookie)?;
                }
            }
        }
        Ok(stray)
    }
}

fn kernel_entry(addresses: &Addresses) -> Pod {
    Pod {
        ipv4: addresses
            .ipv4()
            .map(|address| std::net::IpAddr::from(address).into())
            .unwrap_or_default(),
        ipv6: addresses
            .ipv6()
            .map(|address| std::net::IpAddr::from(address).into())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        fn sent<T: Send>() {}
        shared::<Capture>();
        shared::<Destinations>();
        shared::<EnrolledPod>();
        sent::<KernelLog>();
        sent::<Prepared>();
    }
}

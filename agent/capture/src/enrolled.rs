//! Pods that are enrolled or about to be, as the other rooms see them.
use std::{net::TcpListener, sync::Arc};

use crate::{enrollment::Enrollment, listeners::WorkerListeners, netns::Netns, routes::Addresses};

/// A pod that is enrolled, or on its way to or from it. Cheap to clone.
///
/// It keeps the network namespace alive: drop it once the pod is gone.
#[derive(Clone, Debug)]
pub struct EnrolledPod(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    enrollment: Enrollment,
    netns: Netns,
    addresses: Addresses,
    outbound_mark: u32,
}

impl EnrolledPod {
    pub(crate) fn new(
        enrollment: Enrollment,
        netns: Netns,
        addresses: Addresses,
        outbound_mark: u32,
    ) -> Self {
        Self(Arc::new(Parts {
            enrollment,
            netns,
            addresses,
            outbound_mark,
        }))
    }

    /// Who the pod is.
    pub fn enrollment(&self) -> &Enrollment {
        &self.0.enrollment
    }

    /// The cookie of its network namespace, by which all calls name it.
    pub fn cookie(&self) -> u64 {
        self.0.netns.cookie()
    }

    /// Its network namespace, open.
    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// Its addresses when it was enrolled.
    pub fn addresses(&self) -> &Addresses {
        &self.0.addresses
    }

    /// The socket mark (`SO_MARK`) that keeps the agent's own connections from being captured.
    pub fn outbound_mark(&self) -> u32 {
        self.0.outbound_mark
    }
}

/// A pod whose listeners are open and whose traffic is not captured yet.
///
/// Serve its listeners, then call [`Capture::activate`](crate::Capture::activate); or undo it by [`Capture::forget`](crate::Capture::forget).
#[derive(Debug)]
#[must_use = "activate it, or forget its cookie"]
pub struct Prepared {
    pub(crate) pod: EnrolledPod,
    pub(crate) listeners: Vec<WorkerListeners>,
    /// The first worker's plaintext sockets: `sk_lookup` names one, the kernel picks among all that share its port.
    pub(crate) plaintext: Vec<TcpListener>,
}

impl Prepared {
    /// The pod.
    pub fn pod(&self) -> &EnrolledPod {
        &self.pod
    }

    /// The listeners, one element for each worker; empty when they have been taken.
    pub fn take_listeners(&mut self) -> Vec<WorkerListeners> {
        std::mem::take(&mut self.listeners)
    }
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its listeners are open; nothing is captured yet.
    Prepared,
    /// Its connections are captured.
    Active,
    /// New connections are not captured any more; those that run go on.
    Draining,
}

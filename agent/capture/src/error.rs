//! What can go wrong with enrollment and release.
use std::{io, net::IpAddr};

use aya::maps::MapError;
use undermesh_abi::MACHINE_TABLE;

use crate::{
    enrolled::EnrolledPod, enrollment::Enrollment, features::FeatureError, listeners::ListenError,
    netns::NetnsError, programs::LoadError, slice::SliceError, state::StateError,
    sysctl::SysctlError,
};

/// Why a call of [`Capture`](crate::Capture) failed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The node lacks something.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// A kernel program could not be put in place.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The network namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The state on disk cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A listener cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A kernel setting cannot be changed.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A map cannot be read or written.
    #[error("cannot use a map of the kernel programs: {0}; restart the agent")]
    Map(#[from] MapError),
    /// Routes, rules or sockets cannot be made.
    #[error("cannot set up the network namespace: {0}; run the agent with CAP_NET_ADMIN")]
    Network(io::Error),
    /// The same pod is enrolled already, in the same namespace.
    #[error("{} is enrolled already; nothing is to be done", .0.enrollment())]
    AlreadyEnrolled(EnrolledPod),
    /// The name or the namespace belongs to another pod.
    #[error(
        "cannot enroll {wanted} at {}: {holder} is enrolled at {}; release that one first",
        .wanted.netns().display(), .holder.netns().display()
    )]
    Conflict {
        /// The pod that was to be enrolled.
        wanted: Box<Enrollment>,
        /// The pod that is enrolled.
        holder: Box<Enrollment>,
    },
    /// The pod's namespace has no address by which others could reach it.
    #[error("{0} has no address; enroll it after its network is set up")]
    NoAddress(Enrollment),
    /// The machine does not have the address that it was enrolled with.
    #[error("this machine has no address {0}; give one of those that `ip address` lists")]
    ForeignAddress(IpAddr),
    /// Somebody routes in the table that the agent needs.
    #[error(
        "the routing table {MACHINE_TABLE} of this machine is in use; move its routes and rules to another table"
    )]
    TableInUse,
    /// The cgroup of the machine's processes cannot be used.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// The bound of pods on one node is reached.
    #[error("no room for more pods on this node; release some")]
    Full,
    /// No pod is enrolled in this namespace.
    #[error("no pod is enrolled in the network namespace with cookie {0}; list the enrolled ones")]
    NotEnrolled(u64),
}

/// Something left by an earlier agent that could not be taken over. The traffic concerned is refused.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A state file cannot be read.
    #[error(transparent)]
    State(StateError),
    /// A pod could not be prepared again.
    #[error("{pod} cannot be served again, its connections are refused: {error}")]
    Pod {
        /// The pod.
        pod: Enrollment,
        /// What went wrong.
        error: Box<CaptureError>,
    },
    /// A namespace is captured and nothing tells which pod it belongs to.
    #[error(
        "the network namespace with cookie {0} is captured, but no pod is known for it; its connections \
         are refused until the pod is enrolled again or its last process ends"
    )]
    Stray(u64),
}

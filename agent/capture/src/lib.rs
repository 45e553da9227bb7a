//! Loads the kernel programs, enrolls and releases pods, or the machine that the agent runs on.
//!
//! [`Capture`] is the way in. Its calls block for some milliseconds: make them off the data path.
#![deny(unsafe_code)]

mod announcements;
mod bpf;
mod capture;
mod counters;
mod destinations;
mod enrolled;
mod enrollment;
mod error;
mod features;
mod ground;
mod listeners;
mod log;
mod machine;
mod netlink;
mod netns;
mod pod;
mod poll;
mod probes;
mod programs;
mod routes;
mod slice;
mod sockdiag;
mod state;
mod sysctl;
mod watch;

pub use announcements::Announcements;
pub use capture::{Capture, Recovery, Settings};
pub use counters::Counters;
pub use destinations::Destinations;
pub use enrolled::{EnrolledPod, Phase, Prepared};
pub use enrollment::{Enrollment, EnrollmentError, MachineAddresses, Scope};
pub use error::{CaptureError, Problem};
pub use features::{Capability, Devices, FeatureError};
pub use listeners::{ListenError, WorkerListeners};
pub use log::KernelLog;
pub use netns::{Netns, NetnsError};
pub use probes::Probes;
pub use programs::LoadError;
pub use routes::Addresses;
pub use slice::SliceError;
pub use state::StateError;
pub use sysctl::SysctlError;
pub use watch::Watch;

//! The testbed: nodes, a fabric between them and pods, built on one machine from network namespaces.
//!
//! [`Sandbox::enter`] comes first, from a `main` that has no threads yet. It moves the process into
//! namespaces of its own, so that nothing reaches the machine's network and nothing outlives the run,
//! not even after `SIGKILL`. A [`Testbed`] then holds [`Node`]s, each with [`Pod`]s and an agent
//! process, and real programs run inside the pods.

pub mod agent;
pub mod api;
pub mod apiserver;
pub mod apps;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod controller;
pub mod error;
pub mod http;
pub mod journal;
pub mod machine;
pub mod manifests;
pub mod netns;
pub mod node;
pub mod pcap;
pub mod place;
pub mod pod;
pub mod process;
pub mod sandbox;
pub mod shop;
pub mod tcp;
pub mod testbed;
pub mod usage;
pub mod ztunnel;

pub use cluster::Cluster;
pub use error::{Context, Error, Result};
pub use node::Node;
pub use place::Place;
pub use pod::{Family, Pod, PodSpec};
pub use sandbox::Sandbox;
pub use shop::Shop;
pub use testbed::Testbed;

//! The CNI plugin, and how a node finds the pods of its mesh.
//!
//! - [`plugin`] runs once for each new pod and holds it back until it is captured.
//! - [`chain`] puts the plugin into the node's CNI configuration and keeps it there.
//! - [`server`] is where the agent answers the plugin.
//! - [`node`] decides which pods of the node are captured, and keeps it so.
//! - [`membership`] holds the rules, [`discovery`] finds the network namespaces of running pods.
#![forbid(unsafe_code)]

pub mod chain;
pub mod discovery;
pub mod membership;
pub mod netns;
pub mod node;
pub mod plugin;
pub mod server;
pub mod wire;

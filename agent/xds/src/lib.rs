//! The discovery protocol between the control plane and the nodes: delta xDS with Istio ambient's resources.
#![forbid(unsafe_code)]

pub mod client;
pub mod decode;
pub mod encode;
pub mod health;
pub mod server;
pub mod wire;

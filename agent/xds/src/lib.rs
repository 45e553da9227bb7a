//! The discovery protocol between the control plane and the nodes: delta xDS with Istio ambient's resources.
#![forbid(unsafe_code)]

pub mod wire;

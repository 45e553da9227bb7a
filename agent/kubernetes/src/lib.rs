//! The mesh's side of the Kubernetes API.
#![forbid(unsafe_code)]

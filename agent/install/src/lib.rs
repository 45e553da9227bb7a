//! The cluster's manifests: rendered, applied, checked.
#![forbid(unsafe_code)]

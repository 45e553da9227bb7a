//! The CNI plugin, and how a node finds the pods of its mesh.
#![forbid(unsafe_code)]

//! The L4 data plane.

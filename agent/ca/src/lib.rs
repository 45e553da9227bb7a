//! The certificate service and its clients.
#![forbid(unsafe_code)]

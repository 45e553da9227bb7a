//! Validation of resources: analyze, the webhook, status.
#![forbid(unsafe_code)]

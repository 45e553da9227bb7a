//! Metrics, the access log and the table of connections.

//! The server as clients see it.
mod convergence;
mod scenarios;
mod streaming;

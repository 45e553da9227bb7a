//! The server as clients see it.
mod convergence;
mod machines;
mod scenarios;
mod streaming;

//! Builds, tests, demonstrates and measures undermesh.

fn main() {}

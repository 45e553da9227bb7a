//! The undermesh binary.

fn main() {}

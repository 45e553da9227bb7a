//! Enrolling, releasing, restarting, vanishing.
use crate::Test;
pub const TESTS: &[Test] = &[];

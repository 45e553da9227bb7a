//! Endpoint choice: preference by place, then power of two choices by open connections.

//! Scenarios on a testbed of network namespaces.

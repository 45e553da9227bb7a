//! Finds an eBPF toolchain and builds the kernel programs.

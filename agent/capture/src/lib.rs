//! Loads the kernel programs, enrolls and releases pods.

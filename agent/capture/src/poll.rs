//! Waiting in the runtime on descriptors that it has no type for.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, FromRawFd as _, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor of the same open file as `source`, to wait on.
pub(crate) fn wait_on(source: impl AsFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    register(source.as_fd().try_clone_to_owned()?, interest)
}

/// A descriptor that is readable once the process has ended (`pidfd_open(2)`).
pub(crate) fn wait_for_process(pid: libc::pid_t) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the call takes two integers and returns a descriptor or an error.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    register(descriptor, Interest::READABLE)
}

fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the registration owns the descriptor, which stays open until after it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    registered.map_err(io::Error::from)
}

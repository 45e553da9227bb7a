//! Work on a port's counts under their lock.
use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use undermesh_abi::Port;

/// Runs `work` under the lock of a map's value.
///
/// # Safety
/// `port` points to a value of a map, which is alive for the call; `work` makes no call of its own.
#[inline(always)]
pub unsafe fn locked<T>(port: *mut Port, work: impl FnOnce(&mut Port) -> T) -> T {
    // SAFETY: the caller says that the value is alive, and the lock keeps all others from it.
    unsafe {
        let lock = (&raw mut (*port).lock).cast();
        bpf_spin_lock(lock);
        let result = work(&mut *port);
        bpf_spin_unlock(lock);
        result
    }
}

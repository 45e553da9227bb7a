//! `cgroup/getpeername4` and `getpeername6`: the application sees the address that it asked for.
use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use undermesh_abi::{Destination, OUTBOUND_PORT};

use crate::maps::ORIGINAL;

const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(asked) = original(&ctx)
        && let Some(v4) = asked.address.ipv4()
    {
        // SAFETY: the kernel passes a valid context; these are writable fields of it.
        unsafe {
            (*ctx.sock_addr).user_ip4 = v4;
            (*ctx.sock_addr).user_port = u32::from((asked.port as u16).to_be());
        }
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(asked) = original(&ctx) {
        // SAFETY: the kernel passes a valid context; these are writable fields of it.
        unsafe {
            (*ctx.sock_addr).user_ip6[0] = asked.address.0[0];
            (*ctx.sock_addr).user_ip6[1] = asked.address.0[1];
            (*ctx.sock_addr).user_ip6[2] = asked.address.0[2];
            (*ctx.sock_addr).user_ip6[3] = asked.address.0[3];
            (*ctx.sock_addr).user_port = u32::from((asked.port as u16).to_be());
        }
    }
    ALLOW
}

/// The destination kept with a socket that is connected to the agent's listener.
#[inline(always)]
fn original(ctx: &SockAddrContext) -> Option<Destination> {
    // SAFETY: the kernel passes a valid context; the stored value lives as long as the socket.
    unsafe {
        if u16::from_be((*ctx.sock_addr).user_port as u16) != OUTBOUND_PORT {
            return None;
        }
        let stored = ORIGINAL.get_ptr_mut(ctx);
        if stored.is_null() {
            None
        } else {
            Some(*stored)
        }
    }
}

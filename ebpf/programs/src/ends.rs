//! The two ends of a connection, as `sock_ops` shows them.
//!
//! All reads are volatile because the verifier takes them at fixed offsets alone: the compiler would merge
//! those of two branches.
use core::ptr::read_volatile;

use aya_ebpf::programs::SockOpsContext;
use undermesh_abi::Address;

const AF_INET: u32 = 2;

/// The address of this end; a v4-mapped socket has it mapped already.
#[inline(always)]
pub fn near_end(ctx: &SockOpsContext) -> Address {
    // SAFETY: the kernel passes a valid context.
    unsafe {
        let ops = ctx.ops;
        let ipv4 = read_volatile(&raw const (*ops).local_ip4);
        let ipv6 = [
            read_volatile(&raw const (*ops).local_ip6[0]),
            read_volatile(&raw const (*ops).local_ip6[1]),
            read_volatile(&raw const (*ops).local_ip6[2]),
            read_volatile(&raw const (*ops).local_ip6[3]),
        ];
        pick(ctx, ipv4, ipv6)
    }
}

/// The address of the other end.
#[inline(always)]
pub fn far_end(ctx: &SockOpsContext) -> Address {
    // SAFETY: the kernel passes a valid context.
    unsafe {
        let ops = ctx.ops;
        let ipv4 = read_volatile(&raw const (*ops).remote_ip4);
        let ipv6 = [
            read_volatile(&raw const (*ops).remote_ip6[0]),
            read_volatile(&raw const (*ops).remote_ip6[1]),
            read_volatile(&raw const (*ops).remote_ip6[2]),
            read_volatile(&raw const (*ops).remote_ip6[3]),
        ];
        pick(ctx, ipv4, ipv6)
    }
}

#[inline(always)]
fn pick(ctx: &SockOpsContext, ipv4: u32, ipv6: [u32; 4]) -> Address {
    if ctx.family() == AF_INET {
        Address::from_ipv4(ipv4)
    } else {
        Address(ipv6)
    }
}

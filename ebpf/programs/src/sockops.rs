//! `sock_ops`: files the destination of a captured connection under its near end.
//!
//! At `TCP_CONNECT` the source port is chosen and no packet has left, so the entry is there before
//! the agent can accept the connection. The agent takes it by the peer address of the accepted socket.
use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_SOCK_OPS_TCP_CONNECT_CB,
    helpers::{bpf_get_netns_cookie, bpf_setsockopt, generated::bpf_sk_storage_get},
    macros::sock_ops,
    programs::SockOpsContext,
};
use aya_log_ebpf::warn;
use undermesh_abi::{Counter, Destination, FlowKey, OUTBOUND_PORT};

use crate::{
    ends::near_end,
    maps::{ORIGINAL, PENDING, count},
};

const IPPROTO_TCP: i32 = 6;
const TCP_CONGESTION: i32 = 13;

// Not named `sockops`: the linker would see the symbol twice, as function and as section.
#[sock_ops]
pub fn file_destination(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_TCP_CONNECT_CB
        && u32::from_be(ctx.remote_port()) == u32::from(OUTBOUND_PORT)
    {
        file(&ctx);
        unpace(&ctx);
    }
    0
}

/// Takes a congestion control that does not pace: the connection ends inside the pod, where pacing
/// (`bbr`) would only set a timer for nearly every write.
#[inline(always)]
fn unpace(ctx: &SockOpsContext) {
    let mut name = *b"reno\0";
    // SAFETY: the name lives on the stack for the call and its length is exact. Every kernel has
    // this algorithm; without it the connection is only slower.
    let _ = unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            IPPROTO_TCP,
            TCP_CONGESTION,
            name.as_mut_ptr().cast(),
            name.len() as i32,
        )
    };
}

#[inline(always)]
fn file(ctx: &SockOpsContext) {
    // SAFETY: the kernel passes a valid context; a null socket is checked before its use, and the
    // stored value lives as long as the socket.
    let destination = unsafe {
        let socket = (*ctx.ops).__bindgen_anon_2.sk;
        if socket.is_null() {
            return;
        }
        // aya-ebpf offers the storage of a socket to address hooks alone; the map's own address is
        // what the loader replaces by its descriptor.
        let map = core::ptr::from_ref(&ORIGINAL).cast_mut().cast();
        let stored =
            bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0).cast::<Destination>();
        if stored.is_null() {
            return;
        }
        *stored
    };
    let address = near_end(ctx);
    let key = FlowKey {
        // SAFETY: the helper accepts this context.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        address,
        port: ctx.local_port(),
        padding: 0,
    };
    if PENDING.insert(&key, &destination, 0).is_err() {
        // The agent finds no entry and refuses the connection.
        count(Counter::Refused);
        warn!(
            ctx,
            "no room to file a captured connection; it will be refused"
        );
    }
}

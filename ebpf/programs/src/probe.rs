//! `sock_ops` on kubelet's own cgroup: notes both ends of its connections, so that a pod's `sk_lookup` lets
//! exactly those through to the application.
//!
//! At `TCP_CONNECT` the source port is chosen and no packet has left. The note goes when the socket is closed,
//! so that no other process of the node can use the same ports for a probe later. Only the kernel writes
//! notes, of sockets that it has itself: no packet can make one.
use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use undermesh_abi::Ends;

use crate::{
    ends::{far_end, near_end},
    maps::PROBES,
};

#[sock_ops]
pub fn note_probe(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => note(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            // It may have given way to others.
            let _ = PROBES.remove(&key(&ctx));
        }
        _ => {}
    }
    0
}

/// Without a note, or without a call at its end, the connection is judged like any other.
#[inline(always)]
fn note(ctx: &SockOpsContext) {
    if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok() {
        let _ = PROBES.insert(&key(ctx), &0, 0);
    }
}

#[inline(always)]
fn key(ctx: &SockOpsContext) -> Ends {
    Ends {
        source: near_end(ctx),
        destination: far_end(ctx),
        source_port: ctx.local_port(),
        destination_port: u32::from_be(ctx.remote_port()),
    }
}

//! Hooks on a machine's slice: they note on which addresses and ports its processes are bound, so that the machine's
//! `sk_lookup` takes connections to those and to no others.
//!
//! A socket is noted when it is bound, not when it listens: in between no connection can slip through, and a
//! `bind()` that cannot be noted can be refused. The note goes when the socket is closed, or when it turns out to
//! be a client's. A socket belongs to the cgroup in which it was made, for good.
use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE,
    },
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::{cgroup_sock, classifier, sock_ops},
    programs::{SockContext, SockOpsContext, TcContext},
};
use aya_log_ebpf::warn;
use undermesh_abi::{Address, Binding, Counter, Found, Noting, Port};

use crate::{
    ends::near_end,
    locked::locked,
    maps::{BOUND, MACHINE, PORTS, count},
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const EEXIST: i32 = 17;

#[cgroup_sock(post_bind4)]
pub fn note_bind4(ctx: SockContext) -> i32 {
    // SAFETY: the kernel passes a valid context for the duration of the call.
    let address = Address::from_ipv4(unsafe { (*ctx.sock).src_ip4 });
    bind(&ctx, address)
}

#[cgroup_sock(post_bind6)]
pub fn note_bind6(ctx: SockContext) -> i32 {
    // SAFETY: as above; the verifier takes reads of single words alone.
    let address = Address(unsafe {
        [
            read_volatile(&raw const (*ctx.sock).src_ip6[0]),
            read_volatile(&raw const (*ctx.sock).src_ip6[1]),
            read_volatile(&raw const (*ctx.sock).src_ip6[2]),
            read_volatile(&raw const (*ctx.sock).src_ip6[3]),
        ]
    });
    bind(&ctx, address)
}

#[cgroup_sock(sock_release)]
pub fn forget_bind(ctx: SockContext) -> i32 {
    // SAFETY: the kernel passes a valid context, which the helper accepts.
    if unsafe { (*ctx.sock).protocol } == IPPROTO_TCP {
        forget(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    }
    ALLOW
}

/// Notes sockets whose port is chosen by `listen()`, and forgets those that become clients.
#[sock_ops]
pub fn note_listen(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => listen(&ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => forget(socket(&ctx)),
        // `shutdown()` gives the port back while the socket stays open.
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => forget(socket(&ctx)),
        _ => {}
    }
    0
}

/// Notes a socket that was bound before these hooks were there. User space runs it with a [`Found`] in the place
/// of a packet, since it cannot count under the lock itself.
#[classifier]
pub fn note_found(ctx: TcContext) -> i32 {
    let Ok(found) = ctx.load::<Found>(0) else {
        return 0;
    };
    let noting = if note(found.socket, &found.binding) {
        Noting::Noted
    } else {
        Noting::Full
    };
    noting as i32
}

/// Forgets a socket whose end no hook saw: it was closed before it was noted, or inside the kernel.
#[classifier]
pub fn forget_found(ctx: TcContext) -> i32 {
    if let Ok(found) = ctx.load::<Found>(0) {
        forget(found.socket);
    }
    0
}

#[inline(always)]
fn bind(ctx: &SockContext, address: Address) -> i32 {
    // SAFETY: the kernel passes a valid context, which the helpers accept.
    let (protocol, port, netns, socket) = unsafe {
        (
            (*ctx.sock).protocol,
            (*ctx.sock).src_port,
            bpf_get_netns_cookie(ctx.as_ptr()),
            bpf_get_socket_cookie(ctx.as_ptr()),
        )
    };
    if protocol != IPPROTO_TCP || !is_machine(netns) {
        return ALLOW;
    }
    let binding = Binding {
        address,
        port,
        listed: 0,
    };
    // An earlier `bind()` may have failed after its note.
    forget(socket);
    if note(socket, &binding) {
        return ALLOW;
    }
    count(Counter::Unnoted);
    warn!(
        ctx,
        "no room to note what a process of the slice is bound to; its bind() was refused"
    );
    REFUSE
}

#[inline(always)]
fn listen(ctx: &SockOpsContext) {
    // SAFETY: the helper accepts this context.
    if !is_machine(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }) {
        return;
    }
    let binding = Binding {
        address: near_end(ctx),
        port: ctx.local_port(),
        listed: 0,
    };
    let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    if !note(socket(ctx), &binding) {
        count(Counter::Unnoted);
        warn!(
            ctx,
            "no room to note a listener of the slice; connections to it go past the mesh"
        );
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper accepts this context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Whether the namespace is the machine's own: containers of the slice have theirs.
#[inline(always)]
fn is_machine(netns: u64) -> bool {
    MACHINE.get(0).is_some_and(|machine| *machine == netns)
}

/// Counts a socket and keeps where it is bound; one that is noted already stays as it is.
///
/// It is counted first: who finds the note may take the count back.
#[inline(always)]
fn note(socket: u64, binding: &Binding) -> bool {
    // Nothing from outside reaches a loopback address.
    if binding.address.is_loopback() {
        return true;
    }
    if !count_up(binding) {
        return false;
    }
    match BOUND.insert(socket, binding, u64::from(BPF_NOEXIST)) {
        Ok(()) => true,
        Err(error) => {
            count_down(binding);
            error == -EEXIST
        }
    }
}

/// Takes the note of a socket back. Whoever removes the note takes the count back, and nobody else.
#[inline(always)]
fn forget(socket: u64) {
    // SAFETY: an entry is written once, before it can be found.
    let Some(binding) = (unsafe { BOUND.get(socket) }).copied() else {
        return;
    };
    if BOUND.remove(socket).is_ok() {
        count_down(&binding);
    }
}

#[inline(always)]
fn count_up(binding: &Binding) -> bool {
    if PORTS.get_ptr(binding.port).is_none() {
        // Another CPU may be faster; the entry is all that matters.
        let _ = PORTS.insert(binding.port, Port::FREE, u64::from(BPF_NOEXIST));
    }
    let Some(port) = PORTS.get_ptr_mut(binding.port) else {
        return false;
    };
    // SAFETY: entries of this map are not removed while these hooks are attached.
    unsafe { locked(port, |port| port.add(binding.address)) }
}

#[inline(always)]
fn count_down(binding: &Binding) {
    if let Some(port) = PORTS.get_ptr_mut(binding.port) {
        // SAFETY: as above.
        unsafe { locked(port, |port| port.remove(binding.address)) };
    }
}

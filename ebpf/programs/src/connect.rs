//! `cgroup/connect4` and `connect6`: sends the TCP connections of enrolled pods to the agent.
//!
//! The destination of `connect()` becomes the outbound listener that the agent holds on the pod's own
//! loopback address. The socket keeps the original destination; no packet is touched and there is
//! no NAT state. Whatever fails here refuses the connection: it never leaves uncaptured.
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_bind, bpf_get_netns_cookie, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::warn;
use undermesh_abi::{Address, Counter, Destination, OUTBOUND_PORT, Pod};

use crate::maps::{ORIGINAL, PODS, SETTINGS, count};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;

/// 127.0.0.1 in network order.
const LOOPBACK_IPV4: u32 = 0x7f00_0001_u32.to_be();
/// ::1 in network order.
const LOOPBACK_IPV6: Address = Address([0, 0, 0, 1_u32.to_be()]);

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context for the duration of the call.
    let asked = Address::from_ipv4(unsafe { (*ctx.sock_addr).user_ip4 });
    match judge(&ctx, asked) {
        Verdict::Leave => ALLOW,
        Verdict::Refuse => REFUSE,
        Verdict::Capture(pod) => {
            bind_ipv4(&ctx, &pod);
            // SAFETY: as above; these are writable fields of the context.
            unsafe {
                (*ctx.sock_addr).user_ip4 = LOOPBACK_IPV4;
                (*ctx.sock_addr).user_port = u32::from(OUTBOUND_PORT.to_be());
            }
            ALLOW
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context for the duration of the call.
    let asked = Address(unsafe {
        [
            (*ctx.sock_addr).user_ip6[0],
            (*ctx.sock_addr).user_ip6[1],
            (*ctx.sock_addr).user_ip6[2],
            (*ctx.sock_addr).user_ip6[3],
        ]
    });
    match judge(&ctx, asked) {
        Verdict::Leave => ALLOW,
        Verdict::Refuse => REFUSE,
        Verdict::Capture(pod) => {
            // A v4-mapped destination leaves the socket with an IPv4 connection.
            let (listener, own) = if asked.ipv4().is_some() {
                (Address::from_ipv4(LOOPBACK_IPV4), pod.ipv4)
            } else {
                (LOOPBACK_IPV6, pod.ipv6)
            };
            bind_ipv6(&ctx, own);
            // SAFETY: as above; these are writable fields of the context.
            unsafe {
                (*ctx.sock_addr).user_ip6[0] = listener.0[0];
                (*ctx.sock_addr).user_ip6[1] = listener.0[1];
                (*ctx.sock_addr).user_ip6[2] = listener.0[2];
                (*ctx.sock_addr).user_ip6[3] = listener.0[3];
                (*ctx.sock_addr).user_port = u32::from(OUTBOUND_PORT.to_be());
            }
            ALLOW
        }
    }
}

enum Verdict {
    Leave,
    Refuse,
    Capture(Pod),
}

/// Decides what becomes of one `connect()`, and files its destination when it is captured.
#[inline(always)]
fn judge(ctx: &SockAddrContext, asked: Address) -> Verdict {
    // SAFETY: the kernel passes a valid context for the duration of the call.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP {
        return Verdict::Leave;
    }
    // SAFETY: the helper accepts this context; it reads the namespace of the socket.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: entries are only written whole by user space.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return Verdict::Leave;
    };
    let pod = *pod;
    if is_local(asked, &pod) || is_agent(ctx) {
        forget(ctx);
        count(Counter::Skipped);
        return Verdict::Leave;
    }
    // SAFETY: as above.
    let port = u16::from_be(unsafe { (*ctx.sock_addr).user_port } as u16);
    let destination = Destination {
        address: asked,
        port: port.into(),
        padding: 0,
    };
    if !release_device(ctx) {
        count(Counter::Refused);
        warn!(
            ctx,
            "a connection of a socket that is bound to a device was refused"
        );
        return Verdict::Refuse;
    }
    if !remember(ctx, destination) {
        count(Counter::Refused);
        warn!(
            ctx,
            "no room to keep the destination of a connection; it was refused"
        );
        return Verdict::Refuse;
    }
    count(Counter::Captured);
    Verdict::Capture(pod)
}

/// Whether a destination never leaves the pod: loopback, unspecified (the kernel reads it as loopback), or its own.
#[inline(always)]
fn is_local(asked: Address, pod: &Pod) -> bool {
    match asked.ipv4() {
        Some(v4) => v4 == 0 || u32::from_be(v4) >> 24 == 127 || asked == pod.ipv4,
        None => asked == LOOPBACK_IPV6 || asked == Address::default() || asked == pod.ipv6,
    }
}

/// Whether the socket carries the agent's secret mark.
#[inline(always)]
fn is_agent(ctx: &SockAddrContext) -> bool {
    let Some(settings) = SETTINGS.get(0) else {
        return false;
    };
    // SAFETY: the kernel passes a valid context; the verifier checks the read of the socket.
    let mark = unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if socket.is_null() {
            return false;
        }
        (*socket).mark
    };
    mark != 0 && mark == settings.outbound_mark
}

/// Frees a socket that is bound to a device (`SO_BINDTODEVICE`): through it, packets for the listener
/// would leave the pod. Fails where the application could not do this itself (`CAP_NET_RAW`).
#[inline(always)]
fn release_device(ctx: &SockAddrContext) -> bool {
    // SAFETY: the kernel passes a valid context; the verifier checks the read of the socket.
    let bound = unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        !socket.is_null() && (*socket).bound_dev_if != 0
    };
    if !bound {
        return true;
    }
    let mut none = [0_u8; 4];
    // SAFETY: the empty name lives on the stack for the call and its length is exact.
    let result = unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_BINDTODEVICE,
            none.as_mut_ptr().cast(),
            none.len() as i32,
        )
    };
    result == 0
}

/// Keeps the destination with the socket, replacing that of an earlier attempt.
#[inline(always)]
fn remember(ctx: &SockAddrContext, mut destination: Destination) -> bool {
    // SAFETY: the helper takes the context's own socket and copies the value; the slot that it
    // returns lives as long as the socket.
    unsafe {
        let slot = ORIGINAL.get_or_insert_ptr_mut(ctx, Some(&mut destination));
        if slot.is_null() {
            return false;
        }
        *slot = destination;
    }
    true
}

/// Drops what an earlier captured attempt left with the socket.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    // SAFETY: the helper takes the context's own socket; deleting what is not there is harmless.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if !socket.is_null() {
            let _ = ORIGINAL.delete(socket);
        }
    }
}

/// Gives an unbound socket the pod's address, so that `getsockname()` answers as without a mesh.
/// A socket that its owner bound keeps its address; with a port the helper refuses, without one
/// (`IP_BIND_ADDRESS_NO_PORT`) it would replace the address.
#[inline(always)]
fn bind_ipv4(ctx: &SockAddrContext, pod: &Pod) {
    let Some(address) = pod.ipv4.ipv4() else {
        return;
    };
    // SAFETY: the kernel passes a valid context; the verifier checks the read of the socket.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if socket.is_null() || (*socket).src_ip4 != 0 {
            return;
        }
    }
    let mut local = SockaddrIn {
        family: AF_INET,
        port: 0,
        address,
        zero: [0; 2],
    };
    // SAFETY: the address lives on the stack for the call and its length is exact.
    let _ = unsafe {
        bpf_bind(
            ctx.sock_addr,
            core::ptr::from_mut(&mut local).cast(),
            size_of::<SockaddrIn>() as i32,
        )
    };
}

/// As [`bind_ipv4`], for IPv6 sockets; the address may be a mapped one.
#[inline(always)]
fn bind_ipv6(ctx: &SockAddrContext, own: Address) {
    if own == Address::default() {
        return;
    }
    // SAFETY: the kernel passes a valid context; the verifier checks the read of the socket.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if socket.is_null()
            || (*socket).src_ip6[0] != 0
            || (*socket).src_ip6[1] != 0
            || (*socket).src_ip6[2] != 0
            || (*socket).src_ip6[3] != 0
        {
            return;
        }
    }
    let mut local = SockaddrIn6 {
        family: AF_INET6,
        port: 0,
        flow: 0,
        address: own.0,
        scope: 0,
    };
    // SAFETY: the address lives on the stack for the call and its length is exact.
    let _ = unsafe {
        bpf_bind(
            ctx.sock_addr,
            core::ptr::from_mut(&mut local).cast(),
            size_of::<SockaddrIn6>() as i32,
        )
    };
}

/// `struct sockaddr_in` of `ip(7)`.
#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6` of `ipv6(7)`.
#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flow: u32,
    address: [u32; 4],
    scope: u32,
}

//! `sk_lookup`: hands plain inbound connections to the agent's listener, destination intact.
//!
//! What arrives over `lo` is the agent's connection to the application, whose socket is bound to `lo`. Kernels before
//! 5.17 do not tell the device, so the agent announces each of these connections to them.
//! The pod's own traffic to its address counts as arrived on that address's device; it is known by
//! coming from the very address that it goes to, under which nobody outside can finish a handshake.
//! Kubelet's probes go to the application: by the notes of kubelet's own connections, or by their source where
//! nothing tells kubelet from other processes of the node. Port 15008 has a listener of the agent of its own. Everything else belongs to the plaintext
//! listener; when the agent is away its slot is empty and the connection is refused.
//!
//! On a machine, which has processes besides those of its slice, only what goes to a socket of the slice is taken.
use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_sk_lookup, sk_action},
    btf_maps::{HashMap, LruHashMap, PerCpuArray, SockMap},
    macros::{btf_map, sk_lookup},
    programs::SkLookupContext,
};
use undermesh_abi::{
    Address, COUNTERS, Counter, Ends, INBOUND_HBONE_PORT, LISTENER_IPV4, LISTENER_IPV6,
    MAX_ANNOUNCED, MAX_PORTS, MAX_PROBERS, MAX_PROBES, OUTBOUND_PORT, Port,
};

use crate::locked::locked;

const LOOPBACK_INDEX: u32 = 1;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

/// The plaintext listeners of this pod.
#[btf_map]
pub static LISTENERS: SockMap<2> = SockMap::new();

/// Open connections of kubelet's; the node-wide object writes it.
#[btf_map]
pub static PROBES: LruHashMap<Ends, u8, { MAX_PROBES as usize }> = LruHashMap::new();

/// Addresses whose connections are taken for probes.
#[btf_map]
pub static PROBERS: HashMap<Address, u8, { MAX_PROBERS as usize }> = HashMap::new();

/// Connections that the agent is making to applications; user space writes it.
#[btf_map]
pub static ANNOUNCED: HashMap<
    Ends,
    u8,
    { MAX_ANNOUNCED as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// On which addresses and ports sockets of the machine's slice are bound; the node-wide object writes it.
#[btf_map]
pub static PORTS: HashMap<u32, Port, { MAX_PORTS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// One slot for each counter.
#[btf_map]
pub static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

// Not named `sk_lookup`: the linker would see the symbol twice, as function and as section.
#[sk_lookup]
pub fn assign_plaintext(ctx: SkLookupContext) -> u32 {
    take_all(&ctx, came_over_loopback)
}

/// For kernels before 5.17, which do not tell the device.
#[sk_lookup]
pub fn assign_plaintext_blind(ctx: SkLookupContext) -> u32 {
    take_all(&ctx, is_announced)
}

/// The machine's variant.
#[sk_lookup]
pub fn assign_noted(ctx: SkLookupContext) -> u32 {
    take_noted(&ctx, came_over_loopback)
}

/// The machine's, for kernels before 5.17.
#[sk_lookup]
pub fn assign_noted_blind(ctx: SkLookupContext) -> u32 {
    take_noted(&ctx, is_announced)
}

#[inline(always)]
fn take_all(ctx: &SkLookupContext, is_agent: impl FnOnce(&bpf_sk_lookup) -> bool) -> u32 {
    // SAFETY: the kernel passes a valid context for the duration of the call.
    let lookup = unsafe { &*ctx.lookup };
    if is_exempt(lookup) || is_agent(lookup) {
        return sk_action::SK_PASS;
    }
    if is_probe(lookup) {
        count(Counter::Probes);
        return sk_action::SK_PASS;
    }
    assign(ctx, lookup)
}

#[inline(always)]
fn take_noted(ctx: &SkLookupContext, is_agent: impl FnOnce(&bpf_sk_lookup) -> bool) -> u32 {
    // SAFETY: as above.
    let lookup = unsafe { &*ctx.lookup };
    if is_exempt(lookup) || is_agent(lookup) || !is_noted(lookup) {
        return sk_action::SK_PASS;
    }
    assign(ctx, lookup)
}

#[inline(always)]
fn is_exempt(lookup: &bpf_sk_lookup) -> bool {
    lookup.protocol != IPPROTO_TCP
        || lookup.local_port == u32::from(INBOUND_HBONE_PORT)
        || is_own(lookup)
}

#[inline(always)]
fn came_over_loopback(lookup: &bpf_sk_lookup) -> bool {
    lookup.ingress_ifindex == LOOPBACK_INDEX
}

/// Whether the agent makes this connection, or the pod itself: nobody outside can finish a handshake under a loopback
/// address, and to the outbound listener go those that `connect` captured.
#[inline(always)]
fn is_announced(lookup: &bpf_sk_lookup) -> bool {
    let (source, destination) = ends(lookup);
    source.is_loopback()
        || (lookup.local_port == u32::from(OUTBOUND_PORT) && destination.is_loopback())
        || ANNOUNCED
            .get_ptr(key(lookup, source, destination))
            .is_some()
}

/// Whether a socket of the slice takes connections to this address and port.
#[inline(always)]
fn is_noted(lookup: &bpf_sk_lookup) -> bool {
    let (_, address) = ends(lookup);
    let Some(port) = PORTS.get_ptr_mut(lookup.local_port) else {
        return false;
    };
    // SAFETY: entries of this map are not removed while this program is attached.
    unsafe { locked(port, |port| port.takes(address)) }
}

/// Hands the connection to the agent's listener, or refuses it where there is none.
#[inline(always)]
fn assign(ctx: &SkLookupContext, lookup: &bpf_sk_lookup) -> u32 {
    let slot = if lookup.family == AF_INET {
        LISTENER_IPV4
    } else {
        LISTENER_IPV6
    };
    if LISTENERS.redirect_sk_lookup(ctx, slot, 0).is_ok() {
        count(Counter::InboundAssigned);
        return sk_action::SK_PASS;
    }
    count(Counter::InboundRefused);
    sk_action::SK_DROP
}

#[inline(always)]
fn is_own(lookup: &bpf_sk_lookup) -> bool {
    if lookup.family == AF_INET {
        return lookup.remote_ip4 == lookup.local_ip4;
    }
    lookup.remote_ip6[0] == lookup.local_ip6[0]
        && lookup.remote_ip6[1] == lookup.local_ip6[1]
        && lookup.remote_ip6[2] == lookup.local_ip6[2]
        && lookup.remote_ip6[3] == lookup.local_ip6[3]
}

#[inline(always)]
fn is_probe(lookup: &bpf_sk_lookup) -> bool {
    let (source, destination) = ends(lookup);
    let key = key(lookup, source, destination);
    PROBES.get_ptr(&key).is_some() || PROBERS.get_ptr(&source).is_some()
}

#[inline(always)]
fn key(lookup: &bpf_sk_lookup, source: Address, destination: Address) -> Ends {
    Ends {
        source,
        destination,
        source_port: u16::from_be(lookup.remote_port).into(),
        destination_port: lookup.local_port,
    }
}

/// The addresses of the other end and of the pod's. All are read before the choice, and volatile, because the
/// verifier takes reads at fixed offsets alone: the compiler would merge those of two branches.
#[inline(always)]
fn ends(lookup: &bpf_sk_lookup) -> (Address, Address) {
    // SAFETY: these are fields of a valid context; those of the other family are not used.
    let (remote_ipv4, local_ipv4, remote_ipv6, local_ipv6) = unsafe {
        (
            read_volatile(&raw const lookup.remote_ip4),
            read_volatile(&raw const lookup.local_ip4),
            [
                read_volatile(&raw const lookup.remote_ip6[0]),
                read_volatile(&raw const lookup.remote_ip6[1]),
                read_volatile(&raw const lookup.remote_ip6[2]),
                read_volatile(&raw const lookup.remote_ip6[3]),
            ],
            [
                read_volatile(&raw const lookup.local_ip6[0]),
                read_volatile(&raw const lookup.local_ip6[1]),
                read_volatile(&raw const lookup.local_ip6[2]),
                read_volatile(&raw const lookup.local_ip6[3]),
            ],
        )
    };
    if lookup.family == AF_INET {
        (
            Address::from_ipv4(remote_ipv4),
            Address::from_ipv4(local_ipv4),
        )
    } else {
        (Address(remote_ipv6), Address(local_ipv6))
    }
}

#[inline(always)]
fn count(counter: Counter) {
    if let Some(slot) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU and this program is not preempted in it.
        unsafe { *slot += 1 };
    }
}

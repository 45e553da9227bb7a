//! `sk_lookup`: hands plain inbound connections to the agent's listener, destination intact.
//!
//! What arrives over `lo` is the agent's connection to the application, whose socket is bound to `lo`.
//! The pod's own traffic to its address counts as arrived on that address's device; it is known by
//! coming from the very address that it goes to, under which nobody outside can finish a handshake.
//! Kubelet's probes go to the application: by the notes of kubelet's own connections, or by their source where
//! nothing tells kubelet from other processes of the node. Port 15008 has a listener of the agent of its own. Everything else belongs to the plaintext
//! listener; when the agent is away its slot is empty and the connection is refused.
use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    btf_maps::{HashMap, LruHashMap, PerCpuArray, SockMap},
    macros::{btf_map, sk_lookup},
    programs::SkLookupContext,
};
use undermesh_abi::{
    Address, COUNTERS, Counter, INBOUND_HBONE_PORT, LISTENER_IPV4, LISTENER_IPV6, MAX_PROBERS,
    MAX_PROBES, ProbeKey,
};

const LOOPBACK_INDEX: u32 = 1;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

/// The plaintext listeners of this pod.
#[btf_map]
pub static LISTENERS: SockMap<2> = SockMap::new();

/// Open connections of kubelet's; the node-wide object writes it.
#[btf_map]
pub static PROBES: LruHashMap<ProbeKey, u8, { MAX_PROBES as usize }> = LruHashMap::new();

/// Addresses whose connections are taken for probes.
#[btf_map]
pub static PROBERS: HashMap<Address, u8, { MAX_PROBERS as usize }> = HashMap::new();

/// One slot for each counter.
#[btf_map]
pub static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

// Not named `sk_lookup`: the linker would see the symbol twice, as function and as section.
#[sk_lookup]
pub fn assign_plaintext(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel passes a valid context for the duration of the call.
    let lookup = unsafe { &*ctx.lookup };
    if lookup.ingress_ifindex == LOOPBACK_INDEX
        || lookup.protocol != IPPROTO_TCP
        || lookup.local_port == u32::from(INBOUND_HBONE_PORT)
        || is_own(lookup)
    {
        return sk_action::SK_PASS;
    }
    if is_probe(lookup) {
        count(Counter::Probes);
        return sk_action::SK_PASS;
    }
    let slot = if lookup.family == AF_INET {
        LISTENER_IPV4
    } else {
        LISTENER_IPV6
    };
    if LISTENERS.redirect_sk_lookup(&ctx, slot, 0).is_ok() {
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
    let key = ProbeKey {
        source,
        destination,
        source_port: u16::from_be(lookup.remote_port).into(),
        destination_port: lookup.local_port,
    };
    PROBES.get_ptr(&key).is_some() || PROBERS.get_ptr(&source).is_some()
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

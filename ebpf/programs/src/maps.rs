//! The maps of the node-wide object, pinned so that capture outlives the agent.
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage},
    macros::btf_map,
};
use undermesh_abi::{
    Address, Binding, COUNTERS, Counter, Destination, Ends, FlowKey, MAX_ANNOUNCED, MAX_BOUND,
    MAX_PENDING, MAX_PODS, MAX_PORTS, MAX_PROBERS, MAX_PROBES, Pod, Port, Settings,
};

/// Enrolled pods by network-namespace cookie.
#[btf_map]
pub static PODS: HashMap<u64, Pod, { MAX_PODS as usize }> = HashMap::new();

/// Captured connections that the agent has not accepted yet.
#[btf_map]
pub static PENDING: LruHashMap<FlowKey, Destination, { MAX_PENDING as usize }> = LruHashMap::new();

/// The destination that the owner of a socket asked for; lives and dies with the socket.
#[btf_map]
pub static ORIGINAL: SkStorage<Destination> = SkStorage::new();

/// Open connections of kubelet's; the programs of all pods read it.
#[btf_map]
pub static PROBES: LruHashMap<Ends, u8, { MAX_PROBES as usize }> = LruHashMap::new();

/// Addresses whose connections are taken for probes; here so that it is there before the first pod, for the
/// programs of all pods to read.
#[btf_map]
pub static PROBERS: HashMap<Address, u8, { MAX_PROBERS as usize }> = HashMap::new();

/// Connections that the agent is making to applications; here for the same reason.
#[btf_map]
pub static ANNOUNCED: HashMap<
    Ends,
    u8,
    { MAX_ANNOUNCED as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// The cookie of the machine's own network namespace, where the machine is enrolled; else zero.
#[btf_map]
pub static MACHINE: Array<u64, 1> = Array::new();

/// Where the sockets of the machine's slice are bound, by socket cookie.
#[btf_map]
pub static BOUND: HashMap<u64, Binding, { MAX_BOUND as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The same by port; the machine's `sk_lookup` reads it.
#[btf_map]
pub static PORTS: HashMap<u32, Port, { MAX_PORTS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// One [`Settings`].
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// One slot for each [`Counter`].
#[btf_map]
pub static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU and programs of these types are not preempted in it.
        unsafe { *slot += 1 };
    }
}

//! Maps, by the names that the agent pins them under.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap};
use overlaywatch_ebpf::{
    Address, DropKey, Dropped, Icmp, IcmpKey, Kernel, MAX_DEVICES, MAX_DROPS, MAX_ICMP, MAX_PEERS,
    MAX_PROBES, MAX_TRAFFIC, ProbeKey, Slots, Traffic, TrafficKey, Windows, missed,
};

/// Memory is taken when an entry comes (include/uapi/linux/bpf.h). Not for maps
/// that a tracepoint writes: it may hit where no memory can be had.
const BPF_F_NO_PREALLOC: u32 = 1;

/// The peer's underlay address by each of its addresses and of its pods'
/// networks; kept by the agent. Slower than a hash, and never asked for a
/// packet that is counted already.
#[map]
static PEERS: LpmTrie<Address, Address> = LpmTrie::pinned(MAX_PEERS, BPF_F_NO_PREALLOC);
/// Role by device index; kept by the agent.
#[map]
pub static DEVICES: HashMap<u32, u32> = HashMap::pinned(MAX_DEVICES, 0);
/// One bit per UDP port: VXLAN listens there. Kept by the agent.
#[map]
pub static PORTS: Array<[u64; 1024]> = Array::pinned(1, 0);

/// Probes by stream.
#[map]
pub static PROBES: HashMap<ProbeKey, Windows> = HashMap::pinned(MAX_PROBES, BPF_F_NO_PREALLOC);
/// Encapsulated traffic, by direction: an array needs no call to be looked into.
#[map]
pub static SLOTS: PerCpuArray<Slots> = PerCpuArray::pinned(2, 0);
/// Encapsulated traffic that found its slot taken.
#[map]
pub static TRAFFIC: PerCpuHashMap<TrafficKey, Traffic> =
    PerCpuHashMap::pinned(MAX_TRAFFIC, BPF_F_NO_PREALLOC);
/// Drops.
#[map]
pub static DROPS: HashMap<DropKey, Dropped> = HashMap::pinned(MAX_DROPS, 0);
/// ICMP errors.
#[map]
pub static ICMP: HashMap<IcmpKey, Icmp> = HashMap::pinned(MAX_ICMP, BPF_F_NO_PREALLOC);
/// What could not be counted because a map was full.
#[map]
pub static MISSED: PerCpuArray<u64> = PerCpuArray::pinned(missed::COUNT, 0);

/// Filled in by the loader.
#[unsafe(no_mangle)]
pub static KERNEL: Kernel = Kernel::UNKNOWN;

/// One field of [`KERNEL`]: volatile, since the compiler sees the value in the source.
macro_rules! kernel {
    ($field:ident) => {
        // SAFETY: a field of a static that nobody writes while programs run.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::KERNEL.$field) }
    };
}
pub(crate) use kernel;

/// The peer that an address belongs to.
#[inline(always)]
pub fn peer(address: &Address) -> Option<Address> {
    PEERS.get(&Key::new(128, *address)).copied()
}

/// Counts something that a full map had no room for.
#[inline(always)]
pub fn miss(map: u32) {
    if let Some(count) = MISSED.get_ptr_mut(map) {
        // SAFETY: this processor's own element of a per-CPU array.
        unsafe { *count = (*count).wrapping_add(1) };
    }
}

/// Whether VXLAN listens on a UDP port, host byte order.
#[inline(always)]
pub fn is_vxlan(port: u16) -> bool {
    PORTS.get(0).is_some_and(|bits| {
        bits.get(usize::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 == 1)
    })
}

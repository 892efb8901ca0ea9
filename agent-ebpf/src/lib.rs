//! What the kernel and the agent share: layouts of maps and globals.
//!
//! Integers are in host byte order unless a field says otherwise. Every layout
//! is free of implicit padding, since maps compare keys byte by byte.

#![no_std]

/// Version of everything that is pinned: programs of another version cannot
/// use these maps. Raise it with every change of a layout.
pub const LAYOUT: u32 = 1;

/// Addresses and networks of peers that programs know.
pub const MAX_PEERS: u32 = 16_384;
/// Streams of probes that are counted.
pub const MAX_PROBES: u32 = 16_384;
/// Pairs of (peer, encapsulation, direction) whose traffic is counted.
pub const MAX_TRAFFIC: u32 = 8_192;
/// Kinds of drops that are counted.
pub const MAX_DROPS: u32 = 2_048;
/// Kinds of ICMP errors that are counted.
pub const MAX_ICMP: u32 = 512;
/// Devices that are watched.
pub const MAX_DEVICES: u32 = 256;

/// An IPv6 address, or an IPv4 one mapped into it (RFC 4291, 2.5.5.2), as four
/// words in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// The address of an IPv4 one in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(address: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), address])
    }
}

/// A probe's head, as on the wire (`agent/src/probe/wire.rs`): what is counted by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeHead {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// Version of the protocol.
    pub version: u8,
    /// [`REQUEST`] or [`REPLY`].
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Entries that follow.
    pub entries: u8,
    /// The stream.
    pub stream: [u8; 4],
    /// Sequence number, network byte order.
    pub seq: [u8; 4],
    /// The requester's epoch for this peer, network byte order.
    pub epoch: [u8; 8],
}

/// What a probe begins with.
pub const MAGIC: [u8; 4] = *b"OWPB";
/// The version of the probe protocol that programs understand.
pub const PROBE_VERSION: u8 = 1;
/// The first byte of the stream of probes without encapsulation.
pub const UNDERLAY_STREAM: u8 = 0;
/// A request.
pub const REQUEST: u8 = 1;
/// A reply.
pub const REPLY: u8 = 2;

/// A stream of probes: whoever asks has an epoch of its own for each peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeKey {
    /// As on the wire.
    pub epoch: [u8; 8],
    /// As on the wire.
    pub stream: [u8; 4],
}

/// Which sequence numbers passed: the highest, a mask of the 64 up to it, and
/// how many in all. Zero means none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Bit `n` is set when `highest - n` passed.
    pub mask: u64,
    /// The highest.
    pub highest: u32,
    /// How many, modulo 2^32.
    pub count: u32,
}

impl Window {
    /// Records that `seq` passed. Two processors that record different numbers
    /// of one stream in the same moment may lose one of them; the join then
    /// still finds it at the next hop, and a later hop proves the earlier ones.
    #[inline(always)]
    pub fn record(&mut self, seq: u32) {
        if self.mask == 0 {
            *self = Self { mask: 1, highest: seq, count: 1 };
            return;
        }
        let ahead = seq.wrapping_sub(self.highest);
        if ahead != 0 && ahead < 1 << 31 {
            // The outer condition lets the verifier see a shift below 64.
            self.mask = if ahead < 64 { (self.mask << (ahead & 63)) | 1 } else { 1 };
            self.highest = seq;
            self.count = self.count.wrapping_add(1);
            return;
        }
        let behind = self.highest.wrapping_sub(seq);
        if behind < 64 {
            let bit = 1_u64 << (behind & 63);
            if self.mask & bit == 0 {
                self.mask |= bit;
                self.count = self.count.wrapping_add(1);
            }
        }
    }
}

/// Hops of one node, as indexes into [`Windows`].
pub mod hop {
    /// The tunnel device, egress.
    pub const ENCAPSULATED: usize = 0;
    /// The underlay NIC, egress.
    pub const LEFT_NIC: usize = 1;
    /// The underlay NIC, ingress.
    pub const REACHED_NIC: usize = 2;
    /// The tunnel device, ingress.
    pub const DECAPSULATED: usize = 3;
}

/// One stream at every hop of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Requests, by [`hop`].
    pub requests: [Window; 4],
    /// Replies, by [`hop`].
    pub replies: [Window; 4],
}

/// IP protocol numbers that stand for encapsulations.
pub mod encapsulation {
    /// None.
    pub const NONE: u8 = 0;
    /// IP in IP (RFC 2003).
    pub const IPIP: u8 = 4;
    /// VXLAN (RFC 7348), in UDP.
    pub const VXLAN: u8 = 17;
}

/// Which way a packet crosses a device.
pub mod direction {
    /// Into this node.
    pub const INGRESS: u8 = 1;
    /// Out of this node.
    pub const EGRESS: u8 = 2;
}

/// Encapsulated traffic with one peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficKey {
    /// The outer address of the other end.
    pub peer: Address,
    /// UDP port of VXLAN; zero for IPIP.
    pub port: u16,
    /// One of [`encapsulation`].
    pub encapsulation: u8,
    /// One of [`direction`].
    pub direction: u8,
}

/// How much of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets, those that the host's offload joins counted one by one.
    pub packets: u64,
    /// Bytes, link header included.
    pub bytes: u64,
    /// First fragments of outer packets among them.
    pub fragments: u64,
    /// Probes among them.
    pub probes: u64,
}

/// Slots for traffic in each direction: 14 kB of each processor, of the 32 kB
/// that a value of a per-CPU map may have (include/linux/percpu.h,
/// `PCPU_MIN_UNIT_SIZE`). A power of two.
pub const SLOTS: usize = 256;

/// A place for traffic that is found without a search: the first key that
/// comes to it has it for good, and others go to the map of traffic.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Whose it is; nobody's while the encapsulation is none.
    pub key: TrafficKey,
    /// Zero.
    pub pad: u32,
    /// How much.
    pub traffic: Traffic,
}

/// Slots of one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slots(pub [Slot; SLOTS]);

impl Slots {
    /// Index of the slot that an address may have (Fibonacci hashing: the upper
    /// bits of the product depend on all bits of the address).
    #[inline(always)]
    #[must_use]
    pub const fn index(address: &Address) -> usize {
        let [a, b, c, d] = address.0;
        ((a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b9) >> (32 - SLOTS.ilog2())) as usize
    }
}

/// What a dropped packet was.
pub mod form {
    /// An encapsulated packet with its outer header.
    pub const OUTER: u8 = 1;
    /// A packet on a tunnel device, or on its way to one.
    pub const INNER: u8 = 2;
    /// A probe without encapsulation.
    pub const BARE: u8 = 3;
}

/// One kind of drop.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DropKey {
    /// Address of the instruction that dropped.
    pub location: u64,
    /// The peer's underlay address; zero when neither address is a peer's.
    pub peer: Address,
    /// The kernel's drop reason; zero where the kernel has none.
    pub reason: u32,
    /// Index of the packet's device; zero when it had none.
    pub ifindex: u32,
    /// Stream of a probe, as on the wire.
    pub stream: [u8; 4],
    /// EtherType, host byte order.
    pub ethertype: u16,
    /// IP protocol of the outermost header that is still there.
    pub ip_protocol: u8,
    /// One of [`form`].
    pub form: u8,
    /// [`REQUEST`] or [`REPLY`] for a probe, else zero.
    pub probe: u8,
    /// One of [`direction`]: from the peer, or to it; zero without a peer.
    pub direction: u8,
    /// Zero.
    pub pad: [u8; 6],
}

/// How often.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// How many packets.
    pub packets: u64,
}

/// One kind of ICMP error that quotes an outer packet of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IcmpKey {
    /// Destination of the quoted packet.
    pub peer: Address,
    /// Who sent the error.
    pub from: Address,
    /// UDP port of VXLAN; zero for IPIP.
    pub port: u16,
    /// One of [`encapsulation`].
    pub encapsulation: u8,
    /// Type (RFC 792, RFC 4443).
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// IP version of the error.
    pub version: u8,
    /// Zero.
    pub pad: u16,
}

/// How often.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Icmp {
    /// How many errors.
    pub errors: u64,
    /// Next-hop MTU of the latest one that carries any (RFC 1191, RFC 4443).
    pub mtu: u32,
    /// Zero.
    pub pad: u32,
}

/// What a device is, in the map of devices.
pub mod role {
    /// A tunnel.
    pub const TUNNEL: u32 = 1;
    /// An underlay NIC.
    pub const UNDERLAY: u32 = 2;
}

/// Maps that may be full, as indexes of the map of misses.
pub mod missed {
    /// Streams of probes.
    pub const PROBES: u32 = 0;
    /// Traffic.
    pub const TRAFFIC: u32 = 1;
    /// Drops.
    pub const DROPS: u32 = 2;
    /// ICMP errors.
    pub const ICMP: u32 = 3;
    /// How many maps.
    pub const COUNT: u32 = 4;
}

/// What the running kernel's own type information says, and what this node is:
/// set before the programs are loaded. An offset of [`NO_OFFSET`] is one that
/// this kernel does not have.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Inode of this node's network namespace.
    pub netns: u32,
    /// UDP port of probes, host byte order.
    pub probe_port: u16,
    /// The tracepoint skb:kfree_skb carries a reason.
    pub has_reason: u16,
    /// struct sk_buff.dev
    pub skb_dev: u16,
    /// struct sk_buff._skb_refdst
    pub skb_refdst: u16,
    /// struct sk_buff.head
    pub skb_head: u16,
    /// struct sk_buff.network_header
    pub skb_network_header: u16,
    /// struct sk_buff.protocol
    pub skb_protocol: u16,
    /// struct dst_entry.dev
    pub dst_dev: u16,
    /// struct net_device.ifindex
    pub dev_ifindex: u16,
    /// struct net_device.nd_net.net
    pub dev_net: u16,
    /// struct net.ns.inum
    pub net_inum: u16,
    /// Zero.
    pub pad: u16,
}

/// An offset that the running kernel does not have.
pub const NO_OFFSET: u16 = u16::MAX;

impl Kernel {
    /// Nothing known yet.
    pub const UNKNOWN: Self = Self {
        netns: 0,
        probe_port: 0,
        has_reason: 0,
        skb_dev: NO_OFFSET,
        skb_refdst: NO_OFFSET,
        skb_head: NO_OFFSET,
        skb_network_header: NO_OFFSET,
        skb_protocol: NO_OFFSET,
        dst_dev: NO_OFFSET,
        dev_ifindex: NO_OFFSET,
        dev_net: NO_OFFSET,
        net_inum: NO_OFFSET,
        pad: 0,
    };
}

/// The programs, built from `src/programs` by `cargo xtask ebpf`.
#[cfg(feature = "user")]
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../overlaywatch.bpf.o");

#[cfg(feature = "user")]
mod pod {
    use super::{
        Address, DropKey, Dropped, Icmp, IcmpKey, Kernel, ProbeKey, Slots, Traffic, TrafficKey,
        Windows,
    };

    macro_rules! pod {
        ($($layout:ty)*) => {$(
            // SAFETY: integers and arrays of them in C's layout, without padding;
            // every bit pattern is a value.
            unsafe impl aya::Pod for $layout {}
        )*};
    }
    pod!(Address DropKey Dropped Icmp IcmpKey Kernel ProbeKey Slots Traffic TrafficKey Windows);
}

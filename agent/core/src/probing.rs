//! What the prober and the responder tell, and what they are told.
//!
//! The edge moves packets and stamps times; which probes are due
//! ([`crate::plan`]) and what their fate means ([`crate::pairs`]) is decided
//! here, from these values alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::kernel::DropSite;
use crate::ladder::{Climb, Window};
use crate::model::{Encapsulation, Mac, NodeName, PeerId, Tunnel};
use crate::time::Mono;

/// A stream of probes to one peer with sequence numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// U: UDP to the underlay address; carries the peer's half of the ladder back.
    Underlay,
    /// E: small, through the real tunnel device.
    Small(Encapsulation),
    /// M: DF set, exactly the tunnel's MTU.
    Full(Encapsulation),
    /// ICMP echo to the underlay address, answered by the peer's kernel:
    /// tells a silent agent from a silent network.
    Echo,
}

impl Stream {
    /// The encapsulation that its probes pass, if any.
    #[must_use]
    pub const fn encapsulation(self) -> Option<Encapsulation> {
        match self {
            Self::Small(encapsulation) | Self::Full(encapsulation) => Some(encapsulation),
            Self::Underlay | Self::Echo => None,
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Underlay => f.pad("underlay"),
            Self::Small(encapsulation) => f.pad(&format!("small {encapsulation}")),
            Self::Full(encapsulation) => f.pad(&format!("full {encapsulation}")),
            Self::Echo => f.pad("echo"),
        }
    }
}

/// One probe to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRequest {
    /// The peer that it tests.
    pub peer: PeerId,
    /// Its stream.
    pub stream: Stream,
    /// Where it goes: the peer's underlay or overlay address.
    pub target: IpAddr,
    /// The source address to send from: this node's overlay address for an
    /// overlay stream; none lets the kernel choose.
    pub source: Option<IpAddr>,
    /// Size of the whole (inner) IP packet in bytes, IP and UDP headers
    /// included; the prober never sends less than its message needs.
    pub ip_bytes: u16,
    /// When to send it, milliseconds after the orders were given.
    pub after_ms: u16,
}

/// What the prober is to do until the next orders come, and what the
/// responder may say. Made anew at each tick of the assembly loop.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// Probes to send, in order of `after_ms`.
    pub requests: Vec<ProbeRequest>,
    /// Whom the responder answers, and as whom the sender counts: every known
    /// address of every peer, underlay and overlay.
    pub peers: Arc<HashMap<IpAddr, PeerId>>,
    /// What replies to underlay probes say of this node.
    pub own: Arc<OwnStatus>,
    /// Peers to which something is lost: their probes' hops are to be read here
    /// and asked for there.
    pub hops_of: Arc<BTreeSet<PeerId>>,
}

/// What this node tells its peers of itself in each underlay reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnStatus {
    /// This node's name.
    pub node: Option<NodeName>,
    /// Its tunnels; the wire carries the first [`MAX_ADVERTS`].
    pub tunnels: Vec<TunnelAdvert>,
}

/// Tunnels that one reply can carry.
pub const MAX_ADVERTS: usize = 4;

/// Streams whose windows one reply can carry.
pub const MAX_WINDOWS: usize = 9;

/// Streams whose hops one reply can carry.
pub const MAX_CLIMBS: usize = 4;

/// Drops that one reply can carry.
pub const MAX_DROPS: usize = 3;

/// A tunnel as its own node sees it, for comparison with what peers believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelAdvert {
    /// Encapsulation, with the VXLAN port.
    pub encapsulation: Encapsulation,
    /// VXLAN network identifier.
    pub vni: Option<u32>,
    /// Switched on.
    pub up: bool,
    /// Overlay address.
    pub address: Option<IpAddr>,
    /// VTEP MAC.
    pub mac: Option<Mac>,
    /// Largest inner packet, bytes.
    pub mtu: u32,
}

impl From<&Tunnel> for TunnelAdvert {
    fn from(tunnel: &Tunnel) -> Self {
        Self {
            encapsulation: tunnel.encapsulation,
            vni: tunnel.vni,
            up: tunnel.up,
            address: tunnel.address,
            mac: tunnel.mac,
            mtu: tunnel.mtu,
        }
    }
}

/// What a peer says of itself and of what it received from this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: Option<NodeName>,
    /// Changes when its agent restarts; its windows begin anew then.
    pub epoch: u64,
    /// Which of this node's probes it received, by stream.
    pub windows: Vec<(Stream, Window)>,
    /// Its tunnels.
    pub tunnels: Vec<TunnelAdvert>,
    /// What passed its hops, by stream: requests on their way in, replies on
    /// their way out. Only where this node asked for it.
    #[serde(default)]
    pub climbs: Vec<(Stream, Climb)>,
    /// This node's requests, and the replies to them, that its kernel dropped lately.
    #[serde(default)]
    pub drops: Vec<ProbeDrop>,
}

/// Probes that a kernel dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProbeDrop {
    /// The stream.
    pub stream: Stream,
    /// Replies, not requests.
    pub reply: bool,
    /// How many, in the last seconds.
    pub packets: u32,
    /// Where and why.
    pub site: DropSite,
}

/// One stream of a peer's probes to this node, seen from both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The stream.
    pub stream: Stream,
    /// The latest sequence number that the peer handed to its kernel.
    pub sent_highest: u32,
    /// Which of them this node's responder received.
    pub received: Window,
}

/// Why the local kernel refused to send a probe: the errno of sendmsg(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendError {
    /// ENETUNREACH or EHOSTUNREACH: no route, or an unreachable one, or a failed neighbour.
    NoRoute,
    /// EACCES: a prohibit route.
    Prohibited,
    /// EINVAL: a blackhole route (ip_route_output, fib_props in net/ipv4/fib_semantics.c),
    /// or a source address that is no longer on the host (EADDRNOTAVAIL).
    Blackhole,
    /// EPERM: a local firewall rule dropped it in OUTPUT.
    Filtered,
    /// EMSGSIZE: larger than the path's known MTU.
    TooBig,
    /// ENOBUFS or EAGAIN: a full queue of this host; says nothing of the network.
    Busy,
    /// Anything else, by its number.
    Other(i32),
}

/// What happened at the edge. Times are of the local monotonic clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeEvent {
    /// A probe was handed to the kernel.
    Sent {
        /// To whom.
        peer: PeerId,
        /// In which stream.
        stream: Stream,
        /// Its sequence number; consecutive within (peer, stream).
        seq: u32,
        /// When.
        at: Mono,
    },
    /// The kernel refused it; no sequence number was used.
    NotSent {
        /// To whom.
        peer: PeerId,
        /// In which stream.
        stream: Stream,
        /// When.
        at: Mono,
        /// Why.
        error: SendError,
    },
    /// An answer came.
    Reply {
        /// From whom.
        peer: PeerId,
        /// In which stream.
        stream: Stream,
        /// Which probe it answers.
        seq: u32,
        /// When the kernel received it, not when it was read.
        at: Mono,
        /// Round-trip time without the responder's dwell time, nanoseconds.
        rtt_ns: u64,
        /// Underlay replies: what the peer says.
        status: Option<Box<PeerStatus>>,
    },
    /// An ICMP error quoted a probe of ours (error queue, ip(7) IP_RECVERR).
    Unreachable {
        /// The peer whose probe is quoted.
        peer: PeerId,
        /// The stream whose probe is quoted.
        stream: Stream,
        /// When it was read.
        at: Mono,
        /// ICMP code of type 3 (RFC 792): 0 net, 1 host, 2 protocol, 3 port, 13 filtered.
        code: u8,
        /// Who sent the error.
        from: IpAddr,
    },
    /// An underlay request of the peer came: what it says it sent before, beside
    /// what of it arrived here. Tells inbound loss also when nothing comes back.
    Asked {
        /// Who asked.
        peer: PeerId,
        /// When the kernel received the request.
        at: Mono,
        /// The peer's streams to this node, at most [`MAX_WINDOWS`].
        streams: Vec<Passage>,
    },
    /// What passed this node's own hops on the way to a peer and back.
    Climbed {
        /// The peer.
        peer: PeerId,
        /// When it was read.
        at: Mono,
        /// By stream: requests on their way out, replies on their way in.
        climbs: Vec<(Stream, Climb)>,
    },
    /// The prober looked at itself; sent about every 100 ms while it has orders.
    Observed {
        /// When.
        at: Mono,
        /// How late its most delayed wake-up was since the last look, nanoseconds.
        lag_ns: u64,
        /// Datagrams that its sockets dropped since the last look (SO_RXQ_OVFL).
        socket_drops: u32,
    },
}

/// Counters of the prober and the responder since start, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProberCounters {
    /// Probes handed to the kernel.
    pub sent: u64,
    /// Replies matched to a peer.
    pub received: u64,
    /// Requests answered as responder.
    pub answered: u64,
    /// Packets ignored, by reason.
    pub ignored: BTreeMap<Ignored, u64>,
    /// Bytes sent, whole IP packets.
    pub sent_bytes: u64,
}

/// Why a packet at the probe port was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ignored {
    /// Not this protocol at all.
    Malformed,
    /// Shorter than its kind must be.
    Truncated,
    /// Longer than any probe.
    Oversized,
    /// Another version of the protocol.
    ForeignVersion,
    /// From an address that is no peer's.
    Stranger,
    /// A request or reply that came before.
    Replayed,
    /// A known peer that asks too often.
    RateLimited,
    /// The keyed authenticator does not fit.
    BadMac,
    /// Requests came faster than they were read; the kernel dropped it.
    Overflow,
}

impl Ignored {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Truncated,
        Self::Oversized,
        Self::ForeignVersion,
        Self::Stranger,
        Self::Replayed,
        Self::RateLimited,
        Self::BadMac,
        Self::Overflow,
    ];

    /// The name used in labels and JSON.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::Oversized => "oversized",
            Self::ForeignVersion => "foreign-version",
            Self::Stranger => "stranger",
            Self::Replayed => "replayed",
            Self::RateLimited => "rate-limited",
            Self::BadMac => "bad-mac",
            Self::Overflow => "overflow",
        }
    }
}

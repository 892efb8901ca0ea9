//! What the kernel's eBPF programs count at this node's hops, and what they are
//! to watch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Encapsulation, IfIndex, Nic, PeerId};
use crate::probing::Stream;

/// How far back "lately" reaches: the age that makes a count growth, seconds.
pub const LATELY_SECONDS: u64 = 5;

/// Everything that was counted up to one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelCounts {
    /// Drops, the most recent growth first.
    pub drops: Vec<PacketDrop>,
    /// ICMP errors that quote outer packets of this node.
    pub icmp: Vec<IcmpError>,
    /// Encapsulated traffic by peer.
    pub traffic: Vec<Traffic>,
    /// Devices whose packets are counted.
    pub devices: Vec<IfIndex>,
    /// What is not counted although it should be, and the remedy.
    pub problems: Vec<String>,
    /// Programs and filters of others on these devices.
    #[serde(default)]
    pub foreign: Vec<ForeignProgram>,
    /// What drives these devices.
    #[serde(default)]
    pub nics: Vec<Nic>,
}

/// A program or filter that somebody else attached to a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForeignProgram {
    /// The device.
    pub device: String,
    /// It sees packets that come in; else those that go out.
    pub is_ingress: bool,
    /// How it is attached: `tcx`, a filter's kind as tc(8) prints it, or one of
    /// [`XDP_KINDS`].
    pub kind: String,
    /// Its name; none where it has none or the kernel does not tell.
    pub name: Option<String>,
    /// The program's number, as bpftool(8) prints it; none for other filters.
    pub id: Option<u32>,
    /// A filter's preference.
    pub preference: Option<u16>,
    /// A filter's handle.
    pub handle: Option<u32>,
}

/// How an XDP program is attached: in the driver, in the kernel's generic way, in
/// the device itself; as ip-link(8) prints it.
pub const XDP_KINDS: [&str; 3] = ["xdp", "xdpgeneric", "xdpoffload"];

impl ForeignProgram {
    /// Whether it runs before everything else, traffic control included.
    #[must_use]
    pub fn is_xdp(&self) -> bool {
        XDP_KINDS.contains(&self.kind.as_str())
    }

    /// Whether it drops what no packet is yet, so that no kernel says a word.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.is_xdp() && self.kind != "xdpgeneric"
    }

    /// Its side, as tc(8) names it.
    #[must_use]
    pub const fn side(&self) -> &'static str {
        if self.is_ingress { "ingress" } else { "egress" }
    }
}

impl fmt::Display for ForeignProgram {
    /// By what tc(8) and bpftool(8) find it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.device, self.side(), self.kind)?;
        if let Some(preference) = self.preference {
            write!(f, " pref {preference}")?;
        }
        if let Some(handle) = self.handle {
            write!(f, " handle {handle:#x}")?;
        }
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        // Of XDP there is one on each device, whatever its number now.
        self.id.filter(|_| !self.is_xdp()).map_or(Ok(()), |id| write!(f, " id {id}"))
    }
}

/// Packets of one kind that this node's kernel dropped in one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketDrop {
    /// Where and why.
    pub site: DropSite,
    /// The peer that one of its addresses belongs to.
    pub peer: Option<PeerId>,
    /// What they were.
    pub form: DropForm,
    /// Towards that peer, not from it.
    pub outbound: bool,
    /// Probes: their stream, and whether they were replies.
    pub probe: Option<(Stream, bool)>,
    /// EtherType.
    pub ethertype: u16,
    /// IP protocol of the outermost header.
    pub ip_protocol: u8,
    /// How many since the programs were loaded.
    pub total: u64,
    /// How many of them in the last [`LATELY_SECONDS`].
    pub lately: u64,
}

/// What a dropped packet was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropForm {
    /// Encapsulated.
    Outer,
    /// On a tunnel device, or on its way to one.
    Inner,
    /// A probe without encapsulation.
    Bare,
}

impl DropForm {
    /// The name used in labels and JSON.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Outer => "outer",
            Self::Inner => "inner",
            Self::Bare => "bare",
        }
    }
}

/// Where in a kernel a packet was dropped, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DropSite {
    /// The kernel's drop reason (include/net/dropreason-core.h), without its
    /// prefix; none on a kernel without reasons.
    pub reason: Option<String>,
    /// The kernel function; none where its name cannot be read.
    pub function: Option<String>,
    /// The packet's device; none when it had none that is known.
    pub device: Option<String>,
}

/// Reasons of sockets and of what uses them (include/net/dropreason-core.h).
const SOCKET_REASONS: [&str; 5] =
    ["NO_SOCKET", "SOCKET_FILTER", "SOCKET_RCVBUFF", "SOCKET_BACKLOG", "PROTO_MEM"];
/// Functions that drop for the same reasons, for kernels that give none
/// (net/ipv4/udp.c, tcp_ipv4.c, ping.c and their like for IPv6).
const SOCKET_FUNCTIONS: [&str; 5] =
    ["__udp4_lib_rcv", "__udp6_lib_rcv", "tcp_v4_rcv", "tcp_v6_rcv", "ping_rcv"];

impl DropSite {
    /// Whether an XDP program dropped it when it was a packet already. Kernels give
    /// a reason only where a redirect fails, the rest is told by the function:
    /// `do_xdp_generic`, `netif_receive_generic_xdp` (net/core/dev.c),
    /// `veth_xdp_rcv_skb` (drivers/net/veth.c).
    #[must_use]
    pub fn is_of_xdp(&self) -> bool {
        let by_function = self.function.as_ref().is_some_and(|name| name.contains("xdp"));
        match self.reason.as_deref() {
            Some("XDP") => true,
            Some("NOT_SPECIFIED") | None => by_function,
            Some(_) => false,
        }
    }

    /// Whether the packet had come where it was sent, and nobody there wanted
    /// it: no port is open, or the program reads too slowly. That is no matter
    /// of the network's. Wrong checksums are.
    #[must_use]
    pub fn is_of_socket(&self) -> bool {
        let is_one_of = |list: &[&str], name: &Option<String>| {
            name.as_deref().is_some_and(|name| list.contains(&name))
        };
        match self.reason.as_deref() {
            Some("TCP_CSUM" | "UDP_CSUM") => false,
            Some("NOT_SPECIFIED") | None => is_one_of(&SOCKET_FUNCTIONS, &self.function),
            Some(reason) => reason.starts_with("TCP_") || is_one_of(&SOCKET_REASONS, &self.reason),
        }
    }
}

impl fmt::Display for DropSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.as_deref().unwrap_or("no reason given"))?;
        if let Some(function) = &self.function {
            write!(f, " in {function}")?;
        }
        self.device.as_ref().map_or(Ok(()), |device| write!(f, " on {device}"))
    }
}

/// ICMP errors of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpError {
    /// Where the quoted packet went.
    pub peer: IpAddr,
    /// Who sent the error.
    pub from: IpAddr,
    /// The quoted packet's encapsulation.
    pub encapsulation: Encapsulation,
    /// Type (RFC 792; RFC 4443 where `peer` is an IPv6 address).
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Next-hop MTU of the latest, where it carries one.
    pub mtu: Option<u32>,
    /// How many since the programs were loaded.
    pub total: u64,
    /// How many of them in the last [`LATELY_SECONDS`].
    pub lately: u64,
}

/// Encapsulated traffic with one peer, one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// The other end's outer address.
    pub peer: IpAddr,
    /// Its encapsulation.
    pub encapsulation: Encapsulation,
    /// Towards the peer.
    pub outbound: bool,
    /// Packets since the programs were loaded.
    pub packets: u64,
    /// Bytes, link headers included.
    pub bytes: u64,
    /// First fragments of outer packets.
    pub fragments: u64,
    /// Packets in the last [`LATELY_SECONDS`] that were no probes.
    pub lately: u64,
}

/// How the programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// As the kernel can.
    #[default]
    Auto,
    /// Links of the multi-program interface, Linux 6.6 and later.
    Tcx,
    /// Filters on the clsact queueing discipline.
    Clsact,
}

/// What the programs are to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookPlan {
    /// Devices, in order of index.
    pub devices: Vec<HookedDevice>,
    /// UDP ports that VXLAN uses here or at a peer.
    pub ports: BTreeSet<u16>,
    /// Whose each address is: peers' own and, by the routes into tunnels, their pods'.
    pub peers: BTreeMap<IpNet, PeerId>,
}

/// A device that is to be watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HookedDevice {
    /// Its index.
    pub index: IfIndex,
    /// Its name.
    pub name: String,
    /// The encapsulation of a tunnel device; none for an underlay NIC.
    pub tunnel: Option<Encapsulation>,
    /// Its packets begin with an Ethernet header.
    pub is_ethernet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(reason: Option<&str>, function: &str) -> DropSite {
        DropSite {
            reason: reason.map(str::to_owned),
            function: Some(function.to_owned()),
            device: None,
        }
    }

    #[test]
    fn a_closed_port_is_told_from_the_network() {
        assert!(site(Some("NO_SOCKET"), "__udp4_lib_rcv").is_of_socket());
        assert!(site(Some("TCP_OLD_DATA"), "tcp_v4_rcv").is_of_socket());
        assert!(site(None, "__udp6_lib_rcv").is_of_socket());
        assert!(!site(Some("UDP_CSUM"), "udp_queue_rcv_one_skb").is_of_socket());
        assert!(!site(Some("NETFILTER_DROP"), "nft_do_chain").is_of_socket());
        assert!(!site(Some("NOT_SPECIFIED"), "nf_hook_slow").is_of_socket());
    }
}

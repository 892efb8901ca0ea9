//! One observation that a finding rests on.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{CniEvidence, Filtered, SetEvidence, program};
use crate::kernel::{DropSite, ForeignProgram, LATELY_SECONDS};
use crate::ladder::{Direction, Hop};
use crate::model::{
    Encapsulation, Mac, Module, NeighbourState, Nic, PeerId, PolicyRule, RouteAnswer, RouteKind,
    SessionState,
};
use crate::probing::{SendError, Stream};

/// One observation that a finding rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Evidence {
    /// Probes of a stream that were lost, of how many decided ones, in which time.
    Lost {
        /// The stream.
        stream: Stream,
        /// Never reached the peer.
        outbound: u32,
        /// Reached the peer; the reply was lost.
        inbound: u32,
        /// Lost, and nobody can say which way.
        undetermined: u32,
        /// Decided probes, lost ones included.
        of: u32,
        /// The time they were sent in, seconds.
        seconds: u32,
    },
    /// Probes of a stream that were answered meanwhile.
    Answered {
        /// The stream.
        stream: Stream,
        /// How many.
        count: u32,
    },
    /// ICMP destination unreachable quoting our probes.
    IcmpUnreachable {
        /// The stream quoted.
        stream: Stream,
        /// Code of type 3.
        code: u8,
        /// Who sent it.
        from: IpAddr,
    },
    /// The local kernel refused to send.
    Refused {
        /// The stream.
        stream: Stream,
        /// Why.
        error: SendError,
        /// How often.
        count: u32,
    },
    /// A device dropped packets on the way out.
    DeviceDropped {
        /// The device.
        device: String,
        /// How many, in the window that the probes were lost in.
        packets: u64,
    },
    /// A device's administrative state and carrier.
    DeviceState {
        /// The device.
        device: String,
        /// Switched on.
        up: bool,
        /// Has a carrier.
        carrier: bool,
    },
    /// An address that should be on this host and is not.
    AddressNotHere {
        /// The address.
        address: IpAddr,
    },
    /// VNI here and there.
    Vni {
        /// This node's.
        here: u32,
        /// The peer's.
        there: u32,
    },
    /// UDP port here and there.
    Port {
        /// This node's.
        here: u16,
        /// The peer's.
        there: u16,
    },
    /// VTEP MAC as believed here, and as the peer has it.
    VtepMac {
        /// As believed here.
        believed: Mac,
        /// As the peer says.
        actual: Mac,
    },
    /// A neighbour's state; none when there is no entry.
    Neighbour {
        /// Its address.
        address: IpAddr,
        /// The device.
        device: String,
        /// The state.
        state: Option<NeighbourState>,
    },
    /// A forwarding entry that is not there.
    NoFdbEntry {
        /// The inner MAC.
        mac: Mac,
        /// The device.
        device: String,
    },
    /// A forwarding entry that leads elsewhere.
    FdbEntry {
        /// The inner MAC.
        mac: Mac,
        /// The device.
        device: String,
        /// The outer destination.
        destination: IpAddr,
    },
    /// The route that covers an address; none when none does.
    Route {
        /// The address.
        to: IpAddr,
        /// The route's destination.
        destination: Option<IpNet>,
        /// What the route does.
        route: Option<RouteKind>,
        /// Its device.
        device: Option<String>,
    },
    /// MTU of the tunnel, what the encapsulation adds, and MTU below.
    Mtu {
        /// The tunnel device.
        tunnel: u32,
        /// Bytes that the encapsulation adds.
        overhead: u32,
        /// The device below.
        underlay: u32,
    },
    /// Peers concerned, of how many.
    Peers {
        /// How many.
        count: u32,
        /// Of how many.
        of: u32,
    },
    /// Lost probes that were seen at one hop and missing at a later one.
    Counted {
        /// Which way.
        direction: Direction,
        /// Last seen.
        from: Hop,
        /// First missing.
        to: Hop,
        /// How many.
        count: u32,
    },
    /// Packets that a kernel dropped lately.
    KernelDropped {
        /// On this node; else on the peer.
        here: bool,
        /// Where and why.
        site: DropSite,
        /// How many.
        packets: u64,
    },
    /// ICMP errors that quote outer packets of this node, lately.
    OuterRefused {
        /// The quoted packets' encapsulation.
        encapsulation: Encapsulation,
        /// ICMP type.
        icmp: u8,
        /// ICMP code.
        code: u8,
        /// Who sent them.
        from: IpAddr,
        /// How many.
        count: u64,
    },
    /// Encapsulated packets of live traffic, lately.
    LiveTraffic {
        /// Their encapsulation.
        encapsulation: Encapsulation,
        /// To the peer.
        outbound: u64,
        /// From the peer.
        inbound: u64,
    },
    /// What the kernel answered when it was asked for the way of one packet.
    Lookup {
        /// Its destination.
        to: IpAddr,
        /// The device that it would come in on; none for the host's own.
        pod_device: Option<String>,
        /// The answer.
        answer: RouteAnswer,
        /// The name of the device that it would leave by.
        device: Option<String>,
    },
    /// A policy rule.
    PolicyRule(PolicyRule),
    /// A device without an address.
    NoAddress {
        /// The device.
        device: String,
    },
    /// Routes into a device that went at once and are not back.
    RoutesVanished {
        /// The device.
        device: String,
        /// How many.
        count: u32,
        /// One of them.
        example: IpNet,
    },
    /// A counter of the IP stack that grew.
    Grew {
        /// Its name, as nstat(8) prints it.
        counter: String,
        /// By how much, in the last seconds.
        by: u64,
    },
    /// Whose machine this is, where its network is known to drop an encapsulation.
    Platform {
        /// Who, as the firmware says.
        vendor: String,
        /// What it drops.
        encapsulation: Encapsulation,
    },
    /// A module of the kernel that is not loaded, and whether it could be.
    NotLoaded {
        /// Its name.
        module: String,
        /// Whether the kernel has it; none where nobody knows.
        available: Option<Module>,
    },
    /// Other nodes have a tunnel device, and this one has none.
    OthersTunnel {
        /// How many of those that say what they have: all of them.
        nodes: u32,
        /// What it speaks.
        encapsulation: Encapsulation,
    },
    /// Nodes whose tunnel devices have one address.
    TunnelAddress {
        /// The address.
        address: IpAddr,
        /// Whether this node has it.
        here: bool,
        /// Other nodes that have it.
        peers: Vec<PeerId>,
        /// That of them which routes of this node lead to; none where they lead to
        /// none of them.
        owner: Option<PeerId>,
    },
    /// Something in netfilter's tables.
    Netfilter(Filtered),
    /// A switch under /proc/sys and its value.
    Sysctl {
        /// Its name, as sysctl(8) prints it.
        name: String,
        /// Its value.
        value: String,
    },
    /// Of CNI plugins.
    Cni(CniEvidence),
    /// Of IP sets.
    Set(SetEvidence),
    /// Somebody else's program drops packets.
    ProgramDropped {
        /// The program.
        program: ForeignProgram,
        /// How many, lately.
        packets: u64,
    },
    /// A program of somebody else that drops without a trace, if it drops.
    ProgramUnseen {
        /// The program.
        program: ForeignProgram,
    },
    /// One of several programs of one kind on one hook.
    ProgramTwice {
        /// The program.
        program: ForeignProgram,
    },
    /// What drives a device.
    Nic(Nic),
    /// A table of neighbours that takes no more.
    NeighbourTable {
        /// Of IPv6; else of IPv4.
        v6: bool,
        /// Entries in it, of all namespaces.
        entries: u32,
        /// The most that there may be; none where it cannot be read.
        limit: Option<u32>,
        /// How often an entry was refused, in the last seconds.
        refused: u64,
    },
    /// Backlogs of CPUs that took no more, of the whole machine.
    Backlog {
        /// Packets dropped, in the last seconds.
        dropped: u64,
        /// Times a CPU had more to receive than it may at once, in the last seconds.
        squeezed: u64,
    },
    /// A device's queue drops packets.
    QdiscDropped {
        /// The device.
        device: String,
        /// Its queueing discipline; none where it is not known.
        qdisc: Option<String>,
        /// How many of those that are counted, lately.
        packets: u64,
        /// How many of all since it was made.
        total: u32,
    },
    /// How full the table of tracked connections is.
    ConntrackTable {
        /// Entries.
        count: u32,
        /// The most that there may be.
        max: u32,
    },
    /// What a full table of tracked connections cost.
    ConntrackDropped {
        /// Packets dropped.
        packets: u64,
        /// Entries evicted to make room.
        evicted: u64,
        /// In which time.
        seconds: u64,
    },
    /// Tracked outer flows of a tunnel.
    ConntrackTunnel {
        /// Its encapsulation.
        encapsulation: Encapsulation,
        /// How many.
        entries: u32,
        /// Of them, those that never saw a reply.
        unreplied: u32,
    },
    /// BGP sessions with the nodes of this cluster.
    BgpSessions {
        /// How many are established.
        established: u32,
        /// Of how many that ought to be.
        of: u32,
    },
    /// A BGP session that is not there.
    BgpSession {
        /// The other's address.
        peer: IpAddr,
        /// How far its connection is.
        state: SessionState,
        /// For how long, seconds.
        seconds: u64,
    },
    /// A bad answer of a service's health port.
    HealthAnswer {
        /// What was asked.
        url: String,
        /// The answer's status; none when none came.
        status: Option<u16>,
        /// For how long no good one has come, seconds.
        seconds: u64,
    },
}

impl Evidence {
    /// What this evidence puts in the place of placeholders in a remedy, beside
    /// the subject's own names: pairs of placeholder and text.
    #[must_use]
    pub fn placeholders(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Netfilter(filtered) => filtered.placeholders(),
            Self::TunnelAddress { address, .. } => vec![("{overlay}", address.to_string())],
            Self::Sysctl { name, .. } => vec![("{sysctl}", name.clone())],
            Self::Route { destination: Some(net), device, .. } => {
                let device = device.as_ref().map(|device| format!(" dev {device}"));
                vec![("{route}", format!("{net}{}", device.unwrap_or_default()))]
            }
            Self::PolicyRule(rule) => {
                let table = rule.table.map_or_else(|| "none".to_owned(), |t| t.to_string());
                vec![("{priority}", rule.priority.to_string()), ("{table}", table)]
            }
            Self::Cni(told) => told.placeholders(),
            Self::Set(told) => told.placeholders(),
            Self::ProgramDropped { program, .. }
            | Self::ProgramUnseen { program }
            | Self::ProgramTwice { program } => program::placeholders(program),
            Self::ConntrackTable { max, .. } => {
                vec![("{limit}", max.saturating_mul(2).to_string())]
            }
            Self::NeighbourTable { v6, entries, limit, .. } => {
                let limit = limit.unwrap_or(1024).max(*entries).saturating_mul(4);
                let sysctl = |name: &str, value: u32| {
                    let family = if *v6 { "ipv6" } else { "ipv4" };
                    format!("net.{family}.neigh.default.{name}={value}")
                };
                vec![(
                    "{thresholds}",
                    [
                        sysctl("gc_thresh3", limit),
                        sysctl("gc_thresh2", limit / 2),
                        sysctl("gc_thresh1", limit / 8),
                    ]
                    .join(" "),
                )]
            }
            Self::ConntrackTunnel { encapsulation: Encapsulation::Vxlan(port), .. } => {
                vec![("{match}", format!("-p udp --dport {port}"))]
            }
            Self::ConntrackTunnel { encapsulation: Encapsulation::Ipip, .. } => {
                vec![("{match}", "-p 4".to_owned())]
            }
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { stream, outbound, inbound, undetermined, of, seconds } => {
                let lost = outbound.saturating_add(*inbound).saturating_add(*undetermined);
                write!(f, "{lost} of {of} {stream} probes lost in {seconds} s")?;
                match (outbound, inbound) {
                    (0, 0) => Ok(()),
                    (out, 0) => write!(f, ", {out} never reached the peer"),
                    (0, back) => write!(f, ", {back} reached the peer and the reply was lost"),
                    (out, back) => write!(f, ", {out} on the way out, {back} on the way back"),
                }
            }
            Self::Answered { stream, count } => {
                write!(f, "{count} {stream} probes answered meanwhile")
            }
            Self::IcmpUnreachable { stream, code, from } => {
                write!(f, "ICMP unreachable (code {code}) from {from} for {stream} probes")
            }
            Self::Refused { stream, error, count } => {
                let why = match error {
                    SendError::NoRoute => "no route to host",
                    SendError::Prohibited => "prohibited by a route",
                    SendError::Blackhole => "blackhole route or source address gone",
                    SendError::Filtered => "a local firewall rule forbids it",
                    SendError::TooBig => "larger than the path's MTU",
                    SendError::Busy => "queue full",
                    SendError::Other(errno) => {
                        return write!(
                            f,
                            "the kernel refused {count} {stream} probes: errno {errno}"
                        );
                    }
                };
                write!(f, "the kernel refused {count} {stream} probes: {why}")
            }
            Self::DeviceDropped { device, packets } => {
                write!(f, "{device} dropped {packets} outgoing packets meanwhile")
            }
            Self::DeviceState { device, up, carrier } => {
                let state = if *up { "up" } else { "down" };
                let wire = if *carrier { "with" } else { "without" };
                write!(f, "{device} is {state}, {wire} carrier")
            }
            Self::AddressNotHere { address } => write!(f, "{address} is not on this host"),
            Self::Vni { here, there } => write!(f, "VNI {here} here, {there} there"),
            Self::Port { here, there } => write!(f, "UDP port {here} here, {there} there"),
            Self::VtepMac { believed, actual } => {
                write!(f, "VTEP MAC is believed to be {believed}, the peer has {actual}")
            }
            Self::Neighbour { address, device, state: None } => {
                write!(f, "no neighbour entry for {address} on {device}")
            }
            Self::Neighbour { address, device, state: Some(state) } => {
                write!(f, "neighbour {address} on {device} is {state:?}")
            }
            Self::NoFdbEntry { mac, device } => {
                write!(f, "no forwarding entry for {mac} on {device}")
            }
            Self::FdbEntry { mac, device, destination } => {
                write!(f, "the forwarding entry for {mac} on {device} leads to {destination}")
            }
            Self::Route { to, destination: None, .. } => write!(f, "no route covers {to}"),
            Self::Route { to, destination: Some(net), route, device } => {
                let kind = route.map_or_else(|| "a".to_owned(), |kind| format!("{kind:?}"));
                write!(f, "{to} is covered by {} route {net}", kind.to_lowercase())?;
                device.as_ref().map_or(Ok(()), |device| write!(f, " via {device}"))
            }
            Self::Mtu { tunnel, overhead, underlay } => write!(
                f,
                "tunnel MTU {tunnel} + {overhead} bytes of encapsulation > underlay MTU {underlay}"
            ),
            Self::Peers { count, of } => write!(f, "{count} of {of} peers"),
            Self::Counted { direction, from, to, count } => write!(
                f,
                "{count} lost probes ({}) were seen at {from} and not at {to}",
                direction.slug()
            ),
            Self::KernelDropped { here, site, packets } => {
                let whose = if *here { "this node's" } else { "the peer's" };
                write!(f, "{whose} kernel dropped {packets} packets lately: {site}")
            }
            Self::OuterRefused { encapsulation, icmp, code, from, count } => write!(
                f,
                "{count} ICMP errors (type {icmp}, code {code}) from {from} for {encapsulation} \
                 packets in {LATELY_SECONDS} s"
            ),
            Self::LiveTraffic { encapsulation, outbound, inbound } => write!(
                f,
                "live {encapsulation} traffic: {outbound} packets to the peer and {inbound} from \
                 it in {LATELY_SECONDS} s"
            ),
            Self::Lookup { to, pod_device, answer, device } => {
                let whose = match pod_device {
                    Some(device) => format!("a pod's packet that comes in on {device}"),
                    None => "the host's own packet".to_owned(),
                };
                match answer {
                    RouteAnswer::Refused { errno } => {
                        write!(f, "the kernel refuses {whose} to {to}: errno {errno}")
                    }
                    RouteAnswer::Found(found) => {
                        write!(f, "the kernel sends {whose} to {to} by table {}", found.table)?;
                        if let Some(device) = device {
                            write!(f, " to {device}")?;
                        }
                        if let Some(gateway) = found.gateway {
                            write!(f, " via {gateway}")?;
                        }
                        found.source.map_or(Ok(()), |source| write!(f, " from {source}"))
                    }
                }
            }
            Self::PolicyRule(rule) => write!(f, "policy rule {rule}"),
            Self::NoAddress { device } => write!(f, "{device} has no address"),
            Self::RoutesVanished { device, count, example } => write!(
                f,
                "{count} routes into {device} went at once and are not back, {example} among them"
            ),
            Self::Grew { counter, by } => write!(f, "{counter} grew by {by} in the last seconds"),
            Self::Platform { vendor, encapsulation } => write!(
                f,
                "this machine is of {vendor}, whose firewall or fabric has no rule that lets \
                 {encapsulation} pass: use VXLAN"
            ),
            Self::OthersTunnel { nodes, encapsulation } => write!(
                f,
                "all {nodes} other nodes that say so have a tunnel device for {encapsulation}, and \
                 this one has no tunnel device"
            ),
            Self::NotLoaded { module, available } => {
                let could = match available {
                    None => "",
                    Some(Module::BuiltIn) => ", and is said to be part of the kernel",
                    Some(Module::Loadable) => ", and can be loaded",
                    Some(Module::Absent) => ", and this kernel does not have it",
                };
                write!(f, "the module {module} is not loaded{could}")
            }
            Self::TunnelAddress { address, here, peers, owner } => {
                write!(f, "{address} is the tunnel address of ")?;
                let here = here.then(|| "this node".to_owned());
                let nodes = here.into_iter().chain(peers.iter().map(PeerId::to_string));
                f.write_str(&nodes.collect::<Vec<_>>().join(" and "))?;
                owner.map_or(Ok(()), |owner| write!(f, ", and routes lead it to {owner}"))
            }
            Self::Netfilter(filtered) => filtered.fmt(f),
            Self::Sysctl { name, value } => write!(f, "{name} = {value}"),
            Self::Cni(told) => fmt::Display::fmt(told, f),
            Self::Set(told) => fmt::Display::fmt(told, f),
            Self::ProgramDropped { program, packets } => {
                write!(f, "{program} dropped {packets} packets in {LATELY_SECONDS} s")?;
                // Of others the name has it.
                program.id.filter(|_| program.is_xdp()).map_or(Ok(()), |id| write!(f, ", id {id}"))
            }
            Self::ProgramUnseen { program } => {
                write!(f, "{program}")?;
                program.id.map_or(Ok(()), |id| write!(f, " id {id}"))?;
                f.write_str(
                    " takes what comes in before anything counts it: it may be what drops this, \
                     and no counter would tell",
                )
            }
            Self::ProgramTwice { program } => write!(f, "{program}"),
            Self::Nic(nic) => nic.fmt(f),
            Self::NeighbourTable { v6, entries, limit, refused } => {
                let family = if *v6 { "IPv6" } else { "IPv4" };
                write!(f, "the {family} neighbour table has {entries} entries")?;
                if let Some(limit) = limit {
                    write!(f, " of at most {limit} (gc_thresh3)")?;
                }
                write!(f, " and refused {refused} in the last seconds")
            }
            Self::Backlog { dropped, squeezed } => write!(
                f,
                "full backlogs of CPUs dropped {dropped} packets in the last seconds, and \
                 {squeezed} times a CPU could not receive all at once"
            ),
            Self::QdiscDropped { device, qdisc, packets, total } => {
                let qdisc = qdisc.as_deref().unwrap_or("the queue");
                write!(
                    f,
                    "{qdisc} of {device} dropped {packets} packets to other nodes in \
                     {LATELY_SECONDS} s, {total} of all since it was made"
                )
            }
            Self::ConntrackTable { count, max } => {
                let percent = u64::from(*count) * 100 / u64::from(*max).max(1);
                write!(f, "{count} of {max} connections are tracked ({percent} %)")
            }
            Self::ConntrackDropped { packets, evicted, seconds } => write!(
                f,
                "connection tracking dropped {packets} packets and evicted {evicted} entries in \
                 {seconds} s"
            ),
            Self::ConntrackTunnel { encapsulation, entries, unreplied } => write!(
                f,
                "{entries} tracked connections are {encapsulation} tunnels, {unreplied} of them \
                 without a reply"
            ),
            Self::BgpSessions { established, of } => {
                write!(f, "{established} of {of} BGP sessions established")
            }
            Self::BgpSession { peer, state, seconds } => {
                write!(f, "none with {peer}: {state} for {seconds} s")
            }
            Self::HealthAnswer { url, status: Some(status), seconds } => {
                write!(f, "{url} answers {status}, for {seconds} s now")
            }
            Self::HealthAnswer { url, status: None, seconds } => {
                write!(f, "{url} does not answer, for {seconds} s now, though something listens")
            }
        }
    }
}

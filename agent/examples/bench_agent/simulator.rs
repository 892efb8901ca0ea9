//! Simulates the other nodes of a large mesh, so that one real agent can be
//! measured against them.
//!
//! Run inside a network namespace of its own, as root, with ip(8), bridge(8)
//! and nft(8), after the veth pair to the agent's namespace is there and up:
//!
//! ```text
//! bench_agent_simulator --device eth0 --agent-underlay 10.99.0.1 \
//!     --agent-overlay 10.127.0.0 --agent-mac 02:00:00:00:00:01 [--peers 1000] [--rate 64]
//! ```
//!
//! Peer `i` (1 to N) has the underlay address 10.100.0.0 + i, the overlay
//! address 10.128.0.0 + 256 i, the VTEP MAC 02:10:00:00:00:00 + i and the pods
//! 10.128.0.0 + 256 i / 24: flannel's shape. The simulator makes them exist
//! (two local routes, one VXLAN device; no addresses, so that start takes no
//! time), answers probes of every stream as each of them, and sends the agent
//! `--rate` requests a second in their names, as the plan of a large mesh
//! would. It then prints one line, `ready: N peers`, and runs until it is
//! killed. ICMP echoes are answered by the kernel.
//!
//! With `--print-agent-setup` it prints the shell commands that make the
//! agent's side fit and exits: run them in the agent's namespace, where
//! `--device` is its end of the veth pair. `--simulator-underlay` is the
//! address of the simulator's end.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use overlaywatch::clock;
use overlaywatch::probe::wire::{self, Message, READ_BYTES, Request, Status};
use overlaywatch::probe::{DEFAULT_PORT, random_epoch};
use overlaywatch_core::ladder::Window;
use overlaywatch_core::model::{Encapsulation, Mac};
use overlaywatch_core::probing::{OwnStatus, Stream, TunnelAdvert};

const VXLAN: Encapsulation = Encapsulation::Vxlan(8472);
const SMALL: Stream = Stream::Small(VXLAN);
const STREAMS: [Stream; 3] = [SMALL, Stream::Full(VXLAN), Stream::Underlay];
/// MTU of the overlay over an underlay of 1500 bytes.
const OVERLAY_MTU: u16 = 1_450;
/// IP and UDP headers.
const HEADERS: usize = 28;
/// Peers whose addresses fit into the two ranges.
const MOST_PEERS: u32 = 16_383;

/// Simulates the other nodes of a mesh.
#[derive(Debug, Parser)]
struct Options {
    /// The veth device in this namespace.
    #[arg(long)]
    device: String,
    /// The agent's underlay address.
    #[arg(long)]
    agent_underlay: Ipv4Addr,
    /// The agent's overlay address, outside 10.128.0.0/10.
    #[arg(long)]
    agent_overlay: Ipv4Addr,
    /// The MAC of the agent's VXLAN device.
    #[arg(long)]
    agent_mac: Mac,
    /// How many peers to simulate.
    #[arg(long, default_value_t = 1_000)]
    peers: u32,
    /// Requests to the agent per second, in the peers' names.
    #[arg(long, default_value_t = 64)]
    rate: u32,
    /// Print the commands for the agent's namespace and exit.
    #[arg(long, requires = "simulator_underlay")]
    print_agent_setup: bool,
    /// The address of this end of the veth pair.
    #[arg(long)]
    simulator_underlay: Option<Ipv4Addr>,
}

fn underlay(peer: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 0).to_bits() + peer)
}

fn overlay(peer: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + peer * 256)
}

fn mac(peer: u32) -> Mac {
    let [_, _, high, low] = peer.to_be_bytes();
    Mac([2, 0x10, 0, 0, high, low])
}

/// The peer that an address belongs to.
fn peer_of(address: Ipv4Addr) -> Option<usize> {
    let bits = address.to_bits();
    let underlay = bits.checked_sub(underlay(0).to_bits()).filter(|&peer| peer <= MOST_PEERS);
    let overlay = bits.checked_sub(overlay(0).to_bits()).map(|offset| offset / 256);
    underlay.or(overlay).and_then(|peer| usize::try_from(peer).ok())
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.rate > 0, "--rate: at least 1");
    ensure!((1..=MOST_PEERS).contains(&options.peers), "--peers: 1 to {MOST_PEERS}");
    if options.print_agent_setup {
        let gateway = options.simulator_underlay.context("--simulator-underlay is missing")?;
        print!("{}", agent_setup(&options, gateway));
        return Ok(());
    }
    run_commands(&simulator_setup(&options))?;
    let peers = (0..=options.peers).map(|peer| Peer {
        epoch: random_epoch(),
        windows: Vec::new(),
        own: own_status(peer),
    });
    let peers: Vec<Peer> = peers.collect();
    let epochs: Vec<u64> = peers.iter().map(|peer| peer.epoch).collect();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT))?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    let asking = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let listening = asking.try_clone()?;
    // Replies are of no interest, but a full socket would be no peer's.
    thread::spawn(move || while listening.recv(&mut [0; READ_BYTES]).is_ok() {});
    writeln!(io::stdout(), "ready: {} peers", options.peers)?;
    thread::spawn(move || {
        // Without peers that ask, a measurement would be wrong.
        if let Err(error) = ask(&options, &epochs, &asking) {
            eprintln!("cannot ask the agent: {error:#}");
            std::process::exit(1);
        }
    });
    answer(&socket, peers)
}

/// What makes the simulated peers exist in this namespace.
fn simulator_setup(options: &Options) -> String {
    let Options { device, agent_underlay, agent_overlay, agent_mac, .. } = options;
    format!(
        "ip link set lo up
         ip route add local 10.100.0.0/18 dev lo
         ip route add local 10.128.0.0/10 dev lo
         ip link add flannel.1 type vxlan id 1 dev {device} dstport 8472 nolearning
         ip link set flannel.1 mtu {OVERLAY_MTU} up
         ip neigh add {agent_overlay} lladdr {agent_mac} dev flannel.1 nud permanent
         bridge fdb add {agent_mac} dev flannel.1 dst {agent_underlay}
         ip route add {agent_overlay}/32 dev flannel.1
         # Inner packets come to the MAC of a peer, not to that of the one device.
         nft 'add table netdev mesh; add chain netdev mesh in {{
             type filter hook ingress device flannel.1 priority 0; }};
             add rule netdev mesh in meta pkttype set unicast'\n"
    )
}

/// What makes the agent's node one of the mesh.
fn agent_setup(options: &Options, gateway: Ipv4Addr) -> String {
    let Options { device, agent_underlay, agent_overlay, agent_mac, peers, .. } = options;
    let mut text = format!(
        "set -e
ip route add 10.100.0.0/18 via {gateway} dev {device}
ip link add flannel.1 address {agent_mac} type vxlan id 1 dev {device} local {agent_underlay} \
         dstport 8472 nolearning
ip link set flannel.1 mtu {OVERLAY_MTU} up
ip addr add {agent_overlay}/32 dev flannel.1\n"
    );
    let each = |line: &dyn Fn(u32) -> String| (1..=*peers).map(line).collect::<String>();
    let neighbours = each(&|peer| {
        let (overlay, mac) = (overlay(peer), mac(peer));
        format!(
            "neigh add {overlay} lladdr {mac} dev flannel.1 nud permanent\n\
             route add {overlay}/24 via {overlay} dev flannel.1 onlink\n"
        )
    });
    let entries =
        each(&|peer| format!("fdb add {} dev flannel.1 dst {}\n", mac(peer), underlay(peer)));
    text.push_str(&format!(
        "ip -batch - <<END\n{neighbours}END\nbridge -batch - <<END\n{entries}END\n"
    ));
    text
}

fn run_commands(text: &str) -> Result<()> {
    let status = Command::new("sh").args(["-ec", text]).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "the namespace could not be set up: {status}");
    Ok(())
}

/// A simulated peer as a responder.
struct Peer {
    epoch: u64,
    windows: Vec<(Stream, Window)>,
    own: OwnStatus,
}

/// Answers every request from the address that it came to.
fn answer(socket: &UdpSocket, mut peers: Vec<Peer>) -> Result<()> {
    let mut reply = Vec::new();
    let mut packet = [0; 2 * READ_BYTES];
    let mut control = cmsg_space!(libc::in_pktinfo);
    loop {
        let mut vectors = [IoSliceMut::new(&mut packet)];
        let message = recvmsg::<SockaddrIn>(
            socket.as_raw_fd(),
            &mut vectors,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let received = Instant::now();
        let (length, from) = (message.bytes, message.address);
        let to = message.cmsgs()?.find_map(|note| match note {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_spec_dst),
            _ => None,
        });
        let (Some(from), Some(to)) = (from, to) else { continue };
        let address = Ipv4Addr::from_bits(u32::from_be(to.s_addr));
        let read = packet.get(..length).unwrap_or_default();
        let Ok(Message::Request(request)) = wire::decode(read, length) else { continue };
        let Some(peer) = peer_of(address).and_then(|peer| peers.get_mut(peer)) else { continue };
        let window = peer.window(request.stream);
        window.record(request.seq);
        let count = window.count;
        let status = (request.stream == Stream::Underlay).then_some(Status {
            epoch: peer.epoch,
            windows: &peer.windows,
            own: &peer.own,
            climbs: &[],
            drops: &[],
        });
        let dwell_ns = u64::try_from(received.elapsed().as_nanos()).unwrap_or(0);
        wire::encode_reply(&request, dwell_ns, count, status, length, &mut reply);
        send(socket, &reply, to, from)?;
    }
}

impl Peer {
    fn window(&mut self, stream: Stream) -> &mut Window {
        let known = self.windows.iter().position(|(known, _)| *known == stream);
        let position = known.unwrap_or_else(|| {
            self.windows.push((stream, Window::default()));
            self.windows.len() - 1
        });
        &mut self.windows[position].1
    }
}

/// What a peer says of itself.
fn own_status(peer: u32) -> OwnStatus {
    let tunnel = TunnelAdvert {
        encapsulation: VXLAN,
        vni: Some(1),
        up: true,
        address: Some(IpAddr::V4(overlay(peer))),
        mac: Some(mac(peer)),
        mtu: u32::from(OVERLAY_MTU),
    };
    OwnStatus { node: format!("node-{peer}").parse().ok(), tunnels: vec![tunnel] }
}

fn send(
    socket: &UdpSocket,
    payload: &[u8],
    from: libc::in_addr,
    to: SockaddrIn,
) -> nix::Result<()> {
    let unspecified = libc::in_addr { s_addr: 0 };
    let source = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: unspecified };
    let control = [ControlMessage::Ipv4PacketInfo(&source)];
    let vectors = [IoSlice::new(payload)];
    sendmsg(socket.as_raw_fd(), &vectors, &control, MsgFlags::empty(), Some(&to)).map(drop)
}

/// Asks the agent as its peers would: in 44 turns a second, at the default
/// rate, 44 small probes, 16 of them with an underlay one and 4 of those with
/// a full-sized one. That is how the plan spends 64 probes in a large mesh.
fn ask(options: &Options, epochs: &[u64], socket: &UdpSocket) -> Result<()> {
    // The latest sequence number of each peer and stream.
    let mut latest = vec![STREAMS.map(|stream| (stream, 0_u32)); epochs.len()];
    let started = Instant::now();
    let mut sent = 0_u32;
    let mut packet = Vec::new();
    for turn in 0_u32.. {
        let streams = match turn % 11 {
            0 => &STREAMS[..],
            3 | 6 | 9 => &[SMALL, Stream::Underlay],
            _ => &[SMALL],
        };
        let peer = 1 + turn % options.peers;
        let index = usize::try_from(peer)?;
        let latest = &mut latest[index];
        for &stream in streams {
            let Some((_, seq)) = latest.iter_mut().find(|(known, _)| *known == stream) else {
                continue;
            };
            *seq += 1;
            let seq = *seq;
            let told = if stream == Stream::Underlay { latest.to_vec() } else { Vec::new() };
            let sent_at = clock::mono().0;
            let request = Request {
                stream,
                seq,
                epoch: epochs[index],
                sent_at,
                sent: told,
                asks_hops: false,
            };
            let (from, to, ip_bytes) = match stream {
                Stream::Underlay => (underlay(peer), options.agent_underlay, 560),
                Stream::Full(_) => (overlay(peer), options.agent_overlay, OVERLAY_MTU),
                _ => (overlay(peer), options.agent_overlay, 128),
            };
            wire::encode_request(&request, usize::from(ip_bytes) - HEADERS, &mut packet);
            let to = SockaddrIn::from(SocketAddrV4::new(to, DEFAULT_PORT));
            send(socket, &packet, libc::in_addr { s_addr: u32::from(from).to_be() }, to)?;
            sent += 1;
        }
        let due = Duration::from_secs_f64(f64::from(sent) / f64::from(options.rate));
        thread::sleep(due.saturating_sub(started.elapsed()));
    }
    Ok(())
}

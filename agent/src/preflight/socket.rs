//! The sockets: one that sends, three that listen.
//!
//! What arrives is seen twice. A packet socket sees it at the NIC, before any
//! of the host's iptables or nftables rules but those of the ingress hook. Raw
//! sockets get their copy in `ip_local_deliver_finish` (net/ipv4/ip_input.c) and
//! `ip6_protocol_deliver_rcu` (net/ipv6/ip6_input.c), after the input hook, and
//! also where a tunnel device has the port or the protocol; so a packet that
//! only the first one sees was taken by the host's own filters. While a raw
//! socket has a protocol, the kernel complains of no packet of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, recv};
use overlaywatch_core::preflight::packet::{self, MARK_BYTES, Mark};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::PreflightError;

/// The longest IP packet.
const LONGEST_BYTES: usize = 65_535;
/// Room for a run of jumbo frames, if the kernel grants it; it is drained all the while.
const ROOM_BYTES: usize = 1 << 20;

/// Sends packets as they are, from the IP header on.
#[derive(Debug)]
pub(super) struct Mouth(Socket);

/// Hears marked packets.
#[derive(Debug)]
pub(super) struct Ear {
    at_nic: Socket,
    delivered: [(Socket, u8); 2],
    is_ipv6: bool,
    buffer: Vec<u8>,
}

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At a NIC.
    Nic,
    /// Where a tunnel's socket would see it.
    Delivered,
}

/// Both, to talk to a peer of this family.
pub(super) fn open(peer: IpAddr) -> Result<(Ear, Mouth), PreflightError> {
    Ok((Ear::open(peer.is_ipv6())?, Mouth::open(peer.is_ipv6())?))
}

const fn domain(is_ipv6: bool) -> Domain {
    if is_ipv6 { Domain::IPV6 } else { Domain::IPV4 }
}

impl Mouth {
    fn open(is_ipv6: bool) -> Result<Self, PreflightError> {
        // IPPROTO_RAW: the IP header is the caller's (raw(7); net/ipv6/af_inet6.c, inet6_create).
        Socket::new(domain(is_ipv6), Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
            .and_then(|socket| {
                socket.set_nonblocking(true)?;
                ignore_path_mtu(&socket, is_ipv6)?;
                Ok(Self(socket))
            })
            .map_err(|source| PreflightError::Socket { what: "a raw socket", source })
    }

    /// Sends a packet on the way to `hop`, whatever its header says: plain
    /// packets between pods go to the node, as a route `via` it would send them.
    pub(super) fn send(&self, packet: &[u8], hop: IpAddr) -> io::Result<()> {
        self.0.send_to(packet, &SockAddr::from(SocketAddr::new(hop, 0))).map(drop)
    }
}

impl Ear {
    fn open(is_ipv6: bool) -> Result<Self, PreflightError> {
        let raw = |protocol: i32| {
            let socket = Socket::new(domain(is_ipv6), Type::RAW, Some(Protocol::from(protocol)));
            let socket = socket.and_then(listening);
            let protocol = u8::try_from(protocol).unwrap_or_default();
            socket
                .map(|socket| (socket, protocol))
                .map_err(|source| PreflightError::Socket { what: "a raw socket", source })
        };
        // Received packets only: those that are sent go to ETH_P_ALL (packet(7)).
        let (ethertype, in_ip) = if is_ipv6 {
            (libc::ETH_P_IPV6, libc::IPPROTO_IPV6)
        } else {
            (libc::ETH_P_IP, libc::IPPROTO_IPIP)
        };
        let ethertype = i32::from(u16::try_from(ethertype).unwrap_or_default().to_be());
        let at_nic = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ethertype)))
            .and_then(listening)
            .map_err(|source| PreflightError::Socket { what: "a packet socket", source })?;
        let delivered = [raw(libc::IPPROTO_UDP)?, raw(in_ip)?];
        Ok(Self { at_nic, delivered, is_ipv6, buffer: vec![0; LONGEST_BYTES] })
    }

    /// Waits until something is there, at most for so long.
    pub(super) fn wait(&self, milliseconds: u64) {
        let [(udp, _), (ipip, _)] = &self.delivered;
        let mut waiting =
            [&self.at_nic, udp, ipip].map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
        // A signal only makes it shorter.
        let _ = poll(&mut waiting, timeout);
    }

    /// Takes what is there.
    pub(super) fn drain(&mut self, mut take: impl FnMut(Place, Mark)) {
        // Of IPv6 a raw socket gives what is behind the header.
        let headless = self.is_ipv6;
        let delivered = self.delivered.iter().map(|(socket, protocol)| {
            (socket, Place::Delivered, Some(*protocol).filter(|_| headless))
        });
        for (socket, place, protocol) in
            std::iter::once((&self.at_nic, Place::Nic, None)).chain(delivered)
        {
            loop {
                match recv(socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => {
                        let bytes = self.buffer.get(..length).unwrap_or_default();
                        let mark = match protocol {
                            None => packet::read(bytes),
                            Some(protocol) => packet::read_payload(protocol, bytes),
                        };
                        if let Some(mark) = mark {
                            take(place, mark);
                        }
                    }
                    Err(Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// Lets through only what has a mark, so that a busy node's other packets cost
/// one look each, and nothing is copied of them.
fn listening(socket: Socket) -> io::Result<Socket> {
    let code = |code: u32| u16::try_from(code).map_err(io::Error::other);
    let mark_bytes = u32::try_from(MARK_BYTES).map_err(io::Error::other)?;
    let load_length = code(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN)?;
    let subtract = code(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K)?;
    let to_index = code(libc::BPF_MISC | libc::BPF_TAX)?;
    let load = code(libc::BPF_LD | libc::BPF_W | libc::BPF_IND)?;
    let equals = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K)?;
    let end = code(libc::BPF_RET | libc::BPF_K)?;
    // A load beyond the packet ends the program and lets nothing through.
    socket.attach_filter(&[
        SockFilter::new(load_length, 0, 0, 0),
        SockFilter::new(subtract, 0, 0, mark_bytes),
        SockFilter::new(to_index, 0, 0, 0),
        SockFilter::new(load, 0, 0, 0),
        SockFilter::new(equals, 0, 1, u32::from_be_bytes(packet::MAGIC)),
        SockFilter::new(end, 0, 0, u32::MAX),
        SockFilter::new(end, 0, 0, 0),
    ])?;
    let _ = socket.set_recv_buffer_size(ROOM_BYTES);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sends up to the device's MTU whatever the kernel learnt of the path (ip(7),
/// IP_PMTUDISC_PROBE; the same of ipv6(7)): else what one packet's ICMP error
/// taught it would keep the following ones of all methods at home.
fn ignore_path_mtu(socket: &Socket, is_ipv6: bool) -> io::Result<()> {
    let (level, option, value): (_, _, libc::c_int) = if is_ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    };
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: `value` is readable for `length` bytes, and setsockopt(2) only reads it.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The MTU of the device that has this address.
pub(super) fn mtu_of(address: IpAddr) -> Result<u16, PreflightError> {
    let failed = |source| PreflightError::Mtu { address, source };
    let devices = getifaddrs().map_err(|error| failed(error.into()))?;
    let has_it =
        |device: &InterfaceAddress| device.address.as_ref().and_then(ip_of) == Some(address);
    let mut devices = devices.filter(has_it).map(|device| device.interface_name);
    let name = devices.next().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let socket = Socket::new(domain(address.is_ipv6()), Type::DGRAM, None).map_err(failed)?;
    // SAFETY: a plain C structure for which zeros are valid.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    // One byte stays zero, as a name ends.
    let places = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
    for (place, byte) in places.zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: SIOCGIFMTU reads the name in `request`, which ends with a zero,
    // and writes the MTU into it (netdevice(7)).
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &mut request) };
    if done != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the kernel wrote this field.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    // A loopback's is larger than any packet; IP has no larger one.
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|of| IpAddr::V4(of.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|of| IpAddr::V6(of.ip())))
}

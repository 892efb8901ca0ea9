//! UDP and ICMP sockets as probing needs them: source address per packet,
//! kernel timestamps, drop counters and the error queue.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use libc::{c_int, socklen_t};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg};
use socket2::{Domain, Protocol, SockAddr, Type};

use super::wire::READ_BYTES;

/// Packets that one system call reads.
const BATCH: u32 = 32;
/// Room for a packet's control messages: timestamp (32 bytes with its header),
/// IPV6_PKTINFO (40), SO_RXQ_OVFL (24), IPV6_RECVERR with the offender (64).
const CONTROL_BYTES: usize = 192;
/// The longest address that is read, that of IPv6 (`sockaddr_in6`).
const NAME_BYTES: socklen_t = 28;

/// How packets of a socket treat path MTUs (ip(7), IP_MTU_DISCOVER).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathMtu {
    /// May be fragmented on the way.
    Fragment,
    /// DF set, whatever the kernel believes of the path.
    Probe,
}

/// A datagram socket that does not block.
#[derive(Debug)]
pub(super) struct Socket {
    inner: socket2::Socket,
    /// SO_RXQ_OVFL's value with the last packet.
    dropped: u32,
}

impl Socket {
    /// A UDP socket bound to the wildcard address of one family.
    pub(super) fn udp(domain: Domain, port: u16) -> io::Result<Self> {
        let socket = Self::new(domain, Type::DGRAM, Protocol::UDP)?;
        let wildcard: IpAddr = if domain == Domain::IPV6 {
            socket.inner.set_only_v6(true)?;
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            socket.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            Ipv4Addr::UNSPECIFIED.into()
        };
        socket.inner.bind(&SockAddr::from(SocketAddr::new(wildcard, port)))?;
        Ok(socket)
    }

    /// A socket with kernel timestamps and drop counts.
    pub(super) fn new(domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Self> {
        let inner = socket2::Socket::new(domain, kind, Some(protocol))?;
        inner.set_nonblocking(true)?;
        let socket = Self { inner, dropped: 0 };
        socket.set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
        Ok(socket)
    }

    /// Keeps ICMP errors that quote packets of this socket in its error queue.
    pub(super) fn keep_errors(&self, domain: Domain) -> io::Result<()> {
        if domain == Domain::IPV6 {
            self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)
        } else {
            self.set(libc::IPPROTO_IP, libc::IP_RECVERR, 1)
        }
    }

    /// Asks for a receive buffer of this size. The kernel grants up to
    /// net.core.rmem_max, and drops what does not fit count as such.
    pub(super) fn make_room(&self, bytes: usize) {
        let _ = self.inner.set_recv_buffer_size(bytes);
    }

    /// Sets how packets treat path MTUs.
    pub(super) fn set_path_mtu(&self, domain: Domain, path_mtu: PathMtu) -> io::Result<()> {
        let v6 = domain == Domain::IPV6;
        let value = match (path_mtu, v6) {
            (PathMtu::Fragment, false) => libc::IP_PMTUDISC_DONT,
            (PathMtu::Fragment, true) => libc::IPV6_PMTUDISC_DONT,
            (PathMtu::Probe, false) => libc::IP_PMTUDISC_PROBE,
            (PathMtu::Probe, true) => libc::IPV6_PMTUDISC_PROBE,
        };
        if v6 {
            self.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
        } else {
            self.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
        }
    }

    fn set(&self, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
        self.set_bytes(level, name, &value.to_ne_bytes())
    }

    /// Sets an option that has no safe wrapper.
    pub(super) fn set_bytes(&self, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
        let length = socklen_t::try_from(value.len()).map_err(io::Error::other)?;
        // SAFETY: `value` is readable for `length` bytes, and setsockopt(2) only reads it.
        let done = unsafe {
            libc::setsockopt(self.as_raw_fd(), level, name, value.as_ptr().cast(), length)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends one packet, from `source` where one is given.
    pub(super) fn send(
        &self,
        payload: &[u8],
        target: SocketAddr,
        source: Option<IpAddr>,
    ) -> nix::Result<()> {
        let payload = [io::IoSlice::new(payload)];
        let (fd, flags) = (self.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        match (target, source) {
            (SocketAddr::V4(target), Some(IpAddr::V4(source))) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(source).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(fd, &payload, &control, flags, Some(&SockaddrIn::from(target)))
            }
            (SocketAddr::V6(target), Some(IpAddr::V6(source))) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: 0,
                };
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(fd, &payload, &control, flags, Some(&SockaddrIn6::from(target)))
            }
            (SocketAddr::V4(target), _) => {
                sendmsg(fd, &payload, &[], flags, Some(&SockaddrIn::from(target)))
            }
            (SocketAddr::V6(target), _) => {
                sendmsg(fd, &payload, &[], flags, Some(&SockaddrIn6::from(target)))
            }
        }
        .map(drop)
    }

    /// Notes the drop counter that came with a packet; the increase since the last one.
    pub(super) fn note_dropped(&mut self, total: u32) -> u32 {
        total.wrapping_sub(std::mem::replace(&mut self.dropped, total))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

/// Where packets are read to, many at a time.
#[derive(Debug)]
pub(super) struct Inbox {
    slots: Vec<Slot>,
}

/// One packet as recvmmsg(2) left it. The control messages stand where
/// `cmsghdr` is aligned.
#[derive(Clone, Debug)]
#[repr(C, align(8))]
struct Slot {
    control: [u8; CONTROL_BYTES],
    name: [u8; NAME_BYTES as usize],
    bytes: [u8; READ_BYTES],
    name_length: usize,
    control_length: usize,
    length: usize,
}

/// A packet that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram<'a> {
    /// Who sent it; in the error queue, whither the quoted packet went.
    pub(super) from: SocketAddr,
    /// Its beginning, at most [`READ_BYTES`].
    pub(super) bytes: &'a [u8],
    /// Its length.
    pub(super) length: usize,
    /// The kernel's control messages.
    pub(super) note: Note,
}

/// What the kernel noted with a packet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Note {
    /// When the kernel received it, nanoseconds of the wall clock.
    pub(super) received_ns: Option<u64>,
    /// The local address that it was sent to.
    pub(super) to: Option<IpAddr>,
    /// Packets that the socket dropped since it was opened, modulo 2^32.
    pub(super) dropped: u32,
    /// Error queue: what went wrong.
    pub(super) error: Option<NetworkError>,
}

/// An entry of the error queue (`sock_extended_err`, ip(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NetworkError {
    /// SO_EE_ORIGIN_*.
    pub(super) origin: u8,
    /// ICMP type.
    pub(super) kind: u8,
    /// ICMP code.
    pub(super) code: u8,
    /// Who sent the ICMP error.
    pub(super) offender: Option<IpAddr>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let slot = Slot {
            control: [0; CONTROL_BYTES],
            name: [0; NAME_BYTES as usize],
            bytes: [0; READ_BYTES],
            name_length: 0,
            control_length: 0,
            length: 0,
        };
        Self { slots: vec![slot; BATCH as usize] }
    }

    /// Reads what is waiting, at most one batch; whether there may be more.
    pub(super) fn read(&mut self, socket: &Socket) -> io::Result<(usize, bool)> {
        // The true length of what does not fit is wanted, not its end.
        self.receive(socket, libc::MSG_TRUNC)
    }

    /// Reads the error queue, at most one batch; whether there may be more.
    pub(super) fn read_errors(&mut self, socket: &Socket) -> io::Result<(usize, bool)> {
        self.receive(socket, libc::MSG_ERRQUEUE)
    }

    fn receive(&mut self, socket: &Socket, flags: c_int) -> io::Result<(usize, bool)> {
        // SAFETY: these are plain C structures for which zeros are valid.
        let (mut headers, mut vectors) = unsafe {
            (
                std::mem::zeroed::<[libc::mmsghdr; BATCH as usize]>(),
                std::mem::zeroed::<[libc::iovec; BATCH as usize]>(),
            )
        };
        for ((header, vector), slot) in
            headers.iter_mut().zip(&mut vectors).zip(self.slots.iter_mut())
        {
            vector.iov_base = slot.bytes.as_mut_ptr().cast();
            vector.iov_len = READ_BYTES;
            let header = &mut header.msg_hdr;
            header.msg_name = slot.name.as_mut_ptr().cast();
            header.msg_namelen = NAME_BYTES;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = slot.control.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES as _;
        }
        // SAFETY: every header points to a slot of its own and to its length;
        // slots and vectors outlive the call and nobody else refers to them.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH,
                (flags | libc::MSG_DONTWAIT) as _,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (slot, header) in self.slots.iter_mut().zip(&headers).take(count) {
            slot.name_length = header.msg_hdr.msg_namelen as usize;
            slot.control_length = header.msg_hdr.msg_controllen as _;
            slot.length = header.msg_len as usize;
        }
        Ok((count, count == BATCH as usize))
    }

    /// A packet of the last batch.
    pub(super) fn packet(&self, position: usize) -> Option<Datagram<'_>> {
        let slot = self.slots.get(position)?;
        Some(Datagram {
            // An entry of the error queue may come without an address.
            from: socket_address(slot.name.get(..slot.name_length)?)?,
            bytes: slot.bytes.get(..slot.length.min(READ_BYTES))?,
            length: slot.length,
            note: note_of(slot.control.get(..slot.control_length)?),
        })
    }
}

/// Bytes of a `cmsghdr`: its length, level and type.
const CONTROL_HEAD: usize = size_of::<usize>() + 8;

fn note_of(mut control: &[u8]) -> Note {
    let mut note = Note::default();
    while let Some(length) = number(control, 0).map(usize::from_ne_bytes) {
        let Some(data) = control.get(CONTROL_HEAD..length) else { break };
        let level = number(control, size_of::<usize>()).map_or(0, c_int::from_ne_bytes);
        let kind = number(control, size_of::<usize>() + 4).map_or(0, c_int::from_ne_bytes);
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS) => note.received_ns = timestamp(data),
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                note.dropped = number(data, 0).map_or(0, u32::from_ne_bytes);
            }
            // in_pktinfo: interface index, local address, header address.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => note.to = v4(data, 4),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => note.to = v6(data, 0),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                note.error = network_error(data);
            }
            _ => {}
        }
        let step = length.next_multiple_of(size_of::<usize>());
        control = control.get(step..).unwrap_or_default();
    }
    note
}

fn timestamp(data: &[u8]) -> Option<u64> {
    let seconds = u64::try_from(i64::from_ne_bytes(number(data, 0)?)).ok()?;
    let nanoseconds = u64::try_from(i64::from_ne_bytes(number(data, 8)?)).ok()?;
    Some(seconds * overlaywatch_core::time::SECOND + nanoseconds)
}

fn network_error(data: &[u8]) -> Option<NetworkError> {
    // errno (4 bytes), origin, type, code, padding, info (4), data (4), offender.
    let [origin, kind, code] = number(data, 4)?;
    let offender = data.get(16..).and_then(socket_address).map(|address| address.ip());
    Some(NetworkError { origin, kind, code, offender })
}

/// Reads a `sockaddr_in` or `sockaddr_in6`; none for any other family.
fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = c_int::from(u16::from_ne_bytes(number(bytes, 0)?));
    let address = match family {
        libc::AF_INET => v4(bytes, 4)?,
        libc::AF_INET6 => v6(bytes, 8)?,
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_be_bytes(number(bytes, 2)?)))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    number::<4>(bytes, at).map(|octets| Ipv4Addr::from(octets).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    number::<16>(bytes, at).map(|octets| Ipv6Addr::from(octets).into())
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

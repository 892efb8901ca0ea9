//! Sends probes and takes in what comes back: replies, echoes, ICMP errors.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlaywatch_core::ladder::{Climb, Recorded, Window};
use overlaywatch_core::model::PeerId;
use overlaywatch_core::probing::{
    Ignored, MAX_WINDOWS, PeerStatus, ProbeEvent, ProbeRequest, SendError, Stream,
};
use overlaywatch_core::time::{Mono, SECOND};
use socket2::Domain;

use super::Hops;
use super::echo::{self, Echo, EchoReply};
use super::journal::{Clocks, Journal, header_bytes};
use super::socket::{Datagram, Inbox, NetworkError, PathMtu, Socket};
use super::wire::{self, Message, Request};
use crate::clock;

/// Source ports that successive probes of a pair take in turn: VXLAN derives
/// the outer source port from a hash of the inner flow (udp_flow_src_port in
/// include/net/udp.h), so they try as many paths of the underlay.
const PORTS: u32 = 16;
/// Sequence numbers that a stream's first number grows by each second, so that
/// they grow across restarts: no stream is faster than this for long.
const SEQ_PER_SECOND: u64 = 64;
/// A stream that was not used for this long is no longer told to the peer.
const TOLD_NS: u64 = 60 * SECOND;
/// Streams of one pair that are remembered: those that can be told, and echo.
const STREAMS: usize = MAX_WINDOWS + 1;
/// Times that a call may meet an error about an earlier packet before the error
/// counts as its own.
const ATTEMPTS: usize = 4;

/// The prober.
#[derive(Debug)]
pub(super) struct Prober {
    port: u16,
    epoch: u64,
    v4: Family,
    /// Opened with the first IPv6 probe.
    v6: Option<Family>,
    pairs: HashMap<PeerId, Vec<Course>>,
    inbox: Inbox,
    packet: Vec<u8>,
}

/// The sockets of one address family.
#[derive(Debug)]
struct Family {
    /// For small and underlay probes.
    pool: Vec<Socket>,
    /// For full-sized ones.
    full: Socket,
    echo: Result<Echo, Errno>,
}

/// One stream to one peer.
#[derive(Debug)]
struct Course {
    stream: Stream,
    /// The next sequence number.
    next: u32,
    /// When the last probe was sent.
    sent: Mono,
    /// Where it went.
    target: IpAddr,
    /// Which probes were answered.
    answered: Window,
}

/// Which sockets a stream uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Pool,
    Full,
    Echo,
}

impl Way {
    const fn of(stream: Stream) -> Self {
        match stream {
            Stream::Underlay | Stream::Small(_) => Self::Pool,
            Stream::Full(_) => Self::Full,
            Stream::Echo => Self::Echo,
        }
    }
}

impl Family {
    fn open(domain: Domain, epoch: u64) -> io::Result<Self> {
        let open = |path_mtu| {
            let socket = Socket::udp(domain, 0)?;
            socket.set_path_mtu(domain, path_mtu)?;
            socket.keep_errors(domain)?;
            Ok::<_, io::Error>(socket)
        };
        let echo = Echo::open(domain, epoch).map_err(|error| errno_of(&error));
        Ok(Self {
            pool: (0..PORTS).map(|_| open(PathMtu::Fragment)).collect::<Result<_, _>>()?,
            full: open(PathMtu::Probe)?,
            echo,
        })
    }

    /// The socket that a probe takes.
    fn socket(&mut self, way: Way, seq: u32) -> Option<&mut Socket> {
        match way {
            Way::Pool => self.pool.get_mut((seq % PORTS) as usize),
            Way::Full => Some(&mut self.full),
            Way::Echo => self.echo.as_mut().ok().map(|echo| &mut echo.socket),
        }
    }

    /// All sockets, with their way.
    fn sockets(&mut self) -> impl Iterator<Item = (Way, &mut Socket)> {
        let echo = self.echo.as_mut().ok().map(|echo| (Way::Echo, &mut echo.socket));
        let pool = self.pool.iter_mut().map(|socket| (Way::Pool, socket));
        pool.chain([(Way::Full, &mut self.full)]).chain(echo)
    }
}

/// The epoch that a peer is told: a number of its own for each peer, so that a
/// stream is known by it at every hop, whatever becomes of the addresses.
/// FNV-1a over both, then SplitMix64's finalizer.
fn epoch_for(epoch: u64, peer: PeerId) -> u64 {
    let octets = match peer.0 {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let sum = octets
        .iter()
        .fold(epoch, |sum, &octet| (sum ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3));
    let z = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Prober {
    pub(super) fn open(port: u16, epoch: u64) -> io::Result<Self> {
        Ok(Self {
            port,
            epoch,
            v4: Family::open(Domain::IPV4, epoch)?,
            v6: None,
            pairs: HashMap::new(),
            inbox: Inbox::new(),
            packet: Vec::new(),
        })
    }

    /// Why there is no ICMP echo, if there is none.
    pub(super) fn echo_error(&self) -> Option<Errno> {
        self.v4.echo.as_ref().err().copied()
    }

    /// Forgets all peers but these.
    pub(super) fn retain(&mut self, keep: impl Fn(PeerId) -> bool) {
        self.pairs.retain(|&peer, _| keep(peer));
    }

    /// Sends one probe.
    pub(super) fn send(&mut self, request: &ProbeRequest, asks_hops: bool, journal: &mut Journal) {
        let at = clock::mono();
        let ProbeRequest { peer, stream, target, .. } = *request;
        let seq = self.course(request, at).next;
        match self.transmit(request, asks_hops, seq, at, journal) {
            Ok(Some(payload)) => {
                let course = self.course(request, at);
                course.next = seq.wrapping_add(1);
                course.sent = at;
                course.target = target;
                journal.counters.sent += 1;
                journal.count_sent(payload, target);
                journal.events.push(ProbeEvent::Sent { peer, stream, seq, at });
            }
            // Without an echo socket there is nothing to tell of the network.
            Ok(None) => {}
            Err(errno) => {
                let error = send_error(errno);
                journal.events.push(ProbeEvent::NotSent { peer, stream, at, error });
            }
        }
    }

    /// Hands a probe to the kernel; the bytes of its payload. None when there
    /// is no socket for it.
    fn transmit(
        &mut self,
        request: &ProbeRequest,
        asks_hops: bool,
        seq: u32,
        at: Mono,
        journal: &mut Journal,
    ) -> Result<Option<usize>, Errno> {
        let ProbeRequest { peer, stream, target, source, .. } = *request;
        let asks_hops = asks_hops && stream == Stream::Underlay;
        let sent = self.told_sent(request, seq, at);
        let family = if target.is_ipv4() {
            &mut self.v4
        } else if let Some(v6) = &mut self.v6 {
            v6
        } else {
            let opened = Family::open(Domain::IPV6, self.epoch);
            self.v6.insert(opened.map_err(|error| errno_of(&error))?)
        };
        let way = Way::of(stream);
        let bytes = usize::from(request.ip_bytes).saturating_sub(header_bytes(target));
        let payload = if way == Way::Echo {
            let Ok(echo) = &family.echo else { return Ok(None) };
            echo.form.write(seq, at.0, bytes, &mut self.packet);
            self.packet.len() - echo::HEADER_BYTES
        } else {
            let epoch = epoch_for(self.epoch, peer);
            let probe = Request { stream, seq, epoch, sent_at: at.0, sent, asks_hops };
            let bytes = if asks_hops { bytes.max(wire::ASKING_BYTES) } else { bytes };
            wire::encode_request(&probe, bytes, &mut self.packet);
            self.packet.len()
        };
        let port = if way == Way::Echo { 0 } else { self.port };
        let Some(socket) = family.socket(way, seq) else { return Ok(None) };
        let mut attempt = 1;
        loop {
            let Err(errno) = socket.send(&self.packet, SocketAddr::new(target, port), source)
            else {
                return Ok(Some(payload));
            };
            // An ICMP error about an earlier packet makes the next call on its
            // socket fail, whomever that one is for (sock_alloc_send_pskb in
            // net/core/sock.c): such an error is not this packet's.
            let pending = collect_errors(&mut self.inbox, socket, way, &self.pairs, journal);
            if pending == 0 || attempt == ATTEMPTS {
                return Err(errno);
            }
            attempt += 1;
        }
    }

    /// What passed this node's hops of the streams to a peer, and of their replies.
    pub(super) fn climbs(&self, peer: PeerId, hops: &dyn Hops) -> Vec<(Stream, Climb)> {
        let epoch = epoch_for(self.epoch, peer);
        let courses = self.pairs.get(&peer).map_or(&[][..], Vec::as_slice);
        courses
            .iter()
            .filter(|course| course.stream != Stream::Echo)
            .filter_map(|course| Some((course.stream, hops.climb(epoch, course.stream)?)))
            .collect()
    }

    /// What an underlay request says: how far each stream has got, this one included.
    fn told_sent(&self, request: &ProbeRequest, seq: u32, at: Mono) -> Vec<(Stream, u32)> {
        if request.stream != Stream::Underlay {
            return Vec::new();
        }
        let courses = self.pairs.get(&request.peer).map_or(&[][..], Vec::as_slice);
        courses
            .iter()
            .filter_map(|course| match course.stream {
                Stream::Echo => None,
                Stream::Underlay => Some((Stream::Underlay, seq)),
                stream => (course.sent > Mono(0) && at.since(course.sent) <= TOLD_NS)
                    .then_some((stream, course.next.wrapping_sub(1))),
            })
            .collect()
    }

    /// A stream's state, made when it is new.
    fn course(&mut self, request: &ProbeRequest, now: Mono) -> &mut Course {
        let courses = self.pairs.entry(request.peer).or_default();
        let known = courses.iter().position(|course| course.stream == request.stream);
        let position = known.unwrap_or_else(|| {
            // The longest unused makes way.
            courses.sort_by_key(|course| std::cmp::Reverse(course.sent));
            courses.truncate(STREAMS - 1);
            courses.push(Course {
                stream: request.stream,
                next: first_seq(now),
                sent: Mono(0),
                target: request.target,
                answered: Window::default(),
            });
            courses.len() - 1
        });
        &mut courses[position]
    }

    /// Reads everything that came back.
    pub(super) fn collect(&mut self, journal: &mut Journal) -> io::Result<()> {
        let Self { v4, v6, pairs, inbox, epoch, .. } = self;
        for family in [Some(v4), v6.as_mut()].into_iter().flatten() {
            let waiting = waiting(family)?;
            for (position, events) in waiting {
                if events.contains(PollFlags::POLLERR)
                    && let Some((way, socket)) = family.sockets().nth(position)
                {
                    collect_errors(inbox, socket, way, pairs, journal);
                }
                if events.contains(PollFlags::POLLIN) {
                    collect_replies(family, position, inbox, pairs, *epoch, journal)?;
                }
            }
        }
        Ok(())
    }
}

/// The first sequence number of a stream that begins now: it wraps every two years.
const fn first_seq(now: Mono) -> u32 {
    let [_, _, _, _, a, b, c, d] = (now.0 / (SECOND / SEQ_PER_SECOND)).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Which sockets have something to read, by one system call for all.
fn waiting(family: &mut Family) -> io::Result<Vec<(usize, PollFlags)>> {
    let sockets: Vec<&mut Socket> = family.sockets().map(|(_, socket)| socket).collect();
    let mut polled: Vec<PollFd<'_>> =
        sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut polled, PollTimeout::ZERO)?;
    let events = polled.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
    Ok(events.enumerate().filter(|(_, events)| !events.is_empty()).collect())
}

fn collect_replies(
    family: &mut Family,
    position: usize,
    inbox: &mut Inbox,
    pairs: &mut HashMap<PeerId, Vec<Course>>,
    epoch: u64,
    journal: &mut Journal,
) -> io::Result<()> {
    let form = family.echo.as_ref().ok().map(|echo| echo.form);
    let Some((way, socket)) = family.sockets().nth(position) else { return Ok(()) };
    let mut attempt = 1;
    loop {
        let (count, more) = match inbox.read(socket) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // An error about an earlier packet, as in `transmit`.
            Err(_) if attempt < ATTEMPTS => {
                collect_errors(inbox, socket, way, pairs, journal);
                attempt += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        let clocks = Clocks::read();
        for packet in (0..count).filter_map(|position| inbox.packet(position)) {
            journal.note_dropped(socket, packet.note.dropped);
            let answer = match form.filter(|_| way == Way::Echo) {
                Some(form) => match form.read(packet.bytes) {
                    Some(reply) => Answer::of_echo(reply),
                    // Somebody else's: a raw socket hears them all.
                    None => continue,
                },
                None => {
                    let from = journal.peer(packet.from.ip());
                    match from.and_then(|peer| Answer::of_packet(&packet, epoch_for(epoch, peer))) {
                        Ok(answer) => answer,
                        Err(reason) => {
                            journal.ignore(reason);
                            continue;
                        }
                    }
                }
            };
            let at = clocks.when(packet.note.received_ns);
            if let Err(reason) = take_answer(answer, packet.from.ip(), at, pairs, journal) {
                journal.ignore(reason);
            }
        }
        if !more {
            return Ok(());
        }
    }
}

/// What every kind of reply says.
struct Answer {
    stream: Stream,
    seq: u32,
    sent_at: Mono,
    dwell_ns: u64,
    status: Option<Box<PeerStatus>>,
}

impl Answer {
    const fn of_echo(reply: EchoReply) -> Self {
        let EchoReply { seq, sent_at } = reply;
        Self { stream: Stream::Echo, seq, sent_at: Mono(sent_at), dwell_ns: 0, status: None }
    }

    fn of_packet(packet: &Datagram<'_>, epoch: u64) -> Result<Self, Ignored> {
        match wire::decode(packet.bytes, packet.length)? {
            // The epoch is a secret that only the asked know.
            Message::Reply(reply) if reply.epoch == epoch => Ok(Self {
                stream: reply.stream,
                seq: reply.seq,
                sent_at: Mono(reply.sent_at),
                dwell_ns: reply.dwell_ns,
                status: reply.status,
            }),
            // To a former run of this agent, or made up.
            Message::Reply(_) => Err(Ignored::Replayed),
            Message::Request(_) => Err(Ignored::Malformed),
        }
    }
}

fn take_answer(
    answer: Answer,
    from: IpAddr,
    at: Mono,
    pairs: &mut HashMap<PeerId, Vec<Course>>,
    journal: &mut Journal,
) -> Result<(), Ignored> {
    let peer = journal.peer(from)?;
    let course = pairs
        .get_mut(&peer)
        .and_then(|courses| courses.iter_mut().find(|course| course.stream == answer.stream))
        .ok_or(Ignored::Malformed)?;
    // A number that was not sent yet answers nothing.
    if course.next.wrapping_sub(1).wrapping_sub(answer.seq) >= 1 << 31 {
        return Err(Ignored::Malformed);
    }
    let first =
        matches!(course.answered.record(answer.seq), Recorded::Advanced | Recorded::Reordered);
    // The wall clock, of which the kernel's timestamp is, may have been stepped.
    let at = at.max(answer.sent_at);
    let elapsed_ns = at.since(answer.sent_at);
    let Answer { stream, seq, .. } = answer;
    journal.events.push(ProbeEvent::Reply {
        peer,
        stream,
        seq,
        at,
        rtt_ns: elapsed_ns.checked_sub(answer.dwell_ns).unwrap_or(elapsed_ns),
        // That it came twice is worth telling; what it said is old.
        status: answer.status.filter(|_| first),
    });
    if first {
        journal.counters.received += 1;
        Ok(())
    } else {
        Err(Ignored::Replayed)
    }
}

/// Empties a socket's error queue; how many errors of the network it held.
fn collect_errors(
    inbox: &mut Inbox,
    socket: &Socket,
    way: Way,
    pairs: &HashMap<PeerId, Vec<Course>>,
    journal: &mut Journal,
) -> usize {
    let mut found = 0;
    // An empty queue ends it: EAGAIN.
    while let Ok((count, more)) = inbox.read_errors(socket) {
        for packet in (0..count).filter_map(|position| inbox.packet(position)) {
            let Some(error) = packet.note.error else { continue };
            // The kernel also notes here what sendmsg(2) itself returns (EMSGSIZE).
            found += usize::from(error.origin != libc::SO_EE_ORIGIN_LOCAL);
            let Some(code) = unreachable_code(error) else { continue };
            let Ok(peer) = journal.peer(packet.from.ip()) else { continue };
            let stream = pairs.get(&peer).and_then(|courses| {
                let quoted = |course: &&Course| {
                    course.target == packet.from.ip() && Way::of(course.stream) == way
                };
                courses.iter().find(quoted).map(|course| course.stream)
            });
            if let (Some(stream), Some(from)) = (stream, error.offender) {
                let at = clock::mono();
                journal.events.push(ProbeEvent::Unreachable { peer, stream, at, code, from });
            }
        }
        if !more {
            break;
        }
    }
    found
}

/// The code of ICMP type 3 (RFC 792) that an error stands for; none when it is
/// of another type or no ICMP error at all.
const fn unreachable_code(error: NetworkError) -> Option<u8> {
    match (error.origin, error.kind, error.code) {
        (libc::SO_EE_ORIGIN_ICMP, 3, code) => Some(code),
        // ICMPv6 (RFC 4443) packet too big; then type 1: no route,
        // administratively prohibited, address and port unreachable.
        (libc::SO_EE_ORIGIN_ICMP6, 2, _) => Some(4),
        (libc::SO_EE_ORIGIN_ICMP6, 1, 0) => Some(0),
        (libc::SO_EE_ORIGIN_ICMP6, 1, 1) => Some(13),
        (libc::SO_EE_ORIGIN_ICMP6, 1, 4) => Some(3),
        (libc::SO_EE_ORIGIN_ICMP6, 1, _) => Some(1),
        _ => None,
    }
}

const fn send_error(errno: Errno) -> SendError {
    match errno {
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => SendError::NoRoute,
        Errno::EACCES => SendError::Prohibited,
        Errno::EINVAL | Errno::EADDRNOTAVAIL => SendError::Blackhole,
        Errno::EPERM => SendError::Filtered,
        Errno::EMSGSIZE => SendError::TooBig,
        Errno::ENOBUFS | Errno::EAGAIN => SendError::Busy,
        other => SendError::Other(other as i32),
    }
}

//! The probe protocol: pure encoding and decoding.
//!
//! Every integer is in network byte order. A request and its reply begin alike:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `OWPB` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | kind: 1 request, 2 reply |
//! | 6 | 1 | flags: bit 0 is reserved for a keyed authenticator; bit 1 of an underlay request asks for hops; the others are zero |
//! | 7 | 1 | number of entries that follow the head (underlay only, else zero) |
//! | 8 | 4 | stream: class (0 underlay, 1 small, 2 full), encapsulation (0 none, 4 IPIP, 17 VXLAN), VXLAN port |
//! | 12 | 4 | sequence number in this stream |
//! | 16 | 8 | epoch of the requester: a random number for this peer that changes when the requester restarts |
//! | 24 | 8 | when the requester sent it, nanoseconds of its monotonic clock |
//!
//! A request goes on at 32 with its entries, 8 bytes each: a stream (as above)
//! and the latest sequence number that the requester sent in it. Zero bytes pad
//! it to the size that is to be tested, at least [`LEAST_REQUEST_BYTES`].
//!
//! A reply repeats the request's stream, sequence number, epoch and time, so
//! that the requester keeps nothing per probe and nobody can make up a reply
//! to a request that he did not see. It goes on:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 32 | 8 | dwell time: from the kernel's receipt of the request to this reply, nanoseconds |
//! | 40 | 4 | requests of this stream that the responder received in this epoch |
//! | 44 | 1 | number of tunnel adverts |
//! | 45 | 1 | length of the node's name |
//! | 46 | 1 | number of climbs |
//! | 47 | 1 | number of drops |
//! | 48 | 8 | the responder's own epoch (underlay only, as all that follows) |
//! | 56 | 20 each | its windows: stream, highest sequence number, count, mask of 8 bytes |
//! | | 18, 22 or 34 each | its tunnels: encapsulation, flags (1 up, 2 has a VNI, 4 has a MAC, 8 has an IPv4 address, 16 has an IPv6 address), VXLAN port, VNI, MTU, MAC, address |
//! | | | its name, UTF-8 |
//! | | | its climbs, where hops were asked for: stream, for how long NIC and tunnel have been counted (4 bytes each, milliseconds), flags of the hops that it counts (1 requests at its NIC, 2 requests out of its tunnel, 4 replies into its tunnel, 8 replies at its NIC), and for each of these highest sequence number, count, mask of 8 bytes |
//! | | | its drops of probes: stream, flags (1 replies), packets of 4 bytes, then reason, function and device, each with a byte of length before it, zero for an unknown one |
//!
//! A reply is never longer than its request, so what does not fit is left out:
//! windows go first, then tunnels, the name, climbs and drops.
//!
//! The eBPF programs read magic, version, kind, stream, sequence number and
//! epoch (`agent-ebpf/src/programs/packet.rs`): these stay where they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlaywatch_core::kernel::DropSite;
use overlaywatch_core::ladder::{Climb, HopWindows, Window};
use overlaywatch_core::model::{Encapsulation, Mac, NodeName};
use overlaywatch_core::probing::{
    Ignored, MAX_ADVERTS, MAX_CLIMBS, MAX_DROPS, MAX_WINDOWS, OwnStatus, PeerStatus, ProbeDrop,
    Stream, TunnelAdvert,
};

const MAGIC: [u8; 4] = *b"OWPB";
const VERSION: u8 = 1;
const KIND_REQUEST: u8 = 1;
const KIND_REPLY: u8 = 2;
/// A keyed authenticator follows: nobody here can check it yet.
const FLAG_KEYED: u8 = 1;
/// An underlay request that asks for the peer's hops.
const FLAG_HOPS: u8 = 2;

const SENT_BYTES: usize = 8;
const PLAIN_REPLY_BYTES: usize = 48;
const STATUS_REPLY_BYTES: usize = 56;
const WINDOW_BYTES: usize = 20;

const CLIMB_REACHED: u8 = 1;
const CLIMB_DECAPSULATED: u8 = 2;
const CLIMB_ENCAPSULATED: u8 = 4;
const CLIMB_LEFT: u8 = 8;

const DROP_REPLY: u8 = 1;
/// The longest name in a drop, bytes: KSYM_NAME_LEN is longer, real names are not.
const LONGEST_NAME: usize = 63;

const ADVERT_UP: u8 = 1;
const ADVERT_VNI: u8 = 2;
const ADVERT_MAC: u8 = 4;
const ADVERT_V4: u8 = 8;
const ADVERT_V6: u8 = 16;

/// The least UDP payload of a request: its reply must fit.
pub const LEAST_REQUEST_BYTES: usize = STATUS_REPLY_BYTES;
/// UDP payload of a request that asks for hops: they must fit the reply.
pub const ASKING_BYTES: usize = 1_000;
/// The longest UDP payload of a request: one jumbo frame.
pub const LONGEST_BYTES: usize = 9_216 - 28;
/// What of a packet needs to be read: no message is longer, the rest is padding.
pub const READ_BYTES: usize = 1_024;

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its stream.
    pub stream: Stream,
    /// Its sequence number.
    pub seq: u32,
    /// The requester's epoch.
    pub epoch: u64,
    /// When it was sent, nanoseconds of the requester's monotonic clock.
    pub sent_at: u64,
    /// Underlay requests: the latest sequence number of each stream to this
    /// peer; the wire carries the first [`MAX_WINDOWS`].
    pub sent: Vec<(Stream, u32)>,
    /// Underlay requests: the reply shall tell of the responder's hops.
    pub asks_hops: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's stream.
    pub stream: Stream,
    /// The request's sequence number.
    pub seq: u32,
    /// The request's epoch.
    pub epoch: u64,
    /// The request's time of sending.
    pub sent_at: u64,
    /// How long the responder kept the request, nanoseconds.
    pub dwell_ns: u64,
    /// Requests of this stream that the responder received in this epoch.
    pub received: u32,
    /// Underlay replies: what the responder says.
    pub status: Option<Box<PeerStatus>>,
}

/// What an underlay reply says of the responder.
#[derive(Clone, Copy, Debug)]
pub struct Status<'a> {
    /// Its epoch.
    pub epoch: u64,
    /// What it received of the requester's streams.
    pub windows: &'a [(Stream, Window)],
    /// Its name and tunnels.
    pub own: &'a OwnStatus,
    /// What passed its hops.
    pub climbs: &'a [(Stream, Climb)],
    /// Probes between the two that it dropped.
    pub drops: &'a [ProbeDrop],
}

/// A decoded packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A probe.
    Request(Request),
    /// An answer.
    Reply(Reply),
}

/// Writes a request into `out`, padded with zeros to `bytes` of UDP payload,
/// or to as much as it needs.
pub fn encode_request(request: &Request, bytes: usize, out: &mut Vec<u8>) {
    out.clear();
    let count = request.sent.len().min(MAX_WINDOWS);
    let head = [request.epoch, request.sent_at];
    put_head(out, KIND_REQUEST, count, request.stream, request.seq, head);
    if request.asks_hops {
        out[6] = FLAG_HOPS;
    }
    for &(stream, highest) in request.sent.iter().take(count) {
        put_stream(out, stream);
        out.extend_from_slice(&highest.to_be_bytes());
    }
    let needed = out.len().max(LEAST_REQUEST_BYTES);
    out.resize(bytes.clamp(needed, LONGEST_BYTES), 0);
}

/// Writes into `out` the reply to `request`, no longer than `limit` bytes.
/// `status` goes with replies to underlay requests.
pub fn encode_reply(
    request: &Request,
    dwell_ns: u64,
    received: u32,
    status: Option<Status<'_>>,
    limit: usize,
    out: &mut Vec<u8>,
) {
    out.clear();
    put_head(out, KIND_REPLY, 0, request.stream, request.seq, [request.epoch, request.sent_at]);
    out.extend_from_slice(&dwell_ns.to_be_bytes());
    out.extend_from_slice(&received.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    if let Some(status) = status {
        put_status(out, &status, limit);
    }
}

fn put_status(out: &mut Vec<u8>, status: &Status<'_>, limit: usize) {
    out.extend_from_slice(&status.epoch.to_be_bytes());
    let mut windows = 0;
    for (stream, window) in status.windows.iter().take(MAX_WINDOWS) {
        if out.len() + WINDOW_BYTES > limit {
            break;
        }
        put_stream(out, *stream);
        put_window(out, window);
        windows += 1;
    }
    let mut adverts = 0;
    for advert in status.own.tunnels.iter().take(MAX_ADVERTS) {
        let before = out.len();
        put_advert(out, advert);
        if out.len() > limit {
            out.truncate(before);
            break;
        }
        adverts += 1;
    }
    let name = status.own.node.as_ref().map_or("", NodeName::as_str);
    let name = if out.len() + name.len() <= limit { name } else { "" };
    out.extend_from_slice(name.as_bytes());
    // A node's name has at most 253 bytes.
    let length = u8::try_from(name.len()).unwrap_or(0);
    out[7] = windows;
    out[44] = adverts;
    out[45] = length;
    out[46] = put_while_it_fits(out, limit, status.climbs, MAX_CLIMBS, put_climb);
    out[47] = put_while_it_fits(out, limit, status.drops, MAX_DROPS, put_drop);
}

/// How many of `items` were put without exceeding `limit`.
fn put_while_it_fits<T>(
    out: &mut Vec<u8>,
    limit: usize,
    items: &[T],
    most: usize,
    put: fn(&mut Vec<u8>, &T),
) -> u8 {
    let mut count = 0;
    for item in items.iter().take(most) {
        let before = out.len();
        put(out, item);
        if out.len() > limit {
            out.truncate(before);
            break;
        }
        count += 1;
    }
    count
}

fn put_climb(out: &mut Vec<u8>, (stream, climb): &(Stream, Climb)) {
    let hops = [
        (climb.requests.reached_nic, CLIMB_REACHED),
        (climb.requests.decapsulated, CLIMB_DECAPSULATED),
        (climb.replies.encapsulated, CLIMB_ENCAPSULATED),
        (climb.replies.left_nic, CLIMB_LEFT),
    ];
    put_stream(out, *stream);
    out.extend_from_slice(&climb.nic_ms.to_be_bytes());
    out.extend_from_slice(&climb.tunnel_ms.to_be_bytes());
    let counted = hops.iter().filter(|(window, _)| window.is_some()).map(|(_, flag)| flag);
    out.push(counted.fold(0, |flags, flag| flags | flag));
    for window in hops.iter().filter_map(|(window, _)| window.as_ref()) {
        put_window(out, window);
    }
}

fn put_drop(out: &mut Vec<u8>, drop: &ProbeDrop) {
    put_stream(out, drop.stream);
    out.push(if drop.reply { DROP_REPLY } else { 0 });
    out.extend_from_slice(&drop.packets.to_be_bytes());
    for name in [&drop.site.reason, &drop.site.function, &drop.site.device] {
        let name = name.as_deref().unwrap_or("").as_bytes();
        // Names are ASCII; one that is too long is cut.
        let name = &name[..name.len().min(LONGEST_NAME)];
        out.push(u8::try_from(name.len()).unwrap_or(0));
        out.extend_from_slice(name);
    }
}

fn put_window(out: &mut Vec<u8>, window: &Window) {
    out.extend_from_slice(&window.highest.to_be_bytes());
    out.extend_from_slice(&window.count.to_be_bytes());
    out.extend_from_slice(&window.mask.to_be_bytes());
}

fn put_head(
    out: &mut Vec<u8>,
    kind: u8,
    entries: usize,
    stream: Stream,
    seq: u32,
    epoch_and_time: [u64; 2],
) {
    out.extend_from_slice(&MAGIC);
    let entries = u8::try_from(entries).unwrap_or(0);
    out.extend_from_slice(&[VERSION, kind, 0, entries]);
    put_stream(out, stream);
    out.extend_from_slice(&seq.to_be_bytes());
    for number in epoch_and_time {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn put_stream(out: &mut Vec<u8>, stream: Stream) {
    let class = match stream {
        // An echo has no message of this protocol; see `echo`.
        Stream::Underlay | Stream::Echo => 0,
        Stream::Small(_) => 1,
        Stream::Full(_) => 2,
    };
    let (encapsulation, port) = stream.encapsulation().map_or((0, 0), encapsulation_bytes);
    out.extend_from_slice(&[class, encapsulation]);
    out.extend_from_slice(&port.to_be_bytes());
}

const fn encapsulation_bytes(encapsulation: Encapsulation) -> (u8, u16) {
    match encapsulation {
        Encapsulation::Ipip => (4, 0),
        Encapsulation::Vxlan(port) => (17, port),
    }
}

fn put_advert(out: &mut Vec<u8>, advert: &TunnelAdvert) {
    let (encapsulation, port) = encapsulation_bytes(advert.encapsulation);
    let mut flags = 0;
    for (holds, flag) in [
        (advert.up, ADVERT_UP),
        (advert.vni.is_some(), ADVERT_VNI),
        (advert.mac.is_some(), ADVERT_MAC),
        (advert.address.is_some_and(|address| address.is_ipv4()), ADVERT_V4),
        (advert.address.is_some_and(|address| address.is_ipv6()), ADVERT_V6),
    ] {
        if holds {
            flags |= flag;
        }
    }
    out.extend_from_slice(&[encapsulation, flags]);
    out.extend_from_slice(&port.to_be_bytes());
    out.extend_from_slice(&advert.vni.unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&advert.mtu.to_be_bytes());
    out.extend_from_slice(&advert.mac.unwrap_or(Mac::ZERO).0);
    match advert.address {
        Some(IpAddr::V4(v4)) => out.extend_from_slice(&v4.octets()),
        Some(IpAddr::V6(v6)) => out.extend_from_slice(&v6.octets()),
        None => {}
    }
}

/// Reads a packet of `length` bytes, of which `bytes` were kept: at least the
/// first [`READ_BYTES`].
///
/// # Errors
/// The reason why it is to be ignored.
pub fn decode(bytes: &[u8], length: usize) -> Result<Message, Ignored> {
    if length > LONGEST_BYTES {
        return Err(Ignored::Oversized);
    }
    let mut rest = bytes;
    if take(&mut rest).ok_or(Ignored::Malformed)? != MAGIC {
        return Err(Ignored::Malformed);
    }
    let [version, kind, flags, entries] = take(&mut rest).ok_or(Ignored::Truncated)?;
    if version != VERSION {
        return Err(Ignored::ForeignVersion);
    }
    let head = take_head(&mut rest)?;
    let least = match (kind, head.stream) {
        (KIND_REQUEST, _) => LEAST_REQUEST_BYTES,
        (KIND_REPLY, Some(Stream::Underlay)) => STATUS_REPLY_BYTES,
        (KIND_REPLY, _) => PLAIN_REPLY_BYTES,
        _ => return Err(Ignored::Malformed),
    };
    if length < least {
        return Err(Ignored::Truncated);
    }
    let asks_hops = match flags {
        0 => false,
        FLAG_HOPS if kind == KIND_REQUEST && head.stream == Some(Stream::Underlay) => true,
        FLAG_KEYED => return Err(Ignored::BadMac),
        _ => return Err(Ignored::Malformed),
    };
    let entries = usize::from(entries);
    let stream = head.stream.ok_or(Ignored::Malformed)?;
    let most = if stream == Stream::Underlay { MAX_WINDOWS } else { 0 };
    if entries > most {
        return Err(Ignored::Malformed);
    }
    let Head { seq, epoch, sent_at, .. } = head;
    if kind == KIND_REQUEST {
        let sent = take_sent(&mut rest, entries)?;
        Ok(Message::Request(Request { stream, seq, epoch, sent_at, sent, asks_hops }))
    } else {
        let dwell_ns = take_u64(&mut rest)?;
        let received = take_u32(&mut rest)?;
        let counts = take::<4>(&mut rest).ok_or(Ignored::Truncated)?;
        let status = match stream {
            Stream::Underlay => Some(Box::new(take_status(rest, entries, counts)?)),
            _ => None,
        };
        Ok(Message::Reply(Reply { stream, seq, epoch, sent_at, dwell_ns, received, status }))
    }
}

/// What a request and its reply have in common.
struct Head {
    /// None when it names no stream that there is.
    stream: Option<Stream>,
    seq: u32,
    epoch: u64,
    sent_at: u64,
}

fn take_head(rest: &mut &[u8]) -> Result<Head, Ignored> {
    let stream = take(rest).ok_or(Ignored::Truncated)?;
    Ok(Head {
        stream: stream_of(stream),
        seq: take_u32(rest)?,
        epoch: take_u64(rest)?,
        sent_at: take_u64(rest)?,
    })
}

fn take_sent(rest: &mut &[u8], entries: usize) -> Result<Vec<(Stream, u32)>, Ignored> {
    if rest.len() < entries * SENT_BYTES {
        return Err(Ignored::Truncated);
    }
    (0..entries).map(|_| Ok((take_stream(rest)?, take_u32(rest)?))).collect()
}

fn take_status(
    mut rest: &[u8],
    windows: usize,
    [adverts, name, climbs, drops]: [u8; 4],
) -> Result<PeerStatus, Ignored> {
    let bounds = [(adverts, MAX_ADVERTS), (climbs, MAX_CLIMBS), (drops, MAX_DROPS)];
    if bounds.iter().any(|&(count, most)| usize::from(count) > most) {
        return Err(Ignored::Malformed);
    }
    let epoch = take_u64(&mut rest)?;
    let windows = (0..windows)
        .map(|_| {
            let stream = take_stream(&mut rest)?;
            Ok((stream, take_window(&mut rest)?))
        })
        .collect::<Result<_, Ignored>>()?;
    let tunnels = (0..adverts).map(|_| take_advert(&mut rest)).collect::<Result<_, _>>()?;
    let (name, after) = rest.split_at_checked(usize::from(name)).ok_or(Ignored::Truncated)?;
    rest = after;
    let node = if name.is_empty() {
        None
    } else {
        let text = std::str::from_utf8(name).map_err(|_| Ignored::Malformed)?;
        Some(text.parse().map_err(|_| Ignored::Malformed)?)
    };
    let climbs = (0..climbs).map(|_| take_climb(&mut rest)).collect::<Result<_, _>>()?;
    let drops = (0..drops).map(|_| take_drop(&mut rest)).collect::<Result<_, _>>()?;
    Ok(PeerStatus { node, epoch, windows, tunnels, climbs, drops })
}

fn take_window(rest: &mut &[u8]) -> Result<Window, Ignored> {
    Ok(Window { highest: take_u32(rest)?, count: take_u32(rest)?, mask: take_u64(rest)? })
}

fn take_climb(rest: &mut &[u8]) -> Result<(Stream, Climb), Ignored> {
    let stream = take_stream(rest)?;
    let (nic_ms, tunnel_ms) = (take_u32(rest)?, take_u32(rest)?);
    let [flags] = take(rest).ok_or(Ignored::Truncated)?;
    let mut window = |flag: u8| match flags & flag {
        0 => Ok(None),
        _ => take_window(rest).map(Some),
    };
    let (reached_nic, decapsulated) = (window(CLIMB_REACHED)?, window(CLIMB_DECAPSULATED)?);
    let (encapsulated, left_nic) = (window(CLIMB_ENCAPSULATED)?, window(CLIMB_LEFT)?);
    let requests = HopWindows { reached_nic, decapsulated, ..HopWindows::default() };
    let replies = HopWindows { encapsulated, left_nic, ..HopWindows::default() };
    Ok((stream, Climb { requests, replies, nic_ms, tunnel_ms }))
}

fn take_drop(rest: &mut &[u8]) -> Result<ProbeDrop, Ignored> {
    let stream = take_stream(rest)?;
    let [flags] = take(rest).ok_or(Ignored::Truncated)?;
    let packets = take_u32(rest)?;
    let (reason, function, device) = (take_name(rest)?, take_name(rest)?, take_name(rest)?);
    let site = DropSite { reason, function, device };
    Ok(ProbeDrop { stream, reply: flags & DROP_REPLY != 0, packets, site })
}

/// A name that will be shown to people: printable ASCII, or nothing.
fn take_name(rest: &mut &[u8]) -> Result<Option<String>, Ignored> {
    let [length] = take(rest).ok_or(Ignored::Truncated)?;
    let (name, after) = rest.split_at_checked(usize::from(length)).ok_or(Ignored::Truncated)?;
    *rest = after;
    if length as usize > LONGEST_NAME || !name.iter().all(u8::is_ascii_graphic) {
        return Err(Ignored::Malformed);
    }
    let name = std::str::from_utf8(name).map_err(|_| Ignored::Malformed)?;
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

fn take_advert(rest: &mut &[u8]) -> Result<TunnelAdvert, Ignored> {
    let [encapsulation, flags, high, low] = take(rest).ok_or(Ignored::Truncated)?;
    let has = |flag: u8| flags & flag != 0;
    let encapsulation = encapsulation_of(encapsulation, u16::from_be_bytes([high, low]))
        .ok_or(Ignored::Malformed)?;
    let vni = take_u32(rest)?;
    let mtu = take_u32(rest)?;
    let mac = Mac(take(rest).ok_or(Ignored::Truncated)?);
    let address = if has(ADVERT_V4) {
        let octets: [u8; 4] = take(rest).ok_or(Ignored::Truncated)?;
        Some(Ipv4Addr::from(octets).into())
    } else if has(ADVERT_V6) {
        let octets: [u8; 16] = take(rest).ok_or(Ignored::Truncated)?;
        Some(Ipv6Addr::from(octets).into())
    } else {
        None
    };
    Ok(TunnelAdvert {
        encapsulation,
        vni: has(ADVERT_VNI).then_some(vni),
        up: has(ADVERT_UP),
        address,
        mac: has(ADVERT_MAC).then_some(mac),
        mtu,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*first)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, Ignored> {
    take(rest).map(u32::from_be_bytes).ok_or(Ignored::Truncated)
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, Ignored> {
    take(rest).map(u64::from_be_bytes).ok_or(Ignored::Truncated)
}

fn take_stream(rest: &mut &[u8]) -> Result<Stream, Ignored> {
    let bytes = take(rest).ok_or(Ignored::Truncated)?;
    stream_of(bytes).ok_or(Ignored::Malformed)
}

const fn stream_of([class, encapsulation, high, low]: [u8; 4]) -> Option<Stream> {
    let port = u16::from_be_bytes([high, low]);
    match (class, encapsulation_of(encapsulation, port)) {
        (0, None) if encapsulation == 0 && port == 0 => Some(Stream::Underlay),
        (1, Some(encapsulation)) => Some(Stream::Small(encapsulation)),
        (2, Some(encapsulation)) => Some(Stream::Full(encapsulation)),
        _ => None,
    }
}

const fn encapsulation_of(number: u8, port: u16) -> Option<Encapsulation> {
    match number {
        4 if port == 0 => Some(Encapsulation::Ipip),
        17 => Some(Encapsulation::Vxlan(port)),
        _ => None,
    }
}

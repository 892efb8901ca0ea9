//! Answers the probes of peers and remembers which of them arrived.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};

use overlaywatch_core::ladder::{Climb, Recorded, Window};
use overlaywatch_core::model::PeerId;
use overlaywatch_core::probing::{
    Ignored, MAX_CLIMBS, MAX_WINDOWS, OwnStatus, Passage, ProbeEvent, Stream,
};
use overlaywatch_core::time::{MILLISECOND, Mono, SECOND};
use socket2::Domain;

use super::Hops;
use super::journal::{Clocks, Journal};
use super::socket::{Inbox, Socket};
use super::wire::{self, Message, Request, Status};

/// What an answer costs a peer: it may ask 200 times a second.
const COST_NS: u64 = SECOND / 200;
/// The most that a peer can save up: 100 answers.
const CREDIT_NS: u64 = 100 * COST_NS;
/// What a peer says of its streams is compared with what arrived only after
/// this time, since packets of different streams may overtake each other.
const GRACE_NS: u64 = 20 * MILLISECOND;
/// Runs of one peer that are told apart: its agent and a one-shot check.
const RUNS: usize = 2;
/// Runs that are remembered only to be refused.
const FORMER_RUNS: usize = 4;
/// Batches that are read in one beat, so that a flood of requests cannot keep
/// the prober from its own work.
const BATCHES: usize = 32;
/// Room for requests that come between two beats, bytes.
const ROOM_BYTES: usize = 1 << 20;

/// The responder.
#[derive(Debug)]
pub(super) struct Responder {
    sockets: Vec<Socket>,
    epoch: u64,
    askers: HashMap<PeerId, Asker>,
    /// Who told of its streams since the last look.
    told: Vec<PeerId>,
    inbox: Inbox,
    work: Vec<Work>,
    reply: Vec<u8>,
}

/// A request that will be answered.
#[derive(Debug)]
struct Work {
    request: Request,
    peer: PeerId,
    received: u32,
    from: SocketAddr,
    to: Option<IpAddr>,
    length: usize,
    received_ns: Option<u64>,
}

/// A peer as the responder knows it.
#[derive(Debug)]
struct Asker {
    /// Whoever asks from there: its agent and, now and then, a one-shot check.
    runs: Vec<Run>,
    /// Runs that made way: their stragglers must not bring them back.
    former: VecDeque<u64>,
    credit_ns: u64,
    credited: Mono,
}

/// One run of a program that probes, told by its epoch.
#[derive(Debug)]
struct Run {
    epoch: u64,
    /// When it last asked.
    at: Mono,
    heard: Vec<Heard>,
    /// When it told what it sent, and what.
    told: Option<(Mono, Vec<(Stream, u32)>)>,
}

#[derive(Debug)]
struct Heard {
    stream: Stream,
    window: Window,
    at: Mono,
}

impl Responder {
    /// One wildcard socket per family; an IPv6 one only where the host has IPv6.
    pub(super) fn bind(port: u16, epoch: u64) -> Result<Self, (SocketAddr, io::Error)> {
        let mut sockets = Vec::new();
        for (domain, wildcard) in [
            (Domain::IPV4, SocketAddr::from(([0; 4], port))),
            (Domain::IPV6, SocketAddr::from(([0_u16; 8], port))),
        ] {
            match Socket::udp(domain, port) {
                Ok(socket) => {
                    socket.make_room(ROOM_BYTES);
                    sockets.push(socket);
                }
                Err(error) if domain == Domain::IPV6 && lacks_ipv6(&error) => {}
                Err(error) => return Err((wildcard, error)),
            }
        }
        Ok(Self {
            sockets,
            epoch,
            askers: HashMap::new(),
            told: Vec::new(),
            inbox: Inbox::new(),
            work: Vec::new(),
            reply: Vec::new(),
        })
    }

    /// Forgets all peers but these.
    pub(super) fn retain(&mut self, keep: impl Fn(PeerId) -> bool) {
        self.askers.retain(|&peer, _| keep(peer));
    }

    /// Reads what came and answers it.
    pub(super) fn answer(
        &mut self,
        own: &OwnStatus,
        hops: &dyn Hops,
        journal: &mut Journal,
    ) -> io::Result<()> {
        for position in 0..self.sockets.len() {
            for _ in 0..BATCHES {
                let more = self.read(position, journal)?;
                self.reply(position, own, hops, journal);
                if !more {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads one batch and records all of it, before any of it is answered:
    /// replies then tell of everything that came with their requests.
    fn read(&mut self, position: usize, journal: &mut Journal) -> io::Result<bool> {
        let Some(socket) = self.sockets.get_mut(position) else {
            return Ok(false);
        };
        let (count, more) = match self.inbox.read(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            read => read?,
        };
        let clocks = Clocks::read();
        for packet in (0..count).filter_map(|position| self.inbox.packet(position)) {
            // Anybody can flood this socket: that must not discount what this
            // node's own probes say, whose replies come to other sockets.
            journal.ignore_many(Ignored::Overflow, socket.note_dropped(packet.note.dropped));
            let received_ns = packet.note.received_ns;
            let request = match wire::decode(packet.bytes, packet.length) {
                Ok(Message::Request(request)) => request,
                // A reply comes to the socket that asked, never to this one.
                Ok(Message::Reply(_)) => {
                    journal.ignore(Ignored::Malformed);
                    continue;
                }
                Err(reason) => {
                    journal.ignore(reason);
                    continue;
                }
            };
            let admitted = journal.peer(packet.from.ip()).and_then(|peer| {
                let at = clocks.when(received_ns);
                let asker = self.askers.entry(peer).or_insert_with(|| Asker::new(at));
                let had_told = asker.has_told();
                let received = asker.admit(&request, at);
                if asker.has_told() && !had_told {
                    self.told.push(peer);
                }
                Ok((peer, received?))
            });
            match admitted {
                Ok((peer, received)) => self.work.push(Work {
                    request,
                    peer,
                    received,
                    from: packet.from,
                    to: packet.note.to,
                    length: packet.length,
                    received_ns,
                }),
                Err(reason) => journal.ignore(reason),
            }
        }
        Ok(more)
    }

    /// Answers what was read: from the address that was asked, to the address
    /// and port that asked.
    fn reply(&mut self, position: usize, own: &OwnStatus, hops: &dyn Hops, journal: &mut Journal) {
        let Some(socket) = self.sockets.get(position) else { return };
        for work in self.work.drain(..) {
            let windows;
            let (mut climbs, mut drops) = (Vec::new(), Vec::new());
            let status = if work.request.stream == Stream::Underlay {
                let asker = self.askers.get(&work.peer);
                let run = asker.and_then(|asker| asker.run(work.request.epoch));
                windows = run.map(Run::windows).unwrap_or_default();
                if work.request.asks_hops {
                    climbs = climbs_of(&work.request, hops);
                    drops = hops.drops(work.peer);
                }
                let (windows, climbs, drops) = (&windows, &climbs, &drops);
                Some(Status { epoch: self.epoch, windows, own, climbs, drops })
            } else {
                None
            };
            let dwell_ns = Clocks::read().age_ns(work.received_ns);
            let (request, received) = (&work.request, work.received);
            wire::encode_reply(request, dwell_ns, received, status, work.length, &mut self.reply);
            // A reply that the kernel refuses is a reply that is lost: the
            // peer sees it as such, and this node's own probes tell why.
            if socket.send(&self.reply, work.from, work.to).is_ok() {
                journal.counters.answered += 1;
                journal.count_sent(self.reply.len(), work.from.ip());
            }
        }
    }

    /// Reports what peers told of their streams beside what of it arrived.
    pub(super) fn report(&mut self, now: Mono, journal: &mut Journal) {
        let askers = &mut self.askers;
        self.told.retain(|&peer| {
            let Some(asker) = askers.get_mut(&peer) else { return false };
            for run in &mut asker.runs {
                let Some((at, sent)) = run.told.take_if(|(at, _)| now.since(*at) >= GRACE_NS)
                else {
                    continue;
                };
                let streams = sent.iter().map(|&(stream, highest)| Passage {
                    stream,
                    sent_highest: highest,
                    received: run.window(stream),
                });
                let streams = streams.collect();
                journal.events.push(ProbeEvent::Asked { peer, at, streams });
            }
            asker.has_told()
        });
    }
}

/// What passed this node's hops of the streams that the requester has.
fn climbs_of(request: &Request, hops: &dyn Hops) -> Vec<(Stream, Climb)> {
    let streams = request.sent.iter().map(|&(stream, _)| stream).take(MAX_CLIMBS);
    streams.filter_map(|stream| Some((stream, hops.climb(request.epoch, stream)?))).collect()
}

/// Whether the host has no IPv6: built without it, or switched off.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

impl Asker {
    fn new(now: Mono) -> Self {
        Self { runs: Vec::new(), former: VecDeque::new(), credit_ns: CREDIT_NS, credited: now }
    }

    /// Records a request; how many of its stream came from its run.
    fn admit(&mut self, request: &Request, at: Mono) -> Result<u32, Ignored> {
        if self.former.contains(&request.epoch) {
            return Err(Ignored::Replayed);
        }
        let received = self.run_of(request.epoch, at).admit(request, at)?;
        let saved = self.credit_ns.saturating_add(at.since(self.credited));
        self.credited = self.credited.max(at);
        self.credit_ns = saved.min(CREDIT_NS);
        self.credit_ns = self.credit_ns.checked_sub(COST_NS).ok_or(Ignored::RateLimited)?;
        Ok(received)
    }

    /// The record of a run; when there is no room for another, the one that
    /// was silent for longest makes way.
    fn run_of(&mut self, epoch: u64, at: Mono) -> &mut Run {
        let known = self.runs.iter().position(|run| run.epoch == epoch);
        let position = known.unwrap_or_else(|| {
            self.runs.sort_by_key(|run| Reverse(run.at));
            self.former
                .extend(self.runs.drain(self.runs.len().min(RUNS - 1)..).map(|run| run.epoch));
            while self.former.len() > FORMER_RUNS {
                self.former.pop_front();
            }
            self.runs.push(Run { epoch, at, heard: Vec::new(), told: None });
            self.runs.len() - 1
        });
        &mut self.runs[position]
    }

    fn run(&self, epoch: u64) -> Option<&Run> {
        self.runs.iter().find(|run| run.epoch == epoch)
    }

    fn has_told(&self) -> bool {
        self.runs.iter().any(|run| run.told.is_some())
    }
}

impl Run {
    fn admit(&mut self, request: &Request, at: Mono) -> Result<u32, Ignored> {
        self.at = at;
        let heard = self.heard(request.stream, at);
        heard.at = at;
        if matches!(heard.window.record(request.seq), Recorded::Duplicate | Recorded::TooOld) {
            return Err(Ignored::Replayed);
        }
        let received = heard.window.count;
        if request.stream == Stream::Underlay {
            self.told = Some((at, request.sent.clone()));
        }
        Ok(received)
    }

    /// The record of a stream; when there is no room for another, the stream
    /// that was silent for longest makes way.
    fn heard(&mut self, stream: Stream, at: Mono) -> &mut Heard {
        let known = self.heard.iter().position(|heard| heard.stream == stream);
        let position = known.unwrap_or_else(|| {
            self.heard.sort_by_key(|heard| Reverse(heard.at));
            self.heard.truncate(MAX_WINDOWS - 1);
            self.heard.push(Heard { stream, window: Window::default(), at });
            self.heard.len() - 1
        });
        &mut self.heard[position]
    }

    fn window(&self, stream: Stream) -> Window {
        let known = self.heard.iter().find(|heard| heard.stream == stream);
        known.map(|heard| heard.window).unwrap_or_default()
    }

    fn windows(&self) -> Vec<(Stream, Window)> {
        self.heard.iter().map(|heard| (heard.stream, heard.window)).collect()
    }
}

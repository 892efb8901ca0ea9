//! The edge of probing: sends what the orders name, answers peers, and tells
//! what happened. Which probes are due, and what their fate means, is the
//! core's business.
//!
//! Everything happens in beats, about twenty a second: waking up is what
//! probing costs. Packets carry kernel timestamps, so they need not be read as
//! they come; requests of peers are answered in the next beat, and the time
//! that they lay here is told in the reply.

mod agenda;
mod alarm;
pub mod echo;
mod journal;
mod prober;
mod responder;
mod socket;
pub mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use overlaywatch_core::assembly::{SourceId, SourceReport, Update};
use overlaywatch_core::fact::Gap;
use overlaywatch_core::ladder::Climb;
use overlaywatch_core::model::PeerId;
use overlaywatch_core::probing::{Orders, OwnStatus, ProbeDrop, ProbeEvent, Stream};
use overlaywatch_core::time::{MILLISECOND, Mono, SECOND};
use tokio::sync::mpsc;

use self::agenda::Agenda;
use self::alarm::Alarm;
use self::journal::Journal;
use self::prober::Prober;
use self::responder::Responder;
use crate::clock;

/// The UDP port of probes where the configuration names no other.
pub const DEFAULT_PORT: u16 = 9977;

/// Events that wait for a look at most; beyond, it comes early.
const LONGEST_JOURNAL: usize = 4_096;
/// Hops are read this often, less the time of a look.
const HOPS_NS: u64 = 150 * MILLISECOND;
/// Peers whose hops are read at a time.
const HOPS_AT_ONCE: usize = 64;
/// Counters are told this often; less the time of a look, which tells them.
const COUNTERS_NS: u64 = SECOND - 50 * MILLISECOND;

/// What the kernel counted of probes at this node's hops.
pub trait Hops: fmt::Debug + Send + Sync {
    /// One stream, by the epoch of its requester for its peer; none while
    /// nothing is counted.
    fn climb(&self, epoch: u64, stream: Stream) -> Option<Climb>;

    /// Requests of a peer, and replies to it, that were dropped here lately, the
    /// most first.
    fn drops(&self, peer: PeerId) -> Vec<ProbeDrop>;
}

/// Nothing is counted: switched off, not permitted, or an old kernel.
#[derive(Clone, Copy, Debug)]
pub struct Uncounted;

impl Hops for Uncounted {
    fn climb(&self, _: u64, _: Stream) -> Option<Climb> {
        None
    }

    fn drops(&self, _: PeerId) -> Vec<ProbeDrop> {
        Vec::new()
    }
}

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The UDP port of this node's responder and of its peers'.
    pub port: u16,
    /// A number that no earlier run of this agent had; see [`random_epoch`].
    pub epoch: u64,
    /// Whether to answer peers.
    pub responder: bool,
    /// What passed this node's hops.
    pub hops: Arc<dyn Hops>,
}

/// Why there can be no probing.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The responder's address belongs to another process.
    #[error(
        "cannot listen for probes on UDP {0}: the port is already used; \
         `ss -ulpn 'sport = :{port}'` names the process, `probe.port` in the configuration \
         chooses another port, the same on all nodes",
        port = .0.port()
    )]
    InUse(SocketAddr),
    /// The responder's address is denied.
    #[error(
        "cannot listen for probes on UDP {0}: permission denied; ports below \
         net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE: grant it or choose \
         another port by `probe.port` in the configuration, the same on all nodes"
    )]
    Denied(SocketAddr),
    /// The responder's address cannot be bound for another reason.
    #[error("cannot listen for probes on UDP {0}: {1}")]
    Bind(SocketAddr, #[source] io::Error),
    /// The kernel gives no socket to send probes from.
    #[error("cannot open the sockets that probes are sent from: {0}")]
    Open(#[source] io::Error),
    /// A socket or the timer failed.
    #[error("cannot go on probing: {0}")]
    Failed(#[source] io::Error),
}

/// An epoch that no other run has: 64 random bits of the kernel (getrandom(2)).
#[must_use]
pub fn random_epoch() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the buffer is writable for the length that is given.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(read) == Ok(bytes.len()) {
        u64::from_ne_bytes(bytes)
    } else {
        // Only a kernel without the call gets here; the time differs between runs too.
        clock::realtime_ns()
    }
}

/// Executes orders and answers peers until either channel closes.
///
/// The sockets are opened first. While `updates` is full nothing is sent or
/// answered, so whoever receives them must not wait for `orders` to be taken.
///
/// # Errors
/// The port cannot be bound, or a socket fails for good.
pub async fn run(
    options: Options,
    mut orders: mpsc::Receiver<Orders>,
    updates: mpsc::Sender<Update>,
) -> Result<(), ProbeError> {
    let mut edge = Edge::open(options)?;
    let alarm = Alarm::new().map_err(ProbeError::Open)?;
    if updates.send(edge.introduction()).await.is_err() {
        return Ok(());
    }
    loop {
        tokio::select! {
            received = orders.recv() => match received {
                Some(received) => edge.obey(received),
                None => return Ok(()),
            },
            rung = alarm.rung() => rung.map_err(ProbeError::Failed)?,
            () = updates.closed() => return Ok(()),
        }
        for update in edge.beat()? {
            if updates.send(update).await.is_err() {
                return Ok(());
            }
        }
        if let Some(due) = edge.agenda.next_beat() {
            alarm.set(due).map_err(ProbeError::Failed)?;
        }
    }
}

/// Everything that probing keeps.
struct Edge {
    agenda: Agenda,
    prober: Prober,
    responder: Option<Responder>,
    journal: Journal,
    own: Arc<OwnStatus>,
    hops: Arc<dyn Hops>,
    hops_of: Arc<BTreeSet<PeerId>>,
    /// When hops were read last.
    climbed: Mono,
    /// When the counters were told last.
    counted: Mono,
}

impl Edge {
    fn open(options: Options) -> Result<Self, ProbeError> {
        let Options { port, epoch, responder, hops } = options;
        let responder = if responder {
            Some(Responder::bind(port, epoch).map_err(|(address, error)| match error.kind() {
                io::ErrorKind::AddrInUse => ProbeError::InUse(address),
                io::ErrorKind::PermissionDenied => ProbeError::Denied(address),
                _ => ProbeError::Bind(address, error),
            })?)
        } else {
            None
        };
        Ok(Self {
            agenda: Agenda::default(),
            prober: Prober::open(port, epoch).map_err(ProbeError::Open)?,
            responder,
            journal: Journal::default(),
            own: Arc::default(),
            hops,
            hops_of: Arc::default(),
            climbed: Mono::default(),
            counted: Mono::default(),
        })
    }

    /// What can be done and what not.
    fn introduction(&self) -> Update {
        let (gap, detail) = match self.prober.echo_error() {
            None => (None, String::new()),
            Some(error) => (
                Some(Gap::Denied),
                format!(
                    "no ICMP echo, so a silent agent cannot be told from a silent node ({error}): \
                     grant CAP_NET_RAW or put the agent's group into net.ipv4.ping_group_range; \
                     all other probes work"
                ),
            ),
        };
        Update::Source(SourceReport { source: SourceId::Probe, gap, detail, duration_ns: 0 })
    }

    fn obey(&mut self, orders: Orders) {
        let Orders { requests, peers, own, hops_of } = orders;
        if !Arc::ptr_eq(&peers, &self.journal.peers) {
            let is_known = |peer: PeerId| peers.contains_key(&peer.0);
            self.prober.retain(is_known);
            if let Some(responder) = &mut self.responder {
                responder.retain(is_known);
            }
            self.journal.peers = peers;
        }
        self.own = own;
        self.hops_of = hops_of;
        self.agenda.add(requests, clock::mono());
    }

    /// Does what is due; what there is to tell.
    fn beat(&mut self) -> Result<Vec<Update>, ProbeError> {
        let now = clock::mono();
        if !self.agenda.begin(now) {
            return Ok(Vec::new());
        }
        while let Some(request) = self.agenda.take_due(now) {
            let asks_hops = self.hops_of.contains(&request.peer);
            self.prober.send(&request, asks_hops, &mut self.journal);
        }
        if self.agenda.is_look(now) || self.journal.events.len() >= LONGEST_JOURNAL {
            self.look()
        } else {
            self.answer().map(|()| Vec::new())
        }
    }

    fn answer(&mut self) -> Result<(), ProbeError> {
        let Some(responder) = &mut self.responder else { return Ok(()) };
        responder
            .answer(&self.own, self.hops.as_ref(), &mut self.journal)
            .map_err(ProbeError::Failed)
    }

    /// Reads what passed this node's hops to and from peers that lose something.
    fn read_hops(&mut self, at: Mono) {
        if at.since(self.climbed) < HOPS_NS {
            return;
        }
        self.climbed = at;
        for &peer in self.hops_of.iter().take(HOPS_AT_ONCE) {
            let climbs = self.prober.climbs(peer, self.hops.as_ref());
            if !climbs.is_empty() {
                self.journal.events.push(ProbeEvent::Climbed { peer, at, climbs });
            }
        }
    }

    /// Reads everything that came until now and tells what happened.
    fn look(&mut self) -> Result<Vec<Update>, ProbeError> {
        let at = clock::mono();
        self.answer()?;
        self.prober.collect(&mut self.journal).map_err(ProbeError::Failed)?;
        if let Some(responder) = &mut self.responder {
            responder.report(at, &mut self.journal);
        }
        self.read_hops(at);
        let journal = &mut self.journal;
        journal.events.push(ProbeEvent::Observed {
            at,
            lag_ns: self.agenda.look(at),
            socket_drops: std::mem::take(&mut journal.socket_drops),
        });
        let room = Vec::with_capacity(journal.events.len());
        let mut updates = vec![Update::Probes(std::mem::replace(&mut journal.events, room))];
        if at.since(self.counted) >= COUNTERS_NS {
            self.counted = at;
            updates.push(Update::ProberCounters(Box::new(journal.counters.clone())));
        }
        Ok(updates)
    }
}

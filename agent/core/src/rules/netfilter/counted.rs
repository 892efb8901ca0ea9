//! What drops outer packets here, by the counters of rules: where no program
//! counts what this kernel drops.
//!
//! A counter says that a rule takes packets, not whose they are. It counts as
//! evidence only while a tunnel loses probes on a way that leads through the
//! rule, and the underlay beside it none. A rule that names neither a port nor a
//! protocol takes whatever noise the network has: it must take as much as is lost.

use super::filtered::{self, Suspect, suspects};
use super::finding;
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Filtered, Finding};
use crate::ladder::Segment;
use crate::model::{Growth, IfIndex, Netfilter, Outer, Peer, PeerTunnel, Tunnel};
use crate::pairs::StreamView;
use crate::probing::Stream;
use crate::rules::{Context, Verdicts};
use crate::time::SECOND;

/// Two looks at the counters and a bit: what grew before that is over.
const LATELY_NS: u64 = 12 * SECOND;
/// The time of [`StreamView::minute`].
const MINUTE_NS: u64 = 60 * SECOND;
/// Packets, and lost probes, below which nothing is said.
const ENOUGH: u32 = 2;
/// A rule that names nothing must take this share of what is lost, one in so many.
const SHARE: u64 = 2;

pub(super) fn judge(context: &Context<'_>, netfilter: &Netfilter, verdicts: &mut Verdicts) {
    let mut found: Vec<Finding> = Vec::new();
    let mut is_open = false;
    for (peer, leads, tunnel) in context.tunnelled_peers().filter(|(p, ..)| context.is_alive(p)) {
        for outbound in [true, false] {
            let Some(loss) = Loss::of(context, peer, leads, outbound) else { continue };
            let device = device(context, tunnel);
            let (own, other) = (context.outer_source(peer.id, tunnel), Some(peer.id.0));
            let outer = Outer {
                encapsulation: leads.encapsulation,
                from: if outbound { own } else { other },
                to: if outbound { other } else { own },
                in_device: device.filter(|_| !outbound),
            };
            let (.., hooks) = filtered::way(outbound);
            let all = || suspects(netfilter, peer.id.0, outer, hooks);
            let taking = all().filter_map(|suspect| {
                let growth = loss.taken_by(context, &suspect)?;
                Some((suspect, growth))
            });
            match taking
                .min_by_key(|(suspect, growth)| (suspect.rank, std::cmp::Reverse(growth.packets)))
            {
                Some((suspect, growth)) => add(&mut found, &loss, suspect, growth),
                // What does not count may take them all the same.
                None => is_open |= all().any(|suspect| !suspect.is_counted()),
            }
        }
    }
    if is_open {
        verdicts.blind(&[Code::EncapsulationFiltered]);
    }
    found.into_iter().for_each(|finding| verdicts.add(finding));
}

impl Suspect<'_> {
    fn is_counted(&self) -> bool {
        self.rule.is_some_and(|rule| rule.packets.is_some())
    }
}

/// Probes of one tunnel that are lost one way.
struct Loss {
    direction: Direction,
    stretch: Segment,
    /// Lost ones.
    probes: u32,
    /// While this long, nanoseconds.
    span_ns: u64,
    /// They are known to be lost on this way, not just somewhere.
    is_placed: bool,
}

impl Loss {
    fn of(context: &Context<'_>, peer: &Peer, leads: &PeerTunnel, outbound: bool) -> Option<Self> {
        let stream = Stream::Small(leads.encapsulation);
        let view = context.stream(peer, stream).filter(|view| view.is_lossy())?;
        let (direction, stretch, _) = filtered::way(outbound);
        let elsewhere = context.place(peer, stream, direction);
        if elsewhere.is_some_and(|place| !place.overlaps(stretch)) {
            return None;
        }
        let lost = lost(view);
        let (here, there) =
            if outbound { (lost.outbound, lost.inbound) } else { (lost.inbound, lost.outbound) };
        let is_placed = here > 0 || there > 0;
        let probes = if is_placed { here } else { lost.undetermined };
        let span_ns = lost.span_ns;
        (probes >= ENOUGH).then_some(Self { direction, stretch, probes, span_ns, is_placed })
    }

    /// How the suspect's counter grew meanwhile, if it did enough.
    fn taken_by(&self, context: &Context<'_>, suspect: &Suspect<'_>) -> Option<Growth> {
        let growth = suspect.rule?.growth?;
        let is_now = context.at().since(growth.at) <= LATELY_NS;
        // By rate, since they are counted over different times.
        let taken = growth.packets.saturating_mul(SHARE).saturating_mul(self.span_ns);
        let missed = u64::from(self.probes).saturating_mul(growth.at.since(growth.since));
        let is_enough = growth.packets >= u64::from(ENOUGH);
        (is_now && is_enough && (suspect.rank < 2 || taken >= missed)).then_some(growth)
    }
}

/// Lost probes of one stream.
struct Lost {
    outbound: u32,
    inbound: u32,
    undetermined: u32,
    span_ns: u64,
}

/// The run of losses up to now, else those of the last minute.
fn lost(view: &StreamView) -> Lost {
    let (run, minute) = (view.run, view.minute);
    if run.lost() >= ENOUGH {
        // Loss on the way out hides that on the way back; the peer's own probes tell.
        let inbound = run.inbound.max(view.unseen_inbound);
        let (outbound, undetermined) = (run.outbound, run.undetermined);
        return Lost { outbound, inbound, undetermined, span_ns: run.span_ns().max(SECOND) };
    }
    let (outbound, inbound) = (minute.lost_outbound, minute.lost_inbound);
    let undetermined = minute.lost_undetermined;
    Lost { outbound, inbound, undetermined, span_ns: MINUTE_NS }
}

/// The NIC that the tunnel's packets come in by.
fn device<'a>(context: &Context<'a>, tunnel: &Tunnel) -> Option<&'a str> {
    let only: Option<IfIndex> = match context.now.underlays.as_slice() {
        [only] => Some(*only),
        _ => None,
    };
    let links = context.now.links.seen()?;
    links.get(&tunnel.underlay.or(only)?).map(|link| link.name.as_str())
}

fn add(found: &mut Vec<Finding>, loss: &Loss, suspect: Suspect<'_>, growth: Growth) {
    let is_sure = loss.is_placed && suspect.rank == 0;
    let confidence = if is_sure { Confidence::High } else { Confidence::Low };
    let subject = suspect.subject();
    if let Some(known) = found.iter_mut().find(|known| known.subject == subject) {
        if known.direction != Some(loss.direction) {
            (known.direction, known.hop) = (Some(Direction::Both), None);
        }
        known.confidence = known.confidence.max(confidence);
        return;
    }
    let counted = Filtered::Counted {
        packets: growth.packets,
        seconds: u32::try_from(growth.at.since(growth.since).div_ceil(SECOND)).unwrap_or(u32::MAX),
        probes: loss.probes,
    };
    let evidence = vec![Evidence::Netfilter(suspect.evidence), Evidence::Netfilter(counted)];
    found.push(Finding {
        direction: Some(loss.direction),
        hop: Some(loss.stretch),
        confidence,
        ..finding(Code::EncapsulationFiltered, subject, evidence)
    });
}

#[cfg(test)]
mod tests;

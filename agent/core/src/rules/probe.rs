//! What probes prove: dead paths, lossy paths, silent agents.

use std::collections::BTreeSet;

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::fact::Fact;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::ladder::{Hop, Segment};
use crate::model::{Peer, PeerTunnel};
use crate::pairs::{DEAD_RUN, Run, SPARSE_DEAD_RUN, StreamView};
use crate::probing::{SendError, Stream};
use crate::statistics::by_chance;
use crate::time::{MILLISECOND, SECOND};

/// A run of losses is a dead path only when it lasted this long: two seconds
/// of the probing plan were touched, so that no microburst can look like it.
const DEAD_SPAN_NS: u64 = 900 * MILLISECOND;
/// How long a verdict waits for device counters that are newer than the losses.
const COUNTERS_NS: u64 = 3 * SECOND;
/// How long a verdict on the wire waits for what the sender's kernel dropped.
const TOLD_NS: u64 = 2_500 * MILLISECOND;
/// Answered underlay probes without which nothing is said of an overlay.
const UNDERLAY_PROOF: u32 = 8;
/// How unlikely it must be that the underlay loses as the overlay does before the
/// overlay alone is blamed. It is asked twice a second while both are tested.
const OVERLAY_ONLY: f64 = 0.002;
/// The window of the minute tally, seconds.
const MINUTE: u32 = 60;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let lossy: Vec<&Peer> = context
        .now
        .peers_and_pairs()
        .filter(|(_, pair)| pair.is_some_and(|p| p.streams.values().any(|view| view.is_lossy())))
        .map(|(peer, _)| peer)
        .collect();
    if lossy.is_empty() {
        return;
    }
    isolated(context, verdicts);
    for peer in lossy {
        let Some(underlay) = context.stream(peer, Stream::Underlay) else { continue };
        if is_dead(&underlay.run, DEAD_RUN) {
            silent(context, peer, underlay, verdicts);
            continue;
        }
        if gray(underlay) {
            verdicts.add(loss(context, Code::UnderlayLoss, peer, underlay, Stream::Underlay));
        }
        if context.answered_lately(underlay) || underlay.run.lost() == 0 {
            for leads in &peer.tunnels {
                overlay(context, peer, leads, underlay, verdicts);
            }
        }
    }
}

fn is_dead(run: &Run, at_least: u32) -> bool {
    run.lost() >= at_least && run.span_ns() >= DEAD_SPAN_NS
}

fn gray(view: &StreamView) -> bool {
    view.gray_outbound || view.gray_inbound || view.gray_undetermined
}

/// Nothing of any peer answers, although several were asked over more than a second.
fn isolated(context: &Context<'_>, verdicts: &mut Verdicts) {
    let asked: Vec<&StreamView> = context
        .now
        .peers
        .iter()
        .filter(|peer| !peer.has_departed())
        .filter_map(|peer| context.now.pairs.get(&peer.id))
        .flat_map(|pair| pair.streams.values().map(AsRef::as_ref))
        .filter(|view| view.run.lost() > 0 || context.answered_lately(view))
        .collect();
    let is_silent = |peer: &&Peer| {
        let underlay = context.stream(peer, Stream::Underlay);
        // Where ICMP cannot be sent, UDP must do: a longer run of it.
        match context.stream(peer, Stream::Echo) {
            Some(echo) => echo.run.lost() > 0 && underlay.is_some_and(|u| u.run.lost() >= 2),
            None => underlay.is_some_and(|view| is_dead(&view.run, DEAD_RUN)),
        }
    };
    let silent = nodes(context.now.peers.iter().filter(is_silent));
    let first = asked.iter().map(|view| view.run.first).min();
    let last = asked.iter().map(|view| view.run.last).max();
    let span = first.zip(last).map_or(0, |(first, last)| last.since(first));
    if silent >= 2 && span >= DEAD_SPAN_NS && asked.iter().all(|view| view.run.lost() > 0) {
        let known = nodes(context.now.peers.iter().filter(|peer| !peer.has_departed()));
        verdicts.add(Finding {
            code: Code::NodeIsolated,
            subject: Subject::Node,
            direction: None,
            hop: None,
            evidence: vec![Evidence::Peers { count: silent, of: known }],
            confidence: Confidence::High,
        });
    }
}

/// How many nodes these are: one with an underlay of each family is a peer by each of
/// its addresses, and has one name.
fn nodes<'a>(peers: impl Iterator<Item = &'a Peer>) -> u32 {
    let (mut names, mut nameless) = (BTreeSet::new(), 0);
    for peer in peers {
        match &peer.name {
            Some(name) => {
                names.insert(name);
            }
            None => nameless += 1,
        }
    }
    u32::try_from(names.len() + nameless).unwrap_or(u32::MAX)
}

/// The peer's agent does not answer over the underlay: because of its network,
/// of its agent, or of a filter on the probes' own port.
fn silent(context: &Context<'_>, peer: &Peer, underlay: &StreamView, verdicts: &mut Verdicts) {
    let since = underlay.run.first;
    let answered_since = |view: &StreamView| {
        view.last_answer.is_some_and(|at| at > since.plus(SECOND / 2))
            && context.answered_lately(view)
    };
    let echo = context.stream(peer, Stream::Echo);
    let refused_port = underlay.unreachable.filter(|&(code, from)| code == 3 && from == peer.id.0);
    let through_tunnel = peer.tunnels.iter().find_map(|leads| {
        let stream = Stream::Small(leads.encapsulation);
        context.stream(peer, stream).filter(|view| answered_since(view)).map(|view| (stream, view))
    });
    // Its requests still arrive: its agent lives, and so does the way from there.
    let is_heard = context
        .pair(peer)
        .and_then(|pair| pair.last_asked)
        .is_some_and(|at| at > since.plus(SECOND / 2) && context.at().since(at) <= super::FRESH_NS);
    let echo_answers = echo.filter(|view| answered_since(view));
    let mut evidence = vec![lost(Stream::Underlay, underlay)];
    if let Some((code, from)) = refused_port {
        evidence.push(Evidence::IcmpUnreachable { stream: Stream::Underlay, code, from });
    }
    if let Some(view) = echo_answers {
        evidence.push(Evidence::Answered { stream: Stream::Echo, count: view.recent.answered });
    }
    let (code, confidence) = if let Some((stream, view)) = through_tunnel {
        evidence.push(Evidence::Answered { stream, count: view.recent.answered });
        (Code::ProbePortFiltered, Confidence::High)
    } else if is_heard && (refused_port.is_some() || echo_answers.is_some()) {
        (Code::ProbePortFiltered, Confidence::Low)
    } else if refused_port.is_some() {
        (Code::AgentSilent, Confidence::Certain)
    } else if echo_answers.is_some() {
        (Code::AgentSilent, Confidence::Low)
    } else if peer.has_departed() {
        (Code::PeerDeparted, Confidence::High)
    } else if let Some(view) = echo {
        if view.run.lost() < SPARSE_DEAD_RUN {
            return;
        }
        evidence.push(lost(Stream::Echo, view));
        (Code::PeerUnreachable, Confidence::High)
    } else {
        // ICMP cannot be sent here: whether more than the agent is silent cannot be told.
        (Code::AgentSilent, Confidence::Low)
    };
    let (direction, hop) = match (code, refusal(underlay)) {
        (Code::PeerUnreachable, Some((error, count))) => {
            evidence.push(Evidence::Refused { stream: Stream::Underlay, error, count });
            (Some(Direction::Outbound), Some(Segment { from: Hop::Sent, to: Hop::LeftNic }))
        }
        (Code::PeerUnreachable, None) if counted(underlay).is_some() => {
            let (direction, segment) = counted(underlay).unzip();
            (direction, segment)
        }
        (Code::PeerUnreachable | Code::ProbePortFiltered, None) if is_heard => {
            (Some(Direction::Outbound), Some(Segment { from: Hop::Sent, to: Hop::Delivered }))
        }
        // Nothing comes back: neither the direction nor the layer can be told from here.
        _ => (None, None),
    };
    verdicts.add(Finding {
        code,
        subject: Subject::Pair { peer: peer.id, encapsulation: None },
        direction,
        hop,
        evidence,
        confidence,
    });
}

/// Where the hops say that most of the losses vanished, and which way.
fn counted(view: &StreamView) -> Option<(Direction, Segment)> {
    let most = view.places.first().filter(|place| place.count * 2 > view.run.lost())?;
    Some((most.direction, view.place(most.direction)?))
}

/// Why the local kernel refuses to send, where that explains the losses.
fn refusal(view: &StreamView) -> Option<(SendError, u32)> {
    view.refused.filter(|(error, count)| {
        let is_local = matches!(
            error,
            SendError::NoRoute | SendError::Prohibited | SendError::Blackhole | SendError::Filtered
        );
        is_local && count.saturating_mul(2) >= view.recent.lost_outbound
    })
}

fn overlay(
    context: &Context<'_>,
    peer: &Peer,
    leads: &PeerTunnel,
    underlay: &StreamView,
    verdicts: &mut Verdicts,
) {
    let encapsulation = leads.encapsulation;
    let Some(small) = context.stream(peer, Stream::Small(encapsulation)) else { return };
    let underlay_is_proved =
        underlay.minute.answered >= UNDERLAY_PROOF && context.answered_lately(underlay);
    if !underlay_is_proved || peer.has_departed() {
        return;
    }
    // The underlay answered since, so it is not just that both die together.
    let answered_since = underlay.last_answer.is_some_and(|at| at > small.run.first);
    if is_dead(&small.run, DEAD_RUN) && answered_since {
        let stream = Stream::Small(encapsulation);
        let is_counted = direction(small).is_some_and(|way| small.place(way).is_some());
        if (is_counted && kernels_tell(context, peer, small, stream))
            || (!is_counted && (!outbound(small) || counters_tell(context, small)))
        {
            let finding = dead(context, peer, leads, small, underlay);
            // What the kernel refuses may be said by a rule on its tables already.
            if !verdicts.findings.iter().any(|known| known.key() == finding.key()) {
                verdicts.add(finding);
            }
        }
        return;
    }
    if gray(small) && !gray(underlay) {
        let losses = |view: &StreamView| (view.minute.lost(), view.minute.decided());
        if by_chance(losses(underlay), losses(small)) < OVERLAY_ONLY {
            let stream = Stream::Small(encapsulation);
            verdicts.add(loss(context, Code::OverlayLoss, peer, small, stream));
        }
    }
    if let Some(full) = context.stream(peer, Stream::Full(encapsulation))
        && is_dead(&full.run, SPARSE_DEAD_RUN)
        && small.run.lost() == 0
        && small.last_answer.is_some_and(|at| at > full.run.first.plus(SECOND / 2))
    {
        let mut finding =
            loss(context, Code::MtuBlackhole, peer, full, Stream::Full(encapsulation));
        finding.direction = direction(full);
        finding.hop =
            finding.direction.map(|way| place(context, peer, Stream::Full(encapsulation), way));
        finding.evidence = vec![lost(Stream::Full(encapsulation), full)];
        finding.evidence.push(Evidence::Answered {
            stream: Stream::Small(encapsulation),
            count: small.recent.answered,
        });
        verdicts.add(finding);
    }
}

fn outbound(view: &StreamView) -> bool {
    view.run.outbound > view.run.inbound
}

/// Whether device counters were read late enough to have seen the losses, or
/// will not be in time for the verdict.
fn counters_tell(context: &Context<'_>, small: &StreamView) -> bool {
    let read_since = match &context.now.links {
        Fact::Seen { at, .. } => *at >= small.run.last,
        Fact::Absent { .. } | Fact::Missing(_) => true,
    };
    read_since || context.at().since(small.run.first) >= COUNTERS_NS
}

/// Whether the kernels on both sides had the time to say what they dropped of
/// these losses, or will not say it in time for the verdict.
fn kernels_tell(context: &Context<'_>, peer: &Peer, small: &StreamView, stream: Stream) -> bool {
    let read_since = match &context.now.kernel {
        Fact::Seen { at, .. } => *at >= small.run.last,
        Fact::Absent { .. } | Fact::Missing(_) => true,
    };
    let wire = Segment { from: Hop::LeftNic, to: Hop::ReachedNic };
    // What the peer dropped of its replies comes with a later reply.
    let is_told = direction(small) != Some(Direction::Inbound)
        || context.place(peer, stream, Direction::Inbound) != Some(wire)
        || context.at().since(small.run.first) >= TOLD_NS;
    (read_since && is_told) || context.at().since(small.run.first) >= COUNTERS_NS
}

/// Packets that the tunnel device refused, where they account for what is lost
/// to the peer: to this peer alone, or to all that the device leads to.
/// Counters of a device do not tell peers apart: where several lose, part of it
/// may be lost elsewhere.
fn refused_by_device(context: &Context<'_>, leads: &PeerTunnel) -> Option<(u64, Confidence)> {
    let refused = context.delta.device(leads.index)?.tx_lost;
    let stream = Stream::Small(leads.encapsulation);
    let (mut peers, mut losing, mut lost) = (0_usize, 0_usize, 0_u64);
    for (peer, pair) in context.now.peers_and_pairs() {
        if !peer.tunnels.iter().any(|tunnel| tunnel.index == leads.index) {
            continue;
        }
        peers += 1;
        let Some(view) = pair.and_then(|pair| pair.streams.get(&stream)) else { continue };
        if view.recent.lost_outbound > 0 {
            losing += 1;
            lost += u64::from(view.recent.lost_outbound);
        }
    }
    let accounts_for_all = refused >= 3 && refused.saturating_mul(10) >= lost.saturating_mul(7);
    match losing {
        1 if accounts_for_all => Some((refused, Confidence::High)),
        _ if accounts_for_all && losing == peers => Some((refused, Confidence::Low)),
        _ => None,
    }
}

/// The overlay to the peer is dead and the underlay is not.
fn dead(
    context: &Context<'_>,
    peer: &Peer,
    leads: &PeerTunnel,
    small: &StreamView,
    underlay: &StreamView,
) -> Finding {
    let stream = Stream::Small(leads.encapsulation);
    let mut evidence = vec![
        lost(stream, small),
        Evidence::Answered { stream: Stream::Underlay, count: underlay.minute.answered },
    ];
    if let Some((error, count)) = small.refused {
        evidence.push(Evidence::Refused { stream, error, count });
    }
    let mut confidence = Confidence::High;
    let mut hop = Some(Segment { from: Hop::Sent, to: Hop::Encapsulated });
    let code = match refusal(small).filter(|_| outbound(small)).map(|(error, _)| error) {
        Some(SendError::Filtered) => Code::LocalOutputDrop,
        Some(SendError::NoRoute) => Code::RouteMissing,
        Some(_) => Code::RouteBlackhole,
        None => match direction(small)
            .and_then(|way| Some((way, context.place(peer, stream, way)?)))
        {
            Some((direction, segment)) => {
                hop = Some(segment);
                code_of(segment, direction)
            }
            None => {
                let refused = outbound(small).then(|| refused_by_device(context, leads)).flatten();
                if let Some((packets, sure)) = refused {
                    confidence = sure;
                    evidence
                        .push(Evidence::DeviceDropped { device: leads.device.clone(), packets });
                    hop = Some(Segment { from: Hop::Encapsulated, to: Hop::LeftNic });
                    Code::LocalOutputDrop
                } else {
                    hop = direction(small).map(|_| Segment { from: Hop::Sent, to: Hop::Delivered });
                    Code::EncapsulationLost
                }
            }
        },
    };
    if matches!(code, Code::RouteMissing | Code::RouteBlackhole) {
        confidence = Confidence::Certain;
    }
    Finding {
        code,
        subject: Subject::Pair { peer: peer.id, encapsulation: Some(leads.encapsulation) },
        direction: direction(small),
        hop,
        evidence,
        confidence,
    }
}

/// Which way a run of losses went. A reply can only be lost after its request
/// arrived, so loss on the way out hides the way back: there, the peer's own
/// probes tell.
fn direction(view: &StreamView) -> Option<Direction> {
    match (view.run.outbound, view.run.inbound) {
        (0, 0) => None,
        (out, back) if out.saturating_mul(4) < back => Some(Direction::Inbound),
        (out, back) if back.saturating_mul(4) < out && view.unseen_inbound < SPARSE_DEAD_RUN => {
            Some(Direction::Outbound)
        }
        _ => Some(Direction::Both),
    }
}

/// Where the losses of one direction vanished; the whole way where nobody counts.
fn place(context: &Context<'_>, peer: &Peer, stream: Stream, direction: Direction) -> Segment {
    let whole = Segment { from: Hop::Sent, to: Hop::Delivered };
    context.place(peer, stream, direction).unwrap_or(whole)
}

/// What a counted place means, where no rule knows more.
fn code_of(segment: Segment, direction: Direction) -> Code {
    if segment.from < Hop::ReachedNic && segment.to > Hop::LeftNic {
        // The wire is part of it.
        Code::EncapsulationLost
    } else if segment.to <= Hop::LeftNic && direction != Direction::Inbound {
        Code::LocalOutputDrop
    } else {
        Code::UnexplainedLoss
    }
}

fn loss(
    context: &Context<'_>,
    code: Code,
    peer: &Peer,
    view: &StreamView,
    stream: Stream,
) -> Finding {
    let encapsulation = stream.encapsulation();
    let direction = match (view.gray_outbound, view.gray_inbound) {
        (true, true) => Some(Direction::Both),
        (true, false) => Some(Direction::Outbound),
        (false, true) => Some(Direction::Inbound),
        (false, false) => None,
    };
    // What kernels say that they dropped is of the last seconds: where losses are older,
    // the hops alone tell their place.
    let is_told = view.recent.lost() > 0 || !code.comes_and_goes();
    Finding {
        code,
        subject: Subject::Pair { peer: peer.id, encapsulation },
        direction,
        hop: direction.map(|direction| place(context, peer, stream, direction)),
        evidence: vec![lost_at_times(stream, view)],
        confidence: if is_told { Confidence::High } else { Confidence::Low },
    }
}

/// What was lost without a break up to now.
fn lost(stream: Stream, view: &StreamView) -> Evidence {
    Evidence::Lost {
        stream,
        outbound: view.run.outbound,
        inbound: view.run.inbound,
        undetermined: view.run.undetermined,
        of: view.run.lost(),
        seconds: u32::try_from(view.run.span_ns().div_ceil(SECOND)).unwrap_or(u32::MAX),
    }
}

/// What was lost now and then in the last minute.
fn lost_at_times(stream: Stream, view: &StreamView) -> Evidence {
    Evidence::Lost {
        stream,
        outbound: view.minute.lost_outbound,
        inbound: view.minute.lost_inbound,
        undetermined: view.minute.lost_undetermined,
        of: view.minute.decided(),
        seconds: MINUTE,
    }
}

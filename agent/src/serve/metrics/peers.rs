//! The metrics about peers, within their ceiling.

use std::collections::BTreeMap;

use overlaywatch_core::diagnose::{Diagnosis, PeerState};
use overlaywatch_core::model::{Encapsulation, Peer};
use overlaywatch_core::pairs::{StreamView, Tally};
use overlaywatch_core::probing::Stream;
use overlaywatch_core::snapshot::Snapshot;

use super::super::health::PeerCounts;
use super::super::words;
use super::{Sheet, families, float, seconds_of_ns};

/// Peers that have a series each; where there are more, only failing ones
/// have, and of those no more than this.
pub const PEERS: usize = 128;
/// Series about single peers. What the peers' states leave of it is spent on
/// loss, round trips and counters: of every peer if it suffices for all of
/// them (so in clusters of up to about ten nodes), else of failing ones.
pub const PEER_SERIES: usize = 130;
/// Loss in three directions, round trip, sent and lost.
const SERIES_PER_PATH: usize = 6;

/// One path to a peer, as its small probes see it: the underlay or a tunnel.
type Path<'a> = (Option<Encapsulation>, &'a StreamView);

pub(super) fn fill(sheet: &mut Sheet, snapshot: &Snapshot, diagnosis: &Diagnosis) {
    let counts = PeerCounts::of(diagnosis);
    for (state, count) in [
        (PeerState::Healthy, counts.healthy),
        (PeerState::Degraded, counts.degraded),
        (PeerState::Broken, counts.broken),
        (PeerState::Unknown, counts.unknown),
    ] {
        sheet.add(&families::PEERS, &[state.slug()], float(count as u64));
    }
    let departed = snapshot.peers.iter().filter(|peer| peer.has_departed()).count();
    sheet.add(&families::PEERS_DEPARTED, &[], float(departed as u64));
    mesh(sheet, snapshot);
    each(sheet, snapshot, diagnosis);
}

fn paths<'a>(snapshot: &'a Snapshot, peer: &Peer) -> Vec<Path<'a>> {
    let streams = snapshot.pairs.get(&peer.id).map(|pair| &pair.streams);
    streams
        .into_iter()
        .flatten()
        .filter_map(|(stream, view)| match stream {
            Stream::Underlay => Some((None, &**view)),
            Stream::Small(encapsulation) => Some((Some(*encapsulation), &**view)),
            Stream::Full(_) | Stream::Echo => None,
        })
        .collect()
}

fn name(encapsulation: Option<Encapsulation>) -> String {
    encapsulation.map_or_else(|| "none".to_owned(), |encapsulation| encapsulation.to_string())
}

/// Losses by direction, as ratios of what was decided.
fn losses(tally: &Tally) -> [(&'static str, f64); 3] {
    let of = f64::from(tally.decided().max(1));
    [
        ("outbound", f64::from(tally.lost_outbound) / of),
        ("inbound", f64::from(tally.lost_inbound) / of),
        ("undetermined", f64::from(tally.lost_undetermined) / of),
    ]
}

/// All peers together.
fn mesh(sheet: &mut Sheet, snapshot: &Snapshot) {
    #[derive(Default)]
    struct Sum {
        tally: Tally,
        pairs: u64,
        least: Option<u64>,
        sum: f64,
        most: u64,
    }
    let mut sums: BTreeMap<Option<Encapsulation>, Sum> = BTreeMap::new();
    for (encapsulation, view) in snapshot.peers.iter().flat_map(|peer| paths(snapshot, peer)) {
        let sum = sums.entry(encapsulation).or_default();
        let (all, one) = (&mut sum.tally, &view.minute);
        all.sent = all.sent.saturating_add(one.sent);
        all.answered = all.answered.saturating_add(one.answered);
        all.lost_outbound = all.lost_outbound.saturating_add(one.lost_outbound);
        all.lost_inbound = all.lost_inbound.saturating_add(one.lost_inbound);
        all.lost_undetermined = all.lost_undetermined.saturating_add(one.lost_undetermined);
        if let Some(trip) = view.round_trip {
            sum.pairs += 1;
            sum.least = Some(sum.least.map_or(trip.min_ns, |least| least.min(trip.min_ns)));
            sum.sum += seconds_of_ns(trip.mean_ns);
            sum.most = sum.most.max(trip.max_ns);
        }
    }
    for (encapsulation, sum) in sums {
        let path = name(encapsulation);
        for (direction, ratio) in losses(&sum.tally) {
            sheet.add(&families::MESH_LOSS, &[&path, direction], ratio);
        }
        let Some(least) = sum.least else { continue };
        let trips = [
            ("min", seconds_of_ns(least)),
            ("mean", sum.sum / float(sum.pairs)),
            ("max", seconds_of_ns(sum.most)),
        ];
        for (statistic, seconds) in trips {
            sheet.add(&families::MESH_ROUND_TRIP, &[&path, statistic], seconds);
        }
    }
}

/// Single peers: a state each, and details as far as the ceiling allows.
fn each(sheet: &mut Sheet, snapshot: &Snapshot, diagnosis: &Diagnosis) {
    let source = words::node(snapshot);
    let all = snapshot.peers.iter().zip(&diagnosis.peers).map(|(peer, verdict)| {
        debug_assert_eq!(peer.id, verdict.peer, "both are in order of address");
        (peer, verdict.state)
    });
    let is_failing = |state| matches!(state, PeerState::Broken | PeerState::Degraded);
    let shown: Vec<(&Peer, PeerState)> = if snapshot.peers.len() <= PEERS {
        all.collect()
    } else {
        all.filter(|(_, state)| is_failing(*state)).take(PEERS).collect()
    };
    let names = destinations(&shown);
    for ((_, state), name) in shown.iter().zip(&names) {
        sheet.add(&families::PEER_STATE, &[&source, name, state.slug()], 1.0);
    }
    let cost = |peer: &Peer| paths(snapshot, peer).len() * SERIES_PER_PATH;
    let mut left = PEER_SERIES.saturating_sub(shown.len());
    let suffices = shown.iter().map(|(peer, _)| cost(peer)).sum::<usize>() <= left;
    for ((peer, state), name) in shown.iter().zip(&names) {
        if !(suffices || is_failing(*state)) {
            continue;
        }
        let Some(rest) = left.checked_sub(cost(peer)) else { break };
        left = rest;
        details(sheet, [&source, name], &paths(snapshot, peer));
    }
}

/// The peers' names; with the address where two would have the same one, as
/// two series with the same labels make Prometheus refuse the whole scrape.
fn destinations(peers: &[(&Peer, PeerState)]) -> Vec<String> {
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    for (peer, _) in peers {
        *uses.entry(peer.label()).or_default() += 1;
    }
    peers
        .iter()
        .map(|(peer, _)| {
            let label = peer.label();
            match uses.get(&label) {
                Some(1) => label,
                _ => format!("{label} ({})", peer.id),
            }
        })
        .collect()
}

fn details(sheet: &mut Sheet, [source, destination]: [&str; 2], paths: &[Path<'_>]) {
    for (encapsulation, view) in paths {
        let path = name(*encapsulation);
        for (direction, ratio) in losses(&view.minute) {
            sheet.add(&families::PAIR_LOSS, &[source, destination, &path, direction], ratio);
        }
        let labels = [source, destination, path.as_str()];
        if let Some(trip) = view.round_trip {
            let mean = seconds_of_ns(trip.mean_ns);
            sheet.add(&families::PAIR_ROUND_TRIP, &labels, mean);
        }
        sheet.add(&families::PAIR_SENT, &labels, float(view.total.sent));
        sheet.add(&families::PAIR_LOST, &labels, float(view.total.lost));
    }
}

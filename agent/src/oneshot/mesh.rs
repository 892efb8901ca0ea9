//! The peers as a table: one line each, worst first.

use overlaywatch_core::diagnose::PeerState;
use overlaywatch_core::pairs::{DEAD_RUN, Tally};
use overlaywatch_core::probing::Stream;
use overlaywatch_core::report::{NodeReport, PeerReport, StreamReport};
use overlaywatch_core::time::MILLISECOND;

use crate::serve::text::{Paint, Tone};

/// Peers that are shown; of more, the worst ones.
const SHOWN: usize = 50;
const HEADINGS: [&str; 6] = ["PEER", "UNDERLAY", "OVERLAY", "LOSS", "RTT", "VERDICT"];

/// The peers of a report, each with what the last minute's probes say: through
/// the underlay, through the worst of the tunnels, and the verdict.
#[must_use]
pub fn table(report: &NodeReport, paint: Paint) -> String {
    if report.peers.is_empty() {
        return String::new();
    }
    let mut peers: Vec<&PeerReport> = report.peers.iter().collect();
    peers.sort_by_key(|peer| rank(peer.state));
    let rows: Vec<[(String, Tone); 6]> = peers.iter().take(SHOWN).map(|peer| row(peer)).collect();
    let widths: Vec<usize> = HEADINGS
        .iter()
        .enumerate()
        .map(|(column, heading)| {
            let cells = rows.iter().map(|row| row[column].0.chars().count());
            cells.max().unwrap_or(0).max(heading.len())
        })
        .collect();
    let mut out = String::from("\n");
    let headings = HEADINGS.map(|heading| (heading.to_owned(), Tone::Faint));
    for row in std::iter::once(&headings).chain(&rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|((cell, tone), width)| paint.paint(*tone, &format!("{cell:width$}")))
            .collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    if let Some(more) = peers.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        out += &format!("{more} more peers: see the JSON\n");
    }
    out
}

const fn rank(state: PeerState) -> u8 {
    match state {
        PeerState::Broken => 0,
        PeerState::Degraded => 1,
        PeerState::Unknown => 2,
        PeerState::Healthy => 3,
    }
}

fn row(peer: &PeerReport) -> [(String, Tone); 6] {
    let name = match &peer.name {
        Some(name) => format!("{name} ({})", peer.address),
        None => peer.address.to_string(),
    };
    let underlay = peer.streams.iter().find(|report| report.stream == Stream::Underlay);
    let overlay = peer
        .streams
        .iter()
        .filter(|report| matches!(report.stream, Stream::Small(_)))
        .max_by(|a, b| ratio(&a.minute).total_cmp(&ratio(&b.minute)));
    let shown = overlay.or(underlay);
    let loss = shown.filter(|report| report.minute.decided() > 0).map(|report| {
        let ratio = ratio(&report.minute);
        let tone = if ratio > 0.0 { Tone::Bad } else { Tone::Good };
        (format!("{:.1} %", ratio * 100.0), tone)
    });
    let trip = shown.and_then(|report| report.round_trip);
    let tone = match peer.state {
        PeerState::Healthy => Tone::Good,
        PeerState::Degraded => Tone::Bad,
        PeerState::Broken => Tone::Worst,
        PeerState::Unknown => Tone::Faint,
    };
    let nothing = || ("-".to_owned(), Tone::Faint);
    [
        (name, Tone::Strong),
        passage(underlay),
        passage(overlay),
        loss.unwrap_or_else(nothing),
        trip.map_or_else(nothing, |trip| (milliseconds(trip.mean_ns), Tone::Strong)),
        (peer.state.slug().to_owned(), tone),
    ]
}

fn ratio(tally: &Tally) -> f64 {
    f64::from(tally.lost()) / f64::from(tally.decided().max(1))
}

fn passage(report: Option<&StreamReport>) -> (String, Tone) {
    let Some(report) = report.filter(|report| report.minute.decided() > 0) else {
        return ("-".to_owned(), Tone::Faint);
    };
    match (report.minute.answered, report.minute.lost()) {
        _ if report.run.lost() >= DEAD_RUN => ("dead".to_owned(), Tone::Worst),
        (_, 0) => ("ok".to_owned(), Tone::Good),
        (0, _) => ("dead".to_owned(), Tone::Worst),
        _ => ("lossy".to_owned(), Tone::Bad),
    }
}

fn milliseconds(nanoseconds: u64) -> String {
    let microseconds = nanoseconds / (MILLISECOND / 1_000);
    format!("{}.{:03} ms", microseconds / 1_000, microseconds % 1_000)
}

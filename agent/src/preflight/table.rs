//! What passes, as a table for people.

use nix::errno::Errno;
use overlaywatch_core::preflight::report::{Outcome, Passage, Report};

use crate::serve::text::{Paint, Tone};

/// The table, and a line on each word in it that is no success.
#[must_use]
pub fn table(report: &Report, paint: Paint) -> String {
    let Report { node, peer, mtu, peer_mtu, encapsulations } = report;
    let mut rows = vec![[
        ("ENCAPSULATION".to_owned(), Tone::Faint),
        ("OUT, SMALL".to_owned(), Tone::Faint),
        (format!("OUT, {mtu} BYTES"), Tone::Faint),
        ("IN, SMALL".to_owned(), Tone::Faint),
        (format!("IN, {peer_mtu} BYTES"), Tone::Faint),
    ]];
    rows.extend(encapsulations.iter().map(|row| {
        [
            (row.method.title(node.is_ipv6()).to_owned(), Tone::Strong),
            cell(&row.outbound.small),
            cell(&row.outbound.full),
            cell(&row.inbound.small),
            cell(&row.inbound.full),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].0.chars().count()).max();
    let widths = [0, 1, 2, 3, 4].map(|column| width(column).unwrap_or(0));
    let mut out = format!("{node} (out) and {peer} (in)\n");
    for row in &rows {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|((cell, tone), width)| paint.paint(*tone, &format!("{cell:width$}")))
            .collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    let has = |outcome: Outcome| {
        encapsulations.iter().any(|row| {
            let both = [row.outbound, row.inbound];
            both.iter().any(|way| way.small.outcome == outcome || way.full.outcome == outcome)
        })
    };
    for (outcome, words) in [
        (Outcome::Lost, "lost: left the sender, and never reached the other node's NIC"),
        (Outcome::Refused, "refused: reached the node, and its own firewall dropped it"),
        (Outcome::NotSent, "not sent: the sender's own kernel refused it"),
        (Outcome::NotTried, "not tried: give --pods, also to `--serve` at the other end"),
    ] {
        if has(outcome) {
            out += &paint.paint(Tone::Faint, words);
            out.push('\n');
        }
    }
    out
}

fn cell(passage: &Passage) -> (String, Tone) {
    let Passage { outcome, sent, arrived, errno, .. } = *passage;
    match outcome {
        Outcome::Passes => ("passes".to_owned(), Tone::Good),
        Outcome::Lossy => (format!("{arrived} of {} pass", sent.max(arrived)), Tone::Bad),
        Outcome::Lost => ("lost".to_owned(), Tone::Worst),
        Outcome::Refused => ("refused".to_owned(), Tone::Worst),
        Outcome::NotSent => {
            let error = errno.map_or(Errno::UnknownErrno, |errno| Errno::from_raw(errno.into()));
            (format!("not sent: {}", error.desc()), Tone::Worst)
        }
        Outcome::NotTried => ("not tried".to_owned(), Tone::Faint),
    }
}

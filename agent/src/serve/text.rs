//! `/health` as text: the sentence first, then each finding with place,
//! evidence and remedy. The same text serves `check`, `status` and `replay`.

use std::fmt::Write;

use jiff::Timestamp;
use overlaywatch_core::catalog::Severity;
use overlaywatch_core::diagnose::Status;
use overlaywatch_core::finding::{Confidence, Direction};

use super::health::{FindingView, Health};
use super::words;

/// Findings that are spelt out; the rest are a number, and all are in the JSON.
const SHOWN: usize = 20;
/// Widest line of a remedy, in characters.
const WIDTH: usize = 100;
/// Where the text of a finding's line begins.
const INDENT: usize = 13;

/// How words stand out: not at all in a file or over HTTP, in colour on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paint {
    /// Plain text.
    #[default]
    Plain,
    /// Colours of a terminal (ECMA-48, SGR).
    Colour,
}

/// What a word means for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// All is well.
    Good,
    /// Look at it.
    Bad,
    /// Look at it now.
    Worst,
    /// Not known, or not important.
    Faint,
    /// A heading.
    Strong,
}

impl Paint {
    /// `text` in this tone.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match (self, tone) {
            (Self::Plain, _) => return text.to_owned(),
            (Self::Colour, Tone::Good) => "32",
            (Self::Colour, Tone::Bad) => "33",
            (Self::Colour, Tone::Worst) => "1;31",
            (Self::Colour, Tone::Faint) => "2",
            (Self::Colour, Tone::Strong) => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The tone of a status.
#[must_use]
pub const fn tone(status: Status) -> Tone {
    match status {
        Status::Pass => Tone::Good,
        Status::Warn => Tone::Bad,
        Status::Fail => Tone::Worst,
        Status::Unknown => Tone::Faint,
    }
}

/// The whole verdict as text.
#[must_use]
pub fn health(health: &Health, paint: Paint) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_health(&mut out, health, paint);
    out
}

fn write_health(out: &mut String, health: &Health, paint: Paint) -> std::fmt::Result {
    let word = paint.paint(tone(health.status), &health.status.slug().to_uppercase());
    writeln!(out, "{word}  {}", tame(&health.summary))?;
    if let Some(since) = &health.since {
        writeln!(out, "since {}", moment(since, health.at.as_deref()))?;
    }
    let p = &health.peers;
    writeln!(
        out,
        "peers: {} expected, {} healthy, {} degraded, {} broken, {} unknown",
        p.expected, p.healthy, p.degraded, p.broken, p.unknown
    )?;
    for (position, finding) in health.findings.iter().take(SHOWN).enumerate() {
        writeln!(out)?;
        write_finding(out, position + 1, finding, health, paint)?;
    }
    let more = health.findings.len().saturating_sub(SHOWN) + health.omitted;
    if more > 0 {
        writeln!(out, "\n{more} more findings: /health has some as JSON, /v1/report all")?;
    }
    if !health.gaps.is_empty() {
        writeln!(out, "\nnot seen:")?;
    }
    for gap in &health.gaps {
        let detail = if gap.detail.is_empty() { "no detail" } else { &gap.detail };
        writeln!(out, "  {} ({}): {}", gap.source.slug(), gap.gap.slug(), tame(detail))?;
    }
    Ok(())
}

fn write_finding(
    out: &mut String,
    number: usize,
    finding: &FindingView,
    health: &Health,
    paint: Paint,
) -> std::fmt::Result {
    let tone = match finding.severity {
        Severity::Critical => Tone::Worst,
        Severity::Warning => Tone::Bad,
        Severity::Info => Tone::Faint,
    };
    let code = paint.paint(tone, &tame(&finding.code));
    let strong = paint.paint(Tone::Strong, &tame(&finding.title));
    writeln!(out, "{number}. {} {code}: {strong}", finding.severity.slug())?;
    line(out, "where", &place(finding, health))?;
    if let Some(hop) = finding.hop {
        line(out, "hop", &format!("lost between {} and {}", hop.from, hop.to))?;
    }
    for (position, evidence) in finding.evidence.iter().enumerate() {
        line(out, if position == 0 { "evidence" } else { "" }, &evidence.text)?;
    }
    let sure = match finding.confidence {
        Confidence::Low => "low confidence: other causes fit too",
        Confidence::High => "high confidence",
        Confidence::Certain => "certain: the kernel's own state says so",
    };
    line(out, "since", &format!("{}; {sure}", moment(&finding.since, health.at.as_deref())))?;
    if !finding.consequences.is_empty() {
        line(out, "explains", &consequences(&finding.consequences))?;
    }
    for (position, part) in wrap(&finding.remedy, WIDTH - INDENT).iter().enumerate() {
        line(out, if position == 0 { "remedy" } else { "" }, part)?;
    }
    Ok(())
}

fn line(out: &mut String, name: &str, text: &str) -> std::fmt::Result {
    writeln!(out, "   {name:<9} {}", tame(text))
}

/// Without control characters, which could steer the reader's terminal: the
/// text may come from another host, and the kernel allows them even in the
/// names of devices (dev_valid_name, net/core/dev.c).
fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// "node-a -> node-b (10.0.0.2), VXLAN (udp 8472)", with the arrow pointing
/// the way that packets are lost.
fn place(finding: &FindingView, health: &Health) -> String {
    let here = health.node.as_deref().unwrap_or("this node");
    let subject = &finding.subject;
    if subject.kind != "pair" {
        return match &subject.device {
            Some(device) => format!("{here}, device {device}"),
            None => here.to_owned(),
        };
    }
    let arrow = match subject.direction {
        Some(Direction::Outbound) => "->",
        Some(Direction::Inbound) => "<-",
        Some(Direction::Both) => "<->",
        None => "--",
    };
    let name = subject.node.clone().unwrap_or_default();
    let there = match subject.address {
        Some(address) if address.to_string() != name => format!("{name} ({address})"),
        _ => name,
    };
    let wrap = subject.encapsulation.map_or_else(|| "underlay".to_owned(), words::encapsulation);
    let device = subject.device.as_ref().map_or_else(String::new, |d| format!(", device {d}"));
    format!("{here} {arrow} {there}, {wrap}{device}")
}

/// "encapsulation-lost (node-b and node-c), mtu-blackhole (node-b)".
fn consequences(findings: &[FindingView]) -> String {
    fn gather<'a>(findings: &'a [FindingView], groups: &mut Vec<(&'a str, Vec<String>)>) {
        for finding in findings {
            let position = groups.iter().position(|(code, _)| *code == finding.code);
            let position = position.unwrap_or_else(|| {
                groups.push((&finding.code, Vec::new()));
                groups.len() - 1
            });
            let subject = &finding.subject;
            let on_device = subject.kind == "device";
            let name = if on_device { subject.device.clone() } else { subject.node.clone() };
            groups[position].1.extend(name);
            gather(&finding.consequences, groups);
        }
    }
    let mut groups = Vec::new();
    gather(findings, &mut groups);
    let words: Vec<String> =
        groups.iter().map(|(code, names)| format!("{code} ({})", words::list(names))).collect();
    words.join(", ")
}

/// A time to the second, and how long ago it was at the time of the observation.
fn moment(since: &str, at: Option<&str>) -> String {
    let Ok(since_time) = since.parse::<Timestamp>() else { return since.to_owned() };
    let ago = at
        .and_then(|at| at.parse::<Timestamp>().ok())
        .map(|at| at.as_second() - since_time.as_second())
        .map_or_else(String::new, |seconds| format!(" ({})", duration(seconds)));
    format!("{since_time:.0}{ago}")
}

/// "12 s", "3 min 20 s", "5 h 2 min", "4 d 1 h".
fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let two = |big, unit, small, sub| match small {
        0 => format!("{big} {unit}"),
        _ => format!("{big} {unit} {small} {sub}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// `text` in lines of at most `width` characters, broken at spaces.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let words: Vec<String> =
            [-1, 0, 59, 60, 200, 7_200, 18_120, 349_200].map(duration).into_iter().collect();
        let expected = ["0 s", "0 s", "59 s", "1 min", "3 min 20 s", "2 h", "5 h 2 min", "4 d 1 h"];
        assert_eq!(words, expected);
    }

    #[test]
    fn text_cannot_steer_a_terminal() {
        let hostile = Health { summary: "\u{1b}[2Jx\u{7}".to_owned(), ..Health::starting() };
        assert!(health(&hostile, Paint::Plain).starts_with("UNKNOWN  [2Jx\n"));
    }

    #[test]
    fn wraps_at_spaces_only() {
        assert_eq!(wrap("ab cd  ef", 5), ["ab cd", "ef"]);
        assert_eq!(wrap("abcdefgh ij", 5), ["abcdefgh", "ij"]);
    }
}

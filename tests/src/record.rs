//! Golden cases from the lab: while a fault's verdicts stand, nodes that must
//! report save what they see. `agent/core/tests/golden.rs` reads the cases.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::diagnose::{self, Active, Diagnosis};
use overlaywatch_core::fact::Fact;
use overlaywatch_core::finding::{Direction, Finding, Subject};
use overlaywatch_core::policy::Policy;
use overlaywatch_core::record::Recording;
use overlaywatch_core::snapshot::Snapshot;

use crate::agent::Launch;
use crate::fault::Fault;
use crate::interrupt;
use crate::judge::{About, Observed, Wanted};
use crate::mode::Mode;
use crate::poll::{self, Poll};
use crate::run::wait_until_ready;
use crate::topology::{Cluster, Shape};
use crate::traffic::Flow;

/// What stands for a boot's identity: the nil UUID (RFC 9562, 5.9).
const NO_BOOT: &str = "00000000-0000-0000-0000-000000000000";

/// Runs `fault` until its verdicts stand and saves recordings: one of each
/// kind of finding that must come, and one of the first node where none must.
/// Gives the directories written.
///
/// # Errors
/// When the verdicts do not come, or a recording replays to something else.
pub fn record(fault: &Fault, shape: Shape, binary: &Path, into: &Path) -> Result<Vec<PathBuf>> {
    let mut cluster = Cluster::build(shape, fault.nodes)?;
    let Fault { listed, ebpf, .. } = *fault;
    let launch = Launch { binary: binary.to_owned(), listed, ebpf, mode: Mode::Rules };
    cluster.start_agents(launch)?;
    let poll = Poll::start(&cluster)?;
    wait_until_ready(&mut cluster, &poll)?;
    let wanted = fault.wanted(&cluster)?;
    // Live traffic alone tells of some faults.
    let _flows =
        fault.breaks.iter().map(|&path| Flow::start(&cluster, path)).collect::<Result<Vec<_>>>()?;
    let since = poll.at(Instant::now());
    (fault.inject)(&mut cluster)?;
    let came = interrupt::wait_until(fault.limits.detect, || {
        let heard = poll.heard()?;
        Ok(wanted.iter().all(|wanted| heard.timeline.first(since, wanted).is_some()))
    })?;
    ensure!(came, "{}: not every expected finding came", fault.name);
    interrupt::sleep(fault.limits.settle)?;
    let mut written = Vec::new();
    for index in tellers(&wanted) {
        let node = cluster.node(index)?;
        let mut recording = Recording::from_json(&poll::fetch(node, "/v1/snapshot")?)?;
        recording.before.as_mut().into_iter().for_each(forget_machine);
        forget_machine(&mut recording.now);
        let own: Vec<&Wanted> = wanted.iter().filter(|wanted| wanted.node == index).collect();
        let expectation = expectation(fault, index, &own, &recording)
            .with_context(|| format!("{} as {} recorded it", fault.name, node.name))?;
        let path = into.join(format!("{}-{}-{}", fault.name, shape.name(), node.name));
        write(&path, &recording, expectation)?;
        written.push(path);
    }
    (fault.heal)(&mut cluster)?;
    Ok(written)
}

/// The nodes whose recordings differ in kind: for each code and direction one.
fn tellers(wanted: &[Wanted]) -> Vec<usize> {
    let mut kinds: Vec<(_, &[Direction])> = Vec::new();
    let mut nodes = Vec::new();
    for wanted in wanted {
        let kind = (wanted.code, wanted.directions.as_slice());
        if !kinds.contains(&kind) {
            kinds.push(kind);
            if !nodes.contains(&wanted.node) {
                nodes.push(wanted.node);
            }
        }
    }
    if nodes.is_empty() {
        nodes.push(0);
    }
    nodes
}

/// A case says nothing of the machine that it was recorded on but the version
/// of its kernel.
fn forget_machine(snapshot: &mut Snapshot) {
    if let Fact::Seen { value: host, .. } = &mut snapshot.host {
        let host = Arc::make_mut(host);
        NO_BOOT.clone_into(&mut host.boot_id);
        if let Some((version, _flavour)) = host.kernel_release.split_once('-') {
            host.kernel_release = version.to_owned();
        }
    }
}

/// One case: the two observations, the policy, and what must be said of them.
fn write(path: &Path, recording: &Recording, expectation: String) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    let json = |snapshot: &Snapshot| serde_json::to_string(snapshot);
    let file = |name: &str, text: String| {
        let path = path.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let before = recording.before.as_ref().context("a recording without an earlier moment")?;
    file("before.json", json(before)? + "\n")?;
    file("now.json", json(&recording.now)? + "\n")?;
    // The configuration of the lab's agents has no policy.
    file("policy.toml", String::new())?;
    file("expect.txt", expectation)
}

/// What the recording means, once it is sure that it means what the fault's
/// own table wants of this node.
fn expectation(
    fault: &Fault,
    node: usize,
    wanted: &[&Wanted],
    recording: &Recording,
) -> Result<String> {
    let diagnosis = diagnose::replay(recording.before.as_ref(), &recording.now, &Policy::default());
    let text = describe(fault, &diagnosis);
    let causes: Vec<Observed> = diagnosis
        .findings
        .iter()
        .filter(|active| active.parent.is_none())
        .map(|active| observed(&active.finding))
        .collect();
    let all_come = wanted.iter().all(|w| causes.iter().any(|cause| w.is_met_by(node, cause)));
    ensure!(
        all_come && causes.len() == wanted.len(),
        "it replays to something else than what was expected:\n{text}"
    );
    for code in fault.unlike {
        ensure!(
            diagnosis.findings.iter().all(|active| active.finding.code != *code),
            "it replays to {}, which it only looks like:\n{text}",
            code.slug()
        );
    }
    Ok(text)
}

fn observed(finding: &Finding) -> Observed {
    let about = match &finding.subject {
        Subject::Node => About::Node,
        Subject::Device { name } => About::Device(name.clone()),
        Subject::Thing { what, name } => About::Thing(what.slug().to_owned(), name.clone()),
        Subject::Pair { peer, .. } => About::Peer(peer.0),
    };
    Observed {
        code: finding.code,
        about,
        direction: finding.direction,
        hop: finding.hop.map(Into::into),
        evidence: finding.evidence.iter().map(|it| format!("{it}\n")).collect(),
    }
}

fn describe(fault: &Fault, diagnosis: &Diagnosis) -> String {
    let mut lines = format!("# {}\nstatus {}\n", fault.about, diagnosis.status.slug());
    for active in &diagnosis.findings {
        lines.push_str(&line(active));
    }
    for code in fault.unlike {
        // Writing into a string cannot fail.
        let _ = writeln!(lines, "not {}", code.slug());
    }
    lines
}

/// A finding as a case's `expect.txt` has it.
fn line(Active { finding, parent, .. }: &Active) -> String {
    let verb = if parent.is_some() { "follows" } else { "raises" };
    let mut line = format!("{verb} {} ", finding.code.slug());
    // Writing into a string cannot fail.
    let _ = match &finding.subject {
        Subject::Node => write!(line, "node"),
        Subject::Device { name } => write!(line, "device {name}"),
        Subject::Thing { what, name } => write!(line, "{} {name}", what.slug()),
        Subject::Pair { peer, encapsulation: None } => write!(line, "pair {peer}"),
        Subject::Pair { peer, encapsulation: Some(through) } => {
            write!(line, "pair {peer} {through}")
        }
    };
    if let Some(direction) = finding.direction {
        let _ = write!(line, " {}", direction.slug());
    }
    if let Some(hop) = finding.hop {
        let _ = write!(line, " {}>{}", hop.from, hop.to);
    }
    line.push('\n');
    line
}

//! Golden cases from the lab: while a fault's verdicts stand, each node that
//! must report saves what it sees.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::finding::Subject;
use overlaywatch_core::policy::Policy;
use overlaywatch_core::record::Recording;
use overlaywatch_core::{diagnose, snapshot::Snapshot};

use crate::agent::Launch;
use crate::fault::Fault;
use crate::interrupt;
use crate::poll::{self, Poll};
use crate::run::wait_until_ready;
use crate::topology::{Cluster, Shape};

/// Runs `fault` until its verdicts stand and saves the recording of every
/// node that must report, or of the first one where none must. Gives the
/// directories written.
///
/// # Errors
/// When the verdicts do not come, or a recording replays to something else.
pub fn record(fault: &Fault, shape: Shape, binary: &Path, into: &Path) -> Result<Vec<PathBuf>> {
    let mut cluster = Cluster::build(shape, fault.nodes)?;
    cluster.start_agents(Launch { binary: binary.to_owned(), listed: fault.listed })?;
    let poll = Poll::start(&cluster)?;
    wait_until_ready(&mut cluster, &poll)?;
    let wanted = fault.wanted(&cluster)?;
    (fault.inject)(&mut cluster)?;
    let since = poll.at(Instant::now());
    let came = interrupt::wait_until(fault.limits.detect, || {
        let heard = poll.heard()?;
        Ok(wanted.iter().all(|wanted| heard.timeline.first(since, wanted).is_some()))
    })?;
    ensure!(came, "{}: not every expected finding came", fault.name);
    interrupt::sleep(fault.limits.settle)?;
    let mut nodes: Vec<usize> = fault.expected.iter().map(|expected| expected.node).collect();
    nodes.dedup();
    if nodes.is_empty() {
        nodes.push(0);
    }
    let mut written = Vec::new();
    for index in nodes {
        let node = cluster.node(index)?;
        let recording = Recording::from_json(&poll::fetch(node, "/v1/snapshot")?)?;
        let path = into.join(format!("{}-{}-{}", fault.name, shape.name(), node.name));
        write(&path, &recording)?;
        written.push(path);
    }
    (fault.heal)(&mut cluster)?;
    Ok(written)
}

/// One case: the two observations, the policy, and what they mean.
fn write(path: &Path, recording: &Recording) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    let json = |snapshot: Option<&Snapshot>| serde_json::to_string_pretty(&snapshot);
    let file = |name: &str, text: String| {
        let path = path.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    file("before.json", json(recording.before.as_ref())? + "\n")?;
    file("now.json", json(Some(&recording.now))? + "\n")?;
    // Agents of the lab have an empty configuration.
    file("policy.toml", String::new())?;
    file("expect.txt", expectation(recording))
}

/// `code direction hop subject`, a line for each finding that is no consequence.
fn expectation(recording: &Recording) -> String {
    let policy = Policy::default();
    let diagnosis = diagnose::replay(recording.before.as_ref(), &recording.now, &policy);
    let mut lines = String::new();
    for active in diagnosis.findings.iter().filter(|active| active.parent.is_none()) {
        let finding = &active.finding;
        let direction = finding.direction.map_or("-", |direction| direction.slug());
        let hop = finding.hop.map_or("-".to_owned(), |hop| format!("{}>{}", hop.from, hop.to));
        let subject = match &finding.subject {
            Subject::Node => "node".to_owned(),
            Subject::Device { name } => name.clone(),
            Subject::Pair { peer, .. } => peer.to_string(),
        };
        // Writing into a string cannot fail.
        let _ = writeln!(lines, "{} {direction} {hop} {subject}", finding.code.slug());
    }
    lines
}

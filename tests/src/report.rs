//! Results for people and for programs.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::fault::{Expected, Fault};
use crate::judge::{About, Observed, Said, Wanted};
use crate::mode::Mode;
use crate::poll::name_of;
use crate::topology::{Cluster, Shape};

/// The result of one fault.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The fault's name.
    pub fault: &'static str,
    /// The cluster's shape.
    pub shape: Shape,
    /// How the agents ran.
    pub mode: Mode,
    /// What was expected, and what came.
    pub found: Vec<Found>,
    /// From the first lost packet to the last expected finding; none when one
    /// is missing or none was expected.
    pub seconds_to_detect: Option<f64>,
    /// From the heal until all nodes passed for good.
    pub seconds_to_clear: Option<f64>,
    /// Findings that nobody expected.
    pub unexpected: Vec<String>,
    /// What else went wrong.
    pub problems: Vec<String>,
    /// What went wrong at the first try, when this is the second.
    pub first_try: Vec<String>,
    /// Where recordings and logs are, when it failed.
    pub kept: Option<PathBuf>,
    /// `pass` or `fail`.
    pub result: &'static str,
}

/// One expected finding, and what came.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Whose finding.
    pub node: String,
    /// What was expected, for people.
    pub expected: String,
    /// What was expected.
    pub wanted: Wanted,
    /// What that node said of it when verdicts had settled, for people; else
    /// all that it said.
    pub observed: String,
    /// What that node said of it when verdicts had settled.
    pub said: Option<Observed>,
    /// From the first lost packet.
    pub seconds_to_detect: Option<f64>,
}

impl Found {
    /// An expected finding and when it came.
    #[must_use]
    pub fn new(expected: &Expected, wanted: &Wanted, time: Option<Duration>) -> Self {
        Self {
            node: format!("node-{}", expected.node + 1),
            expected: expected.to_string(),
            wanted: wanted.clone(),
            observed: String::new(),
            said: None,
            seconds_to_detect: time.map(|time| time.as_secs_f64()),
        }
    }
}

impl Row {
    /// An empty row.
    #[must_use]
    pub fn new(fault: &Fault, shape: Shape, mode: Mode) -> Self {
        Self {
            fault: fault.name,
            shape,
            mode,
            found: Vec::new(),
            seconds_to_detect: None,
            seconds_to_clear: None,
            unexpected: Vec::new(),
            problems: Vec::new(),
            first_try: Vec::new(),
            kept: None,
            result: "fail",
        }
    }

    /// Sums up.
    #[must_use]
    pub fn conclude(mut self) -> Self {
        let times: Option<Vec<f64>> = self.found.iter().map(|f| f.seconds_to_detect).collect();
        self.seconds_to_detect = times.and_then(|times| times.into_iter().reduce(f64::max));
        if self.is_pass() {
            self.result = "pass";
        }
        self
    }

    /// Whether all is as it should be.
    #[must_use]
    pub fn is_pass(&self) -> bool {
        self.problems.is_empty() && self.unexpected.is_empty()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:4}  {:34} {:19} {:8} {:>8} {:>8}",
            self.result,
            self.fault,
            self.shape.name(),
            self.mode.name(),
            seconds(self.seconds_to_detect),
            seconds(self.seconds_to_clear),
        )?;
        if self.found.is_empty() {
            write!(f, "\n        expected no finding")?;
        }
        for found in &self.found {
            write!(f, "\n        expected {}", found.expected)?;
            let time = seconds(found.seconds_to_detect);
            write!(f, "\n        observed {} ({time})", found.observed)?;
        }
        for unexpected in &self.unexpected {
            write!(f, "\n        UNEXPECTED {unexpected}")?;
        }
        for problem in &self.problems {
            write!(f, "\n        PROBLEM {problem}")?;
        }
        for problem in &self.first_try {
            write!(f, "\n        AT THE FIRST TRY {problem}")?;
        }
        if let Some(kept) = &self.kept {
            write!(f, "\n        recordings and logs: {}", kept.display())?;
        }
        Ok(())
    }
}

/// The table's first line.
#[must_use]
pub fn heading() -> String {
    format!("{:4}  {:34} {:19} {:8} {:>8} {:>8}", "", "fault", "shape", "mode", "detect", "clear")
}

fn seconds(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.1} s"))
}

/// A node's findings as people read them.
#[must_use]
pub fn findings(cluster: &Cluster, said: Option<&Said>) -> String {
    match said {
        None | Some(Said::Nothing) => "no answer".to_owned(),
        Some(Said::Verdict { findings, .. }) if findings.is_empty() => "no finding".to_owned(),
        Some(Said::Verdict { findings, .. }) => {
            let findings: Vec<_> = findings.iter().map(|one| named(cluster, one)).collect();
            findings.join("; ")
        }
    }
}

/// One node's finding as people read it.
#[must_use]
pub fn said_by(cluster: &Cluster, node: usize, observed: &Observed) -> String {
    format!("node-{} says {}", node + 1, named(cluster, observed))
}

/// A finding as people read it.
#[must_use]
pub fn named(cluster: &Cluster, observed: &Observed) -> String {
    let text = observed.to_string();
    match &observed.about {
        About::Peer(address) => text.replacen(&address.to_string(), &name_of(cluster, *address), 1),
        About::Node | About::Device(_) | About::Thing(..) => text,
    }
}

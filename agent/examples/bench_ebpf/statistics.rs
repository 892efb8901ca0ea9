//! The kernel's own statistics of programs.

use anyhow::{Result, ensure};
use aya::programs::ProgramInfo;
use serde::Serialize;

use crate::empty;

/// What names of the agents' programs begin with.
const OURS: &str = "ow_";

/// What a program took beside an empty one, nanoseconds a run, by slices.
#[derive(Serialize)]
pub(crate) struct Cost {
    program: String,
    /// Runs in all slices.
    packets: u64,
    ours_ns: Vec<f64>,
    empty_ns: Vec<f64>,
}

impl Cost {
    pub(crate) fn new(program: &ProgramInfo) -> Self {
        Self { program: name_of(program), packets: 0, ours_ns: vec![], empty_ns: vec![] }
    }

    /// Adds a slice: what both did since `before`.
    pub(crate) fn add(&mut self, before: &Pair, after: &Pair) -> Result<()> {
        let (ours, empty) = (after.ours.since(&before.ours), after.empty.since(&before.empty));
        ensure!(ours.runs > 0 && empty.runs > 0, "no packet passed {}", self.program);
        self.packets += ours.runs;
        self.ours_ns.push(ours.nanoseconds as f64 / ours.runs as f64);
        self.empty_ns.push(empty.nanoseconds as f64 / empty.runs as f64);
        Ok(())
    }
}

/// A program of ours and the empty one beside it.
pub(crate) struct Pair {
    ours: Ran,
    empty: Ran,
}

impl Pair {
    pub(crate) fn of(ours: &ProgramInfo, empty: &ProgramInfo) -> Result<Self> {
        Ok(Self { ours: Ran::of(ours)?, empty: Ran::of(empty)? })
    }
}

/// How often a program ran, and for how long.
struct Ran {
    runs: u64,
    nanoseconds: u64,
}

impl Ran {
    fn of(program: &ProgramInfo) -> Result<Self> {
        let nanoseconds = u64::try_from(program.run_time().as_nanos())?;
        Ok(Self { runs: program.run_count(), nanoseconds })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(before.runs),
            nanoseconds: self.nanoseconds.saturating_sub(before.nanoseconds),
        }
    }
}

pub(crate) fn name_of(program: &ProgramInfo) -> String {
    String::from_utf8_lossy(program.name()).into_owned()
}

/// Whether it is a program of an agent.
pub(crate) fn is_ours(program: &ProgramInfo) -> bool {
    let name = name_of(program);
    name.starts_with(OURS) && name != empty::NAME
}

/// Whether it is an empty one.
pub(crate) fn is_empty(program: &ProgramInfo) -> bool {
    name_of(program) == empty::NAME
}

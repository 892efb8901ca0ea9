//! What programs take a packet, by the kernel's own statistics.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use aya::sys::{Stats, enable_stats};
use serde::Serialize;

use crate::Nodes;
use crate::empty;
use crate::flood::Flood;
use crate::netns::within;

/// Devices of each node.
const TUNNEL: &str = "flannel.1";
const UNDERLAY: &str = "eth0";
/// What names of the agents' programs begin with.
const OURS: &str = "ow_";

/// A place that encapsulated packets pass.
struct Hook<'a> {
    node: &'a Path,
    device: &'static str,
    side: TcAttachType,
}

/// The way of a packet from one node to the other.
fn way(nodes: &Nodes) -> [Hook<'_>; 4] {
    let hook = |node, device, side| Hook { node, device, side };
    [
        hook(&nodes.from, TUNNEL, TcAttachType::Egress),
        hook(&nodes.from, UNDERLAY, TcAttachType::Egress),
        hook(&nodes.to, UNDERLAY, TcAttachType::Ingress),
        hook(&nodes.to, TUNNEL, TcAttachType::Ingress),
    ]
}

/// What one hook's programs took, nanoseconds a packet, by slices.
#[derive(Serialize)]
pub(crate) struct Cost {
    program: String,
    /// Packets of all slices.
    packets: u64,
    ours_ns: Vec<f64>,
    empty_ns: Vec<f64>,
}

/// Names of the agents' programs on the way.
pub(crate) fn attached(nodes: &Nodes) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for hook in way(nodes) {
        let programs = hook.programs()?;
        names.extend(programs.iter().map(name_of).filter(|name| is_ours(name)));
    }
    Ok(names)
}

/// Measures all hooks while small packets pass them.
pub(crate) fn measure(
    nodes: &Nodes,
    server: SocketAddrV4,
    slice: Duration,
    slices: u32,
) -> Result<Vec<Cost>> {
    let hooks = way(nodes);
    // Both go when this returns.
    let _statistics = enable_stats(Stats::RunTime).context("statistics of programs")?;
    let _empty: Vec<OwnedFd> = hooks.iter().map(Hook::attach_empty).collect::<Result<_>>()?;
    let mut costs = Vec::new();
    for hook in &hooks {
        let (program, ..) = hook.read()?;
        costs.push(Cost { program, packets: 0, ours_ns: vec![], empty_ns: vec![] });
    }
    let mut flood = Flood::open(nodes, server)?;
    flood.run(slice)?;
    for _ in 0..slices {
        let before = hooks.iter().map(Hook::read).collect::<Result<Vec<_>>>()?;
        flood.run(slice)?;
        let after = hooks.iter().map(Hook::read).collect::<Result<Vec<_>>>()?;
        for ((cost, before), after) in costs.iter_mut().zip(before).zip(after) {
            let (ours, empty) = (after.1.since(&before.1), after.2.since(&before.2));
            ensure!(ours.runs > 0 && empty.runs > 0, "no packet passed {}", cost.program);
            cost.packets += ours.runs;
            cost.ours_ns.push(ours.nanoseconds as f64 / ours.runs as f64);
            cost.empty_ns.push(empty.nanoseconds as f64 / empty.runs as f64);
        }
    }
    Ok(costs)
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

impl Hook<'_> {
    fn attach_empty(&self) -> Result<OwnedFd> {
        within(self.node, || empty::attach(self.device, self.side))
    }

    fn programs(&self) -> Result<Vec<ProgramInfo>> {
        let asked = || Ok(SchedClassifier::query_tcx(self.device, self.side)?.1);
        within(self.node, asked).with_context(|| format!("what is attached to {}", self.device))
    }

    /// The name of our program here, and how it and the empty one ran so far.
    fn read(&self) -> Result<(String, Ran, Ran)> {
        let programs = self.programs()?;
        let nothing = || format!("no program of the agent is on {}", self.device);
        let ours = programs.iter().find(|p| is_ours(&name_of(p))).with_context(nothing)?;
        let empty = programs.iter().find(|p| name_of(p) == empty::NAME);
        let empty = empty.context("the empty program is gone")?;
        Ok((name_of(ours), Ran::of(ours)?, Ran::of(empty)?))
    }
}

fn name_of(program: &ProgramInfo) -> String {
    String::from_utf8_lossy(program.name()).into_owned()
}

fn is_ours(name: &str) -> bool {
    name.starts_with(OURS) && name != empty::NAME
}

//! What programs take a packet, by the kernel's own statistics.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use aya::sys::{Stats, enable_stats};

use crate::Nodes;
use crate::empty::{self, Attached};
use crate::filter;
use crate::flood::Flood;
use crate::netns::within;
use crate::statistics::{Cost, Pair, is_empty, is_ours, name_of};

/// Devices of each node.
const TUNNEL: &str = "flannel.1";
const UNDERLAY: &str = "eth0";

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

/// Names of the agents' programs on the way.
pub(crate) fn attached(nodes: &Nodes) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for hook in way(nodes) {
        let programs = hook.programs()?;
        names.extend(programs.iter().filter(|program| is_ours(program)).map(name_of));
    }
    Ok(names)
}

/// Attaches an empty program to each hook; they go when the result is dropped.
pub(crate) fn attach_empty(nodes: &Nodes) -> Result<Vec<Attached>> {
    way(nodes).iter().map(Hook::attach_empty).collect()
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
    let _empty = attach_empty(nodes)?;
    let mut costs = Vec::new();
    for hook in &hooks {
        costs.push(Cost::new(&hook.pair()?.0));
    }
    let mut flood = Flood::open(nodes, server)?;
    flood.run(slice)?;
    for _ in 0..slices {
        let before = hooks.iter().map(Hook::read).collect::<Result<Vec<_>>>()?;
        flood.run(slice)?;
        let after = hooks.iter().map(Hook::read).collect::<Result<Vec<_>>>()?;
        for ((cost, before), after) in costs.iter_mut().zip(before).zip(after) {
            cost.add(&before, &after)?;
        }
    }
    Ok(costs)
}

impl Hook<'_> {
    fn attach_empty(&self) -> Result<Attached> {
        within(self.node, || empty::attach(self.device, self.side))
    }

    fn programs(&self) -> Result<Vec<ProgramInfo>> {
        let asked = || match SchedClassifier::query_tcx(self.device, self.side) {
            Ok((_, programs)) => Ok(programs),
            // Linux before 6.6: filters alone.
            Err(_) => {
                let filters = filter::programs(self.device, self.side)?;
                let programs = loaded_programs().collect::<Result<Vec<_>, _>>()?;
                Ok(programs.into_iter().filter(|program| filters.contains(&program.id())).collect())
            }
        };
        within(self.node, asked).with_context(|| format!("what is attached to {}", self.device))
    }

    /// Our program here, and the empty one.
    fn pair(&self) -> Result<(ProgramInfo, ProgramInfo)> {
        let (mut ours, mut empty) = (None, None);
        for program in self.programs()? {
            if is_ours(&program) {
                ours = Some(program);
            } else if is_empty(&program) {
                empty = Some(program);
            }
        }
        let nothing = || format!("no program of the agent is on {}", self.device);
        Ok((ours.with_context(nothing)?, empty.context("the empty program is gone")?))
    }

    /// How both ran so far.
    fn read(&self) -> Result<Pair> {
        let (ours, empty) = self.pair()?;
        Pair::of(&ours, &empty)
    }
}

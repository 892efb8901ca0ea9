//! What the program on skb:kfree_skb takes a drop.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};

use crate::Nodes;
use crate::empty;
use crate::flood::burst;
use crate::statistics::{Cost, Pair, is_empty, name_of};

/// The agents' program.
const PROGRAM: &str = "ow_kfree_skb";

/// How many agents' programs watch the host's drops.
pub(crate) fn watching() -> Result<usize> {
    Ok(named(PROGRAM)?.len())
}

/// Measures while packets are dropped. The tracepoint is the whole host's, so
/// every agent's program sees each drop, and all but one turn it away: the
/// first of the result counted, the second is the one that took the least.
pub(crate) fn measure(
    nodes: &Nodes,
    server: SocketAddrV4,
    slice: Duration,
    slices: u32,
) -> Result<[Cost; 2]> {
    // Both go when this returns.
    let _statistics = enable_stats(Stats::RunTime).context("statistics of programs")?;
    let _empty = empty::attach_to_drops()?;
    let before = named(PROGRAM)?;
    burst(&nodes.from, server, slice, 1)?;
    let [counting, refusing] = choose(&before)?;
    let mut costs = [Cost::new(&counting), Cost::new(&refusing)];
    for _ in 0..slices {
        let before = read([&counting, &refusing])?;
        burst(&nodes.from, server, slice, 1)?;
        let after = read([&counting, &refusing])?;
        for ((cost, before), after) in costs.iter_mut().zip(before).zip(after) {
            cost.add(&before, &after)?;
        }
    }
    Ok(costs)
}

/// The program that ran the longest since then, and the one that ran the shortest.
fn choose(before: &[ProgramInfo]) -> Result<[ProgramInfo; 2]> {
    let ran = |now: &ProgramInfo| {
        let same = before.iter().find(|earlier| earlier.id() == now.id());
        same.map(|earlier| now.run_time().saturating_sub(earlier.run_time()))
    };
    let mut programs = named(PROGRAM)?;
    programs.retain(|program| ran(program).is_some());
    programs.sort_by_key(ran);
    let counting = programs.pop().context("no agent watches drops")?;
    let refusing = programs.into_iter().next().context("only one agent watches drops")?;
    Ok([counting, refusing])
}

/// How both ran so far, each beside the empty program.
fn read(programs: [&ProgramInfo; 2]) -> Result<Vec<Pair>> {
    let now = loaded_programs().collect::<Result<Vec<_>, _>>()?;
    let empty =
        now.iter().find(|program| is_empty(program)).context("the empty program is gone")?;
    let pair = |program: &ProgramInfo| {
        let same = now.iter().find(|other| other.id() == program.id());
        Pair::of(same.context("an agent is gone")?, empty)
    };
    programs.into_iter().map(pair).collect()
}

fn named(name: &str) -> Result<Vec<ProgramInfo>> {
    let programs = loaded_programs().collect::<Result<Vec<_>, _>>()?;
    Ok(programs.into_iter().filter(|program| name_of(program) == name).collect())
}

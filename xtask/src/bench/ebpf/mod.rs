//! What the eBPF programs cost: a packet, a connection, and a burst of drops.

mod lines;
mod stage;

use std::num::NonZeroUsize;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use self::stage::{Burst, Cost, Done, Stage};
use super::table::draw;
use crate::output::Output;
use crate::shell::{build_release, target};

/// Pairs of runs with and without agents, unless told otherwise.
const PAIRS: usize = 11;

/// Builds the agent and what measures it, as they are shipped.
pub(super) fn build() -> Result<()> {
    let what = ["-p", "overlaywatch", "--bin", "overlaywatch", "--example", "bench_ebpf"];
    build_release("the agent and the benchmark", &what)
}

/// All that was measured.
#[derive(Default, Serialize)]
struct Measured {
    hooks: Vec<Cost>,
    drop_program: Vec<Cost>,
    with: Runs,
    without: Runs,
    /// Without agents, yet with an empty program on each hook: what the kernel
    /// itself takes for running any.
    udp_empty: Vec<Done>,
}

/// Runs with agents, or without; the n-th of both are a pair.
#[derive(Default, Serialize)]
struct Runs {
    udp: Vec<Done>,
    tcp_bits_per_second: Vec<f64>,
    bursts: Vec<Burst>,
}

/// Adds measurements of the same programs, in the same order.
fn join(all: &mut Vec<Cost>, more: Vec<Cost>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.iter_mut().zip(more).for_each(|(cost, more)| cost.join(more));
    }
}

/// Measures and prints.
pub(super) fn bench(pairs: Option<NonZeroUsize>, output: Output) -> Result<()> {
    let pairs = pairs.map_or(PAIRS, NonZeroUsize::get);
    let mut stage = Stage::build(&target()?.join("release"))?;
    let mut measured = Measured::default();
    stage.start_agents()?;
    stage.warn_of_others()?;
    for pair in 0..pairs {
        eprintln!("pair {} of {pairs}: programs, UDP, TCP, drops", pair + 1);
        // Whoever comes first meets another machine than whoever comes second.
        let with_first = pair % 2 == 0;
        for with in [with_first, !with_first] {
            if with {
                stage.start_agents()?;
                // In each pair: where programs and maps lie in memory is luck.
                join(&mut measured.hooks, stage.hooks()?);
                join(&mut measured.drop_program, stage.drop_program()?);
            } else {
                stage.stop_agents()?;
            }
            let runs = if with { &mut measured.with } else { &mut measured.without };
            runs.udp.push(stage.udp()?);
            if !with {
                measured.udp_empty.push(stage.udp_empty()?);
            }
            runs.tcp_bits_per_second.push(stage.tcp()?);
            runs.bursts.push(stage.burst()?);
        }
    }
    let lines = lines::lines(&measured);
    match output {
        Output::Text => print!("small packets through VXLAN, {pairs} pairs\n\n{}", draw(&lines)),
        Output::Json => {
            println!("{:#}", json!({ "bench": "ebpf", "measured": measured, "lines": lines }));
        }
    }
    Ok(())
}

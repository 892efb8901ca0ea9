//! What was measured, as lines of the table.

use super::super::megabytes;
use super::super::table::{Line, Samples};
use super::stage::{Burst, Cost, Done};
use super::{Measured, Runs};

const BUDGET_HOOKS_NS: f64 = 60.0;
const BUDGET_LOST_PERCENT: f64 = 1.0;

/// Where an encapsulated packet passes, in this order.
const HOOKS: [&str; 4] = [
    "tunnel device, egress, ns",
    "underlay NIC, egress, ns",
    "underlay NIC, ingress, ns",
    "tunnel device, ingress, ns",
];

/// The tracepoint is the whole host's, and each agent counts its own node's drops.
const DROPS: [&str; 2] = ["skb:kfree_skb, counted, ns", "skb:kfree_skb, another node's, ns"];

/// The table.
pub(super) fn lines(measured: &Measured) -> Vec<Line> {
    let Measured { hooks, drop_program, with, without, udp_empty } = measured;
    let empty = hooks.iter().flat_map(|cost| cost.empty_ns.clone()).collect();
    let mut lines = vec![median("an empty program, ns", empty)];
    for (what, cost) in HOOKS.into_iter().zip(hooks) {
        lines.push(median(what, net(cost)));
    }
    let all = Samples::new(sums(hooks));
    lines.push(Line::median("all hooks together, ns", &all, Some(BUDGET_HOOKS_NS)));
    for (what, cost) in DROPS.into_iter().zip(drop_program) {
        lines.push(median(what, net(cost)));
    }
    lines.extend(throughput(with, without, udp_empty));
    lines.extend(bursts(with, without));
    lines
}

fn throughput(with: &Runs, without: &Runs, udp_empty: &[Done]) -> [Line; 8] {
    let rate = |runs: &Runs| runs.udp.iter().map(|d| d.packets as f64 / d.seconds / 1e3).collect();
    let bits = |runs: &Runs| runs.tcp_bits_per_second.iter().map(|bits| bits / 1e9).collect();
    let (udp_with, udp_without): (Vec<f64>, Vec<f64>) = (rate(with), rate(without));
    let (tcp_with, tcp_without): (Vec<f64>, Vec<f64>) = (bits(with), bits(without));
    let udp_lost = Samples::new(lost(&udp_with, &udp_without));
    let tcp_lost = Samples::new(lost(&tcp_with, &tcp_without));
    let added = difference(&each_ns(with.udp.iter()), &each_ns(without.udp.iter()));
    let empty = difference(&each_ns(udp_empty.iter()), &each_ns(without.udp.iter()));
    [
        median("UDP without agents, thousands/s", udp_without),
        median("UDP with agents, thousands/s", udp_with),
        Line::median("UDP, throughput lost, %", &udp_lost, Some(BUDGET_LOST_PERCENT)),
        median("UDP, added to a packet, ns", added),
        median("UDP, added by empty programs, ns", empty),
        median("TCP without agents, Gbit/s", tcp_without),
        median("TCP with agents, Gbit/s", tcp_with),
        Line::median("TCP, throughput lost, %", &tcp_lost, Some(BUDGET_LOST_PERCENT)),
    ]
}

fn bursts(with: &Runs, without: &Runs) -> [Line; 8] {
    let rate = |runs: &Runs| {
        runs.bursts.iter().map(|b| b.sent.packets as f64 / b.sent.seconds / 1e3).collect()
    };
    let each = |runs: &Runs| each_ns(runs.bursts.iter().map(|burst| &burst.sent));
    let added = difference(&each(with), &each(without));
    let of = |what: fn(&Burst) -> Option<f64>| with.bursts.iter().filter_map(what).collect();
    let counted = |b: &Burst| Some(100.0 * b.counted? as f64 / b.sent.packets as f64);
    let missed = Samples::new(of(|b| b.missed.map(|missed| missed as f64)));
    [
        median("drops without agents, thousands/s", rate(without)),
        median("drops with agents, thousands/s", rate(with)),
        median("added to a drop, ns", added),
        median("drops counted, %", of(counted)),
        median(
            "the map of drops, % full",
            of(|b| b.kinds.map(|[n, most]| 100.0 * n as f64 / most as f64)),
        ),
        Line { budget: Some(0.0), ..Line::median("not counted for want of room", &missed, None) },
        median("agent's CPU meanwhile, % of a core", of(|b| b.agent_cpu_percent)),
        median("agent's memory afterwards, MB", of(|b| b.agent_resident_bytes.map(megabytes))),
    ]
}

fn median(what: &'static str, values: Vec<f64>) -> Line {
    Line::median(what, &Samples::new(values), None)
}

/// Without what running and measuring any program costs.
fn net(cost: &Cost) -> Vec<f64> {
    cost.ours_ns.iter().zip(&cost.empty_ns).map(|(ours, empty)| ours - empty).collect()
}

/// What all hooks took together, slice by slice.
fn sums(hooks: &[Cost]) -> Vec<f64> {
    let slices = hooks
        .iter()
        .map(net)
        .reduce(|sums, more| sums.into_iter().zip(more).map(|(sum, one)| sum + one).collect());
    slices.unwrap_or_default()
}

/// Pair by pair: each met the same machine.
fn lost(with: &[f64], without: &[f64]) -> Vec<f64> {
    with.iter().zip(without).map(|(with, without)| 100.0 * (1.0 - with / without)).collect()
}

/// Processor time of a packet, run by run.
fn each_ns<'a>(runs: impl Iterator<Item = &'a Done>) -> Vec<f64> {
    runs.map(|done| 1e9 * done.cpu_seconds / done.packets as f64).collect()
}

/// Pair by pair.
fn difference(with: &[f64], without: &[f64]) -> Vec<f64> {
    with.iter().zip(without).map(|(with, without)| with - without).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_program_is_subtracted() {
        let cost = |ours_ns: [f64; 2]| Cost {
            program: String::new(),
            packets: 1,
            ours_ns: ours_ns.into(),
            empty_ns: vec![50.0, 60.0],
        };
        assert_eq!(sums(&[cost([55.0, 66.0]), cost([60.0, 80.0])]), [15.0, 26.0]);
        assert_eq!(sums(&[]), [0.0; 0]);
    }

    #[test]
    fn pairs_are_compared() {
        assert_eq!(lost(&[75.0, 250.0], &[100.0, 200.0]), [25.0, -25.0]);
        let done = |cpu_seconds| Done { packets: 1_000_000, seconds: 1.0, cpu_seconds };
        let (with, without) = (each_ns([done(1.5)].iter()), each_ns([done(1.25)].iter()));
        assert_eq!(difference(&with, &without), [250.0]);
    }
}

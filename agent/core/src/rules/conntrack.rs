//! The table of tracked connections: full, nearly full, or filled by tunnels.

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Evidence, Finding, Subject};
use crate::model::{Conntrack, ConntrackCounters, TunnelFlows};
use crate::time::SECOND;

/// A table this full, in per cent, will be full at the next burst.
const NEARLY: u64 = 75;
/// Packets that connection tracking drops while the table is this full, in per
/// cent, are dropped because of that. It drops some for other reasons, too.
const BRIM: u64 = 95;
/// Tunnels' entries below this share of all entries leave room enough, in per cent.
const TUNNEL_SHARE: u64 = 30;
/// And so do fewer than this share of the limit, in per cent: entries of a
/// tunnel are gone 30 s after its last packet (nf_conntrack_udp_timeout), and a
/// busy node always has some thousands.
const TUNNEL_FILL: u64 = 5;
/// Entries that are always fine.
const TUNNEL_ENTRIES: u64 = 4_096;
/// Of a tunnel's entries so many never see a reply, in per cent.
const UNREPLIED: u64 = 90;

/// How the counters moved since the earlier observation.
#[derive(Debug, Default)]
struct Moved {
    drop: u64,
    early_drop: u64,
    seconds: u64,
}

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let table = match context.now.conntrack.known() {
        Ok(Some(table)) => table,
        // A kernel that tracks nothing has nothing to fill.
        Ok(None) => return,
        Err(_) => {
            return verdicts.blind(&[
                Code::ConntrackFull,
                Code::ConntrackNearlyFull,
                Code::ConntrackTunnelFlows,
            ]);
        }
    };
    let moved = moved(context, &table.counters);
    let (count, max) = (u64::from(table.count), u64::from(table.max));
    let fills = |percent: u64| max > 0 && count * 100 >= max * percent;
    if fills(100) || moved.early_drop > 0 || (fills(BRIM) && moved.drop > 0) {
        verdicts.add(full(table, &moved));
    } else if fills(NEARLY) {
        verdicts.add(finding(Code::ConntrackNearlyFull, vec![filled(table)]));
    }
    tunnels(table, verdicts);
}

fn moved(context: &Context<'_>, now: &ConntrackCounters) -> Moved {
    let Some(before) = context.delta.before else { return Moved::default() };
    let Some(then) = before.conntrack.seen().map(|table| table.counters) else {
        return Moved::default();
    };
    Moved {
        drop: now.drop.saturating_sub(then.drop),
        early_drop: now.early_drop.saturating_sub(then.early_drop),
        seconds: context.at().since(before.now.mono) / SECOND,
    }
}

fn filled(table: &Conntrack) -> Evidence {
    Evidence::ConntrackTable { count: table.count, max: table.max }
}

fn full(table: &Conntrack, moved: &Moved) -> Finding {
    let mut evidence = vec![filled(table)];
    if moved.drop > 0 || moved.early_drop > 0 {
        evidence.push(Evidence::ConntrackDropped {
            packets: moved.drop,
            evicted: moved.early_drop,
            seconds: moved.seconds,
        });
    }
    finding(Code::ConntrackFull, evidence)
}

fn tunnels(table: &Conntrack, verdicts: &mut Verdicts) {
    if u64::from(table.count) < TUNNEL_ENTRIES {
        return;
    }
    let Some(flows) = &table.tunnels else {
        return verdicts.blind(&[Code::ConntrackTunnelFlows]);
    };
    let sum = |of: fn(&TunnelFlows) -> u32| flows.iter().map(|flow| u64::from(of(flow))).sum();
    let (entries, unreplied): (u64, u64) = (sum(|flow| flow.entries), sum(|flow| flow.unreplied));
    let (count, max) = (u64::from(table.count), u64::from(table.max));
    let bloats = entries >= TUNNEL_ENTRIES
        && entries * 100 >= count * TUNNEL_SHARE
        && entries * 100 >= max * TUNNEL_FILL
        && unreplied * 100 >= entries * UNREPLIED;
    if !bloats {
        return;
    }
    let mut flows: Vec<&TunnelFlows> = flows.iter().filter(|flow| flow.entries > 0).collect();
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.entries));
    let mut evidence: Vec<Evidence> = flows
        .iter()
        .map(|flow| Evidence::ConntrackTunnel {
            encapsulation: flow.encapsulation,
            entries: flow.entries,
            unreplied: flow.unreplied,
        })
        .collect();
    evidence.push(filled(table));
    verdicts.add(finding(Code::ConntrackTunnelFlows, evidence));
}

fn finding(code: Code, evidence: Vec<Evidence>) -> Finding {
    Finding {
        code,
        subject: Subject::Node,
        direction: None,
        hop: None,
        evidence,
        confidence: Confidence::Certain,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delta::Delta;
    use crate::fact::{Fact, Gap};
    use crate::model::Encapsulation;
    use crate::snapshot::Snapshot;
    use crate::time::Mono;

    fn observed(seconds: u64, table: Conntrack) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.now.mono = Mono(seconds * SECOND);
        snapshot.conntrack = Fact::Seen { value: Arc::new(table), at: snapshot.now.mono };
        snapshot
    }

    fn judged(before: Option<&Snapshot>, now: &Snapshot) -> (Vec<Code>, Vec<Code>) {
        let mut verdicts = Verdicts::default();
        judge(&Context { delta: Delta { before, now }, now, digest: None }, &mut verdicts);
        (verdicts.findings.iter().map(|found| found.code).collect(), verdicts.blind)
    }

    fn found(table: Conntrack) -> Vec<Code> {
        judged(None, &observed(1, table)).0
    }

    fn table(count: u32) -> Conntrack {
        let counters = ConntrackCounters::default();
        Conntrack { count, max: 100_000, counters, tunnels: Some(Vec::new()) }
    }

    #[test]
    fn a_table_is_told_by_how_full_it_is() {
        assert_eq!(found(table(74_999)), []);
        assert_eq!(found(table(75_000)), [Code::ConntrackNearlyFull]);
        assert_eq!(found(table(99_999)), [Code::ConntrackNearlyFull]);
        assert_eq!(found(table(100_000)), [Code::ConntrackFull]);
        assert_eq!(found(Conntrack { max: 0, ..table(4_000_000) }), [], "no limit");
    }

    #[test]
    fn drops_are_of_a_full_table_only_at_its_brim() {
        let after = |count, drop, early_drop| {
            let counters = ConntrackCounters { drop, early_drop, ..Default::default() };
            let now = observed(6, Conntrack { counters, ..table(count) });
            judged(Some(&observed(1, table(count))), &now).0
        };
        assert_eq!(after(1_000, 50, 0), [], "entries that clash are dropped at any time");
        assert_eq!(after(95_000, 50, 0), [Code::ConntrackFull]);
        assert_eq!(after(95_000, 0, 0), [Code::ConntrackNearlyFull]);
        assert_eq!(after(90_000, 0, 1), [Code::ConntrackFull], "only a full table evicts");
    }

    #[test]
    fn tunnels_bloat_a_table_that_they_fill_without_answers() {
        let with = |count, entries, unreplied| {
            let encapsulation = Encapsulation::Vxlan(8472);
            let flows = TunnelFlows { encapsulation, entries, unreplied };
            found(Conntrack { tunnels: Some(vec![flows]), ..table(count) })
        };
        assert_eq!(with(20_000, 15_000, 15_000), [Code::ConntrackTunnelFlows]);
        assert_eq!(with(60_000, 15_000, 15_000), [], "a quarter of all");
        assert_eq!(with(5_000, 4_900, 4_900), [], "no twentieth of what fits");
        assert_eq!(with(20_000, 15_000, 5_000), [], "answered");
        let idle = Conntrack { max: 1_000, ..table(700) };
        let flows =
            TunnelFlows { encapsulation: Encapsulation::Ipip, entries: 600, unreplied: 600 };
        assert_eq!(found(Conntrack { tunnels: Some(vec![flows]), ..idle }), [], "hundreds");
    }

    #[test]
    fn what_is_not_seen_is_not_healthy() {
        let missing = Snapshot { conntrack: Fact::Missing(Gap::Denied), ..Snapshot::default() };
        let (said, blind) = judged(None, &missing);
        assert_eq!((said.len(), blind.len()), (0, 3));
        let uncounted = observed(1, Conntrack { tunnels: None, ..table(5_000) });
        assert_eq!(judged(None, &uncounted), (vec![], vec![Code::ConntrackTunnelFlows]));
        let small = observed(1, Conntrack { tunnels: None, ..table(4_000) });
        assert_eq!(judged(None, &small), (vec![], vec![]), "whatever they are, they are few");
        let absent = Snapshot { conntrack: Fact::Absent { at: Mono(1) }, ..Snapshot::default() };
        assert_eq!(judged(None, &absent), (vec![], vec![]));
    }
}

//! What counters say while probes are lost, and what they say otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::fact::{Fact, Gap};
use crate::finding::{Subject, Thing};
use crate::ladder::Hop;
use crate::model::{Blocker, ChainHook, Matches, NftTable};
use crate::pairs::{PairView, Place, Run, Tally};
use crate::rules::netfilter::tests::{
    PEER, VXLAN, at, base, blocker, fact, judged, node, of, table,
};
use crate::snapshot::Snapshot;
use crate::time::Mono;

const NOW: Mono = Mono(100 * SECOND);

/// A rule whose counter grew by this within the last five seconds.
fn growing(hook: ChainHook, packets: u64) -> Blocker {
    let growth = Growth { packets, since: Mono(94 * SECOND), at: Mono(99 * SECOND) };
    Blocker { growth: Some(growth), ..blocker(hook, 8472) }
}

/// One that drops whatever comes.
fn everything(packets: u64) -> Blocker {
    Blocker { matches: Matches::default(), ..growing(ChainHook::Input, packets) }
}

/// Twenty probes in a row, over two seconds.
fn run(outbound: u32, inbound: u32, undetermined: u32) -> Run {
    let (first, last) = (Mono(97 * SECOND), Mono(99 * SECOND));
    Run { outbound, inbound, undetermined, first, last }
}

fn losing(run: Run) -> StreamView {
    StreamView { run, ..StreamView::default() }
}

/// A node without eBPF, with these rules, whose probes through the tunnel fare so
/// while the underlay answers.
fn without_ebpf(blockers: Vec<Blocker>, tunnel: StreamView) -> Snapshot {
    let answered = StreamView { last_answer: Some(NOW), ..StreamView::default() };
    let streams = BTreeMap::from(
        [(Stream::Underlay, answered), (Stream::Small(VXLAN), tunnel)]
            .map(|(stream, view)| (stream, Box::new(view))),
    );
    let pair = PairView { streams, ..PairView::default() };
    let rules = vec![NftTable { blockers, ..table("local") }];
    let mut snapshot = node(of(rules), Vec::new());
    snapshot.kernel = Fact::Missing(Gap::Denied);
    snapshot.pairs = BTreeMap::from([(PEER, Arc::new(pair))]);
    snapshot.now.mono = NOW;
    snapshot
}

fn found(snapshot: &Snapshot) -> Vec<Finding> {
    judged(snapshot).findings
}

fn chain(name: &str) -> Subject {
    Subject::Thing { what: Thing::Chain, name: format!("ip local {name}") }
}

fn is_blind(snapshot: &Snapshot) -> bool {
    judged(snapshot).blind.contains(&Code::EncapsulationFiltered)
}

#[test]
fn a_rule_that_takes_packets_while_probes_are_lost_is_named() {
    let node = without_ebpf(vec![growing(ChainHook::Input, 40)], losing(run(0, 20, 0)));
    let found = found(&node);
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(finding.code, Code::EncapsulationFiltered);
    assert_eq!(finding.subject, chain("X"));
    assert_eq!(finding.direction, Some(Direction::Inbound));
    assert_eq!(finding.hop, Some(Segment { from: Hop::ReachedNic, to: Hop::Decapsulated }));
    assert_eq!(finding.confidence, Confidence::High);
    let texts: Vec<_> = finding.evidence.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains("handle 12: udp dport 8472 drop, 3 packets so far"), "{texts:?}");
    assert_eq!(
        texts[1],
        "its counter grew by 40 packets in 5 s, and 20 probes of the tunnel were lost"
    );
    assert!(!is_blind(&node), "it was told");
}

#[test]
fn a_counter_that_stands_still_is_no_evidence() {
    let still = || blocker(ChainHook::Input, 8472);
    assert_eq!(found(&without_ebpf(vec![still()], losing(run(0, 20, 0)))), []);
    // It grew long ago, or by a single packet.
    let mut long_ago = growing(ChainHook::Input, 40);
    long_ago.growth.as_mut().unwrap().at = Mono(87 * SECOND);
    assert_eq!(found(&without_ebpf(vec![long_ago], losing(run(0, 20, 0)))), []);
    let one = growing(ChainHook::Input, 1);
    assert_eq!(found(&without_ebpf(vec![one], losing(run(0, 20, 0)))), []);
}

#[test]
fn without_a_loss_on_its_way_a_rule_may_take_what_it_likes() {
    let rule = || vec![growing(ChainHook::Input, 40)];
    assert_eq!(found(&without_ebpf(rule(), StreamView::default())), []);
    assert_eq!(found(&without_ebpf(rule(), losing(run(20, 0, 0)))), []);
    // Hops say that it is lost elsewhere.
    let left = Segment { from: Hop::Sent, to: Hop::LeftNic };
    let place = Place { direction: Direction::Inbound, segment: left, count: 20 };
    let elsewhere = StreamView { places: vec![place], ..losing(run(0, 20, 0)) };
    assert_eq!(found(&without_ebpf(rule(), elsewhere)), []);
    // The peer is off.
    let mut off = without_ebpf(rule(), losing(run(0, 20, 0)));
    off.now.mono = NOW.plus(6 * SECOND);
    assert_eq!(found(&off), []);
    // The programs count drops, and none.
    let mut counted = without_ebpf(rule(), losing(run(0, 20, 0)));
    counted.kernel = fact(crate::kernel::KernelCounts::default());
    assert_eq!(found(&counted), []);
}

#[test]
fn a_loss_that_nobody_places_leaves_it_open() {
    let rule = || vec![growing(ChainHook::Input, 40)];
    let open = found(&without_ebpf(rule(), losing(run(0, 0, 20))));
    assert_eq!((open.len(), open[0].confidence), (1, Confidence::Low));
    let more = Matches { more: true, ..growing(ChainHook::Input, 40).matches };
    let vague = Blocker { matches: more, ..growing(ChainHook::Input, 40) };
    let vague = found(&without_ebpf(vec![vague], losing(run(0, 20, 0))));
    assert_eq!((vague.len(), vague[0].confidence), (1, Confidence::Low));
}

#[test]
fn a_rule_against_everything_must_take_as_much_as_is_lost() {
    // Ten a second are lost; noise makes one a second.
    assert_eq!(found(&without_ebpf(vec![everything(5)], losing(run(0, 20, 0)))), []);
    let much = found(&without_ebpf(vec![everything(60)], losing(run(0, 20, 0))));
    assert_eq!((much.len(), much[0].confidence), (1, Confidence::Low));
    // One that names the tunnel's port is likelier.
    let both = vec![everything(60), Blocker { at: at("Y"), ..growing(ChainHook::Input, 4) }];
    let both = found(&without_ebpf(both, losing(run(0, 20, 0))));
    assert_eq!(both[0].subject, chain("Y"));
}

#[test]
fn losses_now_and_then_count_too() {
    let minute = Tally { sent: 600, answered: 560, lost_inbound: 40, ..Tally::default() };
    let gray = StreamView { minute, gray_inbound: true, ..StreamView::default() };
    let found = found(&without_ebpf(vec![growing(ChainHook::Input, 4)], gray));
    assert_eq!((found.len(), found[0].confidence), (1, Confidence::High));
}

#[test]
fn what_does_not_count_leaves_the_code_blind_only_while_probes_are_lost() {
    let silent = || Blocker { packets: None, ..blocker(ChainHook::Input, 8472) };
    assert!(is_blind(&without_ebpf(vec![silent()], losing(run(0, 20, 0)))));
    assert!(!is_blind(&without_ebpf(vec![silent()], StreamView::default())));
    assert!(!is_blind(&without_ebpf(Vec::new(), losing(run(0, 20, 0)))));
    let mut policy = without_ebpf(Vec::new(), losing(run(0, 20, 0)));
    let base = vec![base("in", ChainHook::Input, true)];
    policy.netfilter = fact(of(vec![NftTable { base, ..table("host") }]));
    assert!(is_blind(&policy));
    assert_eq!(found(&policy), []);
}

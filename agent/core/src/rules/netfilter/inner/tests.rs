use super::super::tests::{at, drop_of, fact, node, of, said, table};
use super::*;
use crate::kernel::Traffic;
use crate::model::{Encapsulation, Matches};
use crate::snapshot::Snapshot;

fn untracking(in_device: Option<&str>, protocol: Option<u8>) -> Untracking {
    let in_device = in_device.map(str::to_owned);
    let matches = Matches { in_device, protocol, ..Matches::default() };
    Untracking { at: at("PREROUTING"), hooks: vec![ChainHook::Prerouting], matches }
}

fn silencer(hook: ChainHook, icmp: Option<(u8, Option<u8>)>) -> Blocker {
    let matches = Matches { protocol: Some(1), icmp, ..Matches::default() };
    Blocker {
        at: at("OUTPUT"),
        rejects: false,
        hooks: vec![hook],
        matches,
        packets: None,
        growth: None,
    }
}

/// A node with these rules in two of its tables, this drop, and so many packets to
/// its peer that were none.
fn with(
    untracking: Vec<Untracking>,
    silencers: Vec<Blocker>,
    drop: PacketDrop,
    sent: u64,
) -> Snapshot {
    let raw = NftTable { untracking, ..table("raw") };
    let filter = NftTable { silencers, ..table("filter") };
    let mut traffic = Vec::new();
    if let Some(peer) = drop.peer {
        traffic.push(Traffic {
            peer: peer.0,
            encapsulation: Encapsulation::Vxlan(8472),
            outbound: true,
            packets: sent,
            bytes: 0,
            fragments: 0,
            lately: sent,
        });
    }
    let counts = KernelCounts { drops: vec![drop], traffic, ..KernelCounts::default() };
    Snapshot { kernel: fact(counts), ..node(of(vec![raw, filter]), Vec::new()) }
}

#[test]
fn what_is_not_tracked_and_dropped_is_named_by_its_rule() {
    let raised = vec![(Code::UntrackedInner, "ip raw PREROUTING".to_owned())];
    let judged = |rule: Untracking, reason: &str, outbound| {
        said(&with(vec![rule], Vec::new(), drop_of(DropForm::Inner, outbound, reason), 0))
    };
    let of_tunnel = || untracking(Some("flannel.1"), None);
    assert_eq!(judged(of_tunnel(), "NETFILTER_DROP", false), raised);
    assert_eq!(judged(untracking(None, None), "NETFILTER_DROP", false), raised);
    // The tunnel's outer packets, as Felix does.
    assert_eq!(judged(untracking(None, Some(17)), "NETFILTER_DROP", false), []);
    assert_eq!(judged(untracking(Some("eth0"), None), "NETFILTER_DROP", false), []);
    // Something else drops them, or others.
    assert_eq!(judged(of_tunnel(), "IP_RPFILTER", false), []);
    assert_eq!(judged(of_tunnel(), "NETFILTER_DROP", true), []);
    let mut at_output = of_tunnel();
    at_output.hooks = vec![ChainHook::Output];
    assert_eq!(judged(at_output, "NETFILTER_DROP", false), []);
}

#[test]
fn an_error_that_never_comes_is_named_by_its_rule() {
    let raised = vec![(Code::IcmpTooBigFiltered, "ip filter OUTPUT".to_owned())];
    let drop = || drop_of(DropForm::Inner, true, "PKT_TOO_BIG");
    let judged = |rule: Blocker, drop: PacketDrop, sent: u64| {
        said(&with(Vec::new(), vec![rule], drop, sent))
    };
    let rule = || silencer(ChainHook::Output, Some((3, Some(4))));
    assert_eq!(judged(rule(), drop(), 0), raised);
    assert_eq!(judged(rule(), drop(), 300), raised, "40 of 340");
    assert_eq!(judged(rule(), drop(), 400), [], "whoever is told sends smaller ones");
    assert_eq!(judged(rule(), PacketDrop { lately: 9, ..drop() }, 0), []);
    assert_eq!(judged(rule(), PacketDrop { outbound: false, ..drop() }, 0), []);
    assert_eq!(judged(rule(), drop_of(DropForm::Inner, true, "QDISC_DROP"), 0), []);
    assert_eq!(judged(rule(), PacketDrop { ethertype: IPV6, ..drop() }, 0), []);
    // A rule about errors that come in, or that leave by another device.
    assert_eq!(judged(silencer(ChainHook::Input, None), drop(), 0), []);
    let mut elsewhere = rule();
    elsewhere.matches.out_device = Some("docker0".to_owned());
    assert_eq!(judged(elsewhere, drop(), 0), []);
}

//! Where something is missing: a gap names it and the remedy, and everything
//! else works.

use overlaywatch::source::kernel::Options;
use overlaywatch_core::fact::Gap;
use overlaywatch_core::kernel::Attach;
use overlaywatch_ebpf::MAX_PROBES;

use crate::bench::{
    Loader, Pins, SMALL, options, overlay, pair, plan, probe, requests, send, sink, wait,
};
use crate::daemon::{Agent, BINARY};

const EPOCH: u64 = 0xffff_0000_0000_0001;

/// Everything but the programs works, and what else needs a capability names it.
fn works_otherwise(agent: &Agent, node: &crate::bench::Namespace) {
    let gaps = agent.gaps(node).unwrap();
    let is_explained = |(source, gap, detail): &(String, String, String)| {
        source == "kernel" || (gap == "denied" && detail.contains("CAP_"))
    };
    assert!(gaps.iter().all(is_explained), "{gaps:?}");
    let text = node.try_sh(&format!("{BINARY} status -o json"));
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["report"]["peers"][0]["name"], "node-2", "{status:#}");
}

#[test]
fn without_capabilities() {
    // What is left, and what is named as missing.
    let cases = [
        ("+net_raw,+net_admin,+dac_override", "CAP_PERFMON, CAP_BPF"),
        ("+net_raw,+bpf,+perfmon,+dac_override", "grant CAP_NET_ADMIN"),
    ];
    for (left, missing) in cases {
        let pins = Pins::new();
        let nodes = pair();
        let set = format!("-all,{left}");
        let under = ["setpriv", "--bounding-set", &set, "--inh-caps", "-all"];
        let agent = Agent::start_under(&nodes[0], &under, &pins, "");
        let (gap, detail) = agent.wait_gap(&nodes[0], &[missing, "AmbientCapabilities"]);
        assert!(gap == "denied" || gap == "failed", "{gap}: {detail}");
        works_otherwise(&agent, &nodes[0]);
    }
}

#[test]
fn without_a_bpf_file_system() {
    let nodes = pair();
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("bpf/pins");
    // It may not be mounted: CAP_SYS_ADMIN is missing.
    let under = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all"];
    let agent = Agent::start_pinned(&nodes[0], &under, &elsewhere);
    let (gap, detail) = agent.wait_gap(&nodes[0], &["mounting a BPF file system", "mount -t bpf"]);
    assert_eq!(gap, "denied", "{detail}");
    works_otherwise(&agent, &nodes[0]);
}

#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none() {
    let nodes = pair();
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("bpf/pins");
    // In a mount namespace of its own, so that nothing is left.
    let agent = Agent::start_pinned(&nodes[0], &["unshare", "--mount"], &elsewhere);
    wait("a first verdict without gap", || {
        let gaps = agent.gaps(&nodes[0])?;
        gaps.is_empty().then_some(())
    });
    drop(agent);
}

#[test]
fn without_type_information() {
    let pins = Pins::new();
    let nodes = pair();
    let types = "/nonexistent/vmlinux".into();
    let options = Options { types, ..options(&pins, Attach::Auto) };
    let mut one = Loader::start(&nodes[0], options, plan(&nodes[0], 1));
    let problem = one.wait("the problem", |counts| counts.problems.first().cloned());
    assert!(problem.contains("drops are not counted"), "{problem}");
    assert!(problem.contains("/nonexistent/vmlinux"), "{problem}");
    assert!(problem.contains("CONFIG_DEBUG_INFO_BTF"), "{problem}");
    assert_eq!(one.report.as_ref().unwrap().gap, None::<Gap>);
    requests(&nodes[0], 1, SMALL, EPOCH, 0..10);
    one.climb("probes", SMALL, EPOCH, |c| c.requests.left_nic.is_some_and(|w| w.count == 10));
}

#[test]
fn a_full_map_is_told_of_and_counts_what_it_holds() {
    let pins = Pins::new();
    let nodes = pair();
    let _sink = sink(&nodes[0]);
    let mut one = Loader::watching(&nodes[0], options(&pins, Attach::Auto), plan(&nodes[0], 1));
    requests(&nodes[1], 2, SMALL, EPOCH, 0..10);
    // A peer that starts again and again would do this.
    let streams = u64::from(MAX_PROBES) + 100;
    let forged = (1..=streams).map(|n| probe(1, SMALL, EPOCH + n, 0)).collect();
    send(&nodes[1], overlay(2), overlay(1), forged);
    let problem = one.wait("the problem", |counts| counts.problems.first().cloned());
    assert!(problem.contains("the map of streams of probes is full"), "{problem}");
    requests(&nodes[1], 2, SMALL, EPOCH, 10..30);
    one.climb("the known stream", SMALL, EPOCH, |c| {
        c.requests.reached_nic.is_some_and(|w| w.count == 30)
    });
    one.wait("the problem's end", |counts| counts.problems.is_empty().then_some(()));
}

#[test]
fn more_peers_than_there_is_room_for() {
    let pins = Pins::new();
    let nodes = pair();
    let mut wanted = plan(&nodes[0], 1);
    let peer = *wanted.peers.values().next().unwrap();
    let room = overlaywatch_ebpf::MAX_PEERS;
    for n in 0..room + 10 {
        let [_, a, b, c] = n.to_be_bytes();
        let address = std::net::IpAddr::from([11, a, b, c]);
        wanted.peers.insert(address.into(), peer);
    }
    let mut one = Loader::start(&nodes[0], options(&pins, Attach::Auto), wanted);
    let problem = one.wait("the problem", |counts| counts.problems.first().cloned());
    assert!(problem.contains("unknown to the eBPF programs"), "{problem}");
    assert_eq!(one.report.as_ref().unwrap().gap, None::<Gap>);
    one.replan(plan(&nodes[0], 1));
    one.wait("the problem's end", |counts| counts.problems.is_empty().then_some(()));
    requests(&nodes[0], 1, SMALL, EPOCH, 0..10);
    one.climb("probes", SMALL, EPOCH, |c| c.requests.left_nic.is_some_and(|w| w.count == 10));
}

#[test]
fn a_second_agent_leaves_the_first_alone() {
    let pins = Pins::new();
    let nodes = pair();
    let one = Loader::watching(&nodes[0], options(&pins, Attach::Auto), plan(&nodes[0], 1));
    let mut two = Loader::start(&nodes[0], options(&pins, Attach::Auto), plan(&nodes[0], 1));
    wait("the second one's gap", || {
        two.wait("a report", |_| Some(()));
        two.report.clone().filter(|report| report.detail.contains("an agent is running"))
    });
    requests(&nodes[0], 1, SMALL, EPOCH, 0..10);
    one.climb("probes", SMALL, EPOCH, |c| c.requests.left_nic.is_some_and(|w| w.count == 10));
}

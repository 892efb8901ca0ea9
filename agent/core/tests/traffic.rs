//! Rules on programs and queues of devices.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use overlaywatch_core::catalog::Code;
use overlaywatch_core::diagnose::replay;
use overlaywatch_core::fact::Fact;
use overlaywatch_core::finding::{Direction, Finding, Subject};
use overlaywatch_core::kernel::{DropForm, DropSite, ForeignProgram, KernelCounts, PacketDrop};
use overlaywatch_core::ladder::Hop;
use overlaywatch_core::model::{Encapsulation, Host, NeighbourTable, Nic, PeerId};
use overlaywatch_core::policy::Policy;
use overlaywatch_core::probing::Stream;
use overlaywatch_core::snapshot::Snapshot;
use overlaywatch_core::time::Mono;

fn dropped(reason: &str, device: &str, lately: u64, is_probe: bool) -> PacketDrop {
    PacketDrop {
        site: DropSite {
            reason: Some(reason.to_owned()),
            function: None,
            device: Some(device.to_owned()),
        },
        peer: Some(PeerId("10.0.0.12".parse().unwrap())),
        form: DropForm::Outer,
        outbound: true,
        probe: is_probe.then_some((Stream::Small(Encapsulation::Vxlan(8472)), false)),
        ethertype: 0x0800,
        ip_protocol: 17,
        total: lately,
        lately,
    }
}

fn filter(device: &str, is_ingress: bool) -> ForeignProgram {
    ForeignProgram {
        device: device.to_owned(),
        is_ingress,
        kind: "bpf".to_owned(),
        preference: Some(7),
        ..ForeignProgram::default()
    }
}

fn findings(drops: Vec<PacketDrop>, foreign: Vec<ForeignProgram>) -> Vec<Finding> {
    let counts = KernelCounts { drops, foreign, ..KernelCounts::default() };
    let kernel = Fact::Seen { value: Arc::new(counts), at: Mono(1) };
    let snapshot = Snapshot { kernel, ..Snapshot::default() };
    let diagnosis = replay(None, &snapshot, &Policy::default());
    diagnosis.findings.into_iter().map(|active| active.finding).collect()
}

#[test]
fn a_program_that_drops_probes_is_named() {
    let found = findings(vec![dropped("TC_EGRESS", "eth0", 5, true)], vec![filter("eth0", false)]);
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.code, Code::ForeignProgramDrops);
    assert_eq!(finding.direction, Some(Direction::Outbound));
    assert_eq!(finding.hop.map(|hop| hop.to), Some(Hop::LeftNic));
    assert_eq!(finding.evidence[0].to_string(), "eth0 egress bpf pref 7 dropped 5 packets in 5 s");
    let told = finding.evidence[0].placeholders();
    assert!(told.contains(&("{detach}", "`tc filter del dev eth0 egress pref 7`".to_owned())));
}

#[test]
fn a_program_is_not_blamed_for_what_it_may_drop_or_did_not() {
    let here = || vec![filter("eth0", false)];
    // Live traffic only: a network policy. On another device, the other side, too few.
    assert_eq!(findings(vec![dropped("TC_EGRESS", "eth0", 500, false)], here()), []);
    assert_eq!(findings(vec![dropped("TC_EGRESS", "eth1", 5, true)], here()), []);
    assert_eq!(findings(vec![dropped("TC_INGRESS", "eth0", 5, true)], here()), []);
    assert_eq!(findings(vec![dropped("TC_EGRESS", "eth0", 2, true)], here()), []);
    assert_eq!(findings(vec![dropped("NETFILTER_DROP", "eth0", 5, true)], here()), []);
    assert_eq!(findings(Vec::new(), here()), []);
}

#[test]
fn a_queue_that_drops_probes_is_named_with_its_device() {
    let found = findings(vec![dropped("QDISC_DROP", "flannel.1", 5, true)], Vec::new());
    let codes: Vec<Code> = found.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::QdiscDrops]);
    assert_eq!(findings(vec![dropped("QDISC_DROP", "eth0", 500, false)], Vec::new()), []);
}

fn xdp(kind: &str) -> ForeignProgram {
    ForeignProgram {
        device: "eth0".to_owned(),
        is_ingress: true,
        kind: kind.to_owned(),
        name: Some("guard_vxlan".to_owned()),
        id: Some(42),
        ..ForeignProgram::default()
    }
}

/// Dropped on its way in, by a function.
fn dropped_in(reason: &str, function: &str, lately: u64) -> PacketDrop {
    let mut drop = dropped(reason, "eth0", lately, true);
    drop.site.function = Some(function.to_owned());
    drop.outbound = false;
    drop
}

#[test]
fn an_xdp_program_is_told_by_the_function_that_drops() {
    for (kind, function) in
        [("xdpgeneric", "do_xdp_generic"), ("xdp", "veth_xdp_rcv_skb"), ("xdp", "tun_xdp_one")]
    {
        let found = findings(vec![dropped_in("NOT_SPECIFIED", function, 5)], vec![xdp(kind)]);
        let [finding] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(finding.code, Code::ForeignProgramDrops);
        assert_eq!(finding.direction, Some(Direction::Inbound));
        let hop = finding.hop.unwrap();
        assert_eq!((hop.from, hop.to), (Hop::ReachedNic, Hop::Decapsulated));
        let said = finding.evidence[0].to_string();
        let expected = format!("eth0 ingress {kind} guard_vxlan dropped 5 packets in 5 s, id 42");
        assert_eq!(said, expected);
        let mode = if kind == "xdp" { "xdpdrv" } else { kind };
        let detach = finding.evidence[0].placeholders();
        let command = format!("`ip link set dev eth0 {mode} off`");
        assert!(detach.iter().any(|(key, text)| *key == "{detach}" && text.contains(&command)));
    }
}

#[test]
fn an_xdp_program_is_not_blamed_for_others() {
    let here = || vec![xdp("xdpgeneric")];
    // Another function for no reason, another reason, and no program at all.
    assert_eq!(findings(vec![dropped_in("NOT_SPECIFIED", "ip_error", 50)], here()), []);
    assert_eq!(findings(vec![dropped_in("TC_INGRESS", "do_xdp_generic", 50)], here()), []);
    assert_eq!(findings(vec![dropped_in("XDP", "do_xdp_generic", 50)], Vec::new()), []);
    assert_eq!(findings(Vec::new(), here()), []);
}

#[test]
fn a_classifier_and_an_xdp_program_on_one_device_are_told_apart() {
    let both = || vec![filter("eth0", true), xdp("xdpgeneric")];
    let by_filter = findings(vec![dropped_in("TC_INGRESS", "__netif_receive_skb_core", 5)], both());
    assert!(by_filter[0].evidence[0].to_string().contains("ingress bpf"), "{by_filter:?}");
    assert_eq!(by_filter[0].evidence.len(), 1);
    let by_xdp = findings(vec![dropped_in("XDP", "do_xdp_generic", 5)], both());
    assert!(by_xdp[0].evidence[0].to_string().contains("xdpgeneric"), "{by_xdp:?}");
}

fn cilium(name: &str, is_ingress: bool, preference: u16) -> ForeignProgram {
    let name = Some(name.to_owned());
    ForeignProgram { name, preference: Some(preference), ..filter("eth0", is_ingress) }
}

#[test]
fn one_program_of_cilium_twice_on_one_hook_is_told() {
    // As a filter, whose name is whole, and by tcx, whose name the kernel cuts.
    let tcx = ForeignProgram {
        kind: "tcx".to_owned(),
        preference: None,
        id: Some(7),
        ..cilium("cil_from_overla", true, 0)
    };
    let found = findings(Vec::new(), vec![cilium("cil_from_overlay-cilium_vxlan", true, 1), tcx]);
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.code, Code::CiliumProgramTwice);
    assert_eq!(finding.evidence.len(), 2);
    assert!(matches!(&finding.subject, Subject::Thing { name, .. }
        if name == "eth0 ingress cil_from_overla"));
}

#[test]
fn programs_of_cilium_on_two_sides_and_those_of_others_are_none_twice() {
    let two_sides =
        vec![cilium("cil_from_netdev-eth0", true, 1), cilium("cil_to_netdev", false, 1)];
    assert_eq!(findings(Vec::new(), two_sides), []);
    let same_name = vec![cilium("cil_from_netdev", true, 1), cilium("cil_from_netdev", false, 1)];
    assert_eq!(findings(Vec::new(), same_name), []);
    let others = vec![cilium("probe", true, 1), cilium("probe", true, 2)];
    assert_eq!(findings(Vec::new(), others), []);
}

fn seen<T>(value: T) -> Fact<Arc<T>> {
    Fact::Seen { value: Arc::new(value), at: Mono(1) }
}

/// What is said of these drops on such a host, which a moment ago was as `before`.
fn on_host(before: Host, now: Host, drops: Vec<PacketDrop>) -> Vec<Finding> {
    let nic = Nic {
        device: "eth0".to_owned(),
        driver: Some("vmxnet3".to_owned()),
        version: Some("1.7.0.0-k".to_owned()),
        offloads: Some(vec!["tx-udp_tnl-segmentation".to_owned()]),
        ..Nic::default()
    };
    let before = Snapshot { host: seen(before), ..Snapshot::default() };
    let counts = KernelCounts { drops, nics: vec![nic], ..KernelCounts::default() };
    let snapshot = Snapshot { host: seen(now), kernel: seen(counts), ..Snapshot::default() };
    let diagnosis = replay(Some(&before), &snapshot, &Policy::default());
    diagnosis.findings.into_iter().map(|active| active.finding).collect()
}

#[test]
fn wrong_checksums_of_peers_are_told_with_the_driver() {
    let mut now = Host::default();
    now.counters.udp_in_csum_errors = 9;
    let drops = vec![dropped_in("UDP_CSUM", "udp_queue_rcv_one_skb", 9)];
    let found = on_host(Host::default(), now, drops);
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.code, Code::ChecksumErrors);
    assert_eq!(finding.subject, Subject::Device { name: "eth0".to_owned() });
    assert_eq!(finding.hop.map(|hop| hop.from), Some(Hop::ReachedNic));
    let said: Vec<String> = finding.evidence.iter().map(ToString::to_string).collect();
    assert_eq!(said[1], "UdpInCsumErrors grew by 9 in the last seconds");
    assert_eq!(said[2], "eth0: driver vmxnet3 1.7.0.0-k, on are tx-udp_tnl-segmentation");
}

#[test]
fn wrong_checksums_of_strangers_or_now_and_then_are_nothing() {
    let mut now = Host::default();
    now.counters.udp_in_csum_errors = 900;
    assert_eq!(on_host(Host::default(), now.clone(), Vec::new()), []);
    let few = vec![dropped_in("UDP_CSUM", "udp_queue_rcv_one_skb", 2)];
    assert_eq!(on_host(Host::default(), now.clone(), few), []);
    let mut stranger = dropped_in("UDP_CSUM", "udp_queue_rcv_one_skb", 50);
    stranger.peer = None;
    assert_eq!(on_host(Host::default(), now, vec![stranger]), []);
}

fn neighbours(entries: u32, refused: u64) -> Host {
    let table = NeighbourTable { v6: false, entries, refused, limit: Some(1024) };
    Host { neighbour_tables: vec![table], ..Host::default() }
}

#[test]
fn a_neighbour_table_that_refuses_is_told_with_its_numbers() {
    let mut drop = dropped("NEIGH_CREATEFAIL", "eth0", 8, false);
    drop.site.function = Some("ip_finish_output2".to_owned());
    let found = on_host(neighbours(1024, 7), neighbours(1024, 17), vec![drop]);
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.code, Code::NeighbourTableOverflow);
    assert_eq!(finding.direction, Some(Direction::Outbound));
    assert_eq!(
        finding.evidence[0].to_string(),
        "the IPv4 neighbour table has 1024 entries of at most 1024 (gc_thresh3) and refused 10 in \
         the last seconds"
    );
    let (_, thresholds) = &finding.evidence[0].placeholders()[0];
    assert!(thresholds.contains("net.ipv4.neigh.default.gc_thresh3=4096"), "{thresholds}");
    assert!(finding.evidence[1].to_string().contains("NEIGH_CREATEFAIL"));
}

#[test]
fn a_neighbour_that_is_missed_for_a_pod_is_missed_on_the_way_in() {
    let found = |drops| on_host(neighbours(1024, 7), neighbours(1024, 17), drops);
    let to_pod = || dropped_in("NEIGH_CREATEFAIL", "ip_finish_output2", 8);
    let inbound = found(vec![to_pod()]);
    assert_eq!(inbound[0].direction, Some(Direction::Inbound));
    assert_eq!(inbound[0].hop.map(|hop| hop.from), Some(Hop::Decapsulated));
    let both = found(vec![to_pod(), dropped("NEIGH_CREATEFAIL", "eth0", 8, false)]);
    assert_eq!((both[0].direction, both[0].hop), (Some(Direction::Both), None));
}

#[test]
fn a_neighbour_table_that_is_large_or_once_refused_is_nothing() {
    assert_eq!(on_host(neighbours(1000, 7), neighbours(1023, 7), Vec::new()), []);
    assert_eq!(on_host(neighbours(90, 700), neighbours(90, 702), Vec::new()), []);
    // Counted anew, as after a restart of the machine.
    assert_eq!(on_host(neighbours(90, 700), neighbours(90, 7), Vec::new()), []);
    assert_eq!(on_host(Host::default(), neighbours(90, 700), Vec::new()), []);
}

#[test]
fn a_backlog_that_drops_packets_of_peers_is_told() {
    let now = Host { softnet_dropped: 60, softnet_squeezed: 5, ..Host::default() };
    let before = Host { softnet_dropped: 10, ..Host::default() };
    let drops = vec![dropped_in("CPU_BACKLOG", "enqueue_to_backlog", 20)];
    let found = on_host(before, now, drops);
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.code, Code::SoftirqBacklog);
    assert_eq!(finding.hop.map(|hop| hop.from), Some(Hop::ReachedNic));
    let said = finding.evidence[1].to_string();
    assert!(said.contains("dropped 50 packets") && said.contains("5 times"), "{said}");
}

#[test]
fn a_backlog_that_drops_others_packets_alone_is_nothing() {
    let now = || Host { softnet_dropped: 6_000, softnet_squeezed: 500, ..Host::default() };
    assert_eq!(on_host(Host::default(), now(), Vec::new()), []);
    let mut stranger = dropped_in("CPU_BACKLOG", "enqueue_to_backlog", 20);
    stranger.peer = None;
    assert_eq!(on_host(Host::default(), now(), vec![stranger]), []);
}

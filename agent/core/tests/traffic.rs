//! Rules on programs and queues of devices.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use overlaywatch_core::catalog::Code;
use overlaywatch_core::diagnose::replay;
use overlaywatch_core::fact::Fact;
use overlaywatch_core::finding::{Direction, Finding};
use overlaywatch_core::kernel::{DropForm, DropSite, ForeignProgram, KernelCounts, PacketDrop};
use overlaywatch_core::ladder::Hop;
use overlaywatch_core::model::{Encapsulation, PeerId};
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

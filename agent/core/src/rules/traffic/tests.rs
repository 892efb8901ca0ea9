//! Rules on queues that let nothing through, and on programs that drop without a
//! trace.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::delta::Delta;
use crate::fact::Fact;
use crate::model::{
    Encapsulation, IfIndex, Link, LinkCounters, LinkKind, Origin, Peer, PeerId, PeerTunnel, Tunnel,
    Vxlan, tunnels,
};
use crate::pairs::{PairView, StreamView};
use crate::snapshot::Snapshot;
use crate::time::{Mono, Now};

const VXLAN: Encapsulation = Encapsulation::Vxlan(8472);
const AT: Mono = Mono(60 * crate::time::SECOND);

fn fact<T>(value: T) -> Fact<Arc<T>> {
    Fact::Seen { value: Arc::new(value), at: AT }
}

fn peer() -> PeerId {
    PeerId([10, 0, 0, 12].into())
}

fn flannel() -> Vec<Tunnel> {
    let link = Link {
        index: IfIndex(3),
        name: "flannel.1".to_owned(),
        kind: LinkKind::Vxlan(Vxlan { vni: 1, port: 8472, ..Vxlan::default() }),
        mac: None,
        mtu: 1450,
        admin_up: true,
        carrier: true,
        master: None,
        counters: LinkCounters::default(),
    };
    tunnels(&BTreeMap::from([(link.index, link)]), &[])
}

/// A node whose tunnel's queue dropped so many probes to its one peer, which last
/// answered so many seconds ago.
fn queueing(packets: u64, answered_seconds_ago: u64) -> Snapshot {
    let drop = PacketDrop {
        site: DropSite {
            reason: Some("QDISC_DROP".to_owned()),
            function: None,
            device: Some("flannel.1".to_owned()),
        },
        peer: Some(peer()),
        form: DropForm::Inner,
        outbound: true,
        probe: Some((Stream::Small(VXLAN), false)),
        ethertype: 0x0800,
        ip_protocol: 17,
        total: packets,
        lately: packets,
    };
    let tunnel = PeerTunnel {
        index: IfIndex(3),
        device: "flannel.1".to_owned(),
        encapsulation: VXLAN,
        overlay: None,
        mac: None,
    };
    let known = Peer {
        id: peer(),
        name: None,
        origin: Origin::Kernel,
        tunnels: vec![tunnel],
        pod_networks: Vec::new(),
        other_addresses: Vec::new(),
        departed_since: None,
    };
    let last = Mono(AT.0 - answered_seconds_ago * crate::time::SECOND);
    let view = StreamView { last_answer: Some(last), ..StreamView::default() };
    let streams = BTreeMap::from([(Stream::Small(VXLAN), Box::new(view))]);
    let pair = PairView { streams, ..PairView::default() };
    Snapshot {
        now: Now { mono: AT, ..Now::default() },
        tunnels: fact(flannel()),
        kernel: fact(KernelCounts { drops: vec![drop], ..KernelCounts::default() }),
        peers: Arc::new(vec![known]),
        pairs: BTreeMap::from([(peer(), Arc::new(pair))]),
        ..Snapshot::default()
    }
}

fn codes(now: &Snapshot) -> Vec<Code> {
    let context = Context { delta: Delta { before: None, now }, now, digest: None };
    let mut verdicts = Verdicts::default();
    judge(&context, &mut verdicts);
    verdicts.findings.iter().map(|finding| finding.code).collect()
}

#[test]
fn a_queue_that_lets_nothing_through_to_a_peer_is_critical() {
    assert_eq!(codes(&queueing(20, 8)), [Code::QdiscDrops, Code::LocalOutputDrop]);
}

#[test]
fn a_queue_that_drops_now_and_then_is_a_warning() {
    assert_eq!(codes(&queueing(20, 1)), [Code::QdiscDrops], "the peer answers in between");
    assert_eq!(codes(&queueing(2, 8)), [], "two are an accident");
}

/// What a loss is told with on a node that has this program.
fn told(kind: &str, device: &str, direction: Direction, hop: Segment) -> Vec<String> {
    let program = ForeignProgram {
        device: device.to_owned(),
        is_ingress: true,
        kind: kind.to_owned(),
        id: Some(42),
        ..ForeignProgram::default()
    };
    let now = Snapshot {
        tunnels: fact(flannel()),
        kernel: fact(KernelCounts { foreign: vec![program], ..KernelCounts::default() }),
        ..Snapshot::default()
    };
    let context = Context { delta: Delta { before: None, now: &now }, now: &now, digest: None };
    let mut verdicts = Verdicts::default();
    verdicts.add(Finding {
        code: Code::EncapsulationLost,
        subject: Subject::Pair { peer: peer(), encapsulation: Some(VXLAN) },
        direction: Some(direction),
        hop: Some(hop),
        evidence: Vec::new(),
        confidence: Confidence::High,
    });
    testify(&context, &mut verdicts);
    verdicts.findings[0].evidence.iter().map(ToString::to_string).collect()
}

const WIRE: Segment = Segment { from: Hop::LeftNic, to: Hop::ReachedNic };

#[test]
fn a_program_that_drops_without_a_trace_is_named_beside_the_loss() {
    let said = told("xdp", "eth0", Direction::Inbound, WIRE);
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("eth0 ingress xdp id 42 takes what comes in"), "{said:?}");
}

#[test]
fn a_program_that_cannot_be_it_is_not_named() {
    // Generic ones leave a trace; what goes out, or vanishes elsewhere, and what
    // comes out of the tunnel does not pass the program.
    let later = Segment { from: Hop::ReachedNic, to: Hop::Decapsulated };
    assert!(told("xdpgeneric", "eth0", Direction::Inbound, WIRE).is_empty());
    assert!(told("xdp", "eth0", Direction::Outbound, WIRE).is_empty());
    assert!(told("xdp", "eth0", Direction::Inbound, later).is_empty());
    assert!(told("xdp", "flannel.1", Direction::Inbound, WIRE).is_empty());
    assert!(told("tcx", "eth0", Direction::Inbound, WIRE).is_empty());
}

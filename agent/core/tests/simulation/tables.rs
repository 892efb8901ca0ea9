//! Verdicts that rest on the kernel's own tables and on what peers say of
//! themselves: each raised with its place while traffic suffers, what probes
//! lose put under it, and cleared when the table is right again.

use std::collections::BTreeSet;

use crate::world::{
    Packet, VXLAN, Way, World, advert, fdb_entry, links, neighbour, pod_route, underlay,
};
use overlaywatch_core::assembly::{Change, SourceId, SourceReport, Update};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::diagnose::{Active, Diagnosis, PeerState, Status};
use overlaywatch_core::fact::Gap;
use overlaywatch_core::finding::{Direction, Subject};
use overlaywatch_core::ladder::Hop;
use overlaywatch_core::model::{Encapsulation, Host, PeerId, RouteKind};
use overlaywatch_core::policy::Policy;

const VICTIM: u32 = 1;

fn victim() -> PeerId {
    PeerId(underlay(VICTIM))
}

fn healthy() -> World {
    let mut world = World::new(4);
    assert_eq!(world.run(12, &mut |_| false).status, Status::Pass);
    world
}

fn causes(diagnosis: &Diagnosis) -> Vec<&Active> {
    diagnosis.findings.iter().filter(|active| active.parent.is_none()).collect()
}

/// Runs a fault on the way to the victim: `breaking` spoils a table, the
/// overlay loses what it should, and only `code` may be the cause; then it heals.
fn check(
    code: Code,
    breaking: &[Update],
    healing: &[Update],
    mut lost: impl FnMut(Packet) -> bool,
) {
    let mut world = healthy();
    for update in breaking {
        world.tell(update.clone());
    }
    let mut raised = None;
    for tick in 0..24 {
        let (_, diagnosis) = world.tick(&mut lost);
        for cause in causes(&diagnosis) {
            assert_eq!(cause.finding.code, code, "tick {tick}");
            raised.get_or_insert(tick);
        }
    }
    assert!(raised.is_some_and(|tick| tick <= 8), "{code:?} raised at tick {raised:?}");
    for update in healing {
        world.tell(update.clone());
    }
    let diagnosis = world.run(45, &mut |_| false);
    assert_eq!(diagnosis.status, Status::Pass, "{:?}", diagnosis.findings);
}

fn overlay_to_victim(packet: Packet) -> bool {
    packet.peer == victim()
        && packet.stream.encapsulation().is_some()
        && matches!(packet.way, Way::Out)
}

fn overlay_of_all(packet: Packet) -> bool {
    packet.stream.encapsulation().is_some()
}

#[test]
fn forwarding_entries() {
    let right = fdb_entry(VICTIM, VICTIM);
    let wrong = fdb_entry(VICTIM, 2);
    let remove = Update::Fdb(Change::Remove(right.key));
    let add = Update::Fdb(Change::Upsert(right.clone()));
    let (one, back) = (std::slice::from_ref(&remove), std::slice::from_ref(&add));
    check(Code::FdbMissing, one, back, overlay_to_victim);
    let misdirect = Update::Fdb(Change::Upsert(wrong.clone()));
    let undo = Update::Fdb(Change::Remove(wrong.key));
    check(Code::FdbMisdirected, &[remove, misdirect], &[undo, add], overlay_to_victim);
}

#[test]
fn neighbours() {
    let entry = neighbour(VICTIM);
    let remove = Update::Neighbours(Change::Remove((entry.index, entry.address)));
    let add = Update::Neighbours(Change::Upsert(entry));
    check(Code::VtepNeighbourMissing, &[remove], &[add], overlay_to_victim);
}

#[test]
fn routes() {
    let route = pod_route(VICTIM);
    let remove = Update::Routes(Change::Remove(route.key));
    let add = Update::Routes(Change::Upsert(route.clone()));
    check(Code::RouteMissing, &[remove], std::slice::from_ref(&add), overlay_to_victim);

    let mut trap = route.clone();
    trap.kind = RouteKind::Blackhole;
    trap.next_hop.device = None;
    trap.next_hop.gateway = None;
    let shadow = Update::Routes(Change::Upsert(trap));
    check(Code::RouteBlackhole, &[shadow], std::slice::from_ref(&add), overlay_to_victim);

    let mut leftover = route.clone();
    leftover.key.destination = "10.42.1.0/25".parse().unwrap();
    leftover.next_hop.device = Some(links()[0].index);
    leftover.next_hop.gateway = None;
    let key = leftover.key;
    let leftover = Update::Routes(Change::Upsert(leftover));
    let undo = Update::Routes(Change::Remove(key));
    check(Code::RouteBypassesTunnel, &[leftover], &[undo], overlay_to_victim);
}

#[test]
fn own_devices() {
    let [nic, tunnel] = links();
    let right = Update::Links(Change::Replace(links().into()));
    let mut down = tunnel.clone();
    down.admin_up = false;
    let with = |link| Update::Links(Change::Upsert(link));
    check(Code::TunnelDown, &[with(down)], std::slice::from_ref(&right), overlay_of_all);
    let gone = Update::Links(Change::Remove(tunnel.index));
    check(Code::TunnelMissing, &[gone], std::slice::from_ref(&right), overlay_of_all);

    let mut foreign = tunnel.clone();
    if let overlaywatch_core::model::LinkKind::Vxlan(vxlan) = &mut foreign.kind {
        vxlan.local = Some("10.9.9.9".parse().unwrap());
    }
    check(
        Code::VtepLocalAddressWrong,
        &[with(foreign)],
        std::slice::from_ref(&right),
        overlay_of_all,
    );

    let mut unplugged = nic.clone();
    unplugged.carrier = false;
    check(Code::UnderlayLinkDown, &[with(unplugged)], std::slice::from_ref(&right), |_| true);

    let mut narrow = nic;
    narrow.mtu = 1450;
    let is_full =
        |packet: Packet| matches!(packet.stream, overlaywatch_core::probing::Stream::Full(_));
    check(Code::TunnelMtuTooLarge, &[with(narrow)], &[right], is_full);
}

#[test]
fn the_peers_end() {
    let cases: [(Code, fn() -> overlaywatch_core::probing::TunnelAdvert); 3] = [
        (Code::RemoteTunnelDown, || overlaywatch_core::probing::TunnelAdvert {
            up: false,
            ..advert(VICTIM)
        }),
        (Code::VniMismatch, || overlaywatch_core::probing::TunnelAdvert {
            vni: Some(2),
            ..advert(VICTIM)
        }),
        (Code::VxlanPortMismatch, || overlaywatch_core::probing::TunnelAdvert {
            encapsulation: Encapsulation::Vxlan(4789),
            ..advert(VICTIM)
        }),
    ];
    for (code, wrong) in cases {
        let mut world = healthy();
        world.adverts.insert(victim(), wrong());
        let mut lost = |packet: Packet| packet.peer == victim() && overlay_of_all(packet);
        let diagnosis = world.run(8, &mut lost);
        let causes = causes(&diagnosis);
        assert_eq!(causes.len(), 1, "{code:?}: {causes:?}");
        let finding = &causes[0].finding;
        assert_eq!(finding.code, code);
        assert_eq!(finding.direction, Some(Direction::Both));
        assert_eq!(finding.subject, Subject::Pair { peer: victim(), encapsulation: Some(VXLAN) });
        let hop = finding.hop.unwrap();
        assert_eq!((hop.from, hop.to), (Hop::ReachedNic, Hop::Decapsulated));
        world.adverts.clear();
        assert_eq!(world.run(45, &mut |_| false).status, Status::Pass);
    }
}

#[test]
fn a_vtep_mac_that_moved() {
    let mut world = healthy();
    let moved = advert(9).mac;
    world.adverts.insert(
        victim(),
        overlaywatch_core::probing::TunnelAdvert { mac: moved, ..advert(VICTIM) },
    );
    let diagnosis = world.run(8, &mut |packet| overlay_to_victim(packet));
    let causes = causes(&diagnosis);
    assert_eq!(causes.len(), 1);
    assert_eq!(causes[0].finding.code, Code::StaleVtepMac);
}

#[test]
fn forwarding_off() {
    let off = Host { ipv4_forwarding: Some(false), ..Host::default() };
    let on = Host { ipv4_forwarding: Some(true), ..Host::default() };
    check(
        Code::ForwardingOff,
        &[Update::Host(Box::new(off))],
        &[Update::Host(Box::new(on))],
        |_| false,
    );
}

/// The kernel forgets everything of a node.
fn forget(world: &mut World, node: u32) {
    let entry = neighbour(node);
    world.tell(Update::Routes(Change::Remove(pod_route(node).key)));
    world.tell(Update::Fdb(Change::Remove(fdb_entry(node, node).key)));
    world.tell(Update::Neighbours(Change::Remove((entry.index, entry.address))));
}

#[test]
fn a_peer_that_only_the_kernel_knew_departs_without_an_alarm() {
    for nodes in [2, 4] {
        let mut world = World::new(nodes);
        world.tell(Update::PeersFile(None));
        assert_eq!(world.run(12, &mut |_| false).status, Status::Pass);
        forget(&mut world, VICTIM);
        // It still answers for a while, as a drained node does.
        let mut codes = BTreeSet::new();
        for tick in 0..120 {
            let (_, diagnosis) =
                world.tick(&mut |packet: Packet| packet.peer == victim() && tick > 10);
            codes.extend(diagnosis.findings.iter().map(|active| active.finding.code));
            assert_ne!(diagnosis.status, Status::Fail, "{:?}", diagnosis.findings);
        }
        assert_eq!(codes, BTreeSet::from([Code::PeerDeparted]));
    }
}

#[test]
fn a_node_that_lost_all_its_entries_is_not_alone_in_the_world() {
    let mut world = World::new(4);
    world.tell(Update::PeersFile(None));
    assert_eq!(world.run(12, &mut |_| false).status, Status::Pass);
    for node in 1..4 {
        forget(&mut world, node);
    }
    let mut lost =
        |packet: Packet| packet.stream.encapsulation().is_some() && matches!(packet.way, Way::Out);
    world.run(14, &mut lost);
    for _ in 0..60 {
        let (_, diagnosis) = world.tick(&mut lost);
        let codes: Vec<Code> = causes(&diagnosis).iter().map(|a| a.finding.code).collect();
        assert_eq!(codes, [Code::RouteMissing; 3]);
    }
}

#[test]
fn what_is_silenced_is_not_said() {
    let mut world = World::new(4);
    let silenced = BTreeSet::from([Code::ForwardingOff]);
    world.set(Policy { silenced, ..Policy::default() });
    world.tell(Update::Host(Box::new(Host { ipv4_forwarding: Some(false), ..Host::default() })));
    assert_eq!(world.run(12, &mut |_| false).status, Status::Pass);
}

#[test]
fn what_cannot_be_seen_is_neither_gone_nor_healthy() {
    let mut world = healthy();
    let entry = fdb_entry(VICTIM, VICTIM);
    world.tell(Update::Fdb(Change::Remove(entry.key)));
    let diagnosis = world.run(5, &mut |packet| overlay_to_victim(packet));
    assert_eq!(causes(&diagnosis)[0].finding.code, Code::FdbMissing);
    // The dump fails from now on: the finding stays.
    world.tell(Update::Source(SourceReport {
        source: SourceId::Fdb,
        gap: Some(Gap::Failed),
        detail: "dump refused".to_owned(),
        duration_ns: 1,
    }));
    let diagnosis = world.run(60, &mut |packet| overlay_to_victim(packet));
    assert_eq!(causes(&diagnosis)[0].finding.code, Code::FdbMissing);
    assert_eq!(diagnosis.gaps.len(), 1);

    // Nor is a node healthy whose tables nobody could read.
    let mut world = healthy();
    world.tell(Update::Source(SourceReport {
        source: SourceId::Routes,
        gap: Some(Gap::Denied),
        detail: "not allowed".to_owned(),
        duration_ns: 1,
    }));
    let diagnosis = world.run(3, &mut |_| false);
    assert_eq!(diagnosis.status, Status::Unknown);
    assert!(diagnosis.peers.iter().all(|peer| peer.state == PeerState::Healthy));
}

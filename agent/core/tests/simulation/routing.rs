//! Verdicts on policy routing: the kernel's own answers, routes that went, and
//! what the stack does to packets. Each with a near miss.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use crate::world::{Packet, Way, World, links, pod_route, underlay};
use overlaywatch_core::assembly::{Change, Update};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::diagnose::{Diagnosis, Status};
use overlaywatch_core::finding::{Subject, Thing};
use overlaywatch_core::kernel::{DropForm, DropSite, KernelCounts, PacketDrop};
use overlaywatch_core::model::{
    DeviceSettings, FoundRoute, Host, IfIndex, LinkKind, Machine, Module, PeerAnswers, PeerId,
    PodSide, PolicyRule, RouteAnswer, RouteKind, RouteQuestion, table,
};

const VICTIM: u32 = 1;
const NIC: IfIndex = IfIndex(2);
const TUNNEL: IfIndex = IfIndex(3);

fn victim() -> PeerId {
    PeerId(underlay(VICTIM))
}

fn healthy() -> World {
    let mut world = World::new(4);
    assert_eq!(world.run(12, &mut |_| false).status, Status::Pass);
    world
}

fn codes(diagnosis: &Diagnosis) -> Vec<Code> {
    let causes = diagnosis.findings.iter().filter(|active| active.parent.is_none());
    causes.map(|active| active.finding.code).collect()
}

fn found(table: u32, device: IfIndex) -> FoundRoute {
    FoundRoute {
        table,
        kind: RouteKind::Unicast,
        device: Some(device),
        gateway: Some([10, 0, 255, 254].into()),
        source: None,
    }
}

fn to() -> RouteQuestion {
    RouteQuestion { to: [10, 42, 1, 2].into(), pod: None }
}

fn overlay() -> RouteQuestion {
    RouteQuestion { to: [10, 42, 1, 0].into(), pod: None }
}

fn from_pod() -> RouteQuestion {
    let pod = PodSide { device: IfIndex(9), source: [10, 42, 0, 7].into() };
    RouteQuestion { pod: Some(pod), ..to() }
}

/// The kernel gives this answer as often as it is asked; what is said in the end.
fn answered(
    world: &mut World,
    question: RouteQuestion,
    answer: RouteAnswer,
    seconds: u64,
) -> Diagnosis {
    let mut last = None;
    for _ in 0..seconds * 2 {
        let answers = PeerAnswers { at: world.now(), answers: vec![(question, answer)] };
        world.tell(Update::Lookups(vec![(victim(), answers)]));
        last = Some(world.tick(&mut |_| false).1);
    }
    last.unwrap()
}

fn rule(priority: u32, table: u32) -> PolicyRule {
    PolicyRule {
        priority,
        table: Some(table),
        from: None,
        to: None,
        mark: None,
        v6: false,
        selective: true,
    }
}

/// The kernel's own rules and one more, whose condition the model does not know.
fn with_rule(table: u32) -> World {
    let mut world = healthy();
    let own = |priority, table| PolicyRule { selective: false, ..rule(priority, table) };
    let rules = vec![own(0, table::LOCAL), rule(100, table), own(32_766, table::MAIN)];
    world.tell(Update::Rules(Change::Replace(rules)));
    world.tick(&mut |_| false);
    world
}

#[test]
fn a_policy_rule_that_diverts_is_named() {
    let mut world = with_rule(100);
    let diagnosis = answered(&mut world, to(), RouteAnswer::Found(found(100, NIC)), 5);
    assert_eq!(codes(&diagnosis), [Code::PolicyRuleDiverts]);
    let text: Vec<String> =
        diagnosis.findings[0].finding.evidence.iter().map(ToString::to_string).collect();
    assert!(text[1].contains("policy rule 100:") && text[1].contains("lookup 100"), "{text:?}");
    // The same rule, and a table that leads into the tunnel all the same.
    let mut world = with_rule(100);
    let diagnosis = answered(&mut world, to(), RouteAnswer::Found(found(100, TUNNEL)), 5);
    assert_eq!(codes(&diagnosis), []);
}

#[test]
fn old_answers_are_not_used() {
    let mut world = with_rule(100);
    answered(&mut world, to(), RouteAnswer::Found(found(100, NIC)), 5);
    // The tables change, and nobody answers any more.
    world.tell(Update::Rules(Change::Remove(rule(100, 100))));
    assert_eq!(codes(&world.run(10, &mut |_| false)), []);
}

#[test]
fn what_a_forwarded_packet_is_refused_needs_a_route_that_refuses() {
    let refused = RouteAnswer::Refused { errno: 22 };
    // EINVAL may as well mean that the source is not believed.
    let diagnosis = answered(&mut with_rule(100), from_pod(), refused, 5);
    assert_eq!(codes(&diagnosis), []);
    let mut world = with_rule(100);
    let mut trap = pod_route(VICTIM);
    trap.key.table = 100;
    trap.kind = RouteKind::Blackhole;
    trap.next_hop.device = None;
    world.tell(Update::Routes(Change::Upsert(trap)));
    world.tick(&mut |_| false);
    let diagnosis = answered(&mut world, from_pod(), refused, 5);
    assert_eq!(codes(&diagnosis), [Code::RouteBlackhole]);
    let diagnosis = answered(&mut world, to(), refused, 5);
    assert_eq!(codes(&diagnosis), [Code::RouteBlackhole]);
    // What `unreachable` and `prohibit` answer is in no doubt for the host's own packets.
    for errno in [13, 113] {
        let refused = RouteAnswer::Refused { errno };
        let diagnosis = answered(&mut with_rule(100), to(), refused, 5);
        assert_eq!(codes(&diagnosis), [Code::RouteBlackhole]);
    }
    assert_eq!(codes(&answered(&mut with_rule(100), to(), refused, 5)), []);
}

/// The device of another plugin, and the answer that leads there.
fn beside(name: &str) -> (World, RouteAnswer) {
    let mut world = healthy();
    let [_, mut other] = links();
    other.index = IfIndex(7);
    other.name = name.to_owned();
    if let LinkKind::Vxlan(vxlan) = &mut other.kind {
        (vxlan.vni, vxlan.port) = (4096, 4789);
    }
    world.tell(Update::Links(Change::Upsert(other)));
    let mut leftover = pod_route(VICTIM);
    leftover.key.destination = "10.42.1.0/25".parse().unwrap();
    leftover.next_hop.device = Some(IfIndex(7));
    leftover.next_hop.gateway = None;
    world.tell(Update::Routes(Change::Upsert(leftover)));
    world.tick(&mut |_| false);
    (world, RouteAnswer::Found(found(table::MAIN, IfIndex(7))))
}

#[test]
fn a_leftover_route_leads_into_anothers_tunnel() {
    let (mut world, answer) = beside("vxlan.calico");
    assert_eq!(codes(&answered(&mut world, overlay(), answer, 5)), [Code::LeftoverRoute]);
    // Nobody's tunnel is not a plugin's.
    let (mut world, answer) = beside("vpn0");
    assert_eq!(codes(&answered(&mut world, overlay(), answer, 5)), [Code::RouteBypassesTunnel]);
}

#[test]
fn an_address_that_is_lent_to_another_node_is_no_leak() {
    let mut world = healthy();
    let lent = FoundRoute { gateway: Some(underlay(2)), ..found(table::MAIN, NIC) };
    assert_eq!(codes(&answered(&mut world, to(), RouteAnswer::Found(lent), 5)), []);
    let nowhere = RouteAnswer::Refused { errno: 101 };
    assert_eq!(codes(&answered(&mut world, to(), nowhere, 5)), [Code::RouteMissing]);
}

#[test]
fn a_tunnel_without_an_address_lends_none() {
    let with_source = |source| {
        let found = FoundRoute { source: Some(source), ..found(table::MAIN, TUNNEL) };
        RouteAnswer::Found(found)
    };
    let mut world = healthy();
    let bare = with_source(underlay(0));
    assert_eq!(codes(&answered(&mut world, to(), bare, 5)), []);
    let address =
        overlaywatch_core::model::Address { index: TUNNEL, net: "10.42.0.0/32".parse().unwrap() };
    world.tell(Update::Addresses(Change::Remove(address)));
    world.tick(&mut |_| false);
    let said = codes(&answered(&mut world, to(), bare, 5));
    assert_eq!(said, [Code::HostSourceWithoutTunnelAddress]);
}

#[test]
fn routes_that_went_together_are_one_cause() {
    let remove = |world: &mut World, node| {
        world.tell(Update::Routes(Change::Remove(pod_route(node).key)));
    };
    let mut lost =
        |packet: Packet| packet.stream.encapsulation().is_some() && matches!(packet.way, Way::Out);
    let mut world = healthy();
    (1..4).for_each(|node| remove(&mut world, node));
    let diagnosis = world.run(8, &mut lost);
    assert_eq!(codes(&diagnosis), [Code::RoutesVanished]);
    assert!(diagnosis.findings.len() > 3, "the routes that are missing are below it");
    (1..4).for_each(|node| world.tell(Update::Routes(Change::Upsert(pod_route(node)))));
    assert_eq!(world.run(45, &mut |_| false).status, Status::Pass);
    // One after the other they are a cause each.
    for node in 1..4 {
        remove(&mut world, node);
        world.run(3, &mut lost);
    }
    assert_eq!(codes(&world.run(4, &mut lost)), [Code::RouteMissing; 3]);
}

fn drops(reason: &str, form: DropForm, ip_protocol: u8, lately: u64) -> Update {
    let site = DropSite {
        reason: Some(reason.to_owned()),
        function: Some("ip_rcv_finish_core".to_owned()),
        device: Some("flannel.1".to_owned()),
    };
    let drop = PacketDrop {
        site,
        peer: Some(victim()),
        form,
        outbound: false,
        probe: None,
        ethertype: 0x0800,
        ip_protocol,
        total: lately,
        lately,
    };
    Update::Kernel(Box::new(KernelCounts { drops: vec![drop], ..KernelCounts::default() }))
}

fn host(rp_filter: u8) -> Update {
    let settings = DeviceSettings { forwarding: Some(true), rp_filter: Some(rp_filter) };
    Update::Host(Box::new(Host {
        ipv4_forwarding: Some(true),
        rp_filter_all: Some(0),
        devices: [("flannel.1".to_owned(), settings)].into(),
        modules: Some(vec!["vxlan".to_owned()]),
        ..Host::default()
    }))
}

#[test]
fn a_strict_filter_is_named_where_it_drops() {
    for (rp_filter, lately, expected) in
        [(1, 5, &[Code::RpFilterStrict][..]), (2, 5, &[]), (1, 2, &[])]
    {
        let mut world = healthy();
        world.tell(host(rp_filter));
        world.tell(drops("IP_RPFILTER", DropForm::Inner, 6, lately));
        assert_eq!(codes(&world.run(4, &mut |_| false)), expected, "{rp_filter} {lately}");
    }
    let mut world = healthy();
    world.tell(host(1));
    world.tell(drops("NETFILTER_DROP", DropForm::Inner, 6, 5));
    assert_eq!(codes(&world.run(4, &mut |_| false)), []);
}

#[test]
fn a_module_is_missed_when_its_packets_come() {
    let mut world = healthy();
    world.tell(host(0));
    let modules = Some([("ipip".to_owned(), Module::Loadable)].into());
    world.tell(Update::Machine(Box::new(Machine { modules, ..Machine::default() })));
    world.tell(drops("IP_NOPROTO", DropForm::Outer, 4, 5));
    let diagnosis = world.run(4, &mut |_| false);
    assert_eq!(codes(&diagnosis), [Code::ModuleMissing]);
    let finding = &diagnosis.findings[0].finding;
    let subject = Subject::Thing { what: Thing::Module, name: "ipip".to_owned() };
    assert_eq!(finding.subject, subject);
    assert!(finding.evidence[0].to_string().contains("can be loaded"));
    // Another protocol is nobody's encapsulation.
    let mut world = healthy();
    world.tell(host(0));
    world.tell(drops("IP_NOPROTO", DropForm::Outer, 41, 5));
    assert_eq!(codes(&world.run(4, &mut |_| false)), []);
}

#[test]
fn one_device_that_forwards_nothing_is_named() {
    let mut world = healthy();
    let settings = DeviceSettings { forwarding: Some(false), rp_filter: None };
    let mut host = Host { ipv4_forwarding: Some(true), ..Host::default() };
    host.devices.insert("eth9".to_owned(), settings);
    world.tell(Update::Host(Box::new(host.clone())));
    assert_eq!(codes(&world.run(4, &mut |_| false)), []);
    host.devices.insert("flannel.1".to_owned(), settings);
    world.tell(Update::Host(Box::new(host)));
    let diagnosis = world.run(4, &mut |_| false);
    let subject = &diagnosis.findings[0].finding.subject;
    assert_eq!(codes(&diagnosis), [Code::ForwardingOff]);
    assert_eq!(*subject, Subject::Device { name: "flannel.1".to_owned() });
}

#[test]
fn a_peer_in_the_same_subnet_is_proved_without_a_tunnel() {
    let mut world = healthy();
    // flannel's DirectRouting, Calico's CrossSubnet.
    let mut plain = pod_route(VICTIM);
    plain.next_hop.device = Some(NIC);
    plain.next_hop.gateway = Some(underlay(VICTIM));
    world.tell(Update::Routes(Change::Upsert(plain)));
    // Longer than any answer through the tunnel is relied on.
    let diagnosis = world.run(150, &mut |packet| {
        let is_tunnelled = packet.stream.encapsulation().is_some();
        packet.peer == victim() && is_tunnelled && matches!(packet.way, Way::Out)
    });
    assert_eq!((codes(&diagnosis), diagnosis.status), (vec![], Status::Pass));
    // Through anybody else it is no such way.
    let mut astray = pod_route(VICTIM);
    astray.next_hop.device = Some(NIC);
    astray.next_hop.gateway = Some(underlay(2));
    world.tell(Update::Routes(Change::Upsert(astray)));
    let diagnosis = world.run(12, &mut |_| false);
    assert_eq!(codes(&diagnosis), [Code::RouteBypassesTunnel]);
}

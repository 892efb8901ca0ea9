//! What is counted where.

use std::net::IpAddr;

use overlaywatch_core::kernel::Attach;
use overlaywatch_core::kernel::DropForm;
use overlaywatch_core::model::{Encapsulation, PeerId};
use overlaywatch_core::probing::Stream;
use socket2::{Domain, Protocol, Socket, Type};

use crate::bench::{
    Loader, Pins, SMALL, VXLAN, device, options, overlay, pair, plan, probe, requests, send, sink,
    underlay,
};

const EPOCH: u64 = 0x0102_0304_0506_0708;

#[test]
fn probes_are_counted_at_every_hop_and_told_from_live_traffic() {
    let pins = Pins::new();
    let nodes = pair();
    let [mut one, mut two] = [1, 2].map(|n| {
        let node = &nodes[usize::from(n) - 1];
        Loader::watching(node, options(&pins, Attach::Auto), plan(node, n))
    });

    // Somebody takes them, so that no ICMP error comes back.
    let _sinks = [sink(&nodes[0]), sink(&nodes[1])];
    requests(&nodes[0], 1, SMALL, EPOCH, 0..100);
    requests(&nodes[0], 1, Stream::Underlay, EPOCH, 0..10);
    // Replies of node 2 to a stream of node 1's.
    let replies = (0..7).map(|seq| probe(2, SMALL, EPOCH, seq)).collect();
    send(&nodes[1], overlay(2), overlay(1), replies);
    // What is no probe is live traffic.
    send(&nodes[0], overlay(1), overlay(2), vec![b"hello".to_vec(); 30]);

    let full = |window: Option<overlaywatch_core::ladder::Window>| {
        window.is_some_and(|w| w.count == 100 && w.highest == 99 && w.mask == u64::MAX)
    };
    let of = |window: Option<overlaywatch_core::ladder::Window>| window.map(|w| w.count);
    let left = one.climb("what left node 1", SMALL, EPOCH, |c| full(c.requests.left_nic));
    assert!(full(left.requests.encapsulated), "{left:?}");
    assert_eq!(of(left.requests.reached_nic), Some(0));
    assert_eq!(of(left.replies.reached_nic), Some(7));
    assert_eq!(of(left.replies.decapsulated), Some(7));
    let came = two.climb("what reached node 2", SMALL, EPOCH, |c| full(c.requests.decapsulated));
    assert!(full(came.requests.reached_nic), "{came:?}");
    assert_eq!(of(came.replies.encapsulated), Some(7));
    assert_eq!(of(came.replies.left_nic), Some(7));
    let bare = two.climb("underlay probes", Stream::Underlay, EPOCH, |c| {
        of(c.requests.reached_nic) == Some(10)
    });
    assert_eq!(of(bare.requests.decapsulated), None, "they pass no tunnel");

    for (loader, outbound) in [(&mut one, true), (&mut two, false)] {
        loader.wait("130 packets, 30 of them live", |counts| {
            let t = counts.traffic.iter().find(|t| t.outbound == outbound)?;
            (t.packets == 130 && t.encapsulation == VXLAN).then_some(())
        });
    }
}

#[test]
fn nobodys_probes_are_not_taken_in() {
    let pins = Pins::new();
    let nodes = pair();
    let mut strangers = plan(&nodes[1], 2);
    strangers.peers.clear();
    let mut two = Loader::watching(&nodes[1], options(&pins, Attach::Auto), strangers);
    requests(&nodes[0], 1, SMALL, EPOCH, 0..10);
    two.wait("the packets", |counts| counts.traffic.iter().any(|t| t.packets >= 10).then_some(()));
    let climb = two.reader.climb(EPOCH, SMALL).unwrap();
    assert_eq!(climb.requests.reached_nic.unwrap().count, 0);
}

#[test]
fn a_drop_is_counted_with_reason_function_device_and_stream() {
    let pins = Pins::new();
    let nodes = pair();
    let mut one = Loader::watching(&nodes[0], options(&pins, Attach::Auto), plan(&nodes[0], 1));
    nodes[0].sh("nft add table inet t
         nft 'add chain inet t out { type filter hook output priority 0; }'
         nft add rule inet t out oifname flannel.1 udp dport 9977 drop");
    requests(&nodes[0], 1, SMALL, EPOCH, 0..20);
    let drop =
        one.wait("the drop", |counts| counts.drops.iter().find(|drop| drop.total == 20).cloned());
    assert_eq!(drop.site.reason.as_deref(), Some("NETFILTER_DROP"));
    assert_eq!(drop.site.function.as_deref(), Some("nft_do_chain"));
    assert_eq!(drop.site.device.as_deref(), Some("flannel.1"));
    assert_eq!(drop.form, DropForm::Inner);
    assert_eq!(drop.peer, Some(PeerId(underlay(2))));
    assert!(drop.outbound);
    assert_eq!(drop.probe, Some((SMALL, false)));
    assert_eq!((drop.ethertype, drop.ip_protocol), (0x0800, 17));
    // The peer is told of its own requests and of replies to it, not of ours.
    assert_eq!(one.reader.drops(PeerId(underlay(2))), []);
}

#[test]
fn icmp_errors_about_outer_packets_are_counted_by_what_they_quote() {
    let pins = Pins::new();
    let nodes = pair();
    // Node 2 takes in neither: no VXLAN socket, and no protocol 4.
    nodes[1].sh("ip link del flannel.1");
    let mut one = Loader::watching(&nodes[0], options(&pins, Attach::Auto), plan(&nodes[0], 1));
    requests(&nodes[0], 1, SMALL, EPOCH, 0..1);
    ipip(&nodes[0], underlay(2), EPOCH);
    let found = one.wait("both errors", |counts| {
        let kinds = counts.icmp.iter().map(|e| (e.encapsulation, e.kind, e.code, e.peer, e.from));
        let mut kinds: Vec<_> = kinds.collect();
        kinds.sort_unstable();
        (kinds.len() == 2).then_some(kinds)
    });
    let peer = underlay(2);
    assert!(found.contains(&(VXLAN, 3, 3, peer, peer)), "{found:?}");
    assert!(found.contains(&(Encapsulation::Ipip, 3, 2, peer, peer)), "{found:?}");
    one.wait("traffic of both", |counts| {
        let sent = |of| counts.traffic.iter().any(|t| t.encapsulation == of && t.outbound);
        (sent(VXLAN) && sent(Encapsulation::Ipip)).then_some(())
    });
    let ipip = Stream::Small(Encapsulation::Ipip);
    one.climb("the probe in IPIP", ipip, EPOCH, |c| {
        c.requests.left_nic.is_some_and(|w| w.count == 1)
    });
}

/// Sends a probe in IPIP, by hand.
fn ipip(node: &crate::bench::Namespace, to: IpAddr, epoch: u64) {
    let message = probe(1, Stream::Small(Encapsulation::Ipip), epoch, 0);
    let inner = crate::encapsulations::udp_packet([10, 244, 1, 0], [10, 244, 2, 0], &message);
    let work = move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(4))).unwrap();
        socket.send_to(&inner, &std::net::SocketAddr::new(to, 0).into()).unwrap();
    };
    node.inside(work).join().unwrap();
}

#[test]
fn both_of_two_underlay_nics_are_watched() {
    let pins = Pins::new();
    let nodes = pair();
    nodes[0].sh("ip link add eth2 type veth peer name eth3");
    nodes[0].give("eth3", &nodes[1]);
    nodes[0].sh("ip addr add 10.0.1.1/24 dev eth2; ip link set eth2 up");
    nodes[1].sh("ip addr add 10.0.1.2/24 dev eth3; ip link set eth3 up");
    let mut wanted = plan(&nodes[0], 1);
    wanted.devices.push(device(&nodes[0], "eth2", None));
    wanted.devices.sort();
    let one = Loader::watching(&nodes[0], options(&pins, Attach::Auto), wanted);
    requests(&nodes[0], 1, Stream::Underlay, EPOCH, 0..5);
    let second = (5..9).map(|seq| probe(1, Stream::Underlay, EPOCH, seq)).collect();
    send(&nodes[0], [10, 0, 1, 1].into(), [10, 0, 1, 2].into(), second);
    // The second address is no peer's, but the stream is known by then.
    one.climb("the probes over both", Stream::Underlay, EPOCH, |c| {
        c.requests.left_nic.is_some_and(|w| w.count == 9)
    });
}

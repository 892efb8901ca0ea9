//! Two nodes that probe each other, well and unwell.

use std::sync::Arc;

use overlaywatch_core::assembly::Update;
use overlaywatch_core::ladder::Seen;
use overlaywatch_core::model::PeerId;
use overlaywatch_core::probing::{
    Orders, OwnStatus, PeerStatus, ProbeEvent, ProbeRequest, Stream, TunnelAdvert,
};

use super::net::*;

const STREAMS: [Stream; 4] = [SMALL, FULL, Stream::Underlay, Stream::Echo];

fn status(prober: &Prober) -> PeerStatus {
    let replies = prober.seen().iter().rev();
    let mut statuses = replies.filter_map(|event| match event {
        ProbeEvent::Reply { status: Some(status), .. } => Some(status.as_ref().clone()),
        _ => None,
    });
    statuses.next().expect("no underlay reply came")
}

fn rounds(from: u8, to: u8, streams: &[Stream]) -> Vec<ProbeRequest> {
    (0..4_u16)
        .flat_map(|round| streams.iter().map(move |&s| probe(from, to, s, round * 40)))
        .collect()
}

#[test]
fn all_streams_are_answered_both_ways() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 11, true);
    let mut two = Prober::start(&nodes[1], 22, true);
    let advert = TunnelAdvert {
        encapsulation: VXLAN,
        vni: Some(1),
        up: true,
        address: Some(overlay(2)),
        mac: Some("02:00:00:00:00:02".parse().unwrap()),
        mtu: u32::from(OVERLAY_MTU),
    };
    let own = OwnStatus { node: Some("node-2".parse().unwrap()), tunnels: vec![advert] };
    two.obey(Orders { peers: known(&[1]), own: Arc::new(own), ..Orders::default() });
    two.wait(|event| matches!(event, ProbeEvent::Observed { .. }).then_some(()));

    let fates = one.fates(rounds(1, 2, &STREAMS), &[2]);
    for stream in STREAMS {
        assert_eq!(tally(&fates, stream), (4, 4), "{stream}: {:#?}", one.seen());
    }
    let consecutive = fates.iter().filter_map(|f| f.seq.filter(|_| f.stream == SMALL));
    let consecutive: Vec<u32> = consecutive.collect();
    assert!(consecutive.windows(2).all(|pair| pair[1] == pair[0] + 1), "{consecutive:?}");
    for event in one.seen() {
        if let ProbeEvent::Reply { rtt_ns, .. } = *event {
            assert!((1_000..1_000_000_000).contains(&rtt_ns), "{event:?}");
        }
    }
    let said = status(&one);
    assert_eq!(said.node, Some("node-2".parse().unwrap()));
    assert_eq!((said.epoch, said.tunnels.as_slice()), (22, &[advert][..]));
    for fate in fates.iter().filter(|fate| fate.stream != Stream::Echo) {
        let window = said.windows.iter().find(|(stream, _)| *stream == fate.stream).unwrap().1;
        assert_eq!(window.contains(fate.seq.unwrap()), Seen::Yes, "{fate:?} {window:?}");
    }
    // The answering side probes just as well.
    let fates = two.fates(rounds(2, 1, &STREAMS), &[1]);
    for stream in STREAMS {
        assert_eq!(tally(&fates, stream), (4, 4), "{stream}: {:#?}", two.seen());
    }
    assert_eq!(two.counters.ignored.values().sum::<u64>(), 0);
}

#[test]
fn a_ping_socket_serves_where_it_is_allowed() {
    let nodes = pair();
    // Without this the tests' root uses a raw socket.
    nodes[0].sh("sysctl -qw net.ipv4.ping_group_range='0 0'");
    let mut one = Prober::start(&nodes[0], 1, true);
    let fates = one.fates(rounds(1, 2, &[Stream::Echo]), &[2]);
    assert_eq!(tally(&fates, Stream::Echo), (4, 4));
}

#[test]
fn ipv6_is_probed_as_ipv4_is() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    let mut two = Prober::start(&nodes[1], 2, true);
    let id = |n: u8| PeerId(format!("fd00::{n}").parse().unwrap());
    let peers = |n: u8| Arc::new([(id(n).0, id(n))].into());
    two.obey(Orders { peers: peers(1), ..Orders::default() });
    two.wait(|event| matches!(event, ProbeEvent::Observed { .. }).then_some(()));
    let request = |stream| {
        let plain = probe(1, 2, stream, 0);
        ProbeRequest { peer: id(2), target: id(2).0, ..plain }
    };
    let requests = vec![request(Stream::Underlay), request(Stream::Echo)];
    one.obey(Orders { requests, peers: peers(2), ..Orders::default() });
    for wanted in [Stream::Underlay, Stream::Echo] {
        let is_it = |event: &ProbeEvent| {
            matches!(event, ProbeEvent::Reply { stream, .. } if *stream == wanted).then_some(())
        };
        if !one.seen().iter().any(|event| is_it(event).is_some()) {
            one.wait(is_it);
        }
    }
}

#[test]
fn a_batch_ends_with_a_look_and_looks_are_frequent() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    let mut looks = Vec::new();
    for _ in 0..4 {
        one.order(rounds(1, 2, &STREAMS), &[2]);
        for _ in 0..5 {
            looks.push(one.wait_update(|update| match update {
                Update::Probes(events) => match events.last() {
                    Some(ProbeEvent::Observed { at, .. }) => Some(*at),
                    other => panic!("a batch ends with {other:?}"),
                },
                _ => None,
            }));
        }
    }
    assert!(looks.windows(2).all(|pair| pair[0] < pair[1]), "{looks:?}");
}

#[test]
fn loss_on_the_way_out_is_not_in_the_peers_window() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    let _two = Prober::answering(&nodes[1], 2, &[1]);
    nodes[1].sh("nft 'add table t; add chain t in { type filter hook input priority 0; }
        add rule t in iifname flannel.1 udp dport 9977 drop'");
    let fates = one.fates(rounds(1, 2, &[SMALL, Stream::Underlay]), &[2]);
    assert_eq!(tally(&fates, SMALL), (4, 0));
    assert_eq!(tally(&fates, Stream::Underlay), (4, 4));
    assert!(status(&one).windows.iter().all(|(stream, _)| *stream != SMALL));
}

#[test]
fn loss_on_the_way_back_is_in_the_peers_window() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    let _two = Prober::answering(&nodes[1], 2, &[1]);
    nodes[0].sh("nft 'add table t; add chain t in { type filter hook input priority 0; }
        add rule t in iifname flannel.1 udp sport 9977 drop'");
    let fates = one.fates(rounds(1, 2, &[SMALL, Stream::Underlay]), &[2]);
    assert_eq!(tally(&fates, SMALL), (4, 0));
    let said = status(&one);
    let (_, window) = said.windows.iter().find(|(stream, _)| *stream == SMALL).unwrap();
    for fate in fates.iter().filter(|fate| fate.stream == SMALL) {
        assert_eq!(window.contains(fate.seq.unwrap()), Seen::Yes);
    }
}

#[test]
fn a_peers_requests_tell_what_of_its_streams_was_lost() {
    let nodes = pair();
    let one = Prober::start(&nodes[0], 1, true);
    let mut two = Prober::answering(&nodes[1], 2, &[1]);
    nodes[1].sh("nft 'add table t; add chain t in { type filter hook input priority 0; }
        add rule t in iifname flannel.1 udp length 1430 drop'");
    let mut requests = rounds(1, 2, &[SMALL, FULL]);
    requests.push(probe(1, 2, Stream::Underlay, 300));
    one.order(requests, &[2]);
    let streams = two.wait(|event| match event {
        ProbeEvent::Asked { peer: asker, streams, .. } if *asker == peer(1) => {
            Some(streams.clone())
        }
        _ => None,
    });
    assert_eq!(streams.len(), 3, "{streams:?}");
    for passage in streams {
        let lost = passage.stream == FULL;
        assert_eq!(passage.received.contains(passage.sent_highest) == Seen::No, lost);
        assert_eq!(passage.received.count == 0, lost, "{passage:?}");
    }
}

#[test]
fn a_restarted_peer_is_told_by_its_epoch_and_begins_anew() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    let two = Prober::answering(&nodes[1], 21, &[1]);
    let first = one.fates(rounds(1, 2, &[SMALL, Stream::Underlay]), &[2]);
    assert_eq!(status(&one).epoch, 21);
    drop(two);
    let _two = Prober::answering(&nodes[1], 22, &[1]);
    one.fates(vec![probe(1, 2, SMALL, 150), probe(1, 2, Stream::Underlay, 160)], &[2]);
    let said = status(&one);
    assert_eq!(said.epoch, 22);
    let (_, window) = said.windows.iter().find(|(stream, _)| *stream == SMALL).unwrap();
    assert_eq!(window.count, 1);
    // The asker restarts too: its numbers grow, the responder's windows begin anew.
    drop(one);
    let mut one = Prober::start(&nodes[0], 3, true);
    let second = one.fates(rounds(1, 2, &[SMALL, Stream::Underlay]), &[2]);
    assert_eq!(tally(&second, SMALL), (4, 4));
    assert!(second[0].seq > first[7].seq, "{first:?} {second:?}");
    let said = status(&one);
    assert!(said.windows.iter().all(|(_, window)| window.count <= 4), "{said:?}");
}

//! Packets that must not be answered, each counted by its reason.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use overlaywatch::probe::wire::{Request, encode_request};
use overlaywatch_core::probing::{Ignored, ProbeEvent, Stream};

use super::net::*;

/// Sends packets from node 1 to node 2's responder; how many answers come.
fn send(node: &Namespace, packets: Vec<Vec<u8>>) -> usize {
    node.inside(move || {
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        for packet in packets {
            socket.send_to(&packet, SocketAddr::new(underlay(2), 9977)).unwrap();
        }
        socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        std::iter::from_fn(|| socket.recv(&mut [0; 2_000]).ok()).count()
    })
    .join()
    .unwrap()
}

fn request(epoch: u64, seq: u32) -> Vec<u8> {
    let request = Request {
        stream: Stream::Underlay,
        seq,
        epoch,
        sent_at: 7,
        sent: Vec::new(),
        asks_hops: false,
    };
    let mut packet = Vec::new();
    encode_request(&request, 100, &mut packet);
    packet
}

fn ignored(two: &mut Prober, reason: Ignored, count: u64) {
    two.wait_counters(|counters| {
        let seen = counters.ignored.get(&reason).copied().unwrap_or(0);
        assert!(seen <= count, "{counters:?}");
        seen == count
    });
}

#[test]
fn a_stranger_is_not_answered() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    let mut two = Prober::answering(&nodes[1], 2, &[9]);
    let requests = vec![probe(1, 2, SMALL, 0), probe(1, 2, Stream::Underlay, 0)];
    let fates = one.fates(requests, &[2]);
    assert!(fates.iter().all(|fate| fate.seq.is_some() && !fate.answered), "{fates:?}");
    ignored(&mut two, Ignored::Stranger, 2);
    assert_eq!(two.counters.answered, 0);
}

#[test]
fn foreign_packets_are_counted_by_reason() {
    let nodes = pair();
    let mut two = Prober::answering(&nodes[1], 2, &[1]);
    let with = |at: usize, value: u8| {
        let mut packet = request(5, 1);
        packet[at] = value;
        packet
    };
    let mut long = request(5, 1);
    long.resize(9_300, 0);
    let packets = vec![
        b"hello".to_vec(),
        Vec::new(),
        with(5, 9),
        with(8, 200),
        with(4, 2),
        request(5, 1)[..40].to_vec(),
        long,
        with(6, 1),
    ];
    assert_eq!(send(&nodes[0], packets), 0);
    for (reason, count) in [
        (Ignored::Malformed, 4),
        (Ignored::ForeignVersion, 1),
        (Ignored::Truncated, 1),
        (Ignored::Oversized, 1),
        (Ignored::BadMac, 1),
    ] {
        if two.counters.ignored.get(&reason) != Some(&count) {
            ignored(&mut two, reason, count);
        }
    }
}

#[test]
fn replays_are_not_answered() {
    let nodes = pair();
    let mut two = Prober::answering(&nodes[1], 2, &[1]);
    // A check runs beside the agent; another check takes its place.
    let packets = [(5, 1), (5, 2), (5, 1), (6, 1), (5, 3), (7, 1), (6, 2), (5, 4)];
    let packets = packets.map(|(epoch, seq)| request(epoch, seq)).to_vec();
    // The third came before; the last but one is of a run that is over.
    assert_eq!(send(&nodes[0], packets), 6);
    ignored(&mut two, Ignored::Replayed, 2);
}

#[test]
fn a_peer_that_asks_too_often_waits() {
    let nodes = pair();
    let mut two = Prober::answering(&nodes[1], 2, &[1]);
    let answered = send(&nodes[0], (0..200).map(|seq| request(5, seq)).collect());
    // A hundred at once, and 200 a second while they come.
    assert!((100..190).contains(&answered), "{answered}");
    two.wait_counters(|counters| {
        let limited = counters.ignored.get(&Ignored::RateLimited).copied().unwrap_or(0);
        counters.answered == answered as u64 && limited == 200 - counters.answered
    });
}

#[test]
fn replies_that_were_not_asked_for_are_ignored() {
    let nodes = pair();
    // Node 2 is no prober of ours: it answers with what it likes.
    let liar = nodes[1].inside(|| {
        let socket = UdpSocket::bind("10.0.0.2:9977").unwrap();
        let mut packet = [0; 2_000];
        let (length, from) = socket.recv_from(&mut packet).unwrap();
        let mut reply = packet[..length].to_vec();
        reply[5] = 2;
        reply[7] = 0;
        reply[44..].fill(0);
        // Of another epoch, of a number that was not sent, right, and again.
        let mut foreign = reply.clone();
        foreign[16] ^= 1;
        let mut early = reply.clone();
        let next = 1 + u32::from_be_bytes(reply[12..16].try_into().unwrap());
        early[12..16].copy_from_slice(&next.to_be_bytes());
        for packet in [&foreign, &early, &reply, &reply] {
            socket.send_to(packet, from).unwrap();
        }
    });
    let mut one = Prober::start(&nodes[0], 1, true);
    one.order(vec![probe(1, 2, Stream::Underlay, 100)], &[2]);
    liar.join().unwrap();
    one.wait_counters(|counters| counters.ignored.values().sum::<u64>() == 3);
    assert_eq!(one.counters.ignored.get(&Ignored::Replayed), Some(&2));
    assert_eq!(one.counters.ignored.get(&Ignored::Malformed), Some(&1));
    assert_eq!(one.counters.received, 1);
    let with_status = one
        .seen()
        .iter()
        .filter(|event| matches!(event, ProbeEvent::Reply { status: Some(_), .. }));
    assert_eq!(with_status.count(), 1);
}

//! What the kernel tells of probes that cannot pass, and of the prober itself.

use std::net::UdpSocket;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use overlaywatch::probe::{self, DEFAULT_PORT, Options, ProbeError, Uncounted};
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::fact::Gap;
use overlaywatch_core::probing::{Orders, ProbeEvent, ProbeRequest, SendError, Stream};
use overlaywatch_core::time::MILLISECOND;
use tokio::sync::mpsc;

use super::net::*;

/// Runs a prober and `with` it on this thread, until that is done.
fn on_this_thread<T>(
    with: impl AsyncFnOnce(mpsc::Sender<Orders>, mpsc::Receiver<Update>) -> T,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (orders, received) = mpsc::channel(1);
        let (sent, updates) = mpsc::channel(64);
        let options =
            Options { port: DEFAULT_PORT, epoch: 1, responder: true, hops: Arc::new(Uncounted) };
        tokio::select! {
            done = with(orders, updates) => done,
            result = probe::run(options, received, sent) => panic!("{result:?}"),
        }
    })
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let node = Namespace::new();
    let error = node.inside(|| {
        let _holder = UdpSocket::bind("0.0.0.0:9977").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_orders, received) = mpsc::channel(1);
            let (updates, _sent) = mpsc::channel(1);
            let options =
                Options { port: 9977, epoch: 1, responder: true, hops: Arc::new(Uncounted) };
            probe::run(options, received, updates).await.unwrap_err()
        })
    });
    let error = error.join().unwrap();
    assert!(matches!(error, ProbeError::InUse(_)));
    let text = error.to_string();
    for part in ["0.0.0.0:9977", "already used", "ss -ulpn", "probe.port"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains('\n'));
}

#[test]
fn an_absent_responder_is_an_unreachable_port() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    for stream in [Stream::Underlay, SMALL, FULL] {
        one.order(vec![probe(1, 2, stream, 0)], &[2]);
        let (code, from) = one.wait(|event| match *event {
            ProbeEvent::Unreachable { peer: of, stream: quoted, code, from, .. } => {
                assert_eq!((of, quoted), (peer(2), stream));
                Some((code, from))
            }
            _ => None,
        });
        let expected = if stream == Stream::Underlay { underlay(2) } else { overlay(2) };
        assert_eq!((code, from), (3, expected));
    }
}

#[test]
fn an_error_about_one_peer_does_not_befall_another() {
    let nodes = pair();
    nodes[1].sh("ip addr add 10.0.0.3/24 dev eth0
        nft 'add table t; add chain t in { type filter hook input priority 0; }
        add rule t in ip daddr 10.0.0.3 udp dport 9977 reject'");
    let mut one = Prober::start(&nodes[0], 1, true);
    let _two = Prober::answering(&nodes[1], 2, &[1]);
    // Each port of the pool gets an error, and then a packet for the other peer.
    let both = (0..32_u16).flat_map(|n| {
        [probe(1, 3, Stream::Underlay, n * 10), probe(1, 2, Stream::Underlay, n * 10 + 6)]
    });
    one.fates(both.collect(), &[2, 3]);
    let of_peer = |n: u8| {
        let answered = one
            .seen()
            .iter()
            .filter(|event| matches!(event, ProbeEvent::Reply { peer: of, .. } if *of == peer(n)));
        let refused = one.seen().iter().filter(
            |event| matches!(event, ProbeEvent::NotSent { peer: of, .. } if *of == peer(n)),
        );
        (answered.count(), refused.count())
    };
    assert_eq!(of_peer(2), (32, 0));
    assert_eq!(of_peer(3), (0, 0));
    let unreachable = one.seen().iter().filter(
        |event| matches!(event, ProbeEvent::Unreachable { peer: of, code: 3, .. } if *of == peer(3)),
    );
    // The kernel limits the rate of ICMP errors.
    assert!(unreachable.count() > 4);
}

#[test]
fn full_sized_probes_find_a_smaller_mtu_on_the_way() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    let _two = Prober::answering(&nodes[1], 2, &[1]);
    let requests = || vec![probe(1, 2, SMALL, 0), probe(1, 2, FULL, 0)];
    let fates = one.fates(requests(), &[2]);
    assert_eq!((tally(&fates, SMALL), tally(&fates, FULL)), ((1, 1), (1, 1)));
    // veth drops what is longer than the receiving end's MTU without a word.
    nodes[1].sh("ip link set eth0 mtu 1400");
    let fates = one.fates(requests(), &[2]);
    assert_eq!((tally(&fates, SMALL), tally(&fates, FULL)), ((1, 1), (1, 0)));
}

#[test]
fn refusals_of_the_local_kernel_have_their_reason() {
    let nodes = pair();
    let mut one = Prober::start(&nodes[0], 1, true);
    let overlay_probe = probe(1, 2, SMALL, 0);
    let refusal = |one: &mut Prober, request: ProbeRequest| {
        one.order(vec![request], &[2]);
        one.wait(|event| match *event {
            ProbeEvent::NotSent { error, .. } => Some(error),
            ProbeEvent::Sent { .. } => panic!("sent: {request:?}"),
            _ => None,
        })
    };
    let expect = |one: &mut Prober, request: ProbeRequest, expected: SendError| {
        assert_eq!(refusal(one, request), expected);
    };
    // Kernels disagree on the error for a source address that is not the host's.
    let gone = ProbeRequest { source: Some("10.9.9.9".parse().unwrap()), ..overlay_probe };
    let error = refusal(&mut one, gone);
    assert!(matches!(error, SendError::Blackhole | SendError::NoRoute), "{error:?}");
    let large = ProbeRequest { ip_bytes: OVERLAY_MTU + 1, ..probe(1, 2, FULL, 0) };
    expect(&mut one, large, SendError::TooBig);
    for (kind, error) in [
        ("blackhole", SendError::Blackhole),
        ("prohibit", SendError::Prohibited),
        ("unreachable", SendError::NoRoute),
    ] {
        nodes[0].sh(&format!("ip route add {kind} 10.244.2.0/32"));
        expect(&mut one, overlay_probe, error);
        nodes[0].sh(&format!("ip route del {kind} 10.244.2.0/32"));
    }
    nodes[0].sh("nft 'add table t; add chain t out { type filter hook output priority 0; }
        add rule t out udp dport 9977 drop'");
    expect(&mut one, overlay_probe, SendError::Filtered);
    nodes[0].sh("nft delete table t; ip route del 10.244.2.0/24");
    expect(&mut one, overlay_probe, SendError::NoRoute);
}

#[test]
fn without_the_right_to_ping_all_else_works() {
    let node = Namespace::new();
    let updates = node.inside(|| {
        // SAFETY: the system call changes this thread's user only; a user who
        // is not root loses all capabilities with it (capabilities(7)).
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
        on_this_thread(async |orders, mut updates| {
            let to_self = ProbeRequest {
                target: "127.0.0.1".parse().unwrap(),
                ..probe(1, 1, Stream::Underlay, 0)
            };
            let echo = ProbeRequest { stream: Stream::Echo, ..to_self };
            let peers = Arc::new([(to_self.target, to_self.peer)].into());
            let requests = vec![echo, to_self];
            orders.send(Orders { requests, peers, ..Orders::default() }).await.unwrap();
            let mut seen = vec![updates.recv().await.unwrap()];
            while seen.len() < 4 {
                seen.push(updates.recv().await.unwrap());
            }
            seen
        })
    });
    let updates = updates.join().unwrap();
    let Update::Source(report) = &updates[0] else { panic!("{updates:?}") };
    assert_eq!((report.source, report.gap), (SourceId::Probe, Some(Gap::Denied)));
    assert!(report.detail.contains("CAP_NET_RAW"), "{report:?}");
    let events = updates.iter().filter_map(|update| match update {
        Update::Probes(events) => Some(events),
        _ => None,
    });
    let streams: Vec<Stream> = events
        .flatten()
        .filter_map(|event| match event {
            ProbeEvent::Sent { stream, .. }
            | ProbeEvent::NotSent { stream, .. }
            | ProbeEvent::Reply { stream, .. } => Some(*stream),
            _ => None,
        })
        .collect();
    // Sent and answered; of the echo there is nothing to tell.
    assert_eq!(streams, [Stream::Underlay; 2]);
}

#[test]
fn a_starved_prober_says_how_late_it_is() {
    let node = Namespace::new();
    let lags = node.inside(|| {
        on_this_thread(async |orders, mut updates| {
            orders.send(Orders::default()).await.unwrap();
            let mut lags = Vec::new();
            while lags.len() < 12 {
                let Update::Probes(events) = updates.recv().await.unwrap() else { continue };
                if let Some(ProbeEvent::Observed { lag_ns, .. }) = events.last() {
                    lags.push(*lag_ns);
                }
                if lags.len() == 4 {
                    // The prober shares this thread.
                    thread::sleep(Duration::from_millis(600));
                }
            }
            lags
        })
    });
    let lags = lags.join().unwrap();
    assert!(lags.iter().any(|&lag| lag > 450 * MILLISECOND), "{lags:?}");
    assert!(lags.iter().any(|&lag| lag < 50 * MILLISECOND), "{lags:?}");
}

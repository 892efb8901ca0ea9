//! Agents come and go under traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use overlaywatch_core::kernel::Attach;
use overlaywatch_core::ladder::Climb;
use overlaywatch_ebpf::{ProbeKey, Windows, hop};

use crate::bench::{
    Loader, Namespace, PROBE_PORT, Pins, SMALL, VXLAN, options, overlay, pair, plan, probe, sink,
    wait,
};
use crate::coexistence::detach;
use crate::daemon::Agent;
use crate::foreign::{Side, tcx};

const EPOCH: u64 = 0x9999_aaaa_bbbb_cccc;

/// A stream of requests from node 2 to node 1 that goes on and on.
struct Stream {
    sent: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn start(node: &Namespace) -> Self {
        let (sent, is_over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, end) = (Arc::clone(&sent), Arc::clone(&is_over));
        let work = move || {
            let socket = std::net::UdpSocket::bind((overlay(2), 0)).unwrap();
            while !end.load(Ordering::Relaxed) {
                let seq = counter.load(Ordering::Relaxed);
                let message = probe(1, SMALL, EPOCH, seq);
                let _ = socket.send_to(&message, (overlay(1), PROBE_PORT));
                counter.store(seq + 1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        };
        Self { sent, is_over, thread: Some(node.inside(work)) }
    }

    fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it; how many were sent.
    fn end(mut self) -> u32 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.sent()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Every number up to `sent` passed both of node 1's hops.
fn is_whole(climb: &Climb, sent: u32) -> bool {
    [climb.requests.reached_nic, climb.requests.decapsulated]
        .into_iter()
        .flatten()
        .all(|window| window.count == sent && window.highest == sent - 1 && window.mask == u64::MAX)
}

#[test]
fn a_new_loader_takes_over_without_a_gap() {
    for attach in [Attach::Tcx, Attach::Clsact] {
        let pins = Pins::new();
        let nodes = pair();
        let _sink = sink(&nodes[0]);
        let one = Loader::watching(&nodes[0], options(&pins, attach), plan(&nodes[0], 1));
        let climb = one.reader.climb(EPOCH, SMALL).unwrap();
        assert!(climb.nic_ms < 60_000 && climb.tunnel_ms < 60_000, "just attached: {climb:?}");
        let stream = Stream::start(&nodes[1]);
        wait("some traffic", || (stream.sent() > 200).then_some(()));
        let links = pins.links(&nodes[0]);
        drop(one);
        // Nobody reads, and the programs count.
        let sent = stream.sent();
        wait("more traffic", || (stream.sent() > sent + 200).then_some(()));

        let mut one = Loader::watching(&nodes[0], options(&pins, attach), plan(&nodes[0], 1));
        let sent = stream.sent();
        wait("more traffic", || (stream.sent() > sent + 200).then_some(()));
        let sent = stream.end();
        let climb = one.climb("every probe", SMALL, EPOCH, |climb| is_whole(climb, sent));
        // Since before this machine was up, as far as this agent can tell.
        assert!(climb.nic_ms > 60_000 && climb.tunnel_ms > 60_000, "inherited: {climb:?}");
        assert_eq!(pins.links(&nodes[0]), links);
        one.settle();
        let (all, _) = one.traffic(VXLAN, false);
        assert_eq!(all, u64::from(sent), "each packet is counted once");
        drop(one);
        detach(&nodes[0], &pins);
    }
}

/// A stream's windows straight from the pinned map, whoever runs.
fn pinned_windows(pins: &Pins, node: &Namespace) -> Windows {
    let path = pins.of(node).join(format!("v{}", overlaywatch_ebpf::LAYOUT)).join("PROBES");
    let data = MapData::from_pin(path).unwrap();
    let map: HashMap<MapData, ProbeKey, Windows> =
        Map::from_map_data(data).unwrap().try_into().unwrap();
    let key = ProbeKey { epoch: EPOCH.to_be_bytes(), stream: [1, 17, 0x21, 0x18] };
    map.get(&key, 0).unwrap_or_default()
}

#[test]
fn counters_go_on_when_the_agent_is_killed() {
    let pins = Pins::new();
    let nodes = pair();
    let mut agent = Agent::start(&nodes[0], &pins, "");
    wait("the programs", || (pins.links(&nodes[0]).len() == 4).then_some(()));
    let stream = Stream::start(&nodes[1]);
    let count = |at: usize| pinned_windows(&pins, &nodes[0]).requests[at].count;
    wait("some traffic", || (count(hop::DECAPSULATED) > 100).then_some(()));
    let first = tcx(&nodes[0], "eth0", Side::In);

    agent.kill();
    let before = count(hop::DECAPSULATED);
    wait("counts of the dead agent's programs", || {
        (count(hop::DECAPSULATED) > before + 200).then_some(())
    });
    assert_eq!(tcx(&nodes[0], "eth0", Side::In), first);

    let agent = Agent::start(&nodes[0], &pins, "");
    wait("the new agent's programs", || {
        let now = tcx(&nodes[0], "eth0", Side::In);
        (now.len() == 1 && now != first).then_some(())
    });
    let before = count(hop::DECAPSULATED);
    wait("more traffic", || (count(hop::DECAPSULATED) > before + 200).then_some(()));
    let sent = stream.end();
    wait("every probe", || {
        let windows = pinned_windows(&pins, &nodes[0]);
        let is_all = |at: usize| {
            let window = windows.requests[at];
            (window.count, window.highest, window.mask) == (sent, sent - 1, u64::MAX)
        };
        (is_all(hop::REACHED_NIC) && is_all(hop::DECAPSULATED)).then_some(())
    });
    drop(agent);
}

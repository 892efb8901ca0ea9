//! Namespaces, and probers that run in them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use overlaywatch::probe::{self, DEFAULT_PORT, Options, Uncounted};
use overlaywatch_core::assembly::Update;
use overlaywatch_core::model::{Encapsulation, PeerId};
use overlaywatch_core::probing::{
    Orders, OwnStatus, ProbeEvent, ProbeRequest, ProberCounters, Stream,
};

pub(crate) use crate::namespace::Namespace;

pub(crate) const VXLAN: Encapsulation = Encapsulation::Vxlan(8472);
pub(crate) const SMALL: Stream = Stream::Small(VXLAN);
pub(crate) const FULL: Stream = Stream::Full(VXLAN);
/// MTU of the overlay: that of the veth pair less the encapsulation.
pub(crate) const OVERLAY_MTU: u16 = 1_450;
const PATIENCE: Duration = Duration::from_secs(15);

/// Node 1 and node 2.
pub(crate) fn pair() -> [Namespace; 2] {
    let nodes = [Namespace::new(), Namespace::new()];
    nodes[0].sh("ip link add eth0 type veth peer name eth1");
    nodes[0].give("eth1", &nodes[1]);
    nodes[1].sh("ip link set eth1 name eth0");
    for (n, node) in [1, 2].into_iter().zip(&nodes) {
        let other = 3 - n;
        node.sh(&format!(
            "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0
             ip addr add 10.0.0.{n}/24 dev eth0
             ip addr add fd00::{n}/64 dev eth0 nodad
             ip link set eth0 up
             ip link add flannel.1 address 02:00:00:00:00:0{n} type vxlan \
                 id 1 dev eth0 local 10.0.0.{n} dstport 8472 nolearning
             ip link set flannel.1 mtu {OVERLAY_MTU} up
             ip addr add 10.244.{n}.0/32 dev flannel.1
             ip neigh add 10.244.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent
             bridge fdb add 02:00:00:00:00:0{other} dev flannel.1 dst 10.0.0.{other}
             ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"
        ));
    }
    nodes
}

pub(crate) fn underlay(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

pub(crate) fn overlay(n: u8) -> IpAddr {
    IpAddr::from([10, 244, n, 0])
}

pub(crate) fn peer(n: u8) -> PeerId {
    PeerId(underlay(n))
}

/// Both addresses of these nodes.
pub(crate) fn known(nodes: &[u8]) -> Arc<HashMap<IpAddr, PeerId>> {
    Arc::new(nodes.iter().flat_map(|&n| [(underlay(n), peer(n)), (overlay(n), peer(n))]).collect())
}

/// A probe from one node to the other.
pub(crate) fn probe(from: u8, to: u8, stream: Stream, after_ms: u16) -> ProbeRequest {
    let (target, source, ip_bytes) = match stream {
        Stream::Underlay => (underlay(to), None, 560),
        Stream::Echo => (underlay(to), None, 64),
        Stream::Small(_) => (overlay(to), Some(overlay(from)), 128),
        Stream::Full(_) => (overlay(to), Some(overlay(from)), OVERLAY_MTU),
    };
    ProbeRequest { peer: peer(to), stream, target, source, ip_bytes, after_ms }
}

/// A running prober.
pub(crate) struct Prober {
    orders: Option<tokio::sync::mpsc::Sender<Orders>>,
    updates: mpsc::Receiver<Update>,
    thread: Option<thread::JoinHandle<()>>,
    seen: Vec<ProbeEvent>,
    pub(crate) counters: ProberCounters,
}

impl Prober {
    pub(crate) fn start(namespace: &Namespace, epoch: u64, responder: bool) -> Self {
        let (orders, received) = tokio::sync::mpsc::channel(4);
        let (updates, mut sent) = tokio::sync::mpsc::channel(16);
        let (forward, forwarded) = mpsc::channel();
        let (ready, wait) = mpsc::channel();
        let options = Options { port: DEFAULT_PORT, epoch, responder, hops: Arc::new(Uncounted) };
        let thread = namespace.inside(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let forwarding = async {
                    while let Some(update) = sent.recv().await {
                        // The first update comes once the sockets are open.
                        let _ = ready.send(());
                        let _ = forward.send(update);
                    }
                };
                let (result, ()) = tokio::join!(probe::run(options, received, updates), forwarding);
                result.unwrap();
            });
        });
        wait.recv_timeout(PATIENCE).expect("the prober did not start");
        Self {
            orders: Some(orders),
            updates: forwarded,
            thread: Some(thread),
            seen: Vec::new(),
            counters: ProberCounters::default(),
        }
    }

    /// A prober that answers these peers from now on.
    pub(crate) fn answering(namespace: &Namespace, epoch: u64, peers: &[u8]) -> Self {
        let mut prober = Self::start(namespace, epoch, true);
        prober.order(Vec::new(), peers);
        // A look comes after the orders.
        prober.wait(|event| matches!(event, ProbeEvent::Observed { .. }).then_some(()));
        prober
    }

    pub(crate) fn order(&self, requests: Vec<ProbeRequest>, peers: &[u8]) {
        let own = Arc::new(OwnStatus::default());
        self.obey(Orders { requests, peers: known(peers), own, hops_of: Arc::default() });
    }

    pub(crate) fn obey(&self, orders: Orders) {
        self.orders.as_ref().unwrap().blocking_send(orders).unwrap();
    }

    /// Waits for the first update of which `look` makes something.
    pub(crate) fn wait_update<T>(&mut self, mut look: impl FnMut(&Update) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let Ok(update) = self.updates.recv_timeout(left) else { break };
            match &update {
                Update::Probes(events) => self.seen.extend(events.iter().cloned()),
                Update::ProberCounters(counters) => self.counters = (**counters).clone(),
                _ => {}
            }
            if let Some(found) = look(&update) {
                return found;
            }
        }
        panic!("it never came; seen: {:#?}\ncounters: {:?}", self.seen, self.counters);
    }

    /// Waits for the first event of which `look` makes something; events
    /// before it are passed over, events after it in the same batch too.
    pub(crate) fn wait<T>(&mut self, mut look: impl FnMut(&ProbeEvent) -> Option<T>) -> T {
        self.wait_update(|update| match update {
            Update::Probes(events) => events.iter().find_map(&mut look),
            _ => None,
        })
    }

    pub(crate) fn wait_counters(&mut self, mut is_it: impl FnMut(&ProberCounters) -> bool) {
        self.wait_update(|update| match update {
            Update::ProberCounters(counters) => is_it(counters).then_some(()),
            _ => None,
        });
    }

    /// Sends probes and returns their fate in the end: answered or not, in
    /// order of sending. All of them have left when the last one is decided.
    pub(crate) fn fates(&mut self, requests: Vec<ProbeRequest>, peers: &[u8]) -> Vec<Fate> {
        let count = requests.len();
        let from = self.seen.len();
        self.order(requests, peers);
        // A reply on these paths takes far less time than this.
        let settled = Duration::from_millis(700);
        let mut last_sent = None;
        while last_sent.is_none_or(|at: Instant| at.elapsed() < settled) {
            self.wait(|event| matches!(event, ProbeEvent::Observed { .. }).then_some(()));
            if last_sent.is_none() && fates_of(&self.seen[from..]).len() == count {
                last_sent = Some(Instant::now());
            }
        }
        fates_of(&self.seen[from..])
    }

    pub(crate) fn seen(&self) -> &[ProbeEvent] {
        &self.seen
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        // A closed channel ends the prober.
        self.orders = None;
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) stream: Stream,
    pub(crate) seq: Option<u32>,
    pub(crate) answered: bool,
}

fn fates_of(events: &[ProbeEvent]) -> Vec<Fate> {
    let mut fates = Vec::new();
    for event in events {
        match *event {
            ProbeEvent::Sent { stream, seq, .. } => {
                fates.push(Fate { stream, seq: Some(seq), answered: false });
            }
            ProbeEvent::NotSent { stream, .. } => {
                fates.push(Fate { stream, seq: None, answered: false });
            }
            ProbeEvent::Reply { stream, seq, .. } => {
                let of_it = |fate: &&mut Fate| fate.stream == stream && fate.seq == Some(seq);
                if let Some(fate) = fates.iter_mut().find(of_it) {
                    fate.answered = true;
                }
            }
            _ => {}
        }
    }
    fates
}

/// How many probes of a stream were sent, and how many of them answered.
pub(crate) fn tally(fates: &[Fate], stream: Stream) -> (usize, usize) {
    let of_it = || fates.iter().filter(|fate| fate.stream == stream);
    (of_it().filter(|f| f.seq.is_some()).count(), of_it().filter(|f| f.answered).count())
}

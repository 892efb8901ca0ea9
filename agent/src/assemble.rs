//! The one loop that owns network state: updates in, a snapshot, a diagnosis
//! and the next probes out at each tick.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use overlaywatch_core::assembly::{Assembly, SourceId, Update};
use overlaywatch_core::diagnose::Diagnoser;
use overlaywatch_core::model::{Peer, PeerId};
use overlaywatch_core::plan::{Planner, TICK_MS};
use overlaywatch_core::probing::{Orders, OwnStatus, TunnelAdvert};
use overlaywatch_core::snapshot::Snapshot;
use overlaywatch_core::time::{Mono, SECOND};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::published::Published;

/// Updates folded in one go before the timer is looked at again.
const BATCH: usize = 256;
/// A source that has said nothing for this long does not hold up the first verdict.
const FIRST_LOOK_NS: u64 = 10 * SECOND;

/// The state that the loop owns.
pub(crate) struct Assembler {
    assembly: Assembly,
    diagnoser: Diagnoser,
    planner: Planner,
    started: Mono,
    tick: u64,
    /// Sources that must have looked once before anything is published.
    awaited: BTreeSet<SourceId>,
    /// Every peer's addresses, and the peers that they were taken from.
    addresses: (Arc<Vec<Peer>>, Arc<HashMap<IpAddr, PeerId>>),
    own: Arc<OwnStatus>,
    orders: mpsc::Sender<Orders>,
    publication: watch::Sender<Option<Arc<Published>>>,
}

impl Assembler {
    /// A loop that knows nothing yet. Nothing is published before each of
    /// `awaited` has looked once.
    pub(crate) fn new(
        assembly: Assembly,
        awaited: BTreeSet<SourceId>,
        orders: mpsc::Sender<Orders>,
        publication: watch::Sender<Option<Arc<Published>>>,
    ) -> Self {
        Self {
            assembly,
            diagnoser: Diagnoser::default(),
            planner: Planner::default(),
            started: clock::mono(),
            tick: 0,
            awaited,
            addresses: (Arc::default(), Arc::default()),
            own: Arc::default(),
            orders,
            publication,
        }
    }

    /// Runs until every sender of updates is gone.
    pub(crate) async fn run(mut self, mut updates: mpsc::Receiver<Update>) {
        let mut timer = tokio::time::interval(Duration::from_millis(u64::from(TICK_MS)));
        // After a standstill the plan goes on from now; it does not catch up.
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                _ = timer.tick() => self.tick(),
                count = updates.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.fold(&mut batch);
                }
            }
        }
    }

    fn fold(&mut self, batch: &mut Vec<Update>) {
        let at = clock::mono();
        for update in batch.drain(..) {
            if let Update::Source(report) = &update {
                self.awaited.remove(&report.source);
            }
            self.assembly.fold(update, at);
        }
    }

    fn tick(&mut self) {
        let now = clock::now();
        if !self.awaited.is_empty() && now.mono.since(self.started) < FIRST_LOOK_NS {
            return;
        }
        self.tick += 1;
        let snapshot = Arc::new(self.assembly.freeze(now));
        let before = self.diagnoser.before().cloned();
        let policy = self.assembly.policy();
        let diagnosis = Arc::new(self.diagnoser.evaluate(&snapshot, policy));
        let requests = self.planner.due(&snapshot, &diagnosis, policy.probes_per_second);
        let orders = Orders {
            requests,
            peers: self.addresses_of(&snapshot),
            own: self.own_status(&snapshot),
            hops_of: Arc::new(self.assembly.losing().collect()),
        };
        // A prober that has not taken the last orders yet is starved; it says
        // so itself, and old orders serve nobody.
        let _ = self.orders.try_send(orders);
        let published = Published { tick: self.tick, snapshot, before, diagnosis };
        self.publication.send_replace(Some(Arc::new(published)));
    }

    fn addresses_of(&mut self, snapshot: &Snapshot) -> Arc<HashMap<IpAddr, PeerId>> {
        let (peers, addresses) = &mut self.addresses;
        if !Arc::ptr_eq(peers, &snapshot.peers) {
            *peers = Arc::clone(&snapshot.peers);
            *addresses = Arc::new(addresses_of(peers));
        }
        Arc::clone(addresses)
    }

    fn own_status(&mut self, snapshot: &Snapshot) -> Arc<OwnStatus> {
        let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
        let own = OwnStatus {
            node: snapshot.node.name.clone(),
            tunnels: tunnels.iter().map(TunnelAdvert::from).collect(),
        };
        if *self.own != own {
            self.own = Arc::new(own);
        }
        Arc::clone(&self.own)
    }
}

/// Whose packets come from an address: underlay addresses are what peers are
/// known by; an overlay address that two peers claim is nobody's.
fn addresses_of(peers: &[Peer]) -> HashMap<IpAddr, PeerId> {
    let mut addresses = HashMap::new();
    let mut contested = BTreeSet::new();
    for peer in peers {
        for overlay in peer.tunnels.iter().filter_map(|tunnel| tunnel.overlay) {
            let other = addresses.insert(overlay, peer.id);
            if other.is_some_and(|other| other != peer.id) {
                contested.insert(overlay);
            }
        }
    }
    addresses.retain(|address, _| !contested.contains(address));
    addresses.extend(peers.iter().map(|peer| (peer.id.0, peer.id)));
    addresses
}

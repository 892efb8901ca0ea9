//! The one loop that owns network state: updates in, a snapshot, a diagnosis
//! and the next probes out at each tick.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use overlaywatch_core::assembly::{Assembly, SourceId, Update};
use overlaywatch_core::diagnose::Diagnoser;
use overlaywatch_core::kernel::HookPlan;
use overlaywatch_core::model::{LookupPlan, Peer, PeerId};
use overlaywatch_core::plan::{Planner, TICK_MS};
use overlaywatch_core::probing::{Orders, OwnStatus, TunnelAdvert};
use overlaywatch_core::snapshot::Snapshot;
use overlaywatch_core::time::{Mono, SECOND};
use overlaywatch_core::{hooks, lookups};
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
    addresses: Addresses,
    own: Arc<OwnStatus>,
    hooks: Hooks,
    lookups: watch::Sender<Arc<LookupPlan>>,
    losing: watch::Sender<bool>,
    orders: mpsc::Sender<Orders>,
    publication: watch::Sender<Option<Arc<Published>>>,
}

/// The arrows back to sources: what they are to look at.
pub(crate) struct Plans {
    /// For the eBPF programs.
    pub(crate) hooks: watch::Sender<Arc<HookPlan>>,
    /// For the kernel's routing answers.
    pub(crate) lookups: watch::Sender<Arc<LookupPlan>>,
    /// For the counters of netfilter's rules.
    pub(crate) losing: watch::Sender<bool>,
}

/// What the eBPF programs are told to watch, and what that was worked out from:
/// collections are compared by identity, since a change always makes a new one.
struct Hooks {
    plan: watch::Sender<Arc<HookPlan>>,
    from: Option<Snapshot>,
}

impl Hooks {
    /// Whether the tables that a plan is dear to make of are those of the last one.
    fn is_same(&self, snapshot: &Snapshot) -> bool {
        self.from.as_ref().is_some_and(|from| {
            Arc::ptr_eq(&from.peers, &snapshot.peers)
                && Arc::ptr_eq(&from.underlays, &snapshot.underlays)
                && is_one(from.routes.seen(), snapshot.routes.seen())
                && is_one(from.tunnels.seen(), snapshot.tunnels.seen())
        })
    }

    /// Whether the rest of the plan is as it would be made now: names of devices,
    /// and the ports that peers tell of.
    fn still_holds(&self, snapshot: &Snapshot) -> bool {
        let plan = self.plan.borrow();
        plan.devices == hooks::devices(snapshot) && plan.ports == hooks::ports(snapshot)
    }
}

impl Assembler {
    /// A loop that knows nothing yet. Nothing is published before each of
    /// `awaited` has looked once.
    pub(crate) fn new(
        assembly: Assembly,
        awaited: BTreeSet<SourceId>,
        orders: mpsc::Sender<Orders>,
        plans: Plans,
        publication: watch::Sender<Option<Arc<Published>>>,
    ) -> Self {
        Self {
            assembly,
            diagnoser: Diagnoser::default(),
            planner: Planner::default(),
            started: clock::mono(),
            tick: 0,
            awaited,
            addresses: Addresses::default(),
            own: Arc::default(),
            hooks: Hooks { plan: plans.hooks, from: None },
            lookups: plans.lookups,
            losing: plans.losing,
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
            hops_of: Arc::new(self.assembly.losing().clone()),
        };
        self.plan_hooks(&snapshot, &orders.peers);
        let questions = lookups::plan(&snapshot, self.assembly.losing().iter().copied());
        if !questions.0.is_empty() {
            self.lookups.send_replace(Arc::new(questions));
        }
        self.losing.send_replace(!orders.hops_of.is_empty());
        // A prober that has not taken the last orders yet is starved; it says
        // so itself, and old orders serve nobody.
        let _ = self.orders.try_send(orders);
        let published = Published { tick: self.tick, snapshot, before, diagnosis };
        self.publication.send_replace(Some(Arc::new(published)));
    }

    /// Tells the eBPF programs what to watch, when that may have changed.
    fn plan_hooks(&mut self, snapshot: &Snapshot, addresses: &HashMap<IpAddr, PeerId>) {
        if self.hooks.is_same(snapshot) && self.hooks.still_holds(snapshot) {
            return;
        }
        self.hooks.from = Some(Snapshot {
            peers: Arc::clone(&snapshot.peers),
            underlays: Arc::clone(&snapshot.underlays),
            routes: snapshot.routes.clone(),
            tunnels: snapshot.tunnels.clone(),
            ..Snapshot::default()
        });
        let plan = hooks::plan(snapshot, addresses.iter().map(|(&ip, &peer)| (ip, peer)));
        self.hooks.plan.send_if_modified(|known| {
            let is_new = **known != plan;
            if is_new {
                *known = Arc::new(plan);
            }
            is_new
        });
    }

    fn addresses_of(&mut self, snapshot: &Snapshot) -> Arc<HashMap<IpAddr, PeerId>> {
        let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
        let own: Vec<IpAddr> = tunnels.iter().filter_map(|tunnel| tunnel.address).collect();
        let known = &mut self.addresses;
        if !Arc::ptr_eq(&known.from, &snapshot.peers) || known.own != own {
            known.from = Arc::clone(&snapshot.peers);
            known.of = Arc::new(addresses_of(&snapshot.peers, &own));
            known.own = own;
        }
        Arc::clone(&known.of)
    }

    fn own_status(&mut self, snapshot: &Snapshot) -> Arc<OwnStatus> {
        let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
        let mut adverts: Vec<TunnelAdvert> = tunnels.iter().map(TunnelAdvert::from).collect();
        // Few can be told, and those to a peer each are alike.
        adverts.dedup();
        let own = OwnStatus { node: snapshot.node.name.clone(), tunnels: adverts };
        if *self.own != own {
            self.own = Arc::new(own);
        }
        Arc::clone(&self.own)
    }
}

/// Whether both are the same collection, or neither is known.
fn is_one<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Every peer's addresses, and what they were taken from.
#[derive(Default)]
struct Addresses {
    from: Arc<Vec<Peer>>,
    /// This node's own tunnels have these.
    own: Vec<IpAddr>,
    of: Arc<HashMap<IpAddr, PeerId>>,
}

/// Whose packets come from an address: underlay addresses are what peers are
/// known by; an overlay address that two peers claim is that one's to whom routes
/// lead it, else nobody's, and this node's `own` are no peer's.
fn addresses_of(peers: &[Peer], own: &[IpAddr]) -> HashMap<IpAddr, PeerId> {
    let mut addresses = HashMap::new();
    let mut contested = BTreeSet::new();
    for peer in peers {
        let led_to = peer.tunnels.iter().filter_map(|tunnel| tunnel.overlay);
        for overlay in led_to.chain(peer.other_addresses.iter().copied()) {
            let other = addresses.insert(overlay, peer.id);
            if other.is_some_and(|other| other != peer.id) {
                contested.insert(overlay);
            }
        }
    }
    for address in contested {
        let led = peers.iter().filter_map(|peer| Some((peer.prefix_of(address)?, peer.id)));
        match led.max_by_key(|(prefix, _)| *prefix) {
            Some((_, owner)) => addresses.insert(address, owner),
            None => addresses.remove(&address),
        };
    }
    addresses.retain(|address, _| !own.contains(address));
    addresses.extend(peers.iter().map(|peer| (peer.id.0, peer.id)));
    addresses
}

#[cfg(test)]
mod tests {
    use overlaywatch_core::model::{Encapsulation, IfIndex, Origin, PeerTunnel};

    use super::*;

    fn peer(node: u8, overlay: IpAddr) -> Peer {
        Peer {
            id: PeerId([10, 0, 0, node].into()),
            name: None,
            origin: Origin::File,
            tunnels: vec![PeerTunnel {
                index: IfIndex(3),
                device: "tunl0".to_owned(),
                encapsulation: Encapsulation::Ipip,
                overlay: Some(overlay),
                mac: None,
            }],
            other_addresses: Vec::new(),
            pod_networks: format!("10.42.{node}.0/26").parse().into_iter().collect(),
            departed_since: None,
        }
    }

    #[test]
    fn an_address_of_two_is_the_ones_to_whom_routes_lead() {
        let (led, unled) = ([10, 42, 2, 0].into(), [192, 0, 2, 80].into());
        let who = |overlay, own: &[IpAddr]| {
            addresses_of(&[peer(1, overlay), peer(2, overlay)], own).get(&overlay).copied()
        };
        assert_eq!(who(led, &[]), Some(PeerId([10, 0, 0, 2].into())));
        assert_eq!(who(unled, &[]), None);
        assert_eq!(who(led, &[led]), None, "this node's own");
    }
}

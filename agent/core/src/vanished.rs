//! Routes into tunnels that were there and went: what a table as it is now cannot
//! tell. What is back is forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{IfIndex, RouteKey, RouteKind, RouteTable, Tunnel, VanishedRoute};
use crate::time::{Mono, SECOND};

/// Routes that are remembered: of more than these it is enough to know that there
/// were many.
const MOST: usize = 1_024;
/// What did not come back for this long is not missed any more.
const FORGET_NS: u64 = 600 * SECOND;

/// The memory of routes that went.
#[derive(Debug, Default)]
pub(crate) struct Vanished {
    routes: BTreeMap<RouteKey, (IfIndex, Mono)>,
    told: Arc<Vec<VanishedRoute>>,
}

impl Vanished {
    /// One route is gone.
    pub(crate) fn removed(
        &mut self,
        key: RouteKey,
        table: &RouteTable,
        tunnels: &[Tunnel],
        at: Mono,
    ) {
        let Some(route) = table.0.get(&key) else { return };
        let into = route.next_hop.device.filter(|device| {
            route.kind == RouteKind::Unicast && tunnels.iter().any(|t| t.index == *device)
        });
        if let Some(device) = into
            && self.routes.len() < MOST
        {
            self.routes.insert(key, (device, at));
        }
    }

    /// A new dump took the place of an older one: of routes that a device loses
    /// as it goes down the kernel tells nothing (fib_sync_down_dev,
    /// net/ipv4/fib_semantics.c).
    pub(crate) fn replaced(
        &mut self,
        before: &RouteTable,
        now: &RouteTable,
        tunnels: &[Tunnel],
        at: Mono,
    ) {
        for key in before.0.keys().filter(|key| !now.0.contains_key(key)) {
            self.removed(*key, before, tunnels, at);
        }
    }

    /// What is still gone.
    pub(crate) fn tell(
        &mut self,
        table: Option<&RouteTable>,
        now: Mono,
    ) -> Arc<Vec<VanishedRoute>> {
        if !self.routes.is_empty() {
            self.routes.retain(|key, (_, at)| {
                now.since(*at) < FORGET_NS && table.is_some_and(|all| !all.0.contains_key(key))
            });
        }
        let gone = self.routes.iter().map(|(key, &(device, at))| VanishedRoute {
            destination: key.destination,
            device,
            at,
        });
        if self.told.len() != self.routes.len() || !gone.clone().eq(self.told.iter().copied()) {
            self.told = Arc::new(gone.collect());
        }
        Arc::clone(&self.told)
    }
}

//! Recordings: a snapshot as a file. A bug report is a recording, and a
//! recording is a test.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fact::Fact;
use crate::model::{IfIndex, Peer, Route, RouteKey, RouteTable, table};
use crate::snapshot::Snapshot;

/// The version of this file format.
pub const VERSION: u32 = 1;
/// Routes that a recording holds at most.
const MAX_ROUTES: usize = 4_096;
/// Of those, routes within one network of a peer.
const MAX_WITHIN: usize = 16;

/// A recorded moment, with an earlier one to compare it with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recording {
    /// [`VERSION`].
    pub version: u32,
    /// The earlier observation, a few seconds before.
    pub before: Option<Snapshot>,
    /// The observation.
    pub now: Snapshot,
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or not of this shape.
    #[error("not a recording: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by another version of this program.
    #[error("recording of version {0}, this program reads version {VERSION}")]
    ForeignVersion(u64),
}

impl Recording {
    /// A recording of `now`. Of very many routes only those are kept that
    /// lead into tunnels, to peers, or everywhere.
    #[must_use]
    pub fn new(before: Option<&Snapshot>, now: &Snapshot) -> Self {
        Self { version: VERSION, before: before.map(trimmed), now: trimmed(now) }
    }

    /// As JSON.
    ///
    /// # Errors
    /// When a value cannot be written as JSON, which no snapshot causes.
    pub fn to_json(&self) -> Result<String, RecordError> {
        Ok(serde_json::to_string(self)?)
    }

    /// From JSON.
    ///
    /// # Errors
    /// When the text is not a recording, or of another version.
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let Versioned { version } = serde_json::from_str(text)?;
        if version != u64::from(VERSION) {
            return Err(RecordError::ForeignVersion(version));
        }
        Ok(serde_json::from_str(text)?)
    }
}

fn trimmed(snapshot: &Snapshot) -> Snapshot {
    let mut snapshot = snapshot.clone();
    let Fact::Seen { value: routes, at } = &snapshot.routes else { return snapshot };
    if routes.0.len() <= MAX_ROUTES {
        return snapshot;
    }
    let tunnels: Vec<IfIndex> =
        snapshot.tunnels.seen().map(|t| t.iter().map(|t| t.index).collect()).unwrap_or_default();
    let leads_far = |route: &Route| {
        route.key.destination.prefix_len() == 0
            || route.next_hop.device.is_some_and(|device| tunnels.contains(&device))
    };
    let kept: BTreeMap<RouteKey, Route> = routes
        .0
        .values()
        .filter(|route| leads_far(route))
        .chain(snapshot.peers.iter().flat_map(|peer| about(routes, peer)))
        .take(MAX_ROUTES)
        .map(|route| (route.key, route.clone()))
        .collect();
    snapshot.routes = Fact::Seen { value: Arc::new(RouteTable(kept)), at: *at };
    snapshot
}

/// Routes that decide how a peer is reached: those to its addresses, and those
/// within its networks.
fn about<'a>(routes: &'a RouteTable, peer: &'a Peer) -> impl Iterator<Item = &'a Route> {
    let overlays = peer.tunnels.iter().filter_map(|tunnel| tunnel.overlay);
    let to = std::iter::once(peer.id.0).chain(overlays);
    let within = peer.pod_networks.iter().flat_map(|pods| {
        let first = RouteKey { table: table::MAIN, destination: *pods, metric: 0, tos: 0 };
        routes
            .0
            .range(first..)
            .map(|(_, route)| route)
            .take_while(|route| {
                route.key.table == table::MAIN && pods.contains(&route.key.destination)
            })
            .take(MAX_WITHIN)
    });
    to.filter_map(|address| routes.lookup(table::MAIN, address)).chain(within)
}

/// JSON has only text for keys; maps with structured keys are written as
/// lists of pairs.
pub(crate) mod map_as_pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// The same for a map inside a fact.
pub(crate) mod as_pairs {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::fact::Fact;

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        fact: &Fact<Arc<BTreeMap<K, V>>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let fact: Fact<Vec<(&K, &V)>> = match fact {
            Fact::Seen { value, at } => Fact::Seen { value: value.iter().collect(), at: *at },
            Fact::Absent { at } => Fact::Absent { at: *at },
            Fact::Missing(gap) => Fact::Missing(*gap),
        };
        fact.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, K, V, D>(
        deserializer: D,
    ) -> Result<Fact<Arc<BTreeMap<K, V>>>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(match Fact::<Vec<(K, V)>>::deserialize(deserializer)? {
            Fact::Seen { value, at } => {
                Fact::Seen { value: Arc::new(value.into_iter().collect()), at }
            }
            Fact::Absent { at } => Fact::Absent { at },
            Fact::Missing(gap) => Fact::Missing(gap),
        })
    }
}

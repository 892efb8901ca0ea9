//! Recordings, cut down from the golden cases, and the answers of an agent
//! that sees the same.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use overlaywatch::serve::health::Health;
use overlaywatch_core::diagnose::replay;
use overlaywatch_core::fact::Fact;
use overlaywatch_core::model::RouteTable;
use overlaywatch_core::policy::Policy;
use overlaywatch_core::record::Recording;
use overlaywatch_core::report::NodeReport;
use overlaywatch_core::snapshot::Snapshot;

use crate::{MAX_BYTES, Seeds};

const CASES: [&str; 3] =
    ["healthy-flannel-node-1", "vni-mismatch-flannel-node-1", "underlay-dead-flannel-node-1"];

/// More are no different.
const SOME_ROUTES: usize = 6;

pub(crate) fn write() -> Result<()> {
    let (mut recordings, mut answers) = (Seeds::of("recording")?, Seeds::of("answer")?);
    for case in CASES {
        let now = read(case)?;
        let diagnosis = replay(None, &now, &Policy::default());
        let health = serde_json::to_vec(&Health::new(&now, &diagnosis))?;
        let report = serde_json::to_vec(&NodeReport::new(&now, &diagnosis))?;
        for answer in [health, report].iter().filter(|answer| answer.len() <= MAX_BYTES) {
            answers.add(case, answer)?;
        }
        for (what, part) in parts(&now) {
            let text = Recording::new(None, &part).to_json()?;
            // As of the answers, those that fit: the others hold nothing else.
            if text.len() <= MAX_BYTES {
                recordings.add(&format!("{what}-{case}"), text.as_bytes())?;
            }
        }
    }
    Ok(())
}

fn read(case: &str) -> Result<Snapshot> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("core/tests/cases");
    let path = cases.join(case).join("now.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

/// A whole recording is too large for a seed, so each holds a part of the
/// facts; the others are missing, as they are before a source has spoken.
fn parts(now: &Snapshot) -> [(&'static str, Snapshot); 4] {
    let common = Snapshot {
        now: now.now,
        node: now.node.clone(),
        tunnels: now.tunnels.clone(),
        peers: now.peers.clone(),
        ..Snapshot::default()
    };
    let links =
        Snapshot { links: now.links.clone(), addresses: now.addresses.clone(), ..common.clone() };
    let tables =
        Snapshot { neighbours: now.neighbours.clone(), fdb: now.fdb.clone(), ..common.clone() };
    let few = |routes: &Arc<RouteTable>| {
        let some = routes.0.iter().take(SOME_ROUTES);
        Arc::new(RouteTable(some.map(|(key, route)| (*key, route.clone())).collect()))
    };
    let routes = Snapshot {
        routes: now.routes.seen().map_or_else(Fact::default, |routes| Fact::Seen {
            value: few(routes),
            at: now.now.mono,
        }),
        rules: now.rules.clone(),
        ..common.clone()
    };
    // Both are in order of address: the first pair is with the first peer.
    let pairs = Snapshot {
        peers: Arc::new(now.peers.iter().take(1).cloned().collect()),
        pairs: now.pairs.iter().take(1).map(|(id, pair)| (*id, pair.clone())).collect(),
        ..common
    };
    [("links", links), ("tables", tables), ("routes", routes), ("pairs", pairs)]
}

//! Whether the agents see of a cluster what there is to see.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::report::NodeReport;

use crate::poll;
use crate::topology::{Cluster, Node};

/// The devices of a node whose packets are counted beside its tunnels: its NIC.
const COUNTED_NICS: usize = 1;

/// Whether every agent counts packets on its NIC and its tunnels, or says that it
/// cannot: until then it would not know where a packet was last seen. And whether it
/// probes each peer as the kernel sends to that one's pods, and no other way.
///
/// # Errors
/// When an agent does not answer, or breaks its contract.
pub(crate) fn is_seen_whole(cluster: &Cluster) -> Result<bool> {
    let devices = COUNTED_NICS + cluster.shape.devices(cluster.nodes.len());
    for node in cluster.nodes.iter().filter(|node| node.agent.is_some()) {
        let report: NodeReport = serde_json::from_str(&poll::fetch(node, "/v1/report")?)
            .with_context(|| format!("/v1/report of {} breaks its contract", node.name))?;
        let counted = report.kernel_counts.as_ref().map_or(0, |counts| counts.devices.len());
        let cannot = report.gaps.iter().any(|gap| gap.source == SourceId::Kernel);
        if (counted < devices && !cannot) || !is_probing(cluster, node, &report) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_probing(cluster: &Cluster, node: &Node, report: &NodeReport) -> bool {
    let mut others = cluster.nodes.iter().filter(|other| other.index != node.index);
    others.all(|other| {
        let probed = |address: IpAddr| {
            let peer = report.peers.iter().find(|peer| peer.address.0 == address)?;
            let streams = peer.streams.iter().filter(|stream| stream.minute.answered > 0);
            Some(streams.filter_map(|it| it.stream.encapsulation()).collect::<BTreeSet<_>>())
        };
        let encapsulations = cluster.shape.encapsulations(node, other).into_iter().collect();
        let mut addresses = other.addresses(cluster.shape).into_iter();
        addresses.all(|address| probed(address).as_ref() == Some(&encapsulations))
    })
}

//! A node that reboots: everything of it is away for a while, and comes back with
//! another boot id and counters that begin at zero.

use anyhow::Result;
use overlaywatch_core::catalog::Code;

use super::expected::{
    DELIVERY, INBOUND, LOCAL_STACK, NO_DIRECTION, NO_HOP, OUTBOUND, Subject, counts, says,
    says_itself,
};
use super::ipip::IN_IPIP;
use super::{A, B, C, Fault, LIVE};
use crate::topology::Cluster;
use crate::traffic::{nodes, pods};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "node-reboots",
        about: "one node goes with its links, routes and programs, and comes back from its boot",
        inject: |cluster| {
            cluster.kill_agent(C)?;
            cluster.unwire(C)?;
            cluster.node(C)?.pins.clear()
        },
        heal: |cluster| {
            cluster.rewire(C)?;
            boot(cluster, C)
        },
        breaks: &[pods(A, C), pods(C, B), nodes(A, C)],
        spares: &[pods(A, B), pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::PeerUnreachable, C, NO_DIRECTION, NO_HOP),
            says(B, Code::PeerUnreachable, C, NO_DIRECTION, NO_HOP),
        ],
        unlike: &[Code::PeerDeparted, Code::AgentSilent, Code::RouteMissing, Code::RoutesVanished],
        ..IN_IPIP
    },
    Fault {
        name: "switches-lost-at-reboot",
        about: "one node came back from its boot with the kernel's own switches: it forwards \
                nothing",
        inject: |cluster| {
            cluster.kill_agent(B)?;
            let netns = &cluster.node(B)?.netns;
            netns.set("ipv4/ip_forward", "0")?;
            netns.set("ipv4/conf/all/rp_filter", "0")?;
            boot(cluster, B)
        },
        heal: |cluster| cluster.node(B)?.netns.set("ipv4/ip_forward", "1"),
        breaks: &[pods(A, B), pods(B, C)],
        spares: &[pods(A, C), pods(C, A), nodes(A, B)],
        expected: &[says_itself(B, Code::ForwardingOff, Subject::Node)],
        counted: &[counts(B, A, INBOUND, DELIVERY), counts(B, C, OUTBOUND, LOCAL_STACK)],
        unlike: &[Code::RouteMissing, Code::AgentSilent],
        limits: LIVE,
        ..IN_IPIP
    },
];

/// Starts a node's agent as after a boot: nothing is pinned, and the boot has another
/// name than the machine's.
fn boot(cluster: &mut Cluster, node: usize) -> Result<()> {
    cluster.node(node)?.pins.clear()?;
    cluster.veil(node, BOOT_ID, "6f766572-6c61-4977-a174-636820626f6f\n")?;
    cluster.start_agent(node)
}

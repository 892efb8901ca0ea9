//! Conditions that must raise no network verdict: a healthy overlay, nodes
//! that leave, agents that die, starve or are shut out.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use overlaywatch_core::catalog::Code;

use super::expected::{NO_DIRECTION, NO_HOP, says};
use super::underlay::{middle_passes, set_port};
use super::{A, B, C, Fault, HARD, Limits, PLAIN, Shapes, addresses};
use crate::agent::PORT;
use crate::filter::{self, Drops, Place};
use crate::guest::Worker;
use crate::interrupt;
use crate::topology::Cluster;
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    CHECKED,
    Fault {
        name: "healthy",
        about: "nothing happens for two minutes",
        shapes: Shapes::Each,
        spares: &[pods(A, B), pods(B, C), pods(C, A), nodes(A, B)],
        unlike: &[Code::ForwardingOff, Code::VtepLocalAddressWrong, Code::MtuBlackhole],
        limits: watch(120),
        ..PLAIN
    },
    Fault {
        name: "node-removed",
        about: "one node leaves for good: agent, list and tables at once",
        shapes: Shapes::Each,
        inject: |cluster| {
            cluster.stop_agent(C)?;
            cluster.list_peers(Some(C))?;
            cluster.forget(A, C)?;
            cluster.forget(B, C)
        },
        heal: |cluster| {
            cluster.program(A)?;
            cluster.program(B)?;
            cluster.list_peers(None)?;
            cluster.start_agent(C)
        },
        spares: &[pods(A, B), pods(B, A)],
        unlike: &[Code::PeerDeparted, Code::RouteMissing],
        limits: watch(30),
        ..PLAIN
    },
    Fault {
        name: "node-removed-unlisted",
        about: "one node is deleted, and the others know of peers by the kernel alone",
        shapes: Shapes::Each,
        listed: false,
        inject: |cluster| {
            // While the others still had entries for it, it would be missed.
            cluster.forget(A, C)?;
            cluster.forget(B, C)?;
            cluster.stop_agent(C)?;
            set_port(cluster, C, "down")
        },
        heal: |cluster| {
            set_port(cluster, C, "up")?;
            cluster.program(A)?;
            cluster.program(B)?;
            cluster.start_agent(C)
        },
        spares: &[pods(A, B), pods(B, A)],
        // A note, which changes no status: nobody said that it left on purpose.
        expected: &[
            says(A, Code::PeerDeparted, C, NO_DIRECTION, NO_HOP),
            says(B, Code::PeerDeparted, C, NO_DIRECTION, NO_HOP),
        ],
        limits: Limits { detect: Duration::from_secs(20), ..watch(20) },
        ..PLAIN
    },
    Fault {
        name: "agent-killed",
        about: "one node's agent is killed, its network is fine",
        shapes: Shapes::Each,
        inject: |cluster| cluster.kill_agent(B),
        heal: |cluster| cluster.start_agent(B),
        spares: &[pods(A, B), pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::AgentSilent, B, NO_DIRECTION, NO_HOP),
            says(C, Code::AgentSilent, B, NO_DIRECTION, NO_HOP),
        ],
        unlike: &[Code::PeerUnreachable, Code::ProbePortFiltered],
        // It is not raised before 15 s: a restart is no news.
        limits: Limits { detect: Duration::from_secs(30), ..HARD },
        ..PLAIN
    },
    Fault {
        name: "prober-starved",
        about: "one node's agent gets the CPU for a fifth of the time, and once for 3 s not at all",
        shapes: Shapes::Each,
        inject: starve,
        spares: &[pods(A, B), pods(B, A)],
        unlike: &[Code::EncapsulationLost, Code::OverlayLoss],
        limits: watch(15),
        ..PLAIN
    },
    Fault {
        name: "probe-port-filtered",
        about: "a firewall between two nodes drops the probes' own port, nothing else",
        shapes: Shapes::Each,
        inject: |cluster| {
            let (a, b) = addresses(cluster, A, B)?;
            let drops = [(a, b), (b, a)].map(|(from, to)| {
                let between = Drops { from: Some(from), to: Some(to), ..Drops::default() };
                [
                    Drops { udp_to: Some(PORT), ..between.clone() },
                    Drops { udp_from: Some(PORT), ..between },
                ]
            });
            filter::drop(&cluster.switch, Place::Middle, drops.as_flattened())
        },
        heal: middle_passes,
        spares: &[pods(A, B), pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::ProbePortFiltered, B, NO_DIRECTION, NO_HOP),
            says(B, Code::ProbePortFiltered, A, NO_DIRECTION, NO_HOP),
        ],
        unlike: &[Code::AgentSilent, Code::PeerUnreachable],
        limits: Limits { detect: Duration::from_secs(20), ..HARD },
        ..PLAIN
    },
    Fault {
        name: "udp-to-closed-port",
        about: "a node sends to ports of another that nobody has open, in the tunnel and beside it",
        shapes: Shapes::Each,
        inject: |cluster| {
            let to = cluster.node(A)?;
            let to = vec![to.overlay(), to.underlay()];
            let sender = Worker::send(&cluster.node(B)?.netns, to, 16)?;
            cluster.guests.push(Box::new(sender));
            Ok(())
        },
        heal: |cluster| {
            cluster.guests.clear();
            Ok(())
        },
        // Not between the two: nearly all of their traffic is to be dropped.
        spares: &[pods(A, C), pods(C, A)],
        unlike: &[Code::UnexplainedLoss, Code::LocalOutputDrop, Code::ForwardPolicyDrop],
        limits: watch(30),
        ..PLAIN
    },
    Fault {
        name: "agents-restarted",
        about: "all agents are restarted, one after the other",
        shapes: Shapes::Each,
        inject: |cluster| {
            for node in 0..cluster.nodes.len() {
                cluster.stop_agent(node)?;
                cluster.start_agent(node)?;
                interrupt::sleep(Duration::from_secs(2))?;
            }
            Ok(())
        },
        spares: &[pods(A, B), pods(B, A)],
        limits: watch(30),
        ..PLAIN
    },
];

/// An operator asks twice beside the running agents, and is told that all is well.
const CHECKED: Fault = Fault {
    name: "check-beside-agent",
    about: "an operator runs the one-shot check beside a running agent, twice",
    shapes: Shapes::Each,
    inject: |cluster| {
        cluster.check(A)?;
        cluster.check(A)
    },
    spares: &[pods(A, B), pods(B, A)],
    unlike: &[Code::AgentSilent],
    limits: watch(20),
    ..PLAIN
};

/// Nothing is expected: watch for that long.
pub(super) const fn watch(seconds: u64) -> Limits {
    Limits { settle: Duration::from_secs(seconds), ..HARD }
}

/// What a node's agent gets from a host that is far too busy.
fn starve(cluster: &mut Cluster) -> Result<()> {
    for round in 0..15 {
        let asleep = if round == 7 { 3_000 } else { 800 };
        signal(cluster, Signal::SIGSTOP)?;
        let slept = interrupt::sleep(Duration::from_millis(asleep));
        // Woken up again even when the lab is told to end.
        signal(cluster, Signal::SIGCONT)?;
        slept?;
        interrupt::sleep(Duration::from_millis(200))?;
    }
    Ok(())
}

fn signal(cluster: &Cluster, signal: Signal) -> Result<()> {
    match &cluster.node(A)?.agent {
        Some(agent) => agent.signal(signal),
        None => Ok(()),
    }
}

//! Faults as values: how to make one, how to undo it, what it really breaks,
//! and what the agents must say of it. One file per family.

mod cloud;
mod cni;
mod combined;
mod conntrack;
mod expected;
mod firewall;
mod host;
mod inner;
mod ipip;
mod ipset;
mod machine;
mod netem;
mod netfilter;
mod policies;
mod preflight;
mod programs;
mod quiet;
mod reboot;
mod routing;
mod sessions;
mod shapes;
mod tables;
mod tunnel;
mod underlay;
mod v6;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use overlaywatch_core::catalog::Code;

pub use expected::{Expected, Subject};

use crate::judge::Wanted;
use crate::mode::Mode;
use crate::need::Need;
use crate::topology::{Cluster, Shape};
use crate::traffic::Path;

/// The first node: as a rule the one that sends.
const A: usize = 0;
/// The second node: as a rule the one that receives.
const B: usize = 1;
/// The third node: as a rule the bystander.
const C: usize = 2;
/// The fourth node, where two faults need a pair each.
const D: usize = 3;

/// A fault, or a condition that looks like one and is none.
#[derive(Debug)]
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is done, in a few words.
    pub about: &'static str,
    /// The row of the incident that this product was made for, if it is one
    /// of those.
    pub incident: Option<u8>,
    /// The shapes that it is tried in.
    pub shapes: Shapes,
    /// What it needs of the machine beyond what its shape does.
    pub needs: &'static [Need],
    /// Nodes of the cluster that it is tried on.
    pub nodes: usize,
    /// The agents have their eBPF programs; without, they count no hop and no drop.
    pub ebpf: bool,
    /// The agents are given a list of peers; without one they learn them from
    /// the kernel.
    pub listed: bool,
    /// Makes it.
    pub inject: fn(&mut Cluster) -> Result<()>,
    /// Undoes it.
    pub heal: fn(&mut Cluster) -> Result<()>,
    /// Live traffic that it breaks.
    pub breaks: &'static [Path],
    /// How much of that traffic is lost.
    pub loss: Loss,
    /// Live traffic that it leaves alone.
    pub spares: &'static [Path],
    /// What each node must say; whatever else any node says is wrong.
    pub expected: &'static [Expected],
    /// What else each node counts of it: said when no rule names the cause,
    /// else a consequence. What is here of a node and its peer stands for what
    /// is in `expected` of the two.
    pub counted: &'static [Expected],
    /// Codes that it looks like and is not; nobody may say them, not even as
    /// a consequence.
    pub unlike: &'static [Code],
    /// How long to wait for what.
    pub limits: Limits,
}

/// The shapes that a fault is tried in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shapes {
    /// Each usual one, whatever its encapsulation.
    Each,
    /// Each usual one that has VXLAN alone.
    Vxlan,
    /// This one.
    Only(Shape),
    /// These, the first before the others.
    These(&'static [Shape]),
}

impl Shapes {
    /// Whether a shape is among them.
    #[must_use]
    pub fn have(self, shape: Shape) -> bool {
        match self {
            Self::Each => shape.is_usual(),
            Self::Vxlan => shape.is_vxlan() && shape.is_usual(),
            Self::Only(only) => shape == only,
            Self::These(these) => these.contains(&shape),
        }
    }

    /// This shape, or the first of those where it is none of them.
    #[must_use]
    pub fn or_first(self, shape: Shape) -> Shape {
        match self {
            Self::Each | Self::Vxlan => shape,
            Self::Only(only) => only,
            Self::These(these) if these.contains(&shape) => shape,
            Self::These(these) => these.first().copied().unwrap_or(shape),
        }
    }
}

/// How much traffic a fault loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it, while the fault is there.
    Total,
    /// Part of it.
    Partial,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first lost packet until the last expected finding.
    pub detect: Duration,
    /// Watched after that for what should not be there.
    pub settle: Duration,
    /// From the heal until every node passes again.
    pub clear: Duration,
}

/// A fault that loses everything on a path.
const HARD: Limits = Limits {
    detect: Duration::from_secs(8),
    settle: Duration::from_secs(6),
    clear: Duration::from_secs(60),
};
/// A fault that no probe meets: how much of the live traffic is dropped is told
/// of the last ten seconds.
const LIVE: Limits = Limits { detect: Duration::from_secs(15), ..HARD };
/// A fault that loses one packet in ten: its test is sequential, and so is its all-clear.
const GRAY: Limits = Limits {
    detect: Duration::from_secs(120),
    settle: Duration::from_secs(6),
    clear: Duration::from_secs(150),
};

/// What most faults have in common.
const PLAIN: Fault = Fault {
    name: "",
    about: "",
    incident: None,
    shapes: Shapes::Vxlan,
    needs: &[],
    nodes: 3,
    ebpf: true,
    listed: true,
    inject: |_| Ok(()),
    heal: |_| Ok(()),
    breaks: &[],
    loss: Loss::Total,
    spares: &[],
    expected: &[],
    counted: &[],
    unlike: &[],
    limits: HARD,
};

/// All faults, family by family.
pub fn all() -> impl Iterator<Item = &'static Fault> {
    [
        underlay::FAULTS,
        ipip::FAULTS,
        firewall::FAULTS,
        programs::FAULTS,
        netfilter::FAULTS,
        policies::FAULTS,
        inner::FAULTS,
        tunnel::FAULTS,
        tables::FAULTS,
        host::FAULTS,
        routing::FAULTS,
        cloud::FAULTS,
        cni::FAULTS,
        conntrack::FAULTS,
        machine::FAULTS,
        netem::FAULTS,
        reboot::FAULTS,
        sessions::FAULTS,
        ipset::FAULTS,
        preflight::FAULTS,
        quiet::FAULTS,
        shapes::FAULTS,
        combined::FAULTS,
        v6::FAULTS,
    ]
    .into_iter()
    .flatten()
}

/// The pattern that stands for all rows of the incident.
const INCIDENT: &str = "incident";

/// The faults whose name is `pattern`, else those whose name contains it; for
/// "incident", those that reproduce a row of it, too. Several patterns stand
/// with commas between them.
#[must_use]
pub fn matching(pattern: &str) -> Vec<&'static Fault> {
    let fits = |fault: &Fault, pattern: &str| match named(pattern) {
        Some(named) => named.name == fault.name,
        None => fault.name.contains(pattern) || (pattern == INCIDENT && fault.incident.is_some()),
    };
    all().filter(|fault| pattern.split(',').any(|pattern| fits(fault, pattern))).collect()
}

/// The fault of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Fault> {
    all().find(|fault| fault.name == name)
}

impl Fault {
    /// Whether it is tried in a shape.
    #[must_use]
    pub fn fits(&self, shape: Shape) -> bool {
        self.shapes.have(shape)
    }

    /// Fails unless this machine has what it needs beyond its shape.
    ///
    /// # Errors
    /// Says what the machine lacks, and what to do.
    pub fn ensure_possible(&self) -> Result<()> {
        self.needs.iter().try_for_each(|need| need.ensure_met())
    }

    /// What nodes must say in this mode, and what they may.
    #[must_use]
    pub fn said(&self, mode: Mode) -> Vec<Expected> {
        match mode {
            Mode::Rules => self.expected.to_vec(),
            Mode::NoRules => {
                let mut said = self.counted.to_vec();
                for expected in self.expected {
                    if matches!(expected.subject, Subject::Peer(_) | Subject::PeerV6(_)) {
                        if !said.iter().any(|known| known.is_of_pair_of(expected)) {
                            // What it tells is of the cause.
                            said.push(Expected { code: None, tells: &[], ..*expected });
                        }
                    } else {
                        said.push(*expected);
                    }
                }
                said
            }
        }
    }

    /// What the judge has to look for, in this cluster's addresses.
    ///
    /// # Errors
    /// When the cluster has fewer nodes than the fault needs.
    pub fn wanted(&self, cluster: &Cluster) -> Result<Vec<Wanted>> {
        self.expected.iter().map(|expected| expected.wanted(cluster)).collect()
    }
}

/// Underlay addresses of two nodes.
fn addresses(cluster: &Cluster, a: usize, b: usize) -> Result<(Ipv4Addr, Ipv4Addr)> {
    Ok((cluster.node(a)?.underlay(), cluster.node(b)?.underlay()))
}

/// Runs `ip` on a node.
fn ip(cluster: &Cluster, node: usize, line: &str) -> Result<()> {
    cluster.node(node)?.netns.ip(&format!("{line}\n")).context("the fault could not be made")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use overlaywatch_core::catalog::CATALOG;

    use super::*;
    use crate::topology::SIZES;

    #[test]
    fn names_are_unique_and_found() {
        let names: BTreeSet<&str> = all().map(|fault| fault.name).collect();
        assert_eq!(names.len(), all().count());
        assert_eq!(matching("fdb-missing").len(), 1);
        assert!(matching("mismatch").len() >= 2);
        assert_eq!(matching("fdb-missing,gray-loss").len(), 2);
        assert!(matching("no such fault").is_empty());
        assert!(matching("incident").iter().all(|fault| fault.incident.is_some()));
    }

    #[test]
    fn every_fault_fits_its_cluster() {
        for fault in all() {
            assert!(SIZES.contains(&fault.nodes), "{}", fault.name);
            for expected in fault.expected.iter().chain(fault.counted) {
                let peer = match expected.subject {
                    Subject::Peer(peer) | Subject::PeerV6(peer) => peer,
                    Subject::Node
                    | Subject::Uplink
                    | Subject::Tunnel
                    | Subject::Device(_)
                    | Subject::Thing(..) => expected.node,
                };
                assert!(expected.node < fault.nodes && peer < fault.nodes, "{}", fault.name);
            }
        }
    }

    #[test]
    fn what_breaks_traffic_is_reported() {
        for fault in all() {
            assert!(
                fault.breaks.is_empty() || !fault.expected.is_empty(),
                "{} breaks traffic and nobody need say so",
                fault.name
            );
        }
    }

    #[test]
    fn all_that_is_lost_has_its_hop_without_the_rules() {
        // Where nothing answers nobody can tell.
        let silent = |fault: &Fault| {
            let unreachable = |e: &Expected| e.code == Some(Code::PeerUnreachable);
            fault.expected.iter().any(unreachable)
        };
        for fault in all().filter(|fault| !fault.breaks.is_empty() && !silent(fault)) {
            let said = fault.said(Mode::NoRules);
            let demanded: Vec<_> = said.iter().filter(|e| e.is_demanded(Mode::NoRules)).collect();
            assert!(!demanded.is_empty(), "{}", fault.name);
            assert!(
                demanded.iter().all(|e| e.code.is_none() && e.hops.len() == 1),
                "{}",
                fault.name
            );
        }
    }

    #[test]
    fn what_is_counted_stands_for_what_is_expected_of_a_pair() {
        let fault = named("two-faults-one-pair").unwrap();
        let of_a: Vec<_> =
            fault.said(Mode::NoRules).into_iter().filter(|said| said.node == A).collect();
        assert_eq!(of_a.len(), 1);
        assert_eq!(of_a[0].hops, expected::WIRE);
    }

    #[test]
    fn every_code_is_raised_by_a_fault_and_denied_by_another() {
        for entry in CATALOG {
            let raised = |fault: &Fault| fault.expected.iter().any(|e| e.code == Some(entry.code));
            assert!(all().any(raised), "nothing raises {}", entry.slug);
            let denied = |fault: &Fault| fault.unlike.contains(&entry.code);
            assert!(all().any(denied), "nothing looks like {} and is not", entry.slug);
        }
    }
}

//! What nodes must say of a fault: findings, with their place on the ladder.

use std::fmt;

use anyhow::Result;
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::{Direction, Thing};
use overlaywatch_core::ladder::{Hop, Segment};

use crate::judge::{About, Wanted};
use crate::mode::Mode;
use crate::topology::Cluster;

/// One finding that one node must show.
///
/// Several directions or hops stand for "one of these": where chance or time
/// decides which is seen first.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Who says it.
    pub node: usize,
    /// What; none for any finding whose direction and hop are right.
    pub code: Option<Code>,
    /// About what.
    pub subject: Subject,
    /// Which way, as seen from that node; none where it is no question.
    pub directions: &'static [Direction],
    /// Where packets vanish; none where it is no question.
    pub hops: &'static [Segment],
    /// Direction and hop may be missing, as long as nobody can count them.
    pub or_unplaced: bool,
    /// What its evidence must name.
    pub tells: &'static [&'static str],
}

/// What a finding is about, as seen from the node that shows it.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// The node itself.
    Node,
    /// Its NIC.
    Uplink,
    /// Its tunnel device.
    Tunnel,
    /// A device by its name.
    Device(&'static str),
    /// Something else that it has, with its name.
    Thing(Thing, &'static str),
    /// Its traffic with another node.
    Peer(usize),
    /// Its traffic with another node over IPv6, where both have IPv4 as well.
    PeerV6(usize),
}

pub(super) const OUTBOUND: &[Direction] = &[Direction::Outbound];
pub(super) const INBOUND: &[Direction] = &[Direction::Inbound];
/// At least out.
pub(super) const OUT_OR_BOTH: &[Direction] = &[Direction::Outbound, Direction::Both];
pub(super) const BOTH: &[Direction] = &[Direction::Both];
/// Whichever way the first random losses went.
pub(super) const EITHER: &[Direction] = &[Direction::Outbound, Direction::Inbound, Direction::Both];
pub(super) const NO_DIRECTION: &[Direction] = &[];
pub(super) const NO_HOP: &[Segment] = &[];

const fn between(from: Hop, to: Hop) -> Segment {
    Segment { from, to }
}

/// Somewhere, where nobody counts.
pub(super) const WHOLE_WAY: &[Segment] = &[between(Hop::Sent, Hop::Delivered)];
/// It never came to the tunnel device.
pub(super) const LOCAL_STACK: &[Segment] = &[between(Hop::Sent, Hop::Encapsulated)];
/// It went into the tunnel device, and no outer packet left the NIC.
pub(super) const ENCAPSULATION: &[Segment] = &[between(Hop::Encapsulated, Hop::LeftNic)];
/// It left one NIC and did not reach the other, whose node it may not have been meant for.
pub(super) const WIRE: &[Segment] = &[between(Hop::LeftNic, Hop::ReachedNic)];
/// The outer packet reached the NIC, and nothing came out of the tunnel device.
pub(super) const DECAPSULATION: &[Segment] = &[between(Hop::ReachedNic, Hop::Decapsulated)];
/// It came out of the tunnel device and was not delivered.
pub(super) const DELIVERY: &[Segment] = &[between(Hop::Decapsulated, Hop::Delivered)];
/// Without a tunnel: the NIC took it, and it was not delivered.
pub(super) const RECEIPT: &[Segment] = &[between(Hop::ReachedNic, Hop::Delivered)];
/// The NIC took it, and nobody after it, with a tunnel or without.
pub(super) const ARRIVAL: &[Segment] =
    &[between(Hop::ReachedNic, Hop::Decapsulated), between(Hop::ReachedNic, Hop::Delivered)];
/// Without a tunnel: it never left the NIC.
pub(super) const SENDING: &[Segment] = &[between(Hop::Sent, Hop::LeftNic)];

/// A finding about a peer.
pub(super) const fn says(
    node: usize,
    code: Code,
    peer: usize,
    directions: &'static [Direction],
    hops: &'static [Segment],
) -> Expected {
    Expected { code: Some(code), ..counts(node, peer, directions, hops) }
}

/// A finding about the node or one of its devices.
pub(super) const fn says_itself(node: usize, code: Code, subject: Subject) -> Expected {
    Expected { code: Some(code), subject, ..may_speak_of_itself(node) }
}

/// What the peer sends through the tunnel vanishes on one of the two nodes, and
/// this node, as the victim, knows no more than where. (What vanishes on the
/// wire between them is lost encapsulation on both.)
pub(super) const fn misses(node: usize, peer: usize, hops: &'static [Segment]) -> Expected {
    says(node, Code::UnexplainedLoss, peer, INBOUND, hops)
}

/// Nothing of a peer answers. Once its neighbour entry has expired, which takes the
/// kernel 20 to 50 seconds, packets to it do not even leave.
pub(super) const fn cannot_reach(node: usize, peer: usize) -> Expected {
    let placed = says(node, Code::PeerUnreachable, peer, OUTBOUND, SENDING);
    Expected { or_unplaced: true, ..placed }
}

/// A loss that a node counts, whatever it calls it.
pub(super) const fn counts(
    node: usize,
    peer: usize,
    directions: &'static [Direction],
    hops: &'static [Segment],
) -> Expected {
    let subject = Subject::Peer(peer);
    Expected { node, code: None, subject, directions, hops, or_unplaced: false, tells: &[] }
}

/// A node may speak of a peer, and need not.
pub(super) const fn may_speak(node: usize, peer: usize) -> Expected {
    counts(node, peer, NO_DIRECTION, NO_HOP)
}

/// A node may speak of itself, and need not.
pub(super) const fn may_speak_of_itself(node: usize) -> Expected {
    Expected { subject: Subject::Node, ..counts(node, node, NO_DIRECTION, NO_HOP) }
}

impl Expected {
    /// The same of the peer's IPv6 alone, where both have IPv4 as well.
    pub(super) const fn over_ipv6(self) -> Self {
        match self.subject {
            Subject::Peer(peer) => Self { subject: Subject::PeerV6(peer), ..self },
            _ => self,
        }
    }

    /// The same, whose evidence names all of `tells`.
    pub(super) const fn telling(self, tells: &'static [&'static str]) -> Self {
        Self { tells, ..self }
    }

    /// The same, which says which way packets go and where they vanish.
    pub(super) const fn going(
        self,
        directions: &'static [Direction],
        hops: &'static [Segment],
    ) -> Self {
        Self { directions, hops, ..self }
    }

    /// Whether it is the same node's word about the same peer.
    pub(super) fn is_of_pair_of(&self, other: &Self) -> bool {
        let peer = |subject| match subject {
            Subject::Peer(peer) | Subject::PeerV6(peer) => Some(peer),
            Subject::Node
            | Subject::Uplink
            | Subject::Tunnel
            | Subject::Device(_)
            | Subject::Thing(..) => None,
        };
        self.node == other.node
            && peer(self.subject).is_some_and(|it| Some(it) == peer(other.subject))
    }

    /// Whether it must be said; else it may be.
    #[must_use]
    pub fn is_demanded(&self, mode: Mode) -> bool {
        match mode {
            Mode::Rules => true,
            Mode::NoRules => {
                matches!(self.subject, Subject::Peer(_) | Subject::PeerV6(_))
                    && !self.hops.is_empty()
                    && !self.or_unplaced
            }
        }
    }

    /// What the judge has to look for, in this cluster's addresses.
    ///
    /// # Errors
    /// When the cluster has fewer nodes than the fault needs.
    pub fn wanted(&self, cluster: &Cluster) -> Result<Wanted> {
        let about = match self.subject {
            Subject::Node => About::Node,
            Subject::Uplink => About::Device("eth0".to_owned()),
            Subject::Tunnel => About::Device(cluster.shape.device().to_owned()),
            Subject::Device(name) => About::Device(name.to_owned()),
            Subject::Thing(what, name) => About::Thing(what.slug().to_owned(), name.to_owned()),
            Subject::Peer(peer) => About::Peer(cluster.node(peer)?.address(cluster.shape)),
            Subject::PeerV6(peer) => About::Peer(cluster.node(peer)?.underlay_v6().into()),
        };
        Ok(Wanted {
            node: self.node,
            code: self.code,
            about,
            directions: self.directions.to_vec(),
            hops: self.hops.to_vec(),
            or_unplaced: self.or_unplaced,
            tells: self.tells.to_vec(),
        })
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.code.map_or("a loss", Code::slug);
        write!(f, "node-{} says {what}", self.node + 1)?;
        match self.subject {
            Subject::Node => Ok(()),
            Subject::Uplink => f.write_str(" of its NIC"),
            Subject::Tunnel => f.write_str(" of its tunnel device"),
            Subject::Device(name) => write!(f, " of {name}"),
            Subject::Thing(what, name) => write!(f, " of {} {name}", what.slug()),
            Subject::Peer(peer) => write!(f, " of node-{}", peer + 1),
            Subject::PeerV6(peer) => write!(f, " of node-{} over IPv6", peer + 1),
        }?;
        if !self.directions.is_empty() {
            let directions: Vec<_> = self.directions.iter().map(|d| d.slug()).collect();
            write!(f, ", {}", directions.join(" or "))?;
        }
        if !self.hops.is_empty() {
            let hops: Vec<_> = self.hops.iter().map(|h| format!("{}→{}", h.from, h.to)).collect();
            write!(f, ", {}", hops.join(" or "))?;
        }
        Ok(())
    }
}

//! From facts to findings: one file per family, and no rule knows another.
//! What is a consequence of what is said in the catalog, not here.

mod host;
mod neighbour;
mod probe;
mod route;
mod tunnel;

use std::net::IpAddr;

use crate::catalog::Code;
use crate::delta::Delta;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::ladder::{Hop, Segment};
use crate::model::{IfIndex, Peer, PeerId, PeerTunnel, Route, RouteTable, Tunnel, table};
use crate::pairs::{PairView, StreamView};
use crate::policy::Policy;
use crate::probing::Stream;
use crate::snapshot::Snapshot;
use crate::time::{Mono, SECOND};

/// An answer this young proves that something works now.
const FRESH_NS: u64 = 5 * SECOND;
/// What a peer said of itself is relied on for this long.
const STATUS_FRESH_NS: u64 = 20 * SECOND;

/// What the rules say of one observation.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// What was found.
    pub findings: Vec<Finding>,
    /// Codes that could not be judged because a fact is missing: what was
    /// found of them before stays in force.
    pub blind: Vec<Code>,
}

/// What every rule is given.
struct Context<'a> {
    delta: Delta<'a>,
    now: &'a Snapshot,
}

/// Runs all rules.
#[must_use]
pub fn run(delta: Delta<'_>, _policy: &Policy) -> Verdicts {
    let context = Context { delta, now: delta.now };
    let mut verdicts = Verdicts::default();
    host::judge(&context, &mut verdicts);
    tunnel::judge(&context, &mut verdicts);
    neighbour::judge(&context, &mut verdicts);
    route::judge(&context, &mut verdicts);
    probe::judge(&context, &mut verdicts);
    verdicts
}

impl Verdicts {
    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    fn blind(&mut self, codes: &[Code]) {
        self.blind.extend_from_slice(codes);
    }
}

impl Context<'_> {
    fn at(&self) -> Mono {
        self.now.now.mono
    }

    fn device_name(&self, index: IfIndex) -> String {
        self.now
            .links
            .seen()
            .and_then(|links| links.get(&index))
            .map_or_else(|| format!("ifindex {}", index.0), |link| link.name.clone())
    }

    fn pair(&self, peer: &Peer) -> Option<&PairView> {
        self.now.pairs.get(&peer.id).map(AsRef::as_ref)
    }

    fn is_peer(&self, id: PeerId) -> bool {
        self.now.peers.binary_search_by_key(&id, |peer| peer.id).is_ok()
    }

    /// The stream, if a probe of it was ever sent.
    fn stream(&self, peer: &Peer, stream: Stream) -> Option<&StreamView> {
        self.pair(peer)?.streams.get(&stream)
    }

    fn answered_lately(&self, view: &StreamView) -> bool {
        view.last_answer.is_some_and(|at| self.at().since(at) <= FRESH_NS)
    }

    /// Whether the peer's agent answered over the underlay within the last seconds.
    fn is_alive(&self, peer: &Peer) -> bool {
        self.stream(peer, Stream::Underlay).is_some_and(|view| self.answered_lately(view))
    }

    /// Every peer that is part of the cluster with each tunnel that leads to
    /// it, where the tunnel device is there.
    fn tunnelled_peers(&self) -> impl Iterator<Item = (&Peer, &PeerTunnel, &Tunnel)> {
        let tunnels = self.now.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
        self.now.peers.iter().flat_map(move |peer| {
            peer.tunnels.iter().filter_map(move |leads| {
                let tunnel = tunnels.iter().find(|tunnel| tunnel.index == leads.index)?;
                Some((peer, leads, tunnel))
            })
        })
    }
}

/// The route that the main path of the kernel's lookup takes for `address`:
/// the tables that unconditional policy rules name, in their order.
fn lookup<'a>(now: &Snapshot, routes: &'a RouteTable, address: IpAddr) -> Option<&'a Route> {
    let named: Vec<u32> = now.rules.seen().map_or_else(Vec::new, |rules| {
        rules
            .iter()
            .filter(|rule| rule.v6 == address.is_ipv6())
            .filter(|rule| rule.from.is_none() && rule.mark.is_none())
            .filter(|rule| rule.to.is_none_or(|to| to.contains(&address)))
            .filter_map(|rule| rule.table)
            .collect()
    });
    let tables = if named.is_empty() { vec![table::LOCAL, table::MAIN] } else { named };
    tables.into_iter().find_map(|table| routes.lookup(table, address))
}

/// A finding that the kernel's own state proves: traffic to the peer dies on
/// this node before it is encapsulated.
fn before_encapsulation(
    code: Code,
    peer: &Peer,
    leads: &PeerTunnel,
    evidence: Vec<Evidence>,
) -> Finding {
    Finding {
        code,
        subject: Subject::Pair { peer: peer.id, encapsulation: Some(leads.encapsulation) },
        direction: Some(Direction::Outbound),
        hop: Some(Segment { from: Hop::Sent, to: Hop::Encapsulated }),
        evidence,
        confidence: Confidence::Certain,
    }
}

//! From facts to findings: one file per family, and no rule knows another.
//! What is a consequence of what is said in the catalog, not here.

mod answers;
mod checksum;
mod cni;
mod conntrack;
mod duplicate;
mod host;
mod ipset;
mod kernel;
mod leftover;
mod limits;
mod live;
mod neighbour;
mod netfilter;
mod pods;
mod policies;
mod probe;
mod route;
mod sessions;
mod stack;
mod traffic;
mod tunnel;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::catalog::Code;
use crate::delta::Delta;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::kernel::DropSite;
use crate::ladder::{Hop, Segment};
use crate::model::{
    FdbEntry, FdbKey, IfIndex, Neighbour, Peer, PeerId, PeerTunnel, PolicyRule, Route, RouteDigest,
    RouteTable, Tunnel, table,
};
use crate::pairs::{PairView, StreamView};
use crate::peers::counterpart;
use crate::policy::Policy;
use crate::probing::{Stream, TunnelAdvert};
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
    /// The routes in few words; none while they are missing.
    digest: Option<Arc<RouteDigest>>,
}

/// Tables in which the rules found nothing: while they are the very same, there
/// is nothing to be found in them again.
#[derive(Debug, Default)]
pub struct Memo {
    clean: Option<Tables>,
    digest: Option<Digested>,
}

/// The last digest of the routes, and what it was made of.
#[derive(Debug)]
struct Digested {
    routes: Arc<RouteTable>,
    pods: Option<IpNet>,
    digest: Arc<RouteDigest>,
}

impl Memo {
    fn digest(&mut self, now: &Snapshot) -> Option<Arc<RouteDigest>> {
        let routes = now.routes.seen()?;
        let pods = now.cni.seen().and_then(|cni| cni.flannel.as_ref()?.network);
        let is_known = |known: &&Digested| Arc::ptr_eq(&known.routes, routes) && known.pods == pods;
        if let Some(known) = self.digest.as_ref().filter(is_known) {
            return Some(Arc::clone(&known.digest));
        }
        let digest = Arc::new(RouteDigest::of(routes, pods));
        let routes = Arc::clone(routes);
        self.digest = Some(Digested { routes, pods, digest: Arc::clone(&digest) });
        Some(digest)
    }
}

/// What the rules on tables look at.
#[derive(Debug)]
struct Tables {
    tunnels: Arc<Vec<Tunnel>>,
    peers: Arc<Vec<Peer>>,
    routes: Arc<RouteTable>,
    rules: Arc<Vec<PolicyRule>>,
    neighbours: Arc<BTreeMap<(IfIndex, IpAddr), Neighbour>>,
    fdb: Arc<BTreeMap<FdbKey, FdbEntry>>,
}

impl Tables {
    /// All of them; none while one is missing.
    fn of(snapshot: &Snapshot) -> Option<Self> {
        Some(Self {
            tunnels: Arc::clone(snapshot.tunnels.seen()?),
            peers: Arc::clone(&snapshot.peers),
            routes: Arc::clone(snapshot.routes.seen()?),
            rules: Arc::clone(snapshot.rules.seen()?),
            neighbours: Arc::clone(snapshot.neighbours.seen()?),
            fdb: Arc::clone(snapshot.fdb.seen()?),
        })
    }

    fn are_the_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tunnels, &other.tunnels)
            && Arc::ptr_eq(&self.peers, &other.peers)
            && Arc::ptr_eq(&self.routes, &other.routes)
            && Arc::ptr_eq(&self.rules, &other.rules)
            && Arc::ptr_eq(&self.neighbours, &other.neighbours)
            && Arc::ptr_eq(&self.fdb, &other.fdb)
    }
}

/// Runs all rules; what the policy silences is as if it were not there.
#[must_use]
pub fn run(delta: Delta<'_>, policy: &Policy, memo: &mut Memo) -> Verdicts {
    let context = Context { delta, now: delta.now, digest: memo.digest(delta.now) };
    let mut verdicts = Verdicts::default();
    if !policy.counted_only {
        on_tables(&context, memo, &mut verdicts);
        answers::judge(&context, &mut verdicts);
        host::judge(&context, &mut verdicts);
        stack::judge(&context, &mut verdicts);
        tunnel::judge(&context, &mut verdicts);
        duplicate::judge(&context, &mut verdicts);
        kernel::refusals(&context, &mut verdicts);
        cni::judge(&context, &mut verdicts);
        pods::judge(&context, &mut verdicts);
        leftover::judge(&context, &mut verdicts);
        traffic::judge(&context, &mut verdicts);
        checksum::judge(&context, &mut verdicts);
        limits::judge(&context, &mut verdicts);
        conntrack::judge(&context, &mut verdicts);
        sessions::judge(&context, &mut verdicts);
        ipset::judge(&context, &mut verdicts);
        netfilter::judge(&context, &mut verdicts);
        policies::judge(&context, &mut verdicts);
    }
    probe::judge(&context, &mut verdicts);
    kernel::judge(&context, &mut verdicts);
    kernel::testify(&context, &mut verdicts);
    stack::testify(&context, &mut verdicts);
    traffic::testify(&context, &mut verdicts);
    leftover::excuse(&context, &mut verdicts);
    verdicts.findings.retain(|finding| !policy.silenced.contains(&finding.code));
    verdicts
}

/// The rules that go through the kernel's tables peer by peer.
fn on_tables(context: &Context<'_>, memo: &mut Memo, verdicts: &mut Verdicts) {
    let tables = Tables::of(context.now);
    if let (Some(clean), Some(tables)) = (&memo.clean, &tables)
        && clean.are_the_same(tables)
    {
        return;
    }
    neighbour::judge(context, verdicts);
    route::judge(context, verdicts);
    // Of departed peers time decides, too.
    let is_clean = verdicts.findings.is_empty()
        && verdicts.blind.is_empty()
        && !context.now.peers.iter().any(Peer::has_departed);
    memo.clean = tables.filter(|_| is_clean);
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

    /// Whether a device is one below the tunnels.
    fn is_underlay(&self, name: &str) -> bool {
        let Some(links) = self.now.links.seen() else { return false };
        let mut below = self.now.underlays.iter().filter_map(|index| links.get(index));
        below.any(|link| link.name == name)
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

    /// Whether what the peer said of itself is of now.
    fn is_told_lately(&self, pair: &PairView) -> bool {
        pair.status.as_ref().is_some_and(|(heard, _)| self.at().since(*heard) <= FRESH_NS)
    }

    /// Requests of a stream to a peer, and their replies, that this node's kernel
    /// dropped lately: where and why, whether they were replies, how many.
    fn dropped_here(
        &self,
        peer: PeerId,
        stream: Stream,
    ) -> impl Iterator<Item = (&DropSite, bool, u64)> {
        let drops = self.now.kernel.seen().into_iter().flat_map(|counts| &counts.drops);
        drops.filter(move |drop| drop.peer == Some(peer) && drop.lately > 0).filter_map(
            move |drop| match drop.probe {
                // The peer's own stream of the same kind goes the other way.
                Some((of, is_reply)) if of == stream && drop.outbound != is_reply => {
                    Some((&drop.site, is_reply, drop.lately))
                }
                _ => None,
            },
        )
    }

    /// The same of the peer's kernel, as it last said.
    fn dropped_there<'b>(
        &self,
        pair: &'b PairView,
        stream: Stream,
    ) -> impl Iterator<Item = (&'b DropSite, bool, u64)> {
        let status = pair.status.iter().filter(|_| self.is_told_lately(pair));
        let drops = status.flat_map(|(_, status)| &status.drops);
        drops
            .filter(move |drop| drop.stream == stream)
            .map(|drop| (&drop.site, drop.reply, u64::from(drop.packets)))
    }

    /// Where most of a stream's losses in one direction vanished. What the hops
    /// counted, and what a kernel on either side said that it dropped: a packet
    /// that its own node dropped did not leave, although a program on the NIC saw
    /// it, and one that the other node dropped had reached it, although no
    /// program did.
    fn place(&self, peer: &Peer, stream: Stream, direction: Direction) -> Option<Segment> {
        let pair = self.pair(peer)?;
        let view = pair.streams.get(&stream)?;
        let counted = view.place(direction)?;
        if counted != (Segment { from: Hop::LeftNic, to: Hop::ReachedNic }) {
            return Some(counted);
        }
        let replies = direction == Direction::Inbound;
        let sum = |drops: &mut dyn Iterator<Item = (&DropSite, bool, u64)>| -> u64 {
            drops
                .filter(|(_, is_reply, _)| *is_reply == replies)
                .fold(0, |sum, (_, _, n)| sum.saturating_add(n))
        };
        let here = sum(&mut self.dropped_here(peer.id, stream));
        let there = sum(&mut self.dropped_there(pair, stream));
        let (sender, receiver) = if replies { (there, here) } else { (here, there) };
        let enough =
            |packets: u64| packets.saturating_mul(2) >= u64::from(view.recent.lost()).max(1);
        Some(if enough(sender) {
            let from = match stream.encapsulation() {
                Some(_) => Hop::Encapsulated,
                None => Hop::Sent,
            };
            Segment { from, to: Hop::LeftNic }
        } else if enough(receiver) {
            let to = match stream.encapsulation() {
                Some(_) => Hop::Decapsulated,
                None => Hop::Delivered,
            };
            Segment { from: Hop::ReachedNic, to }
        } else {
            counted
        })
    }

    /// The address that outer packets to a peer come from: that of the tunnel, else the
    /// node's own of the peer's family.
    fn outer_source(&self, peer: PeerId, tunnel: &Tunnel) -> Option<IpAddr> {
        let own = tunnel.local.filter(|local| !local.is_unspecified()).or(self.now.node.underlay);
        own.filter(|own| own.is_ipv6() == peer.0.is_ipv6())
    }

    fn is_peer(&self, id: PeerId) -> bool {
        self.now.peers.binary_search_by_key(&id, |peer| peer.id).is_ok()
    }

    /// The stream, if a probe of it was ever sent.
    fn stream(&self, peer: &Peer, stream: Stream) -> Option<&StreamView> {
        self.pair(peer)?.streams.get(&stream).map(AsRef::as_ref)
    }

    fn answered_lately(&self, view: &StreamView) -> bool {
        view.last_answer.is_some_and(|at| self.at().since(at) <= FRESH_NS)
    }

    /// What the peer lately said of the tunnel device that this node's one ought to
    /// talk to.
    fn counterpart(&self, peer: &Peer, tunnel: &Tunnel, all: &[Tunnel]) -> Option<&TunnelAdvert> {
        let (heard, status) = self.pair(peer)?.status.as_ref()?;
        let is_fresh = self.at().since(*heard) <= STATUS_FRESH_NS;
        is_fresh.then(|| counterpart(tunnel, all, &status.tunnels)).flatten()
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
            .filter(|rule| rule.from.is_none() && rule.mark.is_none() && !rule.selective)
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

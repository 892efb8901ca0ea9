//! Who the peers are: from lists, else from what the kernel's routes,
//! neighbours and forwarding entries say together, and from memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{
    Address, Encapsulation, FdbEntry, FdbKey, IfIndex, Mac, Neighbour, Origin, Owner, Peer, PeerId,
    PeerListEntry, PeerTunnel, RouteKind, RouteTable, Tunnel, table,
};
use crate::probing::{PeerStatus, TunnelAdvert};
use crate::time::{Mono, SECOND};

/// What peers are told from.
pub(crate) struct Evidence<'a> {
    pub(crate) tunnels: &'a [Tunnel],
    pub(crate) addresses: &'a [Address],
    pub(crate) routes: &'a RouteTable,
    pub(crate) neighbours: &'a BTreeMap<(IfIndex, IpAddr), Neighbour>,
    pub(crate) fdb: &'a BTreeMap<FdbKey, FdbEntry>,
}

/// What the kernel says of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learned {
    tunnels: Vec<PeerTunnel>,
    /// Tunnels that a route leads through.
    routed: BTreeSet<IfIndex>,
    pod_networks: Vec<IpNet>,
}

/// A peer that was known once.
#[derive(Clone, Debug)]
struct Memory {
    learned: Learned,
    /// Since when the kernel no longer knows it.
    departed_since: Option<Mono>,
}

/// The directory of peers over time.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    memory: BTreeMap<PeerId, Memory>,
}

impl Directory {
    /// All peers now. `status` gives what a peer last said of itself.
    pub(crate) fn resolve<'s>(
        &mut self,
        now: Mono,
        forget_ns: u64,
        configured: &[PeerListEntry],
        file: Option<&[PeerListEntry]>,
        evidence: &Evidence<'_>,
        status: impl Fn(PeerId) -> Option<&'s PeerStatus>,
    ) -> Vec<Peer> {
        let learned = learn(evidence, |overlay| self.owner_of(overlay));
        for (&peer, what) in &learned {
            let memory = self
                .memory
                .entry(peer)
                .or_insert_with(|| Memory { learned: Learned::default(), departed_since: None });
            memory.learned.merge(what);
        }
        for (peer, memory) in &mut self.memory {
            if learned.contains_key(peer) {
                memory.departed_since = None;
            } else {
                memory.departed_since.get_or_insert(now);
            }
        }
        let listed = list(configured, file);
        let is_listed = |id: &PeerId| listed.as_ref().is_some_and(|all| all.contains_key(id));
        self.memory.retain(|id, memory| {
            is_listed(id)
                || is_told_by_kernel(*id, &memory.learned, listed.as_ref())
                    && memory.departed_since.is_none_or(|since| now.since(since) <= forget_ns)
        });
        let own: BTreeSet<IpAddr> = evidence.addresses.iter().map(|a| a.net.addr()).collect();
        let ids: BTreeSet<PeerId> =
            listed.iter().flat_map(BTreeMap::keys).chain(self.memory.keys()).copied().collect();
        ids.into_iter()
            .filter(|peer| !own.contains(&peer.0))
            .map(|id| {
                let entry = listed.as_ref().and_then(|listed| listed.get(&id));
                let status = status(id);
                let known = self.memory.get(&id).map(|memory| &memory.learned);
                let adverts = status.map_or(&[][..], |status| &status.tunnels);
                let listed_overlay = entry.and_then(|(_, entry)| entry.overlay);
                let known = Known { now: learned.get(&id), ever: known };
                let tunnels = tunnels_to(id, evidence, known, adverts, listed_overlay);
                Peer {
                    id,
                    name: entry
                        .and_then(|(_, entry)| entry.name.clone())
                        .or_else(|| status.and_then(|status| status.node.clone())),
                    origin: entry.map_or(Origin::Kernel, |(origin, _)| *origin),
                    pod_networks: known.ever.map(|k| k.pod_networks.clone()).unwrap_or_default(),
                    other_addresses: other_addresses(id, &tunnels, known, adverts, listed_overlay),
                    tunnels,
                    departed_since: match entry {
                        Some(_) => None,
                        None => self.memory.get(&id).and_then(|memory| memory.departed_since),
                    },
                }
            })
            .collect()
    }

    /// The peer that was last known under this overlay address.
    fn owner_of(&self, overlay: IpAddr) -> Option<PeerId> {
        self.memory
            .iter()
            .find(|(_, memory)| memory.learned.tunnels.iter().any(|t| t.overlay == Some(overlay)))
            .map(|(&peer, _)| peer)
    }
}

/// Seconds that a departed peer is remembered, as nanoseconds.
pub(crate) const fn forget_ns(seconds: u32) -> u64 {
    seconds as u64 * SECOND
}

impl Learned {
    /// Takes what is newer; what the kernel lost is kept, since a lost entry is
    /// just what must not be forgotten.
    fn merge(&mut self, newer: &Self) {
        for tunnel in &newer.tunnels {
            match self.tunnels.iter_mut().find(|known| known.device == tunnel.device) {
                Some(known) => {
                    known.index = tunnel.index;
                    known.encapsulation = tunnel.encapsulation;
                    known.overlay = tunnel.overlay.or(known.overlay);
                    known.mac = tunnel.mac.or(known.mac);
                }
                None => self.tunnels.push(tunnel.clone()),
            }
        }
        if !newer.pod_networks.is_empty() {
            self.pod_networks.clone_from(&newer.pod_networks);
        }
    }
}

type Listed<'a> = BTreeMap<PeerId, (Origin, &'a PeerListEntry)>;

/// The list in force: configuration before file; none when neither names anybody.
fn list<'a>(
    configured: &'a [PeerListEntry],
    file: Option<&'a [PeerListEntry]>,
) -> Option<Listed<'a>> {
    if configured.is_empty() && file.is_none() {
        return None;
    }
    let from_file = file.unwrap_or_default().iter().map(|entry| (Origin::File, entry));
    let from_configuration = configured.iter().map(|entry| (Origin::Configuration, entry));
    // Later entries replace earlier ones: the configuration has the last word.
    Some(from_file.chain(from_configuration).map(|(o, e)| (PeerId(e.address), (o, e))).collect())
}

/// Whether a peer that no list names is one all the same. Without a list it is; beside
/// one only by the family of addresses that the list names nobody of, and through the
/// tunnel of a network plugin: where nodes have two families, each is a network of its
/// own, with tunnels of its own, and lists name a node once as a rule.
fn is_told_by_kernel(id: PeerId, learned: &Learned, listed: Option<&Listed<'_>>) -> bool {
    let Some(listed) = listed else { return true };
    let is_of_plugin = |leads: &PeerTunnel| Owner::of_device(&leads.device) != Owner::Unknown;
    !listed.is_empty()
        && !listed.keys().any(|other| other.0.is_ipv6() == id.0.is_ipv6())
        && learned.tunnels.iter().any(is_of_plugin)
}

/// What the kernel knows of each peer, by underlay address.
fn learn(
    evidence: &Evidence<'_>,
    remembered: impl Fn(IpAddr) -> Option<PeerId>,
) -> BTreeMap<PeerId, Learned> {
    let mut peers = BTreeMap::<PeerId, Learned>::new();
    let tunnels: BTreeMap<IfIndex, &Tunnel> =
        evidence.tunnels.iter().filter(|t| !t.collect_metadata).map(|t| (t.index, t)).collect();
    let overlays: HashMap<(IfIndex, Mac), IpAddr> = evidence
        .neighbours
        .values()
        .filter(|n| n.state.is_usable() && tunnels.contains_key(&n.index))
        // Each IPv6 device has one, beside its address in the overlay.
        .filter(|n| !matches!(n.address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .filter_map(|n| Some(((n.index, n.mac?), n.address)))
        .collect();
    for key in evidence.fdb.keys() {
        let (Some(tunnel), Some(underlay)) = (tunnels.get(&key.index), key.destination) else {
            continue;
        };
        if key.mac == Mac::ZERO || underlay.is_unspecified() || underlay.is_multicast() {
            continue;
        }
        let overlay = overlays.get(&(key.index, key.mac)).copied();
        let learned = peers.entry(PeerId(underlay)).or_default();
        learned.add_tunnel(tunnel, overlay, Some(key.mac));
    }
    for tunnel in tunnels.values() {
        if let Some(peer) = tunnel.only_peer() {
            peers.entry(peer).or_default().add_tunnel(tunnel, None, None);
        }
    }
    for route in evidence.routes.0.values() {
        if route.kind != RouteKind::Unicast || route.key.table == table::LOCAL {
            continue;
        }
        let hops = std::iter::once(&route.next_hop).chain(&route.more_next_hops);
        for hop in hops {
            let Some(tunnel) = hop.device.and_then(|device| tunnels.get(&device)) else { continue };
            let Some((peer, overlay, mac)) = behind(tunnel, hop.gateway, evidence, &remembered)
            else {
                continue;
            };
            let learned = peers.entry(peer).or_default();
            learned.add_tunnel(tunnel, overlay, mac);
            learned.routed.insert(tunnel.index);
            let network = route.key.destination;
            // kube-router leads pods to the node itself through the tunnel, too.
            if network != IpNet::from(peer.0) && !learned.pod_networks.contains(&network) {
                learned.pod_networks.push(network);
            }
        }
    }
    peers
}

/// Which peer a tunnel route's gateway stands for, with its overlay address and MAC.
fn behind(
    tunnel: &Tunnel,
    gateway: Option<IpAddr>,
    evidence: &Evidence<'_>,
    remembered: impl Fn(IpAddr) -> Option<PeerId>,
) -> Option<(PeerId, Option<IpAddr>, Option<Mac>)> {
    match tunnel.encapsulation {
        // The gateway is the outer destination (net/ipv4/ip_tunnel.c: rt_nexthop).
        Encapsulation::Ipip => {
            gateway.or(tunnel.remote).map(|underlay| (PeerId(underlay), None, None))
        }
        // The gateway is resolved to a MAC, and that to an outer destination.
        Encapsulation::Vxlan(_) => {
            let gateway = gateway?;
            let mac = evidence.neighbours.get(&(tunnel.index, gateway)).and_then(|n| n.mac);
            let destination = mac.and_then(|mac| {
                let first = FdbKey { index: tunnel.index, mac, destination: None };
                evidence
                    .fdb
                    .range(first..)
                    .take_while(|(key, _)| key.index == tunnel.index && key.mac == mac)
                    .find_map(|(key, _)| key.destination)
            });
            let peer = destination.map(PeerId).or_else(|| remembered(gateway))?;
            Some((peer, Some(gateway), mac))
        }
    }
}

impl Learned {
    fn add_tunnel(&mut self, tunnel: &Tunnel, overlay: Option<IpAddr>, mac: Option<Mac>) {
        match self.tunnels.iter_mut().find(|known| known.index == tunnel.index) {
            Some(known) => {
                known.overlay = overlay.or(known.overlay);
                known.mac = mac.or(known.mac);
            }
            None => self.tunnels.push(PeerTunnel {
                index: tunnel.index,
                device: tunnel.name.clone(),
                encapsulation: tunnel.encapsulation,
                overlay,
                mac,
            }),
        }
    }
}

/// What the kernel says of the way to one peer, and what it said in all this time.
#[derive(Clone, Copy)]
struct Known<'a> {
    now: Option<&'a Learned>,
    ever: Option<&'a Learned>,
}

impl Known<'_> {
    /// Whether a route leads there through a tunnel now.
    fn leads_through(&self, tunnel: IfIndex) -> bool {
        self.now.is_some_and(|now| now.routed.contains(&tunnel))
    }
}

/// The tunnels that lead to a peer: those the kernel knows or knew, and those
/// that both ends have.
fn tunnels_to(
    peer: PeerId,
    evidence: &Evidence<'_>,
    known: Known<'_>,
    adverts: &[TunnelAdvert],
    listed_overlay: Option<IpAddr>,
) -> Vec<PeerTunnel> {
    let mut tunnels: Vec<PeerTunnel> = Vec::new();
    for remembered in known.ever.map(|known| known.tunnels.as_slice()).unwrap_or_default() {
        let mut tunnel = remembered.clone();
        // The device may have been made anew, with another port even.
        if let Some(now) = evidence.tunnels.iter().find(|t| t.name == tunnel.device) {
            tunnel.index = now.index;
            tunnel.encapsulation = now.encapsulation;
        }
        tunnels.push(tunnel);
    }
    let own_ones = evidence.tunnels.iter().filter(|own| !own.collect_metadata && own.up);
    // The peer may have one for each family of addresses, and tells of both by either.
    for own in own_ones.filter(|own| own.may_lead_to(peer.0)) {
        // The tunnel to another one.
        if own.only_peer().is_some_and(|only| only != peer) {
            continue;
        }
        let advert = counterpart(own, evidence.tunnels, adverts);
        // What the peer says of itself outranks what this node's tables, which
        // may be wrong, say of it.
        let advertised = advert.and_then(|advert| advert.address);
        match tunnels.iter().position(|tunnel| tunnel.index == own.index) {
            Some(position) => {
                let Some(tunnel) = tunnels.get_mut(position) else { continue };
                let overlay = advertised.or(tunnel.overlay).or(listed_overlay);
                let is_left =
                    overlay.is_some_and(|to| is_led_otherwise(peer, to, own, evidence, adverts));
                // Probes of this tunnel would go another way.
                tunnel.overlay = overlay.filter(|_| !is_left);
                if is_left && !known.leads_through(own.index) {
                    tunnels.remove(position);
                }
            }
            None => {
                let Some(overlay) = advertised.or(listed_overlay) else { continue };
                // A device that nothing leads through, and that the peer has no
                // other end of.
                let is_anothers = |advert| belongs_to_another(advert, own, evidence.tunnels);
                if advert.is_none() && adverts.iter().any(is_anothers) {
                    continue;
                }
                if is_led_otherwise(peer, overlay, own, evidence, adverts) {
                    continue;
                }
                tunnels.push(PeerTunnel {
                    index: own.index,
                    device: own.name.clone(),
                    encapsulation: own.encapsulation,
                    overlay: Some(overlay),
                    mac: None,
                });
            }
        }
    }
    // A device that is gone is missed only where no other leads there: it may
    // have been removed with the CNI plugin that it was of.
    let is_there =
        |tunnel: &PeerTunnel| evidence.tunnels.iter().any(|own| own.index == tunnel.index);
    if tunnels.iter().any(is_there) {
        tunnels.retain(is_there);
    }
    tunnels.sort_by_key(|tunnel| tunnel.index);
    tunnels
}

/// Overlay addresses that a peer is known to have beside those that `tunnels` lead to:
/// those of the other family are of the peer that the same node is by that.
fn other_addresses(
    peer: PeerId,
    tunnels: &[PeerTunnel],
    known: Known<'_>,
    adverts: &[TunnelAdvert],
    listed_overlay: Option<IpAddr>,
) -> Vec<IpAddr> {
    let remembered = known.ever.into_iter().flat_map(|known| &known.tunnels);
    let all = adverts.iter().filter_map(|advert| advert.address);
    let all = all.chain(remembered.filter_map(|tunnel| tunnel.overlay)).chain(listed_overlay);
    let mut others: Vec<IpAddr> =
        all.filter(|&address| tunnels.iter().all(|it| it.overlay != Some(address))).collect();
    others.retain(|address| address.is_ipv6() == peer.0.is_ipv6());
    others.sort_unstable();
    others.dedup();
    others
}

/// Whether a peer's tunnel is the very counterpart of another own one: one that
/// a former CNI plugin left behind on this node alone has none then.
fn belongs_to_another(advert: &TunnelAdvert, own: &Tunnel, tunnels: &[Tunnel]) -> bool {
    let fits =
        |tunnel: &Tunnel| tunnel.encapsulation == advert.encapsulation && tunnel.vni == advert.vni;
    !fits(own) && tunnels.iter().any(|other| other.index != own.index && other.up && fits(other))
}

/// Whether the kernel leads to the overlay address another way that ends at the
/// peer as well: without a tunnel, as host-gw and Calico's CrossSubnet do on
/// purpose, or through another tunnel that the peer has, too, as while a network
/// changes its encapsulation.
fn is_led_otherwise(
    peer: PeerId,
    overlay: IpAddr,
    own: &Tunnel,
    evidence: &Evidence<'_>,
    adverts: &[TunnelAdvert],
) -> bool {
    let Some(route) = evidence.routes.lookup(table::MAIN, overlay) else { return false };
    let hop = &route.next_hop;
    if hop.device == Some(own.index) {
        return false;
    }
    match evidence.tunnels.iter().find(|other| hop.device == Some(other.index)) {
        None => hop.gateway == Some(peer.0),
        Some(other) => {
            let there = behind(other, hop.gateway, evidence, |_| None);
            let has_other_end =
                || counterpart(other, evidence.tunnels, adverts).is_some_and(|advert| advert.up);
            there.is_some_and(|(there, ..)| there == peer)
                && (adverts.is_empty() || has_other_end())
        }
    }
}

/// The peer's tunnel that one of the own ones ought to talk to: of the same kind,
/// and of those the most alike; none that is plainly another one's.
pub(crate) fn counterpart<'a>(
    own: &Tunnel,
    all: &[Tunnel],
    adverts: &'a [TunnelAdvert],
) -> Option<&'a TunnelAdvert> {
    adverts
        .iter()
        .filter(|advert| !belongs_to_another(advert, own, all))
        .filter(|advert| match (own.encapsulation, advert.encapsulation) {
            (Encapsulation::Ipip, Encapsulation::Ipip) => true,
            (Encapsulation::Vxlan(_), Encapsulation::Vxlan(_)) => {
                // IPv4 and IPv6 overlays use a device each.
                own.address.map(|a| a.is_ipv6()) == advert.address.map(|a| a.is_ipv6())
                    || own.address.is_none()
                    || advert.address.is_none()
            }
            _ => false,
        })
        .max_by_key(|advert| {
            let same_port = advert.encapsulation == own.encapsulation;
            let same_vni = advert.vni == own.vni;
            // A device without an address: plugins give it one of its outer packets' family.
            let is_of = |v6| advert.address.is_some_and(|address| address.is_ipv6() == v6);
            let same_family = own.outer_is_v6().is_some_and(is_of);
            // Of a device for each peer nobody says which is for whom.
            (same_port && same_vni, same_port || same_vni, same_family, advert.up)
        })
}

/// The entry that a list gives to this node itself, told by its own addresses.
pub(crate) fn own_entry<'a>(
    configured: &'a [PeerListEntry],
    file: Option<&'a [PeerListEntry]>,
    addresses: &[Address],
) -> Option<&'a PeerListEntry> {
    configured
        .iter()
        .chain(file.unwrap_or_default())
        .find(|entry| addresses.iter().any(|address| address.net.addr() == entry.address))
}

#[cfg(test)]
mod families;
#[cfg(test)]
mod tests;

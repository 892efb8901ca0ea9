//! Tunnel devices: this node's own, and as they compare with the peers'.

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::ladder::{Hop, Segment};
use crate::model::{Encapsulation, Link, Owner, Peer, PeerTunnel, Tunnel};
use crate::probing::TunnelAdvert;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let (Some(tunnels), Some(_)) = (context.now.tunnels.seen(), context.now.links.seen()) else {
        return verdicts.blind(&[
            Code::TunnelDown,
            Code::TunnelMissing,
            Code::VtepLocalAddressWrong,
            Code::TunnelMtuTooLarge,
            Code::RemoteTunnelDown,
            Code::VniMismatch,
            Code::VxlanPortMismatch,
            Code::StaleVtepMac,
        ]);
    };
    for tunnel in tunnels.iter() {
        own(context, tunnel, verdicts);
    }
    missing(context, tunnels, verdicts);
    for (peer, leads, tunnel) in context.tunnelled_peers() {
        if let Some(advert) = context.counterpart(peer, tunnel, tunnels) {
            compare(context, peer, leads, tunnel, advert, verdicts);
        }
    }
}

fn on_device(code: Code, tunnel: &Tunnel, evidence: Evidence) -> Finding {
    Finding {
        code,
        subject: Subject::Device { name: tunnel.name.clone() },
        direction: None,
        hop: None,
        evidence: vec![evidence],
        confidence: Confidence::Certain,
    }
}

fn own(context: &Context<'_>, tunnel: &Tunnel, verdicts: &mut Verdicts) {
    let leads_somewhere =
        context.now.peers.iter().any(|peer| peer.tunnels.iter().any(|t| t.index == tunnel.index));
    let is_claimed = tunnel.owner != Owner::Unknown && tunnel.address.is_some();
    if !tunnel.up && (leads_somewhere || is_claimed) {
        verdicts.add(on_device(
            Code::TunnelDown,
            tunnel,
            Evidence::DeviceState { device: tunnel.name.clone(), up: false, carrier: false },
        ));
    }
    let addresses = context.now.addresses.seen();
    if let (Some(local), Some(addresses)) = (tunnel.local, addresses) {
        let is_here = local.is_unspecified() || addresses.iter().any(|a| a.net.addr() == local);
        if !is_here {
            verdicts.add(on_device(
                Code::VtepLocalAddressWrong,
                tunnel,
                Evidence::AddressNotHere { address: local },
            ));
        }
    }
    // A device whose key comes from outside keeps the kernel's 1500 bytes: routes
    // say how much fits (Cilium), or the program that sets the key does.
    if let Some(underlay) = underlay_of(context, tunnel).filter(|_| !tunnel.collect_metadata) {
        let outer_is_v6 = tunnel.local.is_some_and(|local| local.is_ipv6());
        let overhead = tunnel.encapsulation.overhead_bytes(outer_is_v6);
        if tunnel.mtu.saturating_add(overhead) > underlay.mtu {
            verdicts.add(on_device(
                Code::TunnelMtuTooLarge,
                tunnel,
                Evidence::Mtu { tunnel: tunnel.mtu, overhead, underlay: underlay.mtu },
            ));
        }
    }
}

/// The device below a tunnel: the configured one, else the only one that leads to peers.
fn underlay_of<'a>(context: &'a Context<'_>, tunnel: &Tunnel) -> Option<&'a Link> {
    let links = context.now.links.seen()?;
    let only = match context.now.underlays.as_slice() {
        [only] => Some(*only),
        _ => None,
    };
    links.get(&tunnel.underlay.or(only)?)
}

/// A device that led to peers and is gone, unless another tunnel leads there now.
fn missing(context: &Context<'_>, tunnels: &[Tunnel], verdicts: &mut Verdicts) {
    let exists = |leads: &PeerTunnel| tunnels.iter().any(|tunnel| tunnel.name == leads.device);
    let mut names: Vec<&str> = context
        .now
        .peers
        .iter()
        .filter(|peer| !peer.tunnels.iter().any(exists))
        .flat_map(|peer| peer.tunnels.iter().map(|leads| leads.device.as_str()))
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        verdicts.add(Finding {
            code: Code::TunnelMissing,
            subject: Subject::Device { name: name.to_owned() },
            direction: None,
            hop: None,
            evidence: Vec::new(),
            confidence: Confidence::Certain,
        });
    }
}

fn compare(
    context: &Context<'_>,
    peer: &Peer,
    leads: &PeerTunnel,
    tunnel: &Tunnel,
    advert: &TunnelAdvert,
    verdicts: &mut Verdicts,
) {
    let between = |code, direction, from, to, evidence| Finding {
        code,
        subject: Subject::Pair { peer: peer.id, encapsulation: Some(leads.encapsulation) },
        direction: Some(direction),
        hop: Some(Segment { from, to }),
        evidence: vec![evidence],
        confidence: Confidence::Certain,
    };
    // The peer's kernel receives the outer packet and finds no device for it.
    if !advert.up {
        verdicts.add(between(
            Code::RemoteTunnelDown,
            Direction::Both,
            Hop::ReachedNic,
            Hop::Decapsulated,
            Evidence::DeviceState { device: tunnel.name.clone(), up: false, carrier: false },
        ));
    }
    if let (Encapsulation::Vxlan(here), Encapsulation::Vxlan(there)) =
        (tunnel.encapsulation, advert.encapsulation)
    {
        if here != there {
            verdicts.add(between(
                Code::VxlanPortMismatch,
                Direction::Both,
                Hop::ReachedNic,
                Hop::Decapsulated,
                Evidence::Port { here, there },
            ));
        } else if let (Some(here), Some(there)) = (tunnel.vni, advert.vni)
            && here != there
        {
            verdicts.add(between(
                Code::VniMismatch,
                Direction::Both,
                Hop::ReachedNic,
                Hop::Decapsulated,
                Evidence::Vni { here, there },
            ));
        }
    }
    let believed = leads
        .overlay
        .and_then(|overlay| context.now.neighbours.seen()?.get(&(tunnel.index, overlay))?.mac);
    if let (Some(believed), Some(actual)) = (believed, advert.mac)
        && believed != actual
    {
        verdicts.add(between(
            Code::StaleVtepMac,
            Direction::Outbound,
            Hop::Decapsulated,
            Hop::Delivered,
            Evidence::VtepMac { believed, actual },
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::delta::Delta;
    use crate::fact::Fact;
    use crate::model::{IfIndex, LinkCounters, LinkKind, Vxlan, tunnels};
    use crate::snapshot::Snapshot;
    use crate::time::Mono;

    fn link(index: u32, name: &str, kind: LinkKind) -> Link {
        Link {
            index: IfIndex(index),
            name: name.to_owned(),
            kind,
            mac: None,
            mtu: 1500,
            admin_up: true,
            carrier: true,
            master: None,
            counters: LinkCounters::default(),
        }
    }

    fn judged(name: &str, collect_metadata: bool) -> Vec<Code> {
        let vxlan = Vxlan { vni: 1, port: 8472, collect_metadata, ..Vxlan::default() };
        let all = [link(2, "eth0", LinkKind::Plain), link(3, name, LinkKind::Vxlan(vxlan))];
        let links: BTreeMap<_, _> = all.into_iter().map(|link| (link.index, link)).collect();
        let tunnels = tunnels(&links, &[]);
        let now = Snapshot {
            tunnels: Fact::Seen { value: Arc::new(tunnels), at: Mono(1) },
            links: Fact::Seen { value: Arc::new(links), at: Mono(1) },
            underlays: Arc::new(vec![IfIndex(2)]),
            ..Snapshot::default()
        };
        let mut verdicts = Verdicts::default();
        let context = Context { delta: Delta { before: None, now: &now }, now: &now, digest: None };
        judge(&context, &mut verdicts);
        verdicts.findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn an_mtu_that_routes_decide_is_not_judged_by_the_device() {
        assert_eq!(judged("flannel.1", false), [Code::TunnelMtuTooLarge]);
        assert_eq!(judged("cilium_vxlan", true), []);
    }
}

//! What the kernel counted: ICMP errors about outer packets, live traffic that
//! it drops, and what it says of the losses that other rules found.

use super::live;
use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::kernel::KernelCounts;
use crate::ladder::{Hop, Segment};
use crate::model::{Encapsulation, Peer, PeerId, PeerTunnel};
use crate::pairs::StreamView;
use crate::probing::Stream;

/// Errors in the last seconds that mean that encapsulated packets are refused
/// as they come: a kernel sends at most one a second (ip-sysctl, icmp_ratelimit).
const REFUSALS: u64 = 3;
/// The peer itself refuses outer packets.
pub(super) fn refusals(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(counts) = context.now.kernel.seen() else {
        return verdicts.blind(&[Code::EncapsulationRefused]);
    };
    for error in counts.icmp.iter().filter(|error| error.lately >= REFUSALS) {
        let is_unreachable = error.kind == if error.peer.is_ipv6() { 1 } else { 3 };
        let too_big = error.kind == 3 && error.code == 4;
        let peer = PeerId(error.peer);
        if !is_unreachable || too_big || error.from != error.peer || !context.is_peer(peer) {
            continue;
        }
        let refused = Segment { from: Hop::ReachedNic, to: Hop::Decapsulated };
        let pair = context.now.pairs.get(&peer);
        let small = pair.and_then(|pair| pair.streams.get(&Stream::Small(error.encapsulation)));
        let place = small.and_then(|view| view.place(Direction::Outbound));
        // Probes of some seconds ago, through a device that is no more; or packets that
        // no tunnel of this node sent there, as those of `overlaywatch preflight` are.
        let has_device = context.now.tunnels.seen().is_some_and(|tunnels| {
            tunnels.iter().any(|tunnel| tunnel.encapsulation == error.encapsulation)
        });
        let is_led_to = || {
            let known = context.now.peers.iter().find(|known| known.id == peer);
            // Anybody may send to a UDP port; of IPIP a preflight draws no error.
            error.encapsulation == Encapsulation::Ipip
                || known.is_some_and(|known| {
                    known.tunnels.iter().any(|leads| leads.encapsulation == error.encapsulation)
                })
        };
        if !(if small.is_some() { has_device } else { is_led_to() }) {
            continue;
        }
        // Errors of some seconds ago, while probes vanish elsewhere or not at all.
        if small.is_some_and(|view| view.run.lost() == 0)
            || place.is_some_and(|place| !place.overlaps(refused))
        {
            continue;
        }
        let finding = Finding {
            code: Code::EncapsulationRefused,
            subject: Subject::Pair { peer, encapsulation: Some(error.encapsulation) },
            direction: Some(Direction::Outbound),
            hop: Some(refused),
            evidence: vec![Evidence::OuterRefused {
                encapsulation: error.encapsulation,
                icmp: error.kind,
                code: error.code,
                from: error.from,
                count: error.lately,
            }],
            confidence: Confidence::Certain,
        };
        if !verdicts.findings.iter().any(|known| known.key() == finding.key()) {
            verdicts.add(finding);
        }
    }
}

/// Live traffic with a peer that this node drops nearly all of, inside the tunnel.
pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(counts) = context.now.kernel.seen() else { return };
    for (peer, leads, _) in context.tunnelled_peers() {
        for outbound in [false, true] {
            let is_nic = |name: &str| context.is_underlay(name);
            if let Some(finding) = dropped(counts, peer, leads, outbound, is_nic) {
                let known = verdicts.findings.iter().any(|known| known.key() == finding.key());
                if !known {
                    verdicts.add(finding);
                }
            }
        }
    }
}

fn dropped(
    counts: &KernelCounts,
    peer: &Peer,
    leads: &PeerTunnel,
    outbound: bool,
    is_nic: impl Fn(&str) -> bool,
) -> Option<Finding> {
    let encapsulation = leads.encapsulation;
    let live::Dropped { worst, packets, outbound: sent, inbound: received } =
        live::dropped(counts, peer, leads, outbound, is_nic)?;
    let (direction, hop) = if !outbound {
        (Direction::Inbound, Segment { from: Hop::Decapsulated, to: Hop::Delivered })
    } else if worst.site.device.as_ref().is_none_or(|device| *device == leads.device) {
        // On its way to the tunnel device, or taken by it already; a device
        // without a name is gone since, as a tunnel that is made anew.
        (Direction::Outbound, Segment { from: Hop::Sent, to: Hop::LeftNic })
    } else {
        (Direction::Outbound, Segment { from: Hop::Sent, to: Hop::Encapsulated })
    };
    Some(Finding {
        code: Code::UnexplainedLoss,
        subject: Subject::Pair { peer: peer.id, encapsulation: Some(encapsulation) },
        direction: Some(direction),
        hop: Some(hop),
        evidence: vec![
            Evidence::LiveTraffic { encapsulation, outbound: sent, inbound: received },
            Evidence::KernelDropped { here: true, site: worst.site.clone(), packets },
        ],
        // The node may be told to drop it.
        confidence: Confidence::Low,
    })
}

/// Adds to each finding about a pair what was counted of its losses: where they
/// vanished, and which kernel dropped them, where and why.
pub(super) fn testify(context: &Context<'_>, verdicts: &mut Verdicts) {
    for finding in &mut verdicts.findings {
        let Subject::Pair { peer: id, encapsulation } = finding.subject else { continue };
        let stream = match (finding.code, encapsulation) {
            (Code::MtuBlackhole, Some(encapsulation)) => Stream::Full(encapsulation),
            (_, Some(encapsulation)) => Stream::Small(encapsulation),
            (_, None) => Stream::Underlay,
        };
        let Some(pair) = context.now.pairs.get(&id) else { continue };
        let Some(view) = pair.streams.get(&stream) else { continue };
        if !view.is_lossy() {
            continue;
        }
        finding.evidence.extend(places(view));
        let here = context.dropped_here(id, stream).map(|(site, _, n)| (true, site, n));
        let there = context.dropped_there(pair, stream).map(|(site, _, n)| (false, site, n));
        let mut dropped: Vec<_> = here.chain(there).collect();
        dropped.sort_by_key(|&(_, _, packets)| std::cmp::Reverse(packets));
        finding.evidence.extend(dropped.into_iter().take(MOST_SITES).map(
            |(here, site, packets)| Evidence::KernelDropped { here, site: site.clone(), packets },
        ));
    }
}

/// Drop sites that one finding names.
const MOST_SITES: usize = 3;

/// The commonest place of each direction.
fn places(view: &StreamView) -> impl Iterator<Item = Evidence> + '_ {
    [Direction::Outbound, Direction::Inbound].into_iter().filter_map(|direction| {
        let place = view.places.iter().find(|place| place.direction == direction)?;
        let Segment { from, to } = place.segment;
        Some(Evidence::Counted { direction, from, to, count: place.count })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delta::Delta;
    use crate::fact::Fact;
    use crate::kernel::{DropForm, DropSite, IcmpError, PacketDrop, Traffic};
    use crate::model::{IfIndex, Origin};
    use crate::snapshot::Snapshot;
    use crate::time::Mono;

    const VXLAN: Encapsulation = Encapsulation::Vxlan(8472);

    fn leads() -> PeerTunnel {
        PeerTunnel {
            index: IfIndex(3),
            device: "flannel.1".to_owned(),
            encapsulation: VXLAN,
            overlay: None,
            mac: None,
        }
    }

    fn peer() -> Peer {
        Peer {
            id: PeerId([10, 0, 0, 12].into()),
            name: None,
            origin: Origin::File,
            tunnels: vec![leads()],
            pod_networks: Vec::new(),
            other_addresses: Vec::new(),
            departed_since: None,
        }
    }

    /// Live traffic from the peer: so many packets dropped for `reason`, of so many.
    fn counts(reason: &str, dropped: u64, passed: u64) -> KernelCounts {
        let drop = PacketDrop {
            site: DropSite {
                reason: Some(reason.to_owned()),
                function: None,
                device: Some("flannel.1".to_owned()),
            },
            peer: Some(peer().id),
            form: DropForm::Inner,
            outbound: false,
            probe: None,
            ethertype: 0x0800,
            ip_protocol: 17,
            total: dropped,
            lately: dropped,
        };
        let traffic = Traffic {
            peer: peer().id.0,
            encapsulation: VXLAN,
            outbound: false,
            packets: passed,
            bytes: passed,
            fragments: 0,
            lately: passed,
        };
        KernelCounts { drops: vec![drop], traffic: vec![traffic], ..KernelCounts::default() }
    }

    fn said(counts: &KernelCounts) -> Option<Code> {
        let is_nic = |name: &str| name == "eth0";
        dropped(counts, &peer(), &leads(), false, is_nic).map(|finding| finding.code)
    }

    #[test]
    fn a_node_that_drops_nearly_all_of_a_peers_traffic_is_broken() {
        assert_eq!(said(&counts("NETFILTER_DROP", 95, 100)), Some(Code::UnexplainedLoss));
    }

    #[test]
    fn a_policy_that_drops_some_of_it_is_not() {
        assert_eq!(said(&counts("NETFILTER_DROP", 80, 100)), None);
        assert_eq!(said(&counts("NETFILTER_DROP", 9, 9)), None, "a few packets tell nothing");
    }

    #[test]
    fn what_came_in_by_the_nic_as_it_was_is_no_loss_of_the_tunnel() {
        let mut counts = counts("IP_RPFILTER", 20, 20);
        counts.drops[0].site.device = Some("eth0".to_owned());
        assert_eq!(said(&counts), None);
        // A tunnel that takes a packet out may drop it before it has its device.
        counts.drops[0].site.function = Some("ip_tunnel_rcv".to_owned());
        assert_eq!(said(&counts), Some(Code::UnexplainedLoss));
    }

    #[test]
    fn nobody_listening_is_not_the_networks_fault() {
        assert_eq!(said(&counts("NO_SOCKET", 100, 100)), None);
    }

    /// What is said when the peer's kernel refuses outer packets, and no probe tells.
    fn refused(peer: Peer) -> Vec<Code> {
        let error = IcmpError {
            peer: peer.id.0,
            from: peer.id.0,
            encapsulation: VXLAN,
            kind: 3,
            code: 3,
            mtu: None,
            total: 5,
            lately: 5,
        };
        let counts = KernelCounts { icmp: vec![error], ..KernelCounts::default() };
        let now = Snapshot {
            kernel: Fact::Seen { value: Arc::new(counts), at: Mono(0) },
            peers: Arc::new(vec![peer]),
            ..Snapshot::default()
        };
        let mut verdicts = Verdicts::default();
        let delta = Delta { before: None, now: &now };
        refusals(&Context { delta, now: &now, digest: None }, &mut verdicts);
        verdicts.findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_peer_that_a_tunnel_leads_to_and_that_refuses_it_is_named() {
        assert_eq!(refused(peer()), [Code::EncapsulationRefused]);
    }

    #[test]
    fn what_no_tunnel_of_this_node_sent_is_refused_rightly() {
        assert_eq!(refused(Peer { tunnels: Vec::new(), ..peer() }), []);
    }
}

//! The networks that pods get addresses from, beside those of the nodes.

use ipnet::IpNet;

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{CniEvidence, Confidence, Evidence, Finding, Subject};
use crate::model::{Cni, FLANNEL_NOTE, Plugin, RouteCount, protocol};

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(cni) = context.now.cni.seen() else {
        return verdicts.blind(&[Code::PoolOutsidePodNetwork, Code::PodNetworkOverlap]);
    };
    outside(context, cni, verdicts);
    overlap(context, cni, verdicts);
}

/// Calico's routes to pods that are not in the network that flannel was given:
/// the cluster's own, whoever serves it now.
fn outside(context: &Context<'_>, cni: &Cni, verdicts: &mut Verdicts) {
    let Some(network) = cni.flannel.as_ref().and_then(|note| note.network) else {
        if cni.is_unread(FLANNEL_NOTE) {
            verdicts.blind(&[Code::PoolOutsidePodNetwork]);
        }
        return;
    };
    let (Some(links), Some(digest)) = (context.now.links.seen(), &context.digest) else {
        return verdicts.blind(&[Code::PoolOutsidePodNetwork]);
    };
    let is_calico = |(device, by, leads): &(Option<_>, u8, bool)| {
        let through = device.and_then(|index| links.get(&index));
        through.is_some_and(|link| Plugin::Calico.makes(link))
            // Blocks of this node; BIRD may serve others too where it leads somewhere.
            || !leads && matches!(*by, protocol::FELIX | protocol::BIRD)
    };
    let of_pods = digest.outside.iter().filter(|(origin, _)| is_calico(origin));
    // What only means something on its own link is nobody's pool.
    let counts = of_pods.map(|(_, count)| *count).filter(|count| !is_link_local(count.first));
    let merged = counts.reduce(|one, other| RouteCount {
        count: one.count.saturating_add(other.count),
        first: one.first.min(other.first),
        last: one.last.max(other.last),
    });
    let Some(RouteCount { count, first, .. }) = merged else { return };
    verdicts.add(Finding {
        code: Code::PoolOutsidePodNetwork,
        subject: Subject::Node,
        direction: None,
        hop: None,
        evidence: vec![
            Evidence::Cni(CniEvidence::RoutesOutside { plugin: Plugin::Calico, count, first }),
            pod_network(network, FLANNEL_NOTE),
        ],
        confidence: Confidence::High,
    });
}

fn is_link_local(net: IpNet) -> bool {
    matches!(net, IpNet::V4(net) if net.addr().is_link_local())
}

/// The network of an underlay NIC is part of that of the pods, or hosts in it have
/// addresses of pods. A network that merely contains that of the pods does no harm:
/// the routes to pods are longer prefixes of it. Only plugins with a network of their own: others give pods addresses
/// of the nodes' network on purpose (macvlan, clouds' own plugins).
fn overlap(context: &Context<'_>, cni: &Cni, verdicts: &mut Verdicts) {
    // What is known is judged also where the rest is not.
    if cni.winner().is_err() || cni.is_unread(FLANNEL_NOTE) {
        verdicts.blind(&[Code::PodNetworkOverlap]);
    }
    let in_force = cni.winner().ok().flatten();
    let told = in_force.into_iter().flat_map(|file| {
        let content = file.content.as_ref().ok().filter(|content| content.plugin().is_some());
        let networks = content.map_or(&[][..], |content| content.networks.as_slice());
        networks.iter().map(|network| (*network, file.path.as_str()))
    });
    let noted = cni.flannel.iter().filter_map(|note| Some((note.network?, FLANNEL_NOTE)));
    let pods: Vec<(IpNet, &str)> = noted.chain(told).collect();
    if pods.is_empty() {
        return;
    }
    let Some(addresses) = context.now.addresses.seen() else {
        return verdicts.blind(&[Code::PodNetworkOverlap]);
    };
    for &index in context.now.underlays.iter() {
        let own = addresses.iter().filter(|a| a.index == index && !a.is_link_local());
        let common = own.map(|address| address.net).find_map(|own| {
            let net = own.trunc();
            let has_host = |pods: &IpNet| {
                let peers = context.now.peers.iter().filter(|peer| !peer.has_departed());
                let mut hosts = peers.map(|peer| peer.id.0).chain([own.addr()]);
                hosts.any(|host| pods.contains(&host))
            };
            let meets = |(pods, _): &&(IpNet, &str)| {
                net.prefix_len() < net.max_prefix_len()
                    && (pods.contains(&net) || (net.contains(pods) && has_host(pods)))
            };
            pods.iter().find(meets).map(|(pods, path)| (net, *pods, *path))
        });
        let Some((network, pods, path)) = common else { continue };
        let device = context.device_name(index);
        verdicts.add(Finding {
            code: Code::PodNetworkOverlap,
            subject: Subject::Device { name: device.clone() },
            direction: None,
            hop: None,
            evidence: vec![
                Evidence::Cni(CniEvidence::NodeNetwork { device, network }),
                pod_network(pods, path),
            ],
            confidence: Confidence::Certain,
        });
    }
}

fn pod_network(network: IpNet, path: &str) -> Evidence {
    Evidence::Cni(CniEvidence::PodNetwork { network, path: path.to_owned() })
}

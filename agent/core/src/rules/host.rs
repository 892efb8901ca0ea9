//! The host: its NICs below the tunnels, and its switches.

use std::net::IpAddr;

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Evidence, Finding, Subject};
use crate::model::{IfIndex, Link, Owner, Tunnel};

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    underlay_link(context, verdicts);
    forwarding(context, verdicts);
}

fn underlay_link(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(links) = context.now.links.seen() else {
        return verdicts.blind(&[Code::UnderlayLinkDown]);
    };
    let below = context.now.underlays.iter().filter_map(|index| links.get(index));
    for link in below.filter(|link| !(link.admin_up && link.carrier)) {
        verdicts.add(Finding {
            code: Code::UnderlayLinkDown,
            subject: Subject::Device { name: link.name.clone() },
            direction: None,
            hop: None,
            evidence: vec![Evidence::DeviceState {
                device: link.name.clone(),
                up: link.admin_up,
                carrier: link.carrier,
            }],
            confidence: Confidence::Certain,
        });
    }
}

/// Of which families pods are, IPv4 and IPv6: those of networks that lead through
/// tunnels, of addresses on their devices, and of routes to this node's pods. Where
/// none of these tells, IPv4, unless the node itself has IPv6 alone.
fn families(context: &Context<'_>, tunnels: &[Tunnel]) -> [bool; 2] {
    let of_pods = |index: IfIndex| {
        let links = context.now.links.seen();
        let leads = links.and_then(|links| links.get(&index)).is_some_and(Link::leads_to_pods);
        leads || tunnels.iter().any(|t| t.index == index && t.up && t.owner != Owner::Unknown)
    };
    let peers = context.now.peers.iter();
    let peers = peers.filter(|peer| !peer.has_departed() && !peer.tunnels.is_empty());
    let addresses = context.now.addresses.seen().map_or(&[][..], |all| all.as_slice());
    let addresses = || addresses.iter().filter(|address| !address.is_link_local());
    let digest = context.digest.iter().flat_map(|digest| &digest.by_origin);
    let routed = digest.filter(|((device, _, leads), _)| *leads && device.is_some_and(of_pods));
    let nets = peers
        .flat_map(|peer| peer.pod_networks.iter().copied())
        .chain(addresses().filter(|it| of_pods(it.index)).map(|it| it.net))
        .chain(routed.flat_map(|(_, routes)| [routes.first, routes.last]))
        // Each device has these routes, whatever is sent through it.
        .filter(|net| !matches!(net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local()));
    let (mut v4, mut v6) = (false, false);
    for net in nets {
        v4 |= net.addr().is_ipv4();
        v6 |= net.addr().is_ipv6();
    }
    if !v4 && !v6 {
        let mut own = addresses().map(|it| it.net.addr()).filter(|it| !it.is_loopback()).peekable();
        return [own.peek().is_none() || own.any(|address| address.is_ipv4()), false];
    }
    [v4, v6]
}

/// Pods need forwarding wherever a CNI's tunnel is; a tunnel that nobody knows
/// may well serve the host alone.
fn forwarding(context: &Context<'_>, verdicts: &mut Verdicts) {
    let (Some(host), Some(tunnels)) = (context.now.host.seen(), context.now.tunnels.seen()) else {
        return verdicts.blind(&[Code::ForwardingOff]);
    };
    let has_pods = tunnels.iter().any(|tunnel| tunnel.up && tunnel.owner != Owner::Unknown);
    let [v4, v6] = if has_pods { families(context, tunnels) } else { [false; 2] };
    let switches = [
        (v4, host.ipv4_forwarding, "net.ipv4.ip_forward"),
        (v6, host.ipv6_forwarding, "net.ipv6.conf.all.forwarding"),
    ];
    let off = switches.into_iter().filter(|&(is_used, on, _)| is_used && on == Some(false));
    let evidence: Vec<Evidence> = off
        .map(|(_, _, name)| Evidence::Sysctl { name: name.to_owned(), value: "0".to_owned() })
        .collect();
    if !evidence.is_empty() {
        verdicts.add(Finding {
            code: Code::ForwardingOff,
            subject: Subject::Node,
            direction: None,
            hop: None,
            evidence,
            confidence: Confidence::Certain,
        });
    }
    if !v4 || host.ipv4_forwarding != Some(true) {
        return;
    }
    // What another device than the host's switch forbids.
    let Some(links) = context.now.links.seen() else { return };
    let tunnels = tunnels
        .iter()
        .filter(|tunnel| tunnel.up && tunnel.owner != Owner::Unknown && !tunnel.collect_metadata);
    let tunnel_names = tunnels.map(|tunnel| tunnel.name.as_str());
    let pods = links.values().filter(|link| has_pods && link.leads_to_pods());
    for name in tunnel_names.chain(pods.map(|link| link.name.as_str())) {
        if host.devices.get(name).and_then(|settings| settings.forwarding) != Some(false) {
            continue;
        }
        verdicts.add(Finding {
            code: Code::ForwardingOff,
            subject: Subject::Device { name: name.to_owned() },
            direction: None,
            hop: None,
            evidence: vec![Evidence::Sysctl {
                // With a slash where the name has a dot, as sysctl(8) wants it.
                name: format!("net.ipv4.conf.{}.forwarding", name.replace('.', "/")),
                value: "0".to_owned(),
            }],
            confidence: Confidence::Certain,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delta::Delta;
    use crate::fact::Fact;
    use crate::model::{Address, Host, LinkKind, Vxlan, tunnels};
    use crate::snapshot::Snapshot;
    use crate::time::Mono;

    fn seen<T>(value: T) -> Fact<Arc<T>> {
        Fact::Seen { value: Arc::new(value), at: Mono(1) }
    }

    fn link(index: u32, name: &str, kind: LinkKind) -> (IfIndex, Link) {
        let index = IfIndex(index);
        let link = Link {
            index,
            name: name.to_owned(),
            kind,
            mac: None,
            mtu: 1450,
            admin_up: true,
            carrier: true,
            master: None,
            counters: crate::model::LinkCounters::default(),
        };
        (index, link)
    }

    /// What is said of a node with a tunnel and these addresses, by device.
    fn judged(addresses: &[(u32, &str)], [v4, v6]: [bool; 2]) -> Vec<String> {
        let vxlan = LinkKind::Vxlan(Vxlan { vni: 1, port: 8472, ..Vxlan::default() });
        let links = [
            link(2, "eth0", LinkKind::Plain),
            link(5, "flannel-v6.1", vxlan),
            link(6, "cni0", LinkKind::Bridge),
        ];
        let links = links.into_iter().collect();
        let addresses: Vec<Address> = addresses
            .iter()
            .map(|(index, net)| Address { index: IfIndex(*index), net: net.parse().unwrap() })
            .collect();
        let host = Host { ipv4_forwarding: Some(v4), ipv6_forwarding: Some(v6), ..Host::default() };
        let now = Snapshot {
            tunnels: Fact::Seen { value: Arc::new(tunnels(&links, &addresses)), at: Mono(1) },
            links: seen(links),
            addresses: seen(addresses),
            host: seen(host),
            ..Snapshot::default()
        };
        let mut verdicts = Verdicts::default();
        let context = Context { delta: Delta { before: None, now: &now }, now: &now, digest: None };
        forwarding(&context, &mut verdicts);
        assert!(verdicts.findings.len() <= 1);
        let evidence = verdicts.findings.iter().flat_map(|finding| &finding.evidence);
        evidence.map(ToString::to_string).collect()
    }

    #[test]
    fn the_families_of_pods_need_forwarding_and_no_others() {
        let only_v6 = [(2, "2001:db8::11/64"), (5, "fd00:42:1::/128"), (6, "fd00:42:1::1/64")];
        assert_eq!(judged(&only_v6, [false, true]), [""; 0]);
        let said = judged(&only_v6, [true, false]);
        assert!(said.len() == 1 && said[0].contains("net.ipv6.conf.all.forwarding"), "{said:?}");
        let only_v4 = [(2, "2001:db8::11/64"), (6, "10.42.1.1/24"), (6, "fe80::1/64")];
        assert_eq!(judged(&only_v4, [true, false]), [""; 0]);
        let said = judged(&only_v4, [false, false]);
        assert!(said.len() == 1 && said[0].contains("net.ipv4.ip_forward"), "{said:?}");
        let both = [(6, "10.42.1.1/24"), (6, "fd00:42:1::1/64")];
        assert_eq!(judged(&both, [false, false]).len(), 2);
        assert_eq!(judged(&both, [true, true]), [""; 0]);
    }

    #[test]
    fn where_pods_have_no_address_yet_the_nodes_own_family_counts() {
        assert_eq!(judged(&[(2, "10.0.0.11/24")], [false, false]).len(), 1);
        assert_eq!(judged(&[(2, "2001:db8::11/64"), (1, "::1/128")], [false, false]), [""; 0]);
    }
}

//! What the host's own IP stack does to packets of the overlay: reverse path
//! filters, modules, and routes that somebody took away.

use std::collections::BTreeMap;

use super::{Context, STATUS_FRESH_NS, Verdicts, live};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject, Thing};
use crate::kernel::{DropForm, PacketDrop};
use crate::ladder::{Hop, Segment};
use crate::model::{AgentKind, CniAgent, Encapsulation, Host, IfIndex, Module, VanishedRoute};
use crate::time::SECOND;

/// Drops in the last seconds that are no accident.
const DROPS: u64 = 3;
/// Packets with addresses of a peer's pods that come without a tunnel, below which
/// nothing is said: `overlaywatch preflight --pods` sends ten, to see what becomes
/// of them.
const BARE_DROPS: u64 = 11;
/// Routes that went together belong to peers; one may have left the cluster, and
/// two at once.
const BURST: usize = 3;
/// Within this time it is one burst.
const TOGETHER_NS: u64 = 2 * SECOND;
/// IP in IP (RFC 2003).
const PROTOCOL_IPIP: u8 = 4;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    vanished(context, verdicts);
    no_vxlan(context, verdicts);
    let (Some(host), Some(counts)) = (context.now.host.seen(), context.now.kernel.seen()) else {
        return verdicts.blind(&[Code::RpFilterStrict, Code::ModuleMissing]);
    };
    reverse_paths(context, host, &counts.drops, verdicts);
    modules(context, host, &counts.drops, verdicts);
}

/// Packets of peers that a strict reverse path filter drops, by device. A stray
/// packet of others is dropped rightly and is not counted here.
fn reverse_paths(
    context: &Context<'_>,
    host: &Host,
    drops: &[PacketDrop],
    verdicts: &mut Verdicts,
) {
    let mut filtered: BTreeMap<&str, (u64, &PacketDrop)> = BTreeMap::new();
    let is_bare = |drop: &PacketDrop| live::came_bare(drop, |name| context.is_underlay(name));
    let by_filter = drops.iter().filter(|drop| {
        drop.lately > 0
            && drop.peer.is_some()
            && drop.site.reason.as_deref() == Some("IP_RPFILTER")
            && (drop.lately >= BARE_DROPS || !is_bare(drop))
    });
    for drop in by_filter {
        let Some(device) = drop.site.device.as_deref() else { continue };
        let (packets, _) = filtered.entry(device).or_insert((0, drop));
        *packets = packets.saturating_add(drop.lately);
    }
    let all = host.rp_filter_all.unwrap_or(0);
    for (device, (packets, drop)) in filtered {
        let own = host.devices.get(device).and_then(|settings| settings.rp_filter).unwrap_or(0);
        // The larger of the two is in force; 2 is the loose one, which drops only
        // what has no way back at all (ip-sysctl, rp_filter).
        if packets < DROPS || own.max(all) != 1 {
            continue;
        }
        // With a slash where the name has a dot, as sysctl(8) wants it.
        let name = device.replace('.', "/");
        let sysctl = |of: &str, value: u8| Evidence::Sysctl {
            name: format!("net.ipv4.conf.{of}.rp_filter"),
            value: value.to_string(),
        };
        let mut evidence = vec![sysctl(&name, own)];
        if all == 1 {
            evidence.push(sysctl("all", all));
        }
        evidence.push(Evidence::KernelDropped { here: true, site: drop.site.clone(), packets });
        evidence.extend(grown(context));
        let tunnels = context.now.tunnels.seen();
        let is_tunnel = tunnels.is_some_and(|all| all.iter().any(|t| t.name == device));
        let (direction, hop) = match drop.form {
            DropForm::Inner if is_tunnel => {
                (Direction::Inbound, Segment { from: Hop::Decapsulated, to: Hop::Delivered })
            }
            // From a peer's pod, as if there were no tunnel.
            DropForm::Inner if is_bare(drop) => {
                (Direction::Inbound, Segment { from: Hop::ReachedNic, to: Hop::Delivered })
            }
            // From a pod, on its way to the tunnel.
            DropForm::Inner => {
                (Direction::Outbound, Segment { from: Hop::Sent, to: Hop::Encapsulated })
            }
            DropForm::Outer => {
                (Direction::Inbound, Segment { from: Hop::ReachedNic, to: Hop::Decapsulated })
            }
            DropForm::Bare => {
                (Direction::Inbound, Segment { from: Hop::ReachedNic, to: Hop::Delivered })
            }
        };
        verdicts.add(Finding {
            code: Code::RpFilterStrict,
            subject: Subject::Device { name: device.to_owned() },
            direction: Some(direction),
            hop: Some(hop),
            evidence,
            confidence: Confidence::Certain,
        });
    }
}

/// How many packets the reverse path filters of this node dropped lately.
fn grown(context: &Context<'_>) -> Option<Evidence> {
    let now = context.now.host.seen()?.counters.ip_reverse_path_filter;
    let before = context.delta.before?.host.seen()?.counters.ip_reverse_path_filter;
    let by = now.checked_sub(before).filter(|by| *by > 0)?;
    Some(Evidence::Grew { counter: "TcpExtIPReversePathFilter".to_owned(), by })
}

/// IPIP comes from peers and nobody takes it.
fn modules(context: &Context<'_>, host: &Host, drops: &[PacketDrop], verdicts: &mut Verdicts) {
    let is_refused = |drop: &&PacketDrop| {
        drop.form == DropForm::Outer
            && drop.ip_protocol == PROTOCOL_IPIP
            && drop.peer.is_some()
            && !drop.outbound
            && drop.site.reason.as_deref() == Some("IP_NOPROTO")
    };
    let packets: u64 =
        drops.iter().filter(is_refused).fold(0, |sum, drop| sum.saturating_add(drop.lately));
    let is_loaded = host.modules.as_ref().is_some_and(|all| all.iter().any(|m| m == "ipip"));
    let worst = drops.iter().filter(is_refused).max_by_key(|drop| drop.lately);
    let (Some(worst), false) = (worst.filter(|_| packets >= DROPS), is_loaded) else { return };
    let machine = context.now.machine.seen();
    let available = machine.and_then(|m| m.modules.as_ref()?.get("ipip").copied());
    verdicts.add(Finding {
        code: Code::ModuleMissing,
        subject: Subject::Thing { what: Thing::Module, name: "ipip".to_owned() },
        direction: Some(Direction::Inbound),
        hop: Some(Segment { from: Hop::ReachedNic, to: Hop::Decapsulated }),
        evidence: vec![
            Evidence::NotLoaded { module: "ipip".to_owned(), available },
            Evidence::KernelDropped { here: true, site: worst.site.clone(), packets },
        ],
        confidence: Confidence::Certain,
    });
}

/// All other nodes have a VXLAN device, a CNI agent runs on this one, and its kernel
/// has no way to make such a device (EOPNOTSUPP, rtnl_newlink). What other modules
/// are for cannot be told from outside: see ARCHITECTURE.md.
fn no_vxlan(context: &Context<'_>, verdicts: &mut Verdicts) {
    let now = context.now;
    let (Some(host), Some(tunnels)) = (now.host.seen(), now.tunnels.seen()) else {
        return verdicts.blind(&[Code::ModuleMissing]);
    };
    let is_loaded = |all: &Vec<String>| all.iter().any(|module| module == "vxlan");
    if !tunnels.is_empty() || host.modules.as_ref().is_none_or(is_loaded) {
        return;
    }
    let told: Vec<Option<Encapsulation>> = now
        .peers_and_pairs()
        .filter(|(peer, _)| !peer.has_departed())
        .filter_map(|(_, pair)| pair?.status.as_ref())
        .filter(|(heard, _)| context.at().since(*heard) <= STATUS_FRESH_NS)
        .map(|(_, status)| {
            let mut up = status.tunnels.iter().filter(|advert| advert.up);
            let vxlan = up.find(|advert| matches!(advert.encapsulation, Encapsulation::Vxlan(_)));
            vxlan.map(|advert| advert.encapsulation)
        })
        .collect();
    let Some(Some(encapsulation)) = told.iter().copied().min() else { return };
    let (Some(machine), Some(cni)) = (now.machine.seen(), now.cni.seen()) else {
        return verdicts.blind(&[Code::ModuleMissing]);
    };
    let is_cni = |agent: &CniAgent| {
        matches!(agent.kind, AgentKind::Of(_) | AgentKind::K3s | AgentKind::Rke2)
    };
    let has_agent = cni.running.as_ref().is_some_and(|running| running.iter().any(is_cni));
    let available = machine.modules.as_ref().and_then(|all| all.get("vxlan").copied());
    if !has_agent || available != Some(Module::Absent) {
        return;
    }
    verdicts.add(Finding {
        code: Code::ModuleMissing,
        subject: Subject::Thing { what: Thing::Module, name: "vxlan".to_owned() },
        direction: None,
        hop: None,
        evidence: vec![
            Evidence::NotLoaded { module: "vxlan".to_owned(), available },
            Evidence::OthersTunnel {
                nodes: u32::try_from(told.len()).unwrap_or(u32::MAX),
                encapsulation,
            },
        ],
        confidence: Confidence::High,
    });
}

/// Adds to lost IPIP where the machine's provider is known to let none pass:
/// Hetzner's firewall knows TCP, UDP, ICMP, ESP and GRE alone (docs.hetzner.com,
/// cloud/firewalls), Azure's fabric drops it (docs.tigera.io, public cloud).
pub(super) fn testify(context: &Context<'_>, verdicts: &mut Verdicts) {
    let machine = context.now.machine.seen();
    let Some(vendor) = machine.and_then(|machine| machine.vendor.as_deref()) else { return };
    if !["Hetzner", "Microsoft Azure"].iter().any(|name| vendor.starts_with(name)) {
        return;
    }
    let encapsulation = Encapsulation::Ipip;
    for finding in &mut verdicts.findings {
        let is_ipip = matches!(
            finding.subject,
            Subject::Pair { encapsulation: Some(Encapsulation::Ipip), .. }
        );
        if finding.code == Code::EncapsulationLost && is_ipip {
            finding.evidence.push(Evidence::Platform { vendor: vendor.to_owned(), encapsulation });
        }
    }
}

/// Routes of peers that live, and that went together.
fn vanished(context: &Context<'_>, verdicts: &mut Verdicts) {
    if context.now.routes.seen().is_none() {
        return verdicts.blind(&[Code::RoutesVanished]);
    }
    let gone = &context.now.vanished;
    if gone.len() < BURST {
        return;
    }
    let is_missed = |route: &&VanishedRoute| {
        context.now.peers.iter().any(|peer| {
            !peer.has_departed()
                && peer.pod_networks.contains(&route.destination)
                && context.is_alive(peer)
        })
    };
    let mut by_device: BTreeMap<IfIndex, Vec<&VanishedRoute>> = BTreeMap::new();
    for route in gone.iter().filter(is_missed) {
        by_device.entry(route.device).or_default().push(route);
    }
    for (device, mut routes) in by_device {
        routes.sort_by_key(|route| route.at);
        let together = |first: &VanishedRoute| {
            routes
                .iter()
                .filter(|r| r.at >= first.at && r.at.since(first.at) <= TOGETHER_NS)
                .count()
        };
        let Some(burst) = routes.iter().map(|first| together(first)).max() else { continue };
        let (Some(example), true) = (routes.first(), burst >= BURST) else { continue };
        let name = context.device_name(device);
        verdicts.add(Finding {
            code: Code::RoutesVanished,
            subject: Subject::Device { name: name.clone() },
            direction: Some(Direction::Outbound),
            hop: Some(Segment { from: Hop::Sent, to: Hop::Encapsulated }),
            evidence: vec![Evidence::RoutesVanished {
                device: name,
                count: u32::try_from(burst).unwrap_or(u32::MAX),
                example: example.destination,
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
    use crate::kernel::DropSite;
    use crate::model::{Cni, Link, LinkCounters, LinkKind, Machine, Origin, Peer, PeerId};
    use crate::pairs::PairView;
    use crate::probing::{PeerStatus, TunnelAdvert};
    use crate::snapshot::Snapshot;
    use crate::time::Mono;

    fn evidence_of(vendor: &str, encapsulation: Encapsulation) -> Vec<String> {
        let machine = Machine { vendor: Some(vendor.to_owned()), ..Machine::default() };
        let now = Snapshot {
            machine: Fact::Seen { value: Arc::new(machine), at: Mono(0) },
            ..Snapshot::default()
        };
        let context = Context { delta: Delta { before: None, now: &now }, now: &now, digest: None };
        let mut verdicts = Verdicts::default();
        verdicts.add(Finding {
            code: Code::EncapsulationLost,
            subject: Subject::Pair {
                peer: PeerId([10, 0, 0, 2].into()),
                encapsulation: Some(encapsulation),
            },
            direction: None,
            hop: None,
            evidence: Vec::new(),
            confidence: Confidence::High,
        });
        testify(&context, &mut verdicts);
        verdicts.findings[0].evidence.iter().map(ToString::to_string).collect()
    }

    /// What is said of a node without a tunnel whose kernel has this of VXLAN, and
    /// whose peers have these tunnels.
    fn without_vxlan(module: Module, running: &str, peers: &[&[Encapsulation]]) -> Vec<Finding> {
        let seen = |tunnels: &[Encapsulation]| {
            let advert = |encapsulation: &Encapsulation| TunnelAdvert {
                encapsulation: *encapsulation,
                vni: None,
                up: true,
                address: None,
                mac: None,
                mtu: 1450,
            };
            let tunnels = tunnels.iter().map(advert).collect();
            let status = PeerStatus { tunnels, ..PeerStatus::default() };
            let streams = BTreeMap::new();
            Arc::new(PairView { streams, status: Some((Mono(1), status)), last_asked: None })
        };
        let ids = (2..).map(|number: u8| PeerId([10, 0, 0, number].into()));
        let peer = |id| Peer {
            id,
            name: None,
            origin: Origin::File,
            tunnels: Vec::new(),
            pod_networks: Vec::new(),
            other_addresses: Vec::new(),
            departed_since: None,
        };
        let agent = CniAgent {
            kind: AgentKind::of_process(running).unwrap(),
            name: running.to_owned(),
            pid: 7,
        };
        let cni = Cni { running: Some(vec![agent]), ..Cni::default() };
        let modules = Some([("vxlan".to_owned(), module)].into());
        let host = Host { modules: Some(vec!["ip_set".to_owned()]), ..Host::default() };
        let at = Mono(1);
        let now = Snapshot {
            peers: Arc::new(ids.clone().take(peers.len()).map(peer).collect()),
            pairs: ids.zip(peers.iter().map(|tunnels| seen(tunnels))).collect(),
            host: Fact::Seen { value: Arc::new(host), at },
            cni: Fact::Seen { value: Arc::new(cni), at },
            machine: Fact::Seen { value: Arc::new(Machine { modules, ..Machine::default() }), at },
            tunnels: Fact::Seen { value: Arc::default(), at },
            ..Snapshot::default()
        };
        let mut verdicts = Verdicts::default();
        let delta = Delta { before: None, now: &now };
        no_vxlan(&Context { delta, now: &now, digest: None }, &mut verdicts);
        verdicts.findings
    }

    #[test]
    fn a_kernel_without_vxlan_among_nodes_with_it_is_named() {
        let vxlan: &[Encapsulation] = &[Encapsulation::Vxlan(8472)];
        let found = without_vxlan(Module::Absent, "flanneld", &[vxlan, vxlan]);
        let [finding] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(finding.code, Code::ModuleMissing);
        let said: Vec<String> = finding.evidence.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("vxlan") && said[0].contains("does not have it"), "{said:?}");
        assert!(said[1].starts_with("all 2 other nodes"), "{said:?}");
        for available in [Module::Loadable, Module::BuiltIn] {
            assert_eq!(without_vxlan(available, "flanneld", &[vxlan]), []);
        }
        // Others do without it, too; nobody says anything; no CNI agent runs here.
        assert_eq!(without_vxlan(Module::Absent, "flanneld", &[vxlan, &[]]), []);
        assert_eq!(without_vxlan(Module::Absent, "flanneld", &[&[Encapsulation::Ipip]]), []);
        assert_eq!(without_vxlan(Module::Absent, "flanneld", &[]), []);
        assert_eq!(without_vxlan(Module::Absent, "kubelet", &[vxlan]), []);
    }

    #[test]
    fn a_cloud_that_lets_no_ipip_pass_is_named() {
        let said = evidence_of("Hetzner", Encapsulation::Ipip);
        assert!(said[0].contains("Hetzner") && said[0].contains("use VXLAN"), "{said:?}");
        assert!(evidence_of("Hetzner", Encapsulation::Vxlan(8472)).is_empty());
        assert!(evidence_of("Dell Inc.", Encapsulation::Ipip).is_empty());
    }

    /// What is said of packets from a peer's pods that a strict filter drops on a device.
    fn filtered(device: &str, packets: u64) -> Vec<(Option<Direction>, Option<Segment>)> {
        let drop = PacketDrop {
            site: DropSite {
                reason: Some("IP_RPFILTER".to_owned()),
                function: None,
                device: Some(device.to_owned()),
            },
            peer: Some(PeerId([10, 0, 0, 2].into())),
            form: DropForm::Inner,
            outbound: false,
            probe: None,
            ethertype: 0x0800,
            ip_protocol: 17,
            total: packets,
            lately: packets,
        };
        let host = Host { rp_filter_all: Some(1), ..Host::default() };
        let nic = Link {
            index: IfIndex(2),
            name: "eth0".to_owned(),
            kind: LinkKind::Veth,
            mac: None,
            mtu: 1_500,
            admin_up: true,
            carrier: true,
            master: None,
            counters: LinkCounters::default(),
        };
        let now = Snapshot {
            links: Fact::Seen { value: Arc::new([(IfIndex(2), nic)].into()), at: Mono(0) },
            underlays: Arc::new(vec![IfIndex(2)]),
            ..Snapshot::default()
        };
        let context = Context { delta: Delta { before: None, now: &now }, now: &now, digest: None };
        let mut verdicts = Verdicts::default();
        reverse_paths(&context, &host, &[drop], &mut verdicts);
        verdicts.findings.iter().map(|finding| (finding.direction, finding.hop)).collect()
    }

    #[test]
    fn a_preflight_of_plain_packets_is_no_strict_filters_harm() {
        assert_eq!(filtered("eth0", 10), []);
        let bare = Segment { from: Hop::ReachedNic, to: Hop::Delivered };
        assert_eq!(filtered("eth0", 11), [(Some(Direction::Inbound), Some(bare))]);
        assert_eq!(filtered("cali1", 3).len(), 1, "from a pod");
    }
}

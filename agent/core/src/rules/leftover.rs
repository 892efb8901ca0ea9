//! Two CNI plugins on one node: what one left behind, and what both want.

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{CniEvidence, Confidence, Evidence, Finding, Subject, Thing};
use crate::model::{
    Cni, CniAgent, Encapsulation, IfIndex, Link, LinkKind, Plugin, TUNL0, Tunnel, protocol,
};

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let now = context.now;
    match (now.links.seen(), now.cni.seen()) {
        (Some(_), Some(cni)) => left_behind(context, cni, verdicts),
        _ => verdicts.blind(&[Code::CniLeftover]),
    }
    let (Some(tunnels), Some(_), Some(_)) =
        (now.tunnels.seen(), now.links.seen(), now.addresses.seen())
    else {
        return verdicts.blind(&[Code::VtepAddressOfBridge, Code::VxlanPortClaimedTwice]);
    };
    for (position, tunnel) in tunnels.iter().enumerate() {
        source_on_bridge(context, tunnel, verdicts);
        let rest = tunnels.get(position + 1..).unwrap_or_default();
        if let Some(other) = rest.iter().find(|other| are_rivals(tunnel, other)) {
            verdicts.add(same_port(tunnel, other));
        }
    }
}

/// What belongs to a plugin without an agent, while another one is in charge.
fn left_behind(context: &Context<'_>, cni: &Cni, verdicts: &mut Verdicts) {
    let in_charge = Plugin::ALL.into_iter().find_map(|plugin| {
        let agent = cni.agent_of(plugin).ok()??;
        is_in_charge(context, cni, plugin).then_some((plugin, agent))
    });
    // A node whose CNI agent is being restarted has no other, and neither has
    // one that nobody's agent runs on.
    let Some(in_charge) = in_charge else {
        if cni.running.is_none() || cni.in_force().is_err() {
            verdicts.blind(&[Code::CniLeftover]);
        }
        return;
    };
    for plugin in Plugin::ALL {
        let has_no_agent = cni.agent_of(plugin) == Ok(None);
        if has_no_agent && !is_used(cni, plugin) {
            verdicts.findings.extend(leftovers(context, cni, plugin, in_charge));
        }
    }
}

/// One that the configuration in force names is part of what is in charge. Where
/// that cannot be read, its name is all that tells (installers put the plugin's own
/// into it); another's agent runs then, and its tunnel leads to peers.
fn is_used(cni: &Cni, plugin: Plugin) -> bool {
    if let Ok(in_force) = cni.in_force() {
        return in_force.is_some_and(|content| content.names(plugin));
    }
    let directory = cni.in_use().ok().flatten();
    let mut hidden = directory.into_iter().flat_map(|directory| cni.unread_of(directory));
    hidden.any(|path| path.contains(plugin.name()))
}

/// An agent that runs may only add policies to another's network: in charge is
/// one whose configuration is in force, or whose tunnel leads to peers.
fn is_in_charge(context: &Context<'_>, cni: &Cni, plugin: Plugin) -> bool {
    let Some(links) = context.now.links.seen() else { return false };
    let leads = || {
        let through = context.now.peers.iter().flat_map(|peer| &peer.tunnels);
        let mut links = through.filter_map(|leads| links.get(&leads.index));
        links.any(|link| link.admin_up && plugin.makes(link))
    };
    let in_force = cni.in_force().ok().flatten();
    in_force.is_some_and(|content| content.is_network_of(plugin)) || leads()
}

fn leftovers(
    context: &Context<'_>,
    cni: &Cni,
    plugin: Plugin,
    (other, agent): (Plugin, &CniAgent),
) -> Option<Finding> {
    let all = context.now.links.seen()?;
    let is_left = |link: &Link| {
        // The bridge that flannel's plugin makes is also what other plugins call theirs.
        let is_shared = link.name == SHARED_BRIDGE;
        plugin.makes(link) && !(is_shared && (uses_bridge(cni, other) || makes_shared_bridge(cni)))
    };
    let links: Vec<&Link> = all.values().filter(|link| is_left(link)).collect();
    let origins = || context.digest.iter().flat_map(|digest| &digest.by_origin);
    let sum = |of: &dyn Fn(Option<IfIndex>, u8) -> bool| {
        let counts = origins().filter(|((device, by, _), _)| of(*device, *by));
        counts.fold(0_u32, |sum, (_, count)| sum.saturating_add(count.count))
    };
    let without_device = sum(&|device, by| device.is_none() && plugin.route_protocol() == Some(by));
    let through = |index: IfIndex| links.iter().any(|link| link.index == index);
    let routes = sum(&|device, _| device.is_some_and(through)).saturating_add(without_device);
    let files = cni.directories.iter().flat_map(|directory| &directory.files);
    let is_own = |file: &&crate::model::CniFile| {
        file.content.as_ref().is_ok_and(|content| content.names(plugin))
    };
    let files: Vec<String> = files.filter(is_own).map(|file| file.path.clone()).collect();
    // Files alone catch no packet: which one is in force is another question.
    if links.is_empty() && routes == 0 {
        return None;
    }
    // The kernel's own tunnel serves others, too: a real server behind LVS has it
    // up, with an address and without a route.
    let is_calicos = |by| matches!(by, protocol::BIRD | protocol::FELIX);
    let is_shared = links.iter().all(|link| link.name == TUNL0)
        && without_device == 0
        && files.is_empty()
        && sum(&|device, by| device.is_some_and(through) && is_calicos(by)) == 0;
    if is_shared && !links.is_empty() {
        return None;
    }
    // Those that go with no device.
    let flush = plugin.route_protocol().filter(|_| without_device > 0);
    let mut names: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
    names.sort_unstable();
    names.truncate(MOST_NAMES);
    Some(Finding {
        code: Code::CniLeftover,
        subject: Subject::Thing { what: Thing::Leftover, name: plugin.name().to_owned() },
        direction: None,
        hop: None,
        evidence: [
            CniEvidence::Left { plugin, links: names, routes, files, flush },
            CniEvidence::Runs { plugin: other, process: agent.name.clone(), pid: agent.pid },
        ]
        .map(Evidence::Cni)
        .into(),
        confidence: Confidence::High,
    })
}

/// Devices that one finding names.
const MOST_NAMES: usize = 16;

/// What the plugin `bridge` calls its bridge unless it is told another name
/// (`defaultBrName`, containernetworking plugins/main/bridge), as flannel's does.
const SHARED_BRIDGE: &str = "cni0";

/// Whether any file, in force or not, lets the plugin `bridge` make it: CRI-O
/// installs such a one, and pods from before another came may still be on it.
fn makes_shared_bridge(cni: &Cni) -> bool {
    let files = cni.directories.iter().flat_map(|directory| &directory.files);
    // One that cannot be read may do so.
    let is_hidden = cni.directories.iter().any(|it| cni.unread_of(it).next().is_some());
    is_hidden
        || files.filter_map(|file| file.content.as_ref().ok()).any(|content| {
            content.types.iter().any(|kind| kind == "bridge")
                && content.bridge.as_deref().unwrap_or(SHARED_BRIDGE) == SHARED_BRIDGE
        })
}

fn uses_bridge(cni: &Cni, other: Plugin) -> bool {
    let has_bridge = |content: &crate::model::CniConfiguration| {
        content.bridge.is_some() || content.types.iter().any(|kind| kind == "bridge")
    };
    other == Plugin::Flannel || cni.in_force().map_or(true, |it| it.is_some_and(has_bridge))
}

/// Withdraws what other rules say of a leftover's devices: nobody misses them.
pub(super) fn excuse(context: &Context<'_>, verdicts: &mut Verdicts) {
    let left: Vec<Plugin> = verdicts
        .findings
        .iter()
        .filter(|finding| finding.code == Code::CniLeftover)
        .flat_map(|finding| &finding.evidence)
        .filter_map(|evidence| match evidence {
            Evidence::Cni(CniEvidence::Left { plugin, .. }) => Some(*plugin),
            _ => None,
        })
        .collect();
    let (Some(links), Some(tunnels)) = (context.now.links.seen(), context.now.tunnels.seen())
    else {
        return;
    };
    if left.is_empty() {
        return;
    }
    let is_left = |link: &Link| left.iter().any(|plugin| plugin.makes(link));
    let of_left = |encapsulation: Encapsulation| {
        let same = || tunnels.iter().filter(move |it| it.encapsulation == encapsulation);
        same().next().is_some() && same().all(|it| links.get(&it.index).is_some_and(is_left))
    };
    verdicts.findings.retain(|finding| match &finding.subject {
        Subject::Device { name } => !links.values().any(|link| link.name == *name && is_left(link)),
        Subject::Pair { encapsulation: Some(encapsulation), .. } => !of_left(*encapsulation),
        _ => true,
    });
}

/// The names of bridges for containers and virtual machines of one host: Docker's
/// own and those of its networks (twelve hexadecimal digits), libvirt's, LXC's,
/// LXD's, Podman's and nerdctl's. An underlay may well be a bridge, but not these.
fn is_for_containers(name: &str) -> bool {
    let docker = name
        .strip_prefix("br-")
        .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let numbered = ["docker", "virbr", "lxcbr", "lxdbr", "podman", "cni-podman", "nerdctl"];
    docker
        || numbered.iter().any(|prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
        })
}

/// An agent that was to find out the node's address took a bridge's.
fn source_on_bridge(context: &Context<'_>, tunnel: &Tunnel, verdicts: &mut Verdicts) {
    let Some(local) = tunnel.local else { return };
    let addresses = context.now.addresses.seen().map_or(&[][..], |all| all.as_slice());
    let on = addresses.iter().filter(|address| address.net.addr() == local);
    let mut links = on.filter_map(|address| context.now.links.seen()?.get(&address.index));
    // An address on a NIC as well is the node's own.
    let Some(bridge) = links.next().filter(|_| links.next().is_none()) else { return };
    if bridge.kind != LinkKind::Bridge || !is_for_containers(&bridge.name) {
        return;
    }
    verdicts.add(Finding {
        code: Code::VtepAddressOfBridge,
        subject: Subject::Device { name: tunnel.name.clone() },
        direction: None,
        hop: None,
        evidence: vec![Evidence::Cni(CniEvidence::SourceOnBridge {
            tunnel: tunnel.name.clone(),
            address: local,
            bridge: bridge.name.clone(),
        })],
        confidence: Confidence::Certain,
    });
}

/// Devices share a port only where both take the network from each packet's
/// metadata or neither does (vxlan_find_sock, drivers/net/vxlan/vxlan_core.c).
fn are_rivals(one: &Tunnel, other: &Tunnel) -> bool {
    matches!(one.encapsulation, Encapsulation::Vxlan(_))
        && one.encapsulation == other.encapsulation
        && one.collect_metadata != other.collect_metadata
}

fn same_port(one: &Tunnel, other: &Tunnel) -> Finding {
    let port = match one.encapsulation {
        Encapsulation::Vxlan(port) => port,
        Encapsulation::Ipip => 0,
    };
    let down = [one, other].into_iter().find(|tunnel| !tunnel.up);
    Finding {
        code: Code::VxlanPortClaimedTwice,
        subject: Subject::Device { name: one.name.clone() },
        direction: None,
        hop: None,
        evidence: vec![Evidence::Cni(CniEvidence::SamePort {
            port,
            devices: [one.name.clone(), other.name.clone()],
            down: down.map(|tunnel| tunnel.name.clone()),
        })],
        confidence: Confidence::Certain,
    }
}

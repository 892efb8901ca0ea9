//! The host: its NICs below the tunnels, and its switches.

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Evidence, Finding, Subject};
use crate::model::Owner;

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

/// Pods need forwarding wherever a CNI's tunnel is; a tunnel that nobody knows
/// may well serve the host alone.
fn forwarding(context: &Context<'_>, verdicts: &mut Verdicts) {
    let (Some(host), Some(tunnels)) = (context.now.host.seen(), context.now.tunnels.seen()) else {
        return verdicts.blind(&[Code::ForwardingOff]);
    };
    let has_pods = tunnels.iter().any(|tunnel| tunnel.up && tunnel.owner != Owner::Unknown);
    if has_pods && host.ipv4_forwarding == Some(false) {
        verdicts.add(Finding {
            code: Code::ForwardingOff,
            subject: Subject::Node,
            direction: None,
            hop: None,
            evidence: vec![Evidence::Sysctl {
                name: "net.ipv4.ip_forward".to_owned(),
                value: "0".to_owned(),
            }],
            confidence: Confidence::Certain,
        });
    }
    if host.ipv4_forwarding != Some(true) {
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

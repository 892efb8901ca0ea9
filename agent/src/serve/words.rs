//! What an SRE would say aloud: names, lists and whole sentences from verdicts.

use overlaywatch_core::catalog::{Code, Severity};
use overlaywatch_core::diagnose::{Active, Diagnosis, PeerState, Status};
use overlaywatch_core::finding::{Direction, Evidence, Finding, Subject, Thing};
use overlaywatch_core::ladder::Segment;
use overlaywatch_core::model::{Encapsulation, Peer, PeerId};
use overlaywatch_core::snapshot::Snapshot;

/// Names that a list spells out; the rest are a number.
const NAMED: usize = 3;
/// Different verdicts that a summary says; the rest are a number.
const CLAUSES: usize = 3;

/// This node's name, else its underlay address, else words for neither.
pub(super) fn node(snapshot: &Snapshot) -> String {
    let node = &snapshot.node;
    match (&node.name, node.underlay) {
        (Some(name), _) => name.to_string(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "this node".to_owned(),
    }
}

/// What people call a peer.
pub(super) fn peer(snapshot: &Snapshot, id: PeerId) -> String {
    // Peers are in order of address.
    snapshot
        .peers
        .binary_search_by_key(&id, |peer| peer.id)
        .ok()
        .and_then(|position| snapshot.peers.get(position))
        .map_or_else(|| id.to_string(), Peer::label)
}

/// The same; where a node is a peer by an address of each family, also by which of them.
fn peer_of_family(snapshot: &Snapshot, id: PeerId) -> String {
    let label = peer(snapshot, id);
    let is_same_node = |other: &Peer| {
        let is_of_other_family = other.id.0.is_ipv6() != id.0.is_ipv6();
        is_of_other_family && other.name.as_ref().is_some_and(|name| name.as_str() == label)
    };
    if !snapshot.peers.iter().any(is_same_node) {
        return label;
    }
    format!("{label} over IPv{}", if id.0.is_ipv6() { 6 } else { 4 })
}

/// An encapsulation as a firewall's administrator knows it.
#[must_use]
pub fn encapsulation(encapsulation: Encapsulation) -> String {
    match encapsulation {
        Encapsulation::Ipip => "IPIP (protocol 4)".to_owned(),
        Encapsulation::Vxlan(port) => format!("VXLAN (udp {port})"),
    }
}

/// "a", "a and b", "a, b and c", "a, b, c and 4 more".
#[must_use]
pub fn list(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    if more > 0 {
        return format!("{} and {more} more", names[..NAMED].join(", "));
    }
    match names {
        [] => "nobody".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The remedy with the subject's names in the places of the placeholders.
pub(super) fn remedy(snapshot: &Snapshot, finding: &Finding) -> String {
    let (mut peer_name, mut device, mut address, mut wrap) =
        ("the peer".to_owned(), "the tunnel device".to_owned(), None, None);
    let mut thing = "NAME".to_owned();
    match &finding.subject {
        Subject::Node => address = snapshot.node.underlay,
        Subject::Device { name } => device.clone_from(name),
        Subject::Thing { what: Thing::Set, name } => thing = quoted(name),
        Subject::Thing { name, .. } => thing.clone_from(name),
        Subject::Pair { peer: id, encapsulation } => {
            peer_name = peer(snapshot, *id);
            address = Some(id.0);
            wrap = *encapsulation;
            if let Some(name) = tunnel_name(snapshot, *id, *encapsulation) {
                device = name;
            }
        }
    }
    let wrap = wrap.map_or_else(
        || "the tunnel's".to_owned(),
        |wrap| match wrap {
            Encapsulation::Ipip => "IPIP, IP protocol 4".to_owned(),
            Encapsulation::Vxlan(port) => format!("VXLAN, UDP port {port}"),
        },
    );
    let address = address.map_or_else(|| "ADDRESS".to_owned(), |address| address.to_string());
    let told = finding.evidence.iter().flat_map(Evidence::placeholders);
    told.fold(finding.code.entry().remedy.to_owned(), |text, (place, word)| {
        text.replace(place, &word)
    })
    .replace("{name}", &thing)
    .replace("{peer}", &peer_name)
    .replace("{device}", &device)
    .replace("{address}", &address)
    .replace("{encapsulation}", &wrap)
}

/// A name as one word of a shell's command: whoever may make a set may call it
/// anything, and what a remedy says is typed as root.
fn quoted(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,:@%+=/".contains(&byte);
    if name.bytes().all(is_plain) {
        return name.to_owned();
    }
    format!("'{}'", name.replace('\'', "'\\''"))
}

/// The device that leads to a peer through an encapsulation.
pub(super) fn tunnel_name(
    snapshot: &Snapshot,
    id: PeerId,
    encapsulation: Option<Encapsulation>,
) -> Option<String> {
    let position = snapshot.peers.binary_search_by_key(&id, |peer| peer.id).ok()?;
    let leads = &snapshot.peers.get(position)?.tunnels;
    leads
        .iter()
        .find(|leads| encapsulation.is_none_or(|wanted| wanted == leads.encapsulation))
        .map(|leads| leads.device.clone())
}

/// The whole verdict as one sentence. `causes` are the findings that are no
/// consequence of another one.
pub(super) fn summary(snapshot: &Snapshot, diagnosis: &Diagnosis, causes: &[&Active]) -> String {
    let grave = causes.iter().filter(|a| a.finding.code.entry().severity > Severity::Info);
    let mut sentences: Vec<String> = Group::all(grave).iter().map(|g| g.say(snapshot)).collect();
    let more = sentences.len().saturating_sub(CLAUSES);
    sentences.truncate(CLAUSES);
    if more > 0 {
        sentences.push(format!("{more} more findings"));
    }
    if sentences.is_empty() {
        sentences.push(nothing_found(snapshot, diagnosis));
    }
    format!("{}: {}", node(snapshot), sentences.join("; "))
}

/// What is said when nothing is wrong, or nothing is known to be.
fn nothing_found(snapshot: &Snapshot, diagnosis: &Diagnosis) -> String {
    let all = diagnosis.peers.len();
    if all == 0 {
        return "knows no peers yet, so nothing is proved".to_owned();
    }
    if diagnosis.status == Status::Unknown {
        let open: Vec<String> = diagnosis
            .peers
            .iter()
            .filter(|verdict| verdict.state == PeerState::Unknown)
            .map(|verdict| peer(snapshot, verdict.peer))
            .collect();
        return if open.is_empty() {
            "nothing is known to be wrong, but not everything could be seen".to_owned()
        } else {
            let them = if open.len() == all { "any peer".to_owned() } else { list(&open) };
            format!("nothing is known to be wrong; the way to {them} is not proved yet")
        };
    }
    let mut through: Vec<String> = snapshot
        .peers
        .iter()
        .flat_map(|peer| &peer.tunnels)
        .map(|leads| encapsulation(leads.encapsulation))
        .collect();
    through.sort_unstable();
    through.dedup();
    through.push("the underlay".to_owned());
    let who = match all {
        1 => "the only peer".to_owned(),
        2 => "both peers".to_owned(),
        _ => format!("all {all} peers"),
    };
    format!("{who} can be reached through {}", list(&through))
}

/// Findings that one clause can say.
struct Group<'a> {
    code: Code,
    encapsulation: Option<Encapsulation>,
    direction: Option<Direction>,
    hop: Option<Segment>,
    subjects: Vec<&'a Subject>,
}

impl<'a> Group<'a> {
    /// The groups in order of their first findings.
    fn all<'b>(findings: impl Iterator<Item = &'b &'a Active>) -> Vec<Self>
    where
        'a: 'b,
    {
        let mut groups: Vec<Self> = Vec::new();
        for Active { finding, .. } in findings {
            let encapsulation = match finding.subject {
                Subject::Pair { encapsulation, .. } => encapsulation,
                Subject::Node | Subject::Device { .. } | Subject::Thing { .. } => None,
            };
            let (code, direction, hop) = (finding.code, finding.direction, finding.hop);
            let same = |g: &&mut Self| {
                (g.code, g.encapsulation, g.direction, g.hop)
                    == (code, encapsulation, direction, hop)
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.subjects.push(&finding.subject),
                None => groups.push(Self {
                    code,
                    encapsulation,
                    direction,
                    hop,
                    subjects: vec![&finding.subject],
                }),
            }
        }
        groups
    }

    fn say(&self, snapshot: &Snapshot) -> String {
        let title = self.code.entry().title;
        let names: Vec<String> = self
            .subjects
            .iter()
            .enumerate()
            .filter_map(|(position, subject)| match subject {
                Subject::Node => None,
                Subject::Device { name } => Some(name.clone()),
                Subject::Thing { what, name } => Some(format!("{} {name}", what.slug())),
                // Others are counted, not named.
                Subject::Pair { peer: id, .. } if position > NAMED => Some(peer(snapshot, *id)),
                Subject::Pair { peer: id, .. } => Some(peer_of_family(snapshot, *id)),
            })
            .collect();
        let who = list(&names);
        let way = match self.direction {
            None => "",
            Some(Direction::Outbound) => " outbound",
            Some(Direction::Inbound) => " inbound",
            Some(Direction::Both) => " in either direction",
        };
        let what = self.encapsulation.map_or_else(|| "the underlay".to_owned(), encapsulation);
        match self.code {
            Code::EncapsulationLost => {
                format!("{what} to {who} does not get through{way}; underlay is fine")
            }
            Code::LocalOutputDrop => format!("this host drops its own {what} packets to {who}"),
            Code::UnexplainedLoss => {
                let place = self.hop.map_or_else(String::new, |hop| {
                    format!(" between {} and {}", hop.from, hop.to)
                });
                format!("{what} to {who} is lost{way}{place}")
            }
            Code::EncapsulationRefused => format!("{who} refuses {what} from this node"),
            Code::OverlayLoss => {
                format!("{what} to {who} loses packets{way}; underlay loses fewer")
            }
            Code::UnderlayLoss => format!("the underlay to {who} loses packets{way}"),
            Code::MtuBlackhole => {
                format!("full-sized packets in {what} to {who} vanish{way}; small ones pass")
            }
            Code::RemoteTunnelDown => format!("the tunnel device of {who} is down"),
            Code::PeerUnreachable => format!("nothing of {who} answers"),
            Code::AgentSilent => format!("the agent on {who} does not answer, its kernel does"),
            Code::ProbePortFiltered => {
                format!("the probes' own port to {who} is filtered; the network works")
            }
            _ if names.is_empty() => title.to_owned(),
            _ if matches!(self.subjects.first(), Some(Subject::Pair { .. })) => {
                format!("{what} to {who}: {title}")
            }
            _ => format!("{who}: {title}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use overlaywatch_core::finding::Confidence;
    use overlaywatch_core::model::Origin;

    use super::*;

    #[test]
    fn a_node_with_two_families_is_told_by_which() {
        let peer = |address: &str, name: &str| Peer {
            id: PeerId(address.parse().unwrap()),
            name: Some(name.parse().unwrap()),
            origin: Origin::File,
            tunnels: Vec::new(),
            pod_networks: Vec::new(),
            other_addresses: Vec::new(),
            departed_since: None,
        };
        let peers = vec![
            peer("10.0.0.12", "node-b"),
            peer("10.0.0.13", "node-c"),
            peer("fd00::12", "node-b"),
        ];
        let snapshot = Snapshot { peers: Arc::new(peers), ..Snapshot::default() };
        let said = |address: &str| peer_of_family(&snapshot, PeerId(address.parse().unwrap()));
        assert_eq!(said("10.0.0.12"), "node-b over IPv4");
        assert_eq!(said("fd00::12"), "node-b over IPv6");
        assert_eq!(said("10.0.0.13"), "node-c");
    }

    #[test]
    fn a_sets_name_is_one_word_of_a_command_whatever_it_is() {
        let remedy = |name: &str| {
            let subject = Subject::Thing { what: Thing::Set, name: name.to_owned() };
            let finding = Finding {
                code: Code::IpsetReaderTooOld,
                subject,
                direction: None,
                hop: None,
                evidence: Vec::new(),
                confidence: Confidence::Certain,
            };
            remedy(&Snapshot::default(), &finding)
        };
        assert!(remedy("cali40s:Ab_-1").contains("`ipset save cali40s:Ab_-1 | sed"));
        let hostile = remedy("cali';reboot;$(id)`'");
        assert!(hostile.contains(r"ipset save 'cali'\'';reboot;$(id)`'\''' | sed"), "{hostile}");
    }
}

//! Who may ask this node for a preflight, by what was published last.

use std::net::IpAddr;

use overlaywatch_core::model::PeerId;
use overlaywatch_core::snapshot::Snapshot;

use crate::cli::PodPair;
use crate::preflight::Acquaintance;
use crate::published::Publication;

/// The peers that the agent watches.
#[derive(Debug)]
pub(super) struct Known(pub(super) Publication);

impl Known {
    fn ask(&self, question: impl FnOnce(&Snapshot) -> bool) -> bool {
        self.0.borrow().as_ref().is_some_and(|published| question(&published.snapshot))
    }
}

impl Acquaintance for Known {
    fn is_peer(&self, address: IpAddr) -> bool {
        self.ask(|snapshot| is_peer(snapshot, address))
    }

    fn has_pods(&self, peer: IpAddr, pods: PodPair) -> bool {
        self.ask(|snapshot| has_pods(snapshot, peer, pods))
    }
}

/// Whether somebody names it a peer; one that the kernel no longer knows is none.
fn is_peer(snapshot: &Snapshot, address: IpAddr) -> bool {
    snapshot.peers.iter().any(|peer| peer.id == PeerId(address) && !peer.has_departed())
}

/// Whether the peer's address is in a network that is routed to it, and the own
/// one in a network that a device of this node has, other than the underlay's.
fn has_pods(snapshot: &Snapshot, peer: IpAddr, pods: PodPair) -> bool {
    let is_theirs = snapshot.peers.iter().any(|known| {
        known.id == PeerId(peer) && known.pod_networks.iter().any(|net| net.contains(&pods.peer))
    });
    let is_ours = snapshot.addresses.seen().is_some_and(|addresses| {
        addresses.iter().any(|address| {
            !snapshot.underlays.contains(&address.index) && address.net.contains(&pods.own)
        })
    });
    is_theirs && is_ours
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use overlaywatch_core::fact::Fact;
    use overlaywatch_core::model::{Address, IfIndex, Origin, Peer};
    use overlaywatch_core::time::Mono;

    use super::*;

    const PEER: [u8; 4] = [10, 0, 0, 2];

    fn snapshot(departed_since: Option<Mono>) -> Snapshot {
        let peer = Peer {
            id: PeerId(PEER.into()),
            name: None,
            origin: Origin::Kernel,
            tunnels: Vec::new(),
            other_addresses: Vec::new(),
            pod_networks: vec!["10.42.2.0/24".parse().unwrap()],
            departed_since,
        };
        let address =
            |index, net: &str| Address { index: IfIndex(index), net: net.parse().unwrap() };
        let addresses = vec![address(2, "10.0.0.1/24"), address(4, "10.42.1.1/24")];
        Snapshot {
            peers: Arc::new(vec![peer]),
            underlays: Arc::new(vec![IfIndex(2)]),
            addresses: Fact::Seen { value: Arc::new(addresses), at: Mono(0) },
            ..Snapshot::default()
        }
    }

    #[test]
    fn only_peers_that_are_there_are_known() {
        assert!(is_peer(&snapshot(None), PEER.into()));
        assert!(!is_peer(&snapshot(None), [10, 0, 0, 3].into()));
        assert!(!is_peer(&snapshot(Some(Mono(1))), PEER.into()));
        assert!(!is_peer(&Snapshot::default(), PEER.into()));
    }

    #[test]
    fn pods_are_this_nodes_and_that_peers() {
        let snapshot = snapshot(None);
        let has = |own: [u8; 4], other: [u8; 4]| {
            has_pods(&snapshot, PEER.into(), PodPair { own: own.into(), peer: other.into() })
        };
        assert!(has([10, 42, 1, 0], [10, 42, 2, 7]));
        assert!(!has([10, 42, 1, 0], [10, 42, 3, 0]), "another node's");
        assert!(!has([10, 42, 3, 0], [10, 42, 2, 0]), "not ours");
        assert!(!has([10, 0, 0, 1], [10, 42, 2, 0]), "the underlay's");
        assert!(!has([10, 42, 1, 0], [192, 0, 2, 1]), "anybody's");
    }
}

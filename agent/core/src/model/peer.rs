//! The other nodes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Encapsulation, IfIndex, Mac, NodeName};
use crate::time::Mono;

/// A peer's identity: its underlay address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(pub IpAddr);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who says that a peer exists, in descending authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The configuration.
    Configuration,
    /// A peers file.
    File,
    /// The kernel: routes and forwarding entries of tunnels.
    Kernel,
}

/// One line of a configured or file-given peer list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerListEntry {
    /// Underlay address.
    pub address: IpAddr,
    /// Node name, where the list gives one.
    pub name: Option<NodeName>,
    /// Overlay address, where the list gives one (IPIP has no other local source).
    pub overlay: Option<IpAddr>,
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its identity.
    pub id: PeerId,
    /// Its name: from the list, else from its own replies.
    pub name: Option<NodeName>,
    /// Who says that it exists.
    pub origin: Origin,
    /// The tunnels of this node that lead to it, in order of device index.
    pub tunnels: Vec<PeerTunnel>,
    /// Networks routed to it: its pods.
    pub pod_networks: Vec<IpNet>,
    /// Overlay addresses of its own that no tunnel here leads to: it may send from
    /// them, since either end decides for itself what it sends through which tunnel.
    #[serde(default)]
    pub other_addresses: Vec<IpAddr>,
    /// When the kernel, which alone named it, stopped to know it; it is
    /// remembered until forgotten.
    pub departed_since: Option<Mono>,
}

/// What this node knows of reaching a peer through one of its tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerTunnel {
    /// This node's tunnel device.
    pub index: IfIndex,
    /// Its name.
    pub device: String,
    /// Its encapsulation.
    pub encapsulation: Encapsulation,
    /// The peer's overlay address, where probes go.
    pub overlay: Option<IpAddr>,
    /// The peer's VTEP MAC as this node believes it (VXLAN).
    pub mac: Option<Mac>,
}

impl Peer {
    /// Whether nobody names it any more.
    #[must_use]
    pub const fn has_departed(&self) -> bool {
        self.departed_since.is_some()
    }

    /// How closely this node's routes lead an address to it: the length of the
    /// longest prefix that does. A default route leads there whatever it is.
    #[must_use]
    pub fn prefix_of(&self, address: IpAddr) -> Option<u8> {
        let networks = self.pod_networks.iter().filter(|network| network.contains(&address));
        networks.map(IpNet::prefix_len).filter(|length| *length > 0).max()
    }

    /// The name if known, else the address: what people call it.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => name.to_string(),
            None => self.id.to_string(),
        }
    }
}

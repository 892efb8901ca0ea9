//! The network as this product speaks of it. No netlink vocabulary, no wire
//! formats: sources translate into these types, rules read them.

mod cni;
mod conntrack;
mod host;
mod ipset;
mod link;
mod lookup;
mod machine;
mod neighbour;
mod netfilter;
mod nic;
mod peer;
mod route;
mod session;
mod tools;
mod traffic;
mod tunnel;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use cni::{
    AgentKind, Cni, CniAgent, CniConfiguration, CniDirectory, CniFile, FLANNEL_NOTE, FlannelNote,
    K3S_CONTAINERD, K3sNetwork, Plugin, TUNL0, USUAL_DIRECTORY, Unread, Untold,
};
pub use conntrack::{Conntrack, ConntrackCounters, TunnelFlows};
pub use host::{DeviceSettings, Host, IpCounters, NeighbourTable};
pub use ipset::{IpSet, IpSets, Revisions, SetChange};
pub use link::{Ipip, Link, LinkCounters, LinkKind, Vxlan};
pub use lookup::{
    FoundRoute, LookupPlan, Lookups, PeerAnswers, PodSide, RouteAnswer, RouteQuestion,
};
pub use machine::{Machine, Module};
pub use neighbour::{FdbEntry, FdbKey, Neighbour, NeighbourState};
pub use netfilter::{
    BaseChain, Blocker, ChainHook, Committer, Controller, Family, Flood, Flushed, Growth,
    Illegible, LegacyTable, MOST_ASIDE, MOST_BASE_CHAINS, MOST_ENTRIES, MOST_FLOODS,
    MOST_ILLEGIBLE, MOST_RULES, MOST_TABLES, Matches, Netfilter, NftTable, Outer, Programmed,
    REPEATED, Readers, RuleAt, SKIPS_FOREIGN_CHAINS, Untracking, is_of_iptables,
};
pub use nic::Nic;
pub use peer::{Origin, Peer, PeerId, PeerListEntry, PeerTunnel};
pub use route::{
    Address, NextHop, PolicyRule, Route, RouteCount, RouteDigest, RouteKey, RouteKind, RouteTable,
    VanishedRoute, protocol, table,
};
pub use session::{BgpSession, Service, ServiceHealth, SessionState, Sockets};
pub use tools::{BadToolVersion, ToolProcess, ToolSpace, ToolVersion, Tools};
pub use traffic::{Qdisc, TrafficControl};
pub use tunnel::{Encapsulation, Owner, Tunnel, tunnels};

/// A network device's index (`ifindex`), unique within one network namespace
/// and never reused while the device lives.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct IfIndex(pub u32);

/// A link-layer address of six bytes; on a VXLAN device the VTEP's MAC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The all-zero address, which in a VXLAN FDB stands for "everything else".
    pub const ZERO: Self = Self([0; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no link-layer address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a link-layer address of six hexadecimal bytes")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2)
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| BadMac(text.to_owned()))?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(BadMac(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// A node's name as people say it: 1 to 253 bytes, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(std::sync::Arc<str>);

/// A text that cannot be a node's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` cannot be a node's name: 1 to 253 bytes without control characters or spaces")]
pub struct BadNodeName(String);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = BadNodeName;

    fn from_str(text: &str) -> Result<Self, BadNodeName> {
        let fits = (1..=253).contains(&text.len());
        if fits && !text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            Ok(Self(text.into()))
        } else {
            Err(BadNodeName(text.escape_debug().take(300).collect()))
        }
    }
}

impl TryFrom<String> for NodeName {
    type Error = BadNodeName;

    fn try_from(text: String) -> Result<Self, BadNodeName> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

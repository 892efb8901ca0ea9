//! Which encapsulations pass between two nodes: packets as each of them makes
//! them, built by hand, so that no device, module or route is needed.
//!
//! What is here is pure: the packets, the frames in which the two ends tell
//! each other what came, and what is made of it.

pub mod frame;
pub mod packet;
pub mod report;

use std::str::FromStr;

/// Packets of each kind that are sent, one a round. A mask of eight bits holds them.
pub const ROUNDS: u8 = 5;

/// A way of carrying pods' packets between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// VXLAN on flannel's and Cilium's port, UDP 8472.
    Vxlan8472,
    /// VXLAN on Calico's port, UDP 4789 (RFC 7348).
    Vxlan4789,
    /// Geneve, UDP 6081 (RFC 8926).
    Geneve,
    /// WireGuard on the port that flannel and Calico use, UDP 51820.
    Wireguard,
    /// IP in IP: protocol 4 (RFC 2003), between IPv6 nodes protocol 41 (RFC 2473).
    Ipip,
    /// Pods' own addresses, not encapsulated, as host-gw and BGP route them.
    Plain,
}

/// How large the outer packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// [`packet::SMALL_BYTES`].
    Small,
    /// The sender's underlay MTU, with DF set.
    Full,
}

/// What became of the packets of one method and size in one direction. Each
/// mask has a bit for each round; those that were sent are the sender's to
/// tell, the others the receiver's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Rounds in which the sender's kernel took the packet.
    pub sent: u8,
    /// The last error (errno) with which it refused one; 0 for none.
    pub error: u8,
    /// Rounds whose packet was seen at the receiver's NIC.
    pub reached: u8,
    /// Rounds whose packet passed the receiver's own filters, too.
    pub delivered: u8,
}

/// The cells of one direction, by [`Method::index`] and [`Size::index`].
pub type Cells = [[Cell; Size::ALL.len()]; Method::ALL.len()];

impl Method {
    /// All, in the order of the table.
    pub const ALL: [Self; 6] =
        [Self::Vxlan8472, Self::Vxlan4789, Self::Geneve, Self::Wireguard, Self::Ipip, Self::Plain];

    /// Its name on the command line and in JSON.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Vxlan8472 => "vxlan-8472",
            Self::Vxlan4789 => "vxlan-4789",
            Self::Geneve => "geneve-6081",
            Self::Wireguard => "wireguard-51820",
            Self::Ipip => "ipip",
            Self::Plain => "plain",
        }
    }

    /// The UDP port that its packets go to; none where they are no UDP, or any port's.
    #[must_use]
    pub const fn port(self) -> Option<u16> {
        match self {
            Self::Vxlan8472 => Some(8472),
            Self::Vxlan4789 => Some(4789),
            Self::Geneve => Some(6081),
            Self::Wireguard => Some(51820),
            Self::Ipip | Self::Plain => None,
        }
    }

    /// Its name for people, between nodes of IPv6 or of IPv4.
    #[must_use]
    pub const fn title(self, is_ipv6: bool) -> &'static str {
        match self {
            Self::Vxlan8472 => "VXLAN (UDP 8472)",
            Self::Vxlan4789 => "VXLAN (UDP 4789)",
            Self::Geneve => "Geneve (UDP 6081)",
            Self::Wireguard => "WireGuard (UDP 51820)",
            Self::Ipip if is_ipv6 => "IP in IPv6 (protocol 41)",
            Self::Ipip => "IPIP (protocol 4)",
            Self::Plain => "plain pod addresses",
        }
    }

    /// Its place in [`Method::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its bit in a mask of methods.
    #[must_use]
    pub const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// No method has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no encapsulation is called `{name}`: they are {}", Method::ALL.map(Method::slug).join(", "))]
pub struct UnknownMethod {
    name: String,
}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        let found = Self::ALL.into_iter().find(|method| method.slug() == name);
        found.ok_or_else(|| UnknownMethod { name: name.to_owned() })
    }
}

impl Size {
    /// Both, the smaller one first.
    pub const ALL: [Self; 2] = [Self::Small, Self::Full];

    /// Its place in [`Size::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_by_their_names_and_places() {
        for (place, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(method.index(), place);
            assert_eq!(method.slug().parse(), Ok(method));
        }
        let error = "gre".parse::<Method>().unwrap_err().to_string();
        assert!(error.contains("`gre`") && error.contains("vxlan-8472, "), "{error}");
    }
}

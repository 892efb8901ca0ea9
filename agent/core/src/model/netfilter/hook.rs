//! Whose packets netfilter's tables see, and where.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// ARP.
    Arp,
    /// One device's.
    Netdev,
    /// Those of a bridge's ports.
    Bridge,
    /// IPv6.
    Ip6,
}

impl Family {
    /// The family of this number (`NFPROTO_...`, linux/netfilter.h); none for
    /// one that nftables has no tables of.
    #[must_use]
    pub const fn of_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Inet,
            2 => Self::Ip,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            _ => return None,
        })
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }

    /// The name that nft(8) has for it.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.slug())
    }
}

/// Where packets meet a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChainHook {
    /// As a device hands them over.
    Ingress,
    /// Before it is known whether they are for this host.
    Prerouting,
    /// On their way to this host's sockets and tunnels.
    Input,
    /// Between two devices.
    Forward,
    /// From this host's sockets and tunnels.
    Output,
    /// Before they leave.
    Postrouting,
    /// As a device is given them.
    Egress,
}

impl ChainHook {
    /// The hook of this number in a family (`NF_INET_...` and the like,
    /// linux/netfilter.h, netfilter_arp.h); none where there is no such hook.
    #[must_use]
    pub const fn of_number(family: Family, number: u32) -> Option<Self> {
        Some(match (family, number) {
            (Family::Netdev, 0) | (Family::Inet, 5) => Self::Ingress,
            (Family::Netdev, 1) => Self::Egress,
            (Family::Arp, 0) => Self::Input,
            (Family::Arp, 1) => Self::Output,
            (Family::Netdev | Family::Arp, _) => return None,
            (_, 0) => Self::Prerouting,
            (_, 1) => Self::Input,
            (_, 2) => Self::Forward,
            (_, 3) => Self::Output,
            (_, 4) => Self::Postrouting,
            _ => return None,
        })
    }

    /// The name that nft(8) has for it.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for ChainHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.slug())
    }
}

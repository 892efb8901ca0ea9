//! Neighbours (ARP, NDP) and the forwarding database of VXLAN devices.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{IfIndex, Mac};

/// One neighbour (RTM_NEWNEIGH of family IPv4 or IPv6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The device.
    pub index: IfIndex,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its link-layer address, where known.
    pub mac: Option<Mac>,
    /// How sure the kernel is of it.
    pub state: NeighbourState,
}

/// The kernel's `NUD_*` bits (linux/neighbour.h) as one state: the most usable bit wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeighbourState {
    /// `NUD_PERMANENT` or `NUD_NOARP`: set by an administrator or by the device.
    Permanent,
    /// `NUD_REACHABLE`: confirmed lately.
    Reachable,
    /// `NUD_STALE`, `NUD_DELAY` or `NUD_PROBE`: usable, being checked again.
    Stale,
    /// `NUD_INCOMPLETE`: asked, no answer yet.
    Incomplete,
    /// `NUD_FAILED`: asked, nobody answered.
    Failed,
    /// `NUD_NONE`: no state.
    None,
}

impl NeighbourState {
    /// Whether packets can be sent to it now.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Permanent | Self::Reachable | Self::Stale)
    }
}

/// What identifies a forwarding entry. One MAC may have several destinations
/// (`bridge fdb append`), so the destination belongs to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FdbKey {
    /// The VXLAN device.
    pub index: IfIndex,
    /// The inner destination MAC; all zero is the default entry.
    pub mac: Mac,
    /// The outer destination (`NDA_DST`).
    pub destination: Option<IpAddr>,
}

/// One entry of a VXLAN device's forwarding database (RTM_NEWNEIGH, family AF_BRIDGE).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// Its identity.
    pub key: FdbKey,
    /// Set by an administrator, not learnt (`NUD_PERMANENT`).
    pub permanent: bool,
    /// VNI of its own, where it differs from the device's (`NDA_VNI`).
    pub vni: Option<u32>,
    /// UDP port of its own, where it differs from the device's (`NDA_PORT`).
    pub port: Option<u16>,
}

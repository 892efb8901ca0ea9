//! Codes that explain others together.

use super::Code;

/// This node's devices: without them nothing leaves.
pub(super) const DEVICES: &[Code] =
    &[Code::UnderlayLinkDown, Code::TunnelDown, Code::TunnelMissing];
/// The two ends of a tunnel do not fit each other.
pub(super) const ENDS: &[Code] = &[
    Code::VtepLocalAddressWrong,
    Code::RemoteTunnelDown,
    Code::VniMismatch,
    Code::VxlanPortMismatch,
    Code::StaleVtepMac,
    Code::TunnelAddressDuplicate,
];
/// The peer's overlay address is another node's, to which the tables lead.
pub(super) const DUPLICATE: &[Code] = &[Code::TunnelAddressDuplicate];
/// The kernel's tables do not lead to the peer.
pub(super) const TABLES: &[Code] = &[
    Code::FdbMissing,
    Code::FdbMisdirected,
    Code::VtepNeighbourMissing,
    Code::RouteMissing,
    Code::RouteBlackhole,
    Code::RouteBypassesTunnel,
    Code::PolicyRuleDiverts,
    Code::LeftoverRoute,
    Code::RoutesVanished,
];
/// Why the kernel's tables do not lead to the peer.
pub(super) const ROUTING: &[Code] =
    &[Code::RoutesVanished, Code::PolicyRuleDiverts, Code::LeftoverRoute];
/// The peer's kernel itself says that it does not take the encapsulation.
pub(super) const REFUSED: &[Code] = &[Code::EncapsulationRefused];
/// Something on this node drops packets.
pub(super) const DROPPERS: &[Code] = &[
    Code::ConntrackFull,
    Code::ForeignProgramDrops,
    Code::QdiscDrops,
    Code::ChecksumErrors,
    Code::SoftirqBacklog,
    Code::NeighbourTableOverflow,
];
/// This node's own filters.
pub(super) const FILTERS: &[Code] = &[
    Code::EncapsulationFiltered,
    Code::UntrackedInner,
    Code::IcmpTooBigFiltered,
    Code::ForwardPolicyDrop,
];
/// More is lost already on a layer below.
pub(super) const LOSS: &[Code] =
    &[Code::LocalOutputDrop, Code::EncapsulationLost, Code::UnexplainedLoss, Code::UnderlayLoss];
/// The peer or this node is cut off.
pub(super) const PEER: &[Code] = &[Code::NodeIsolated, Code::PeerUnreachable];
/// What keeps the routes to a peer from coming.
pub(super) const SESSIONS: &[Code] = &[Code::BgpSessionDown];
/// What a service of the node cannot work with. Each family that names a state
/// of tables, sets or files which stops Felix or the kubelet adds its codes.
pub(super) const SERVICE: &[&[Code]] = &[
    DEVICES,
    &[Code::IpsetReaderTooOld, Code::IpsetFull, Code::ConntrackFull, Code::NftTableIncompatible],
];

//! Traffic control: what waits to be sent, and what is not sent.

use serde::{Deserialize, Serialize};

use super::IfIndex;

/// The queues of a node's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficControl {
    /// Root queueing disciplines, in order of device; devices without a queue
    /// have none.
    pub qdiscs: Vec<Qdisc>,
}

/// The queueing discipline at the root of a device (RTM_NEWQDISC).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qdisc {
    /// The device.
    pub index: IfIndex,
    /// Its kind, as tc(8) prints it.
    pub kind: String,
    /// Packets dropped since it was made, those of its children included.
    pub drops: u32,
    /// Times it held back a packet because of a limit.
    pub overlimits: u32,
    /// Bytes that wait now.
    pub backlog_bytes: u32,
}

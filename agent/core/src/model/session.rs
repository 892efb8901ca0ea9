//! Routing sessions with other nodes, and services of this node that others rest on.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::time::Mono;

/// What the TCP sockets say of BGP on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    /// Somebody listens on TCP 179 (RFC 4271): a BGP daemon runs here.
    pub bgp_listens: bool,
    /// One for each address that a session was had with, or tried, in order.
    pub sessions: Vec<BgpSession>,
}

/// The TCP connections between this node's BGP daemon and another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpSession {
    /// The other's address.
    pub peer: IpAddr,
    /// The state of the connection that is furthest.
    pub state: SessionState,
    /// Since when it is in that state.
    pub since: Mono,
    /// When a connection was last seen that is being opened.
    pub last_attempt: Option<Mono>,
    /// When it was last seen established, for more than a moment.
    pub last_established: Option<Mono>,
}

/// How far a TCP connection is (RFC 9293, 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// There is none.
    Closed,
    /// This node asks, and nobody answers.
    SynSent,
    /// The other asked; this node's answer is not confirmed.
    SynReceived,
    /// It is open.
    Established,
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Closed => "CLOSED",
            Self::SynSent => "SYN-SENT",
            Self::SynReceived => "SYN-RECEIVED",
            Self::Established => "ESTABLISHED",
        })
    }
}

/// A service of this node whose health can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Calico's agent.
    Felix,
    /// Cilium's agent.
    Cilium,
    /// The kubelet.
    Kubelet,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Felix, Self::Cilium, Self::Kubelet];

    /// Its name, as its own documents write it.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Felix => "felix",
            Self::Cilium => "cilium-agent",
            Self::Kubelet => "kubelet",
        }
    }

    /// The port on the loopback that it answers on by default, and the path
    /// (Felix: `HealthPort`; Cilium: `agent-health-port`; the kubelet:
    /// `healthzPort`).
    #[must_use]
    pub const fn place(self) -> (u16, &'static str) {
        match self {
            Self::Felix => (9099, "/readiness"),
            Self::Cilium => (9879, "/healthz"),
            Self::Kubelet => (10_248, "/healthz"),
        }
    }
}

/// What a service that listens on this node says of its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceHealth {
    /// Which.
    pub service: Service,
    /// The status of its last HTTP answer; none when none came.
    pub answer: Option<u16>,
    /// Since when it does not say that it is well; none while it does.
    pub ailing_since: Option<Mono>,
    /// Answers in a row that did not say so.
    pub ailing: u32,
}

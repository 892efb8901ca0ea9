//! The kernel's own routing answers (RTM_GETROUTE for one address): what it does
//! with a packet after all policy rules and tables, which no reading of tables
//! can tell for sure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{IfIndex, PeerId, RouteKind};
use crate::time::Mono;

/// Where the kernel is asked to send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteQuestion {
    /// The packet's destination.
    pub to: IpAddr,
    /// Whose packet it is: a pod's, which is forwarded; none for the host's own.
    pub pod: Option<PodSide>,
}

/// Where a forwarded packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodSide {
    /// The device that it comes in on.
    pub device: IfIndex,
    /// Its source address.
    pub source: IpAddr,
}

/// What the kernel answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteAnswer {
    /// It has a way.
    Found(FoundRoute),
    /// It has none, with the error number that a sender would get: ENETUNREACH
    /// where no route covers the address, else what the route's type says
    /// (fib_props, net/ipv4/fib_semantics.c).
    Refused {
        /// The error number.
        errno: i32,
    },
}

/// The way of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundRoute {
    /// The table that the route is in (`RTM_F_LOOKUP_TABLE`); 0 where the kernel
    /// does not say. The local table may be called main: until the first policy
    /// rule is made the two are one (fib_trie_unmerge, net/ipv4/fib_trie.c).
    pub table: u32,
    /// What the route does.
    pub kind: RouteKind,
    /// The device that it leaves by.
    pub device: Option<IfIndex>,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The source address that the host's own packets get.
    pub source: Option<IpAddr>,
}

/// What was answered of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswers {
    /// Just before the first was asked.
    pub at: Mono,
    /// Questions with their answers.
    pub answers: Vec<(RouteQuestion, RouteAnswer)>,
}

/// The answers that still hold, by peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lookups(pub BTreeMap<PeerId, Arc<PeerAnswers>>);

impl Lookups {
    /// What the kernel does with the host's own packets to an address of a peer.
    #[must_use]
    pub fn of_host(&self, peer: PeerId, to: IpAddr) -> Option<RouteAnswer> {
        let question = RouteQuestion { to, pod: None };
        let answers = &self.0.get(&peer)?.answers;
        answers.iter().find(|(asked, _)| *asked == question).map(|(_, answer)| *answer)
    }
}

/// What is to be asked now, peer by peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookupPlan(pub Vec<(PeerId, Vec<RouteQuestion>)>);

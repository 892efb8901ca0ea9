//! What the six subjects of rtnetlink have in common.

use std::collections::BTreeSet;

use overlaywatch_core::assembly::{Change, SourceId, Update};
use overlaywatch_core::model::IfIndex;
use rtnetlink::MulticastGroup;

use super::dump::Request;
use super::translate::Malformed;

/// One subject: what to ask the kernel, what to listen to, and what to make of it.
pub(super) trait Feed: Default {
    /// What identifies an item.
    type Key: Ord;
    /// An item.
    type Value;
    /// The source that it is to the rest of the program.
    const SOURCE: SourceId;
    /// `RTM_NEW...`; the number after it is `RTM_DEL...`, as for every subject
    /// of rtnetlink (linux/rtnetlink.h).
    const NEW: u16;
    /// The dumps that together are all there is.
    const REQUESTS: &'static [Request];
    /// The groups that tell of changes.
    const GROUPS: &'static [MulticastGroup];

    /// One message's payload as an item.
    fn translate(payload: &[u8]) -> Result<Option<Self::Value>, Malformed>;

    /// An item's identity.
    fn key(value: &Self::Value) -> Self::Key;

    /// What to tell the assembly.
    fn update(change: Change<Self::Key, Self::Value>) -> Update;

    /// Looks over a whole dump before it is sent.
    fn dumped(&mut self, _all: &mut Vec<Self::Value>, _common: &mut Common) {}

    /// Looks at an event; whether it is worth sending.
    fn heard(&mut self, _event: Event<'_, Self::Value>, _common: &mut Common) -> bool {
        true
    }

    /// Hears of a message of these groups that is about another subject.
    fn overheard(&mut self, _kind: u16, _common: &mut Common) {}
}

/// An event, as a feed looks at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event<'a, T> {
    /// The item as it is now, or as it was when it went.
    pub(super) value: &'a T,
    /// It is no more.
    pub(super) gone: bool,
    /// `NLM_F_...` of the request that made the change.
    pub(super) flags: u16,
}

/// What feeds tell one another.
#[derive(Debug, Default)]
pub(super) struct Common {
    /// The VXLAN devices.
    pub(super) vxlan: BTreeSet<IfIndex>,
    /// Sources whose events no longer tell everything: to be dumped again.
    pub(super) doubts: BTreeSet<SourceId>,
}

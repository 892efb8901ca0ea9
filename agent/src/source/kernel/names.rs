//! Names for what the kernel gives as numbers: drop reasons, functions, devices.

use std::collections::BTreeMap;

use nix::net::if_::if_indextoname;

use super::symbols::Symbols;

/// Reasons of a subsystem (mac80211, openvswitch) carry its number in the upper
/// half (include/net/dropreason.h) and are in no enumeration of the core.
const SUBSYSTEM_SHIFT: u32 = 16;

/// Names for numbers.
#[derive(Debug)]
pub(super) struct Names {
    reasons: BTreeMap<u32, String>,
    symbols: Symbols,
}

impl Names {
    pub(super) fn new(reasons: BTreeMap<u32, String>) -> Self {
        Self { reasons, symbols: Symbols::default() }
    }

    /// Looks up functions that are new.
    pub(super) fn learn(&mut self, locations: impl IntoIterator<Item = u64>) {
        self.symbols.learn(locations);
    }

    pub(super) fn reason(&self, number: u32) -> Option<String> {
        match (self.reasons.get(&number), number >> SUBSYSTEM_SHIFT) {
            (Some(name), _) => Some(name.clone()),
            (None, 0) if number == 0 => None,
            (None, 0) => Some(format!("reason-{number}")),
            (None, subsystem) => Some(format!("subsystem-{subsystem}-reason-{}", number & 0xffff)),
        }
    }

    pub(super) fn function(&self, location: u64) -> Option<String> {
        self.symbols.name(location).map(str::to_owned)
    }

    pub(super) fn device(&self, index: u32) -> Option<String> {
        let name = if_indextoname(index).ok()?.into_string().ok()?;
        (!name.is_empty()).then_some(name)
    }
}

//! The host's switches.

use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[Entry {
    code: Code::ForwardingOff,
    slug: "forwarding-off",
    title: "IP forwarding is off",
    severity: Severity::Critical,
    raise_after_ms: 1000,
    clear_after_seconds: 5,
    parents: &[],
    meaning: "This node has pods behind a tunnel and does not forward packets, or not those that come in on one device: pods reach nothing outside of the node.",
    remedy: "`sysctl -w {sysctl}=1`, and find which file under /etc/sysctl.d or which service reset it.",
}];

//! The pure core of Overlaywatch: data and time in, verdicts out.
//!
//! Nothing here knows a clock, a socket, a file, netlink, eBPF or HTTP, and
//! Cargo keeps it so: none of those crates are dependencies. Whatever the
//! network did can therefore be replayed from a recording.

pub mod assembly;
pub mod catalog;
pub mod delta;
pub mod diagnose;
pub mod fact;
pub mod finding;
pub mod hooks;
pub mod kernel;
pub mod ladder;
pub mod ledger;
pub mod lookups;
pub mod model;
mod outcomes;
pub mod pairs;
mod peers;
pub mod plan;
pub mod policy;
pub mod preflight;
pub mod probing;
pub mod record;
pub mod report;
pub mod rules;
pub mod snapshot;
pub mod statistics;
pub mod time;
mod vanished;

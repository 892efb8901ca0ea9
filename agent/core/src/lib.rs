//! The pure core of Overlaywatch: data and time in, verdicts out.
//!
//! Nothing here knows a clock, a socket, a file, netlink, eBPF or HTTP, and
//! Cargo keeps it so: none of those crates are dependencies. Whatever the
//! network did can therefore be replayed from a recording.

pub mod assembly;
pub mod catalog;
pub mod diagnose;
pub mod fact;
pub mod finding;
pub mod ladder;
pub mod model;
pub mod pairs;
pub mod policy;
pub mod probing;
pub mod record;
pub mod report;
pub mod snapshot;
pub mod time;

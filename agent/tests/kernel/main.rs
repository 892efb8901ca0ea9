//! The eBPF programs and their loader against the running kernel: what they
//! count, beside whom, and what becomes of them when agents, devices and other
//! programs come and go.
//!
//! Needs root, ip(8), nft(8), tc(8), bpftool(8) and setpriv(1); fails without
//! them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy.toml allows them in test functions; what these share is test code too"
)]

mod bench;
mod coexistence;
mod counting;
mod daemon;
mod degraded;
mod detach;
mod devices;
mod encapsulations;
mod foreign;
#[path = "../namespace/mod.rs"]
mod namespace;
mod restart;

//! The prober and the responder on real kernel objects: two network
//! namespaces, a veth pair, a VXLAN shaped as flannel makes it.
//!
//! Needs root, ip(8) and nft(8); fails without them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy.toml allows them in test functions; what these share is test code too"
)]

mod between;
mod faults;
mod intruders;
#[path = "../namespace/mod.rs"]
mod namespace;
mod net;
mod wire;

//! The lab: real overlays in network namespaces, faults that are injected and
//! healed, and a judge that times what the agents say of them.
//!
//! [`topology`] builds a cluster, [`fault`] breaks it, [`traffic`] proves that
//! it is broken, [`poll`] listens to the agents and [`judge`] (pure) decides.
//! [`run`] does all that for one fault; [`demo`] shows it live.

pub mod agent;
pub mod classifier;
mod container;
pub mod demo;
pub mod fault;
pub mod features;
pub mod filter;
mod guest;
pub mod health;
mod host;
pub mod http;
pub mod identity;
pub mod interrupt;
pub mod ipip;
pub mod judge;
pub mod mode;
pub mod module;
pub mod need;
pub mod netns;
pub mod offload;
pub mod part;
pub mod patience;
pub mod pins;
pub mod poll;
pub mod program;
pub mod prove;
mod ready;
pub mod record;
pub mod report;
pub mod run;
pub mod topology;
pub mod traffic;
pub mod wireguard;

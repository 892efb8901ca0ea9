//! The Overlaywatch agent as a library: the binary's modules, reachable for
//! tests, fuzzing and benchmarks. ARCHITECTURE.md says who may import whom.

mod assemble;
pub mod cli;
pub mod clock;
pub mod config;
pub mod memory;
pub mod notify;
pub mod oneshot;
pub mod preflight;
pub mod probe;
pub mod published;
pub mod run;
pub mod serve;
pub mod source;
pub mod telemetry;

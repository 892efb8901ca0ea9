//! The real assembly, planner and diagnoser against a simulated network on a
//! simulated clock.

mod decisions;
mod tables;
mod world;

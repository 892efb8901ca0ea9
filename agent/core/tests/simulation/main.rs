//! The real assembly, planner and diagnoser against a simulated network on a
//! simulated clock.

mod decisions;
mod routing;
mod tables;
mod world;

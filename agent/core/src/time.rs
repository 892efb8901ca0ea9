//! Time as an input: the core never reads a clock, it is told.

use serde::{Deserialize, Serialize};

/// A point on this boot's monotonic clock, in nanoseconds (`CLOCK_MONOTONIC`,
/// clock_gettime(2)). Comparable only within one boot of one machine; a
/// stepped wall clock does not move it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Mono(pub u64);

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const MILLISECOND: u64 = 1_000_000;

impl Mono {
    /// Whole seconds since the clock's origin.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / SECOND
    }

    /// Nanoseconds from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This point moved `nanoseconds` later.
    #[must_use]
    pub const fn plus(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_add(nanoseconds))
    }

    /// This point moved `nanoseconds` earlier, not before the clock's origin.
    #[must_use]
    pub const fn minus(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_sub(nanoseconds))
    }
}

/// Milliseconds since the Unix epoch: for people and for joining reports of
/// several nodes, never for measuring (an operator may step it).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Wall(pub u64);

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// For measuring.
    pub mono: Mono,
    /// For showing.
    pub wall: Wall,
}

impl Now {
    /// The wall clock's value at `then`, as this reading's clocks relate.
    #[must_use]
    pub const fn wall_of(self, then: Mono) -> Wall {
        Wall(self.wall.0.saturating_sub(self.mono.since(then) / MILLISECOND))
    }
}

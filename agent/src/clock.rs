//! The only reader of clocks: everything below is told the time.

use nix::time::{ClockId, clock_gettime};
use overlaywatch_core::time::{MILLISECOND, Mono, Now, SECOND, Wall};

fn nanoseconds(clock: ClockId) -> u64 {
    // clock_gettime(2) fails only for clocks that do not exist; those asked for here always do.
    clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds * SECOND + nanoseconds
    })
}

/// Both clocks, read one after the other.
#[must_use]
pub fn now() -> Now {
    Now { mono: mono(), wall: Wall(realtime_ns() / MILLISECOND) }
}

/// The monotonic clock.
#[must_use]
pub fn mono() -> Mono {
    Mono(nanoseconds(ClockId::CLOCK_MONOTONIC))
}

/// The wall clock in nanoseconds, as the kernel stamps packets with it
/// (SO_TIMESTAMPNS, socket(7)).
#[must_use]
pub fn realtime_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

/// Processor time that the calling thread has used so far, nanoseconds.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

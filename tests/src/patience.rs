//! How much longer the judge waits for everything, and how much less it sends and
//! asks meanwhile, on a machine that is slower than those that the limits are meant
//! for. What is asked of the agents stays as it is.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Lets every limit, and every time between two packets or questions, be so many
/// times as long, from now on.
pub fn set(factor: u32) {
    FACTOR.store(factor.max(1), Ordering::Relaxed);
}

/// A time on this machine.
#[must_use]
pub fn stretched(limit: Duration) -> Duration {
    limit.saturating_mul(FACTOR.load(Ordering::Relaxed))
}

//! How much longer the judge waits for everything, on a machine that is slower
//! than those that the limits are meant for. What is measured stays as it is.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Lets every limit be so many times as long, from now on.
pub fn set(factor: u32) {
    FACTOR.store(factor.max(1), Ordering::Relaxed);
}

/// A limit on this machine.
#[must_use]
pub fn stretched(limit: Duration) -> Duration {
    limit.saturating_mul(FACTOR.load(Ordering::Relaxed))
}

//! A timer that wakes the task up once per beat.
//!
//! Tokio's own timers lie on a wheel that turns every 64 ms and wake the
//! thread up for each turn that they outlast (tokio::runtime::time::wheel):
//! half a wake-up more per beat, and waking up is what probing costs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use overlaywatch_core::time::Mono;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A timerfd (timerfd_create(2)) of the monotonic clock.
#[derive(Debug)]
pub(super) struct Alarm {
    /// The timer's descriptor; stands before the timer, and so is dropped before it.
    ready: AsyncFd<RawFd>,
    timer: TimerFd,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let descriptor = timer.as_fd().as_raw_fd();
        // SAFETY: the timer, which outlives this by the order of the fields,
        // keeps the descriptor open and the same.
        let ready = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Self { ready: ready?, timer })
    }

    /// Rings at this time, and no more at the time set before.
    pub(super) fn set(&self, due: Mono) -> io::Result<()> {
        let due = TimeSpec::from_duration(Duration::from_nanos(due.0));
        Ok(self.timer.set(Expiration::OneShot(due), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }

    /// Waits until it rings.
    pub(super) async fn rung(&self) -> io::Result<()> {
        // Setting it anew also forgets that it rang: there is nothing to read.
        self.ready.readable().await?.clear_ready();
        Ok(())
    }
}

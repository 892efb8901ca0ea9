//! Ctrl-C and a polite kill end the lab through its ordinary way out, so that
//! every guard drops and nothing is left behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::patience::stretched;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The longest that a sleeper does not look.
const SLICE: Duration = Duration::from_millis(20);

extern "C" fn on_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Makes SIGINT, SIGTERM and SIGHUP ask for the end instead of ending the process.
///
/// # Errors
/// When the kernel refuses the handlers.
pub fn install() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    Ok(())
}

/// Whether the end was asked for.
#[must_use]
pub fn is_requested() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sleeps, unless the end is asked for.
///
/// # Errors
/// When the end was asked for.
pub fn sleep(time: Duration) -> Result<()> {
    look_until(time, || Ok(false)).map(|_| ())
}

/// Waits until `done` says so and returns true, or false after `limit`, which is
/// longer on a slow machine.
///
/// # Errors
/// When the end was asked for, or what `done` fails with.
pub fn wait_until(limit: Duration, done: impl FnMut() -> Result<bool>) -> Result<bool> {
    look_until(stretched(limit), done)
}

fn look_until(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        ensure!(!is_requested(), "interrupted");
        if done()? {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(left.min(SLICE));
    }
}

//! Ctrl-C and a polite kill ask for the end instead of ending the process, so
//! that guards drop and what was made is unmade.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The longest that a sleeper does not look.
const SLICE: Duration = Duration::from_millis(20);

extern "C" fn on_signal(_: c_int) {
    REQUESTED.store(true, Ordering::Relaxed);
}

/// Handles SIGINT, SIGTERM and SIGHUP. Programs started from here do not
/// inherit it: a handler, unlike an ignored signal, ends with execve(2).
pub(crate) fn install() -> Result<()> {
    // Reads and waits go on: what is waited for ends by the same signal.
    let action =
        SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    Ok(())
}

/// Fails if the end was asked for.
pub(crate) fn check() -> Result<()> {
    ensure!(!REQUESTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Sleeps until `end`, or fails when the end was asked for.
pub(crate) fn sleep_until(end: Instant) -> Result<()> {
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
    }
}

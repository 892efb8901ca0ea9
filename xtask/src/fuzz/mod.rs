//! Fuzzing of whatever reads what others wrote: packets, kernel messages, files.
//!
//! A target is a file of `agent/fuzz/src/bin`; that it is there is all that
//! makes it run here and in `cargo xtask test`. It starts from the inputs of
//! `agent/fuzz/seeds/TARGET`, where there are any, and from what earlier runs
//! on this machine came to.

mod build;
mod run;

use std::ffi::OsStr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{Install, duration, shell};

pub(crate) use build::build_command;

/// What `cargo xtask fuzz` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The target to run; all of them without it
    target: Option<String>,
    /// How long to run each target (30s, 2m)
    #[arg(long = "for", value_parser = duration::parse, default_value = "60s")]
    duration: Duration,
    /// Run the target on this input only, as after a finding
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,
    #[command(flatten)]
    install: Install,
}

/// Builds the targets and runs them, as many at a time as there are processors.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    let mut targets = targets()?;
    if let Some(wanted) = &options.target {
        ensure!(
            targets.contains(wanted),
            "no fuzz target is called {wanted:?}; there are {}",
            targets.join(", ")
        );
        targets.retain(|target| target == wanted);
    }
    options.install.setup()?;
    build::build()?;
    match (&options.replay, targets.as_slice()) {
        (Some(input), [target]) => shell::become_program(run::replay(target, input)?),
        _ => campaign(&targets, options.duration),
    }
}

/// This program, fuzzing every target for `seconds` each.
pub(crate) fn command(seconds: u64) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["fuzz", "--for", &format!("{seconds}s")]);
    Ok(command)
}

/// The targets by name, in order.
fn targets() -> Result<Vec<String>> {
    let folder = build::crate_folder().join("src/bin");
    let unreadable = || format!("reading {}", folder.display());
    let mut targets = Vec::new();
    for entry in folder.read_dir().with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension() == Some(OsStr::new("rs")) {
            targets.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    targets.sort_unstable();
    Ok(targets)
}

/// Runs the targets and tells what each came to; fails if any found something.
fn campaign(targets: &[String], duration: Duration) -> Result<()> {
    println!("fuzzing for {} s each: {}", duration.as_secs(), targets.join(", "));
    let waiting = Mutex::new(targets.iter());
    let passed = Mutex::new(0);
    let worker = || -> Result<()> {
        loop {
            let next = waiting.lock().ok().and_then(|mut waiting| waiting.next());
            let Some(target) = next else { return Ok(()) };
            let outcome = run::run(target, duration)?;
            println!("{outcome}");
            if let Ok(mut passed) = passed.lock() {
                *passed += usize::from(outcome.is_clean());
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(targets.len());
    thread::scope(|scope| {
        let started: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        started.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| bail!("panicked")))
    })?;
    let passed = passed.into_inner().unwrap_or(0);
    println!("{passed} of {} fuzz targets found nothing", targets.len());
    ensure!(passed == targets.len(), "what was found is said above; mend it and add a unit test");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_target_and_every_seed_has_one() {
        let targets = targets().unwrap();
        assert!(targets.contains(&"probe_wire".to_owned()), "{targets:?}");
        for entry in build::crate_folder().join("seeds").read_dir().unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(targets.contains(&name), "agent/fuzz/seeds/{name} is of no target");
        }
    }
}

//! Builds the fuzz targets with any stable compiler.
//!
//! What libFuzzer needs, LLVM's coverage instrumentation, stable Rust can switch
//! on, so neither cargo-fuzz nor a nightly compiler is asked for. There is no
//! address sanitizer: the decoders are safe Rust, where a stray index panics by
//! itself, and with it the build takes twice as long and a run gets through a
//! sixth of the inputs.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::shell::{self, cargo, root, target};

/// As cargo-fuzz passes them, without what takes a nightly compiler.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// Where the targets and their seeds are.
pub(super) fn crate_folder() -> PathBuf {
    root().join("agent/fuzz")
}

/// Where all that belongs to fuzzing is kept.
pub(super) fn folder() -> Result<PathBuf> {
    Ok(target()?.join("fuzz"))
}

/// Builds all targets.
pub(super) fn build() -> Result<()> {
    eprintln!("building the fuzz targets (a few minutes the first time)");
    let start = Instant::now();
    shell::run(&mut build_command()?)?;
    eprintln!("built in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The command that builds all targets and speaks only of what fails.
pub(crate) fn build_command() -> Result<Command> {
    let mut command = cargo();
    command
        .args(["build", "--release", "--quiet", "--bins", "--manifest-path"])
        .arg(crate_folder().join("Cargo.toml"))
        // With a target named, build scripts and macros are not instrumented.
        .args(["--target", &host()?, "--target-dir"])
        .arg(folder()?.join("build"))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    Ok(command)
}

/// A built target.
pub(super) fn program(target: &str) -> Result<PathBuf> {
    Ok(folder()?.join("build").join(host()?).join("release").join(target))
}

/// This machine, as the compiler calls it.
fn host() -> Result<String> {
    let text = shell::output(cargo().arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`cargo -vV` names no host")
}

//! Runs one fuzz target and reads what libFuzzer says
//! (<https://llvm.org/docs/LibFuzzer.html#options>).

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::build;
use crate::shell;

/// An input that takes longer than this, in seconds, is a finding. The decoders
/// take microseconds; the rest is for machines that do much else.
const SLOW_SECONDS: u32 = 20;

/// What became of one target.
pub(super) struct Outcome {
    target: String,
    /// Inputs tried.
    inputs: u64,
    finding: Option<Finding>,
}

/// Something to mend.
struct Finding {
    /// What went wrong, in libFuzzer's or the panic's words.
    what: String,
    /// The input that does it; none if the target failed without one.
    input: Option<PathBuf>,
    /// All that was said.
    log: PathBuf,
}

/// Runs `target` for `duration`.
pub(super) fn run(target: &str, duration: Duration) -> Result<Outcome> {
    let folder = build::folder()?;
    let [corpus, findings, logs] = [
        folder.join("corpus").join(target),
        folder.join("findings").join(target),
        folder.join("logs"),
    ];
    for folder in [&corpus, &findings, &logs] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let log = logs.join(format!("{target}.log"));
    let unwritable = || format!("cannot write {}", log.display());
    let mut command = Command::new(build::program(target)?);
    // What is new is kept in the first folder.
    command.arg(corpus);
    let seeds = build::crate_folder().join("seeds").join(target);
    if seeds.exists() {
        command.arg(seeds);
    }
    command
        // A trailing slash makes it a folder.
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg(format!("-max_total_time={}", duration.as_secs()))
        .arg(format!("-timeout={SLOW_SECONDS}"))
        .arg("-print_final_stats=1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).with_context(unwritable)?);
    let status =
        command.status().with_context(|| format!("cannot run {}", shell::line(&command)))?;
    let said = String::from_utf8_lossy(&fs::read(&log).with_context(unwritable)?).into_owned();
    let finding = (!status.success()).then(|| Finding {
        what: complaint(&said).unwrap_or_else(|| format!("the target ended with {status}")),
        input: input(&said),
        log,
    });
    Ok(Outcome { target: target.to_owned(), inputs: inputs(&said), finding })
}

/// The command that runs `target` on one input and shows what comes of it.
pub(super) fn replay(target: &str, input: &Path) -> Result<Command> {
    let mut command = Command::new(build::program(target)?);
    command.arg(format!("-timeout={SLOW_SECONDS}")).arg(input).env("RUST_BACKTRACE", "1");
    Ok(command)
}

/// How many inputs were tried.
fn inputs(said: &str) -> u64 {
    let mut counts = said.lines().filter_map(|line| {
        line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok()
    });
    counts.next_back().unwrap_or(0)
}

/// Where the input of a finding was written.
fn input(said: &str) -> Option<PathBuf> {
    said.lines().find_map(|line| Some(line.split_once("Test unit written to ")?.1.into()))
}

/// What went wrong: a panic's place and message, else libFuzzer's own words.
fn complaint(said: &str) -> Option<String> {
    let mut lines = said.lines();
    if let Some(place) = lines.by_ref().find_map(|line| Some(line.split_once("panicked at ")?.1)) {
        return Some(format!("{place} {}", lines.next().unwrap_or_default()));
    }
    said.lines().find_map(|line| Some(line.split_once("ERROR: libFuzzer: ")?.1.to_owned()))
}

impl Outcome {
    /// Whether nothing was found.
    pub(super) const fn is_clean(&self) -> bool {
        self.finding.is_none()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, inputs, finding } = self;
        let Some(Finding { what, input, log }) = finding else {
            return write!(f, "{target:<20}{inputs:>10} inputs  ok");
        };
        write!(f, "{target:<20}{inputs:>10} inputs  FAILED: {what}")?;
        if let Some(input) = input {
            let input = input.display();
            write!(f, "\n  input  {input}\n  again  cargo xtask fuzz {target} --replay {input}")?;
        }
        write!(f, "\n  log    {}", log.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
INFO: seed corpus: files: 3
#2\tINITED cov: 9 ft: 9

thread '<unnamed>' (7) panicked at agent/src/x.rs:3:5:
attempt to add with overflow
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
==7== ERROR: libFuzzer: deadly signal
artifact_prefix='/t/'; Test unit written to /t/crash-1
stat::number_of_executed_units: 812
";

    #[test]
    fn a_panic_is_told_with_its_place_and_input() {
        let finding =
            Finding { what: complaint(SAID).unwrap(), input: input(SAID), log: "/l".into() };
        let outcome =
            Outcome { target: "x".to_owned(), inputs: inputs(SAID), finding: Some(finding) };
        assert!(!outcome.is_clean());
        let text = outcome.to_string();
        for part in [
            "812 inputs  FAILED: agent/src/x.rs:3:5: attempt to add with overflow",
            "cargo xtask fuzz x --replay /t/crash-1",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_is_no_panic_is_told_in_the_fuzzers_words() {
        let said = "==7== ERROR: libFuzzer: timeout after 20 seconds\n";
        assert_eq!(complaint(said).as_deref(), Some("timeout after 20 seconds"));
        assert_eq!((input(said), inputs(said), complaint("")), (None, 0, None));
    }
}

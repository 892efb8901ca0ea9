//! Everything that checks the project, in one run: what fails soonest first,
//! the lab last, so that nothing else is at work while it times verdicts.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::background::Background;
use crate::shell::{self, cargo, root};
use crate::tally::Tally;
use crate::tools::Tool;
use crate::{Install, codes, ebpf, fuzz, interrupt, lab};

/// How long each fuzz target runs: enough to find what is plainly wrong.
const FUZZ_SECONDS: u64 = 3;

/// A part of the run.
struct Stage {
    name: &'static str,
    run: fn(&mut Beside) -> Result<Report>,
}

const STAGES: [Stage; 9] = [
    Stage { name: "fmt", run: fmt },
    Stage { name: "clippy", run: clippy },
    Stage { name: "tests", run: tests },
    Stage { name: "deny", run: deny },
    Stage { name: "gen", run: run_gen },
    Stage { name: "ebpf", run: run_ebpf },
    Stage { name: "fuzz", run: run_fuzz },
    Stage { name: "lab", run: run_lab },
    Stage { name: "vm", run: run_vm },
];

/// What later stages need and what is made while earlier ones run.
struct Beside {
    install: Install,
    deny: Option<Background>,
    /// Fails where no compiler for the programs can be had; the stage says so.
    linker: Result<Option<Background>>,
    fuzz: Option<Background>,
    lab: Option<Background>,
    /// Runs while the lab does.
    guest: Option<Guest>,
}

/// What takes no notice of how busy this machine is: a virtual one.
struct Guest {
    name: String,
    child: Child,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It ends its own guest then; one that has ended is where it should be.
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw);
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
        }
        let _ = self.child.wait();
    }
}

impl Beside {
    /// Waits until nothing is made any more; how that went is for the stages to say
    /// that need it.
    fn settle(&mut self) -> Result<()> {
        let linker = self.linker.as_mut().ok().and_then(Option::as_mut);
        let others = [&mut self.deny, &mut self.fuzz, &mut self.lab];
        others.into_iter().flatten().chain(linker).try_for_each(Background::settle)
    }
}

/// What a stage's runner said.
#[derive(Debug, Default)]
struct Report {
    tally: Tally,
    /// The runner's own closing lines, word for word.
    closing: Vec<String>,
    /// What went wrong.
    failure: Option<String>,
}

/// Runs every stage up to the first that fails.
pub(crate) fn test(install: Install) -> Result<()> {
    // A Ctrl-C goes to every process of the terminal. The lab answers it by
    // taking its namespaces down and says so on its way out, so somebody must
    // stay to read that.
    interrupt::install()?;
    install.setup()?;
    install.provide_old_tools()?;
    let mut beside = Beside {
        install,
        deny: start(Tool::cargo_deny()?.install().as_ref())?,
        linker: ebpf::linker_install(install).and_then(|command| start(command.as_ref())),
        fuzz: Some(Background::start(&fuzz::build_command()?)?),
        lab: Some(Background::start(&lab::build_command())?),
        guest: None,
    };
    let mut table = Vec::new();
    let mut total = Tally::default();
    let mut closing = Vec::new();
    let mut failure = None;
    for stage in &STAGES {
        interrupt::check()?;
        println!("== {}", stage.name);
        let start = Instant::now();
        let report = (stage.run)(&mut beside).unwrap_or_else(|error| Report::of_error(&error));
        table.push((stage.name, start.elapsed(), report.failure.is_none()));
        total += report.tally;
        closing.extend(report.closing);
        if let Some(what) = report.failure {
            failure = Some(format!("{}: {what}", stage.name));
            break;
        }
    }
    println!("\n{}", draw(&table));
    for line in closing {
        println!("{line}");
    }
    println!("\n{total}");
    // The error below goes to stderr; whoever reads both has them in order.
    std::io::stdout().flush()?;
    failure.map_or(Ok(()), |what| bail!("{what}"))
}

fn fmt(_: &mut Beside) -> Result<Report> {
    component("fmt", "rustfmt")?;
    let report = check(cargo().args(["fmt", "--all", "--check"]), "run `cargo fmt --all`")?;
    if report.failure.is_some() {
        return Ok(report);
    }
    // A workspace of its own; see its Cargo.toml.
    check(
        cargo().args(["fmt", "--manifest-path", "agent/fuzz/Cargo.toml", "--check"]),
        "run `cargo fmt --manifest-path agent/fuzz/Cargo.toml`",
    )
}

fn clippy(_: &mut Beside) -> Result<Report> {
    component("clippy", "clippy")?;
    check(
        cargo()
            .args(["clippy", "--quiet", "--workspace", "--all-targets"])
            .args(["--", "--deny", "warnings"]),
        "mend what is said above",
    )
}

/// Unit, golden and documentation tests. Those that make namespaces need root,
/// so where the caller is not, Cargo starts each test program through sudo.
///
/// Many watch what the kernel does and when: nothing else is at work meanwhile.
fn tests(beside: &mut Beside) -> Result<Report> {
    let built =
        check(cargo().args(["test", "--workspace", "--no-run"]), "mend what is said above")?;
    if built.failure.is_some() {
        return Ok(built);
    }
    println!("waiting until everything is built");
    beside.settle()?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    let words = shell::as_root()?;
    if !words.is_empty() {
        command.arg("--config").arg(format!("target.'cfg(unix)'.runner = {words:?}"));
    }
    // A golden file that differs is a failure here, not a proposal on disk.
    command.env("INSTA_UPDATE", "no");
    follow(&mut command)
}

/// Licences, sources and bans. Advisories are left out: their database is a git
/// repository that a machine with package registries only cannot fetch.
fn deny(beside: &mut Beside) -> Result<Report> {
    if let Some(install) = beside.deny.take() {
        println!("waiting until cargo-deny is installed");
        install.wait()?;
    }
    println!("advisories are not checked here: `cargo deny check advisories` does, with network");
    check(
        Command::new(Tool::cargo_deny()?.program()).current_dir(root()).args([
            "--all-features",
            "check",
            "bans",
            "licenses",
            "sources",
        ]),
        "see deny.toml for what is allowed and why",
    )
}

/// Starts to install a tool, unless it is there.
fn start(install: Option<&Command>) -> Result<Option<Background>> {
    install.map(Background::start).transpose()
}

/// Whether the pages that are made from the program are what it says.
fn run_gen(_: &mut Beside) -> Result<Report> {
    codes::check()?;
    Ok(Report { tally: Tally::one(true), ..Report::default() })
}

/// Whether the committed object was built from the committed programs.
fn run_ebpf(beside: &mut Beside) -> Result<Report> {
    if let Some(install) = std::mem::replace(&mut beside.linker, Ok(None))? {
        println!("waiting until the linker of the programs is installed");
        install.wait()?;
    }
    ebpf::check(beside.install)?;
    Ok(Report { tally: Tally::one(true), ..Report::default() })
}

fn run_fuzz(beside: &mut Beside) -> Result<Report> {
    if let Some(build) = beside.fuzz.take() {
        println!("waiting until the fuzz targets are built");
        build.wait()?;
    }
    follow(&mut fuzz::command(FUZZ_SECONDS)?)
}

fn run_lab(beside: &mut Beside) -> Result<Report> {
    if let Some(build) = beside.lab.take() {
        println!("waiting until the agent and the lab are built, optimised");
        build.wait()?;
    }
    beside.guest = Some(start_guest(beside.install)?);
    // One shape: `cargo xtask lab run` goes through all of them in twice the time.
    // On a machine of others nobody promises when a process gets the processor: limits
    // are wide, and what a stall spoilt is tried once more, which the table shows.
    let run = "run --shape flannel --patience 2 --again --jobs 12";
    let words: Vec<_> = run.split_whitespace().map(str::to_owned).collect();
    follow(&mut lab::command(&words)?)
}

/// What the guest tries: what this machine's kernel may lack, and what takes no
/// longer than the lab beside it.
const IN_GUEST: &str =
    "proto4,tunl0,netem-jitter,netem-reordering,netem-duplication,netem-loss-10,preflight";

/// Boots a machine for IPIP, which the lab beside it leaves its time to.
fn start_guest(install: Install) -> Result<Guest> {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(std::env::current_exe()?);
    command.args(["lab", "vm", "6.1", IN_GUEST, "--shape", "calico-ipip", "--guests", "1"]);
    if install.no_install {
        command.arg("--no-install");
    }
    let name = shell::line(&command);
    let child = command.current_dir(root()).stdout(Stdio::piped()).spawn();
    Ok(Guest { child: child.with_context(|| format!("cannot run {name}"))?, name })
}

fn run_vm(beside: &mut Beside) -> Result<Report> {
    let mut guest = beside.guest.take().context("no guest was booted")?;
    println!("waiting for the guest");
    hear(&mut guest.child, &guest.name)
}

/// Fails with a remedy where a part of the toolchain is missing.
fn component(verb: &str, name: &str) -> Result<()> {
    shell::output(cargo().args([verb, "--version"])).map(|_| ()).with_context(|| {
        format!("{name} is not installed; get it with `rustup component add {name}` or from where your Rust came")
    })
}

/// Runs a checker that counts for one check.
fn check(command: &mut Command, remedy: &str) -> Result<Report> {
    let status =
        command.status().with_context(|| format!("cannot run {}", shell::line(command)))?;
    let failure = (!status.success()).then(|| format!("{}: {remedy}", shell::line(command)));
    Ok(Report { tally: Tally::one(failure.is_none()), closing: Vec::new(), failure })
}

/// Runs a test runner: its output passes through as it comes, its closing lines
/// are kept and counted.
fn follow(command: &mut Command) -> Result<Report> {
    let name = shell::line(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {name}"))?;
    hear(&mut child, &name)
}

/// Does so for a runner that was started before.
fn hear(child: &mut Child, name: &str) -> Result<Report> {
    let output = child.stdout.take().context("a piped child has a stdout")?;
    let mut report = Report::default();
    for line in BufReader::new(output).lines() {
        let line = line.with_context(|| format!("reading what {name} prints"))?;
        println!("{line}");
        report.read(line);
    }
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    Ok(report.close(status.success(), name))
}

impl Report {
    /// A stage that could not even run counts for one failed check.
    fn of_error(error: &anyhow::Error) -> Self {
        Self { tally: Tally::one(false), closing: Vec::new(), failure: Some(format!("{error:#}")) }
    }

    /// Takes one line of a runner's output.
    fn read(&mut self, line: String) {
        if let Some(tally) = Tally::from_closing_line(&line) {
            self.tally += tally;
            self.closing.push(line);
        }
    }

    /// Holds what was counted against how the runner ended: neither a runner
    /// that fails without a failed check nor one that ran no check at all may
    /// look like success.
    fn close(mut self, succeeded: bool, name: &str) -> Self {
        if self.closing.is_empty() {
            self.failure = Some(format!("{name} ended without saying what passed and failed"));
        } else if self.tally.passed + self.tally.failed == 0 {
            self.failure = Some(format!("{name} checked nothing"));
        } else if !succeeded || self.tally.failed > 0 {
            self.failure = Some(format!("{name} failed"));
        }
        if self.failure.is_some() && self.tally.failed == 0 {
            self.tally.failed = 1;
        }
        self
    }
}

/// The table of stages.
fn draw(stages: &[(&str, Duration, bool)]) -> String {
    let mut text = format!("{:<8}{:>9}  {}\n", "stage", "seconds", "outcome");
    let mut total = Duration::ZERO;
    for (name, took, passed) in stages {
        let outcome = if *passed { "ok" } else { "FAILED" };
        text += &format!("{name:<8}{:>9.1}  {outcome}\n", took.as_secs_f64());
        total += *took;
    }
    for stage in STAGES.iter().skip(stages.len()) {
        text += &format!("{:<8}{:>9}  not run\n", stage.name, "-");
    }
    text += &format!("{:<8}{:>9.1}\n", "total", total.as_secs_f64());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str], succeeded: bool) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.read((*line).to_owned());
        }
        report.close(succeeded, "runner")
    }

    #[test]
    fn sums_what_runners_say() {
        let lines = [
            "running 2 tests",
            "test result: ok. 2 passed; 0 failed; 0 ignored",
            "test result: ok. 3 passed; 0 failed; 0 ignored",
        ];
        let report = report(&lines, true);
        assert_eq!(report.tally, Tally { passed: 5, failed: 0 });
        assert_eq!(report.closing, lines[1..]);
        assert_eq!(report.failure, None);
    }

    #[test]
    fn success_needs_counted_checks() {
        let silent = report(&[], true);
        assert_eq!(silent.tally.failed, 1);
        assert!(silent.failure.is_some());
        let idle = report(&["0 of 0 faults judged rightly"], true);
        assert!(idle.failure.is_some());
        // One failed check beside a runner that claims success.
        let confused = report(&["4 of 5 faults judged rightly"], true);
        assert_eq!(confused.tally, Tally { passed: 4, failed: 1 });
        assert!(confused.failure.is_some());
        // Passed checks beside a runner that fails, as when a crate does not compile.
        let broken = report(&["test result: ok. 4 passed; 0 failed; 0 ignored"], false);
        assert_eq!(broken.tally, Tally { passed: 4, failed: 1 });
        assert!(broken.failure.is_some());
    }

    #[test]
    fn the_table_names_what_did_not_run() {
        let seconds = Duration::from_secs_f64(1.5);
        let table = draw(&[("fmt", seconds, true), ("clippy", seconds, false)]);
        assert!(table.contains("fmt           1.5  ok"), "{table}");
        assert!(table.contains("clippy        1.5  FAILED"), "{table}");
        assert!(table.contains("lab             -  not run"), "{table}");
        assert!(table.contains("total         3.0"), "{table}");
    }
}

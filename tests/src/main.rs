//! The lab's command line. `cargo xtask lab` calls it.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::fault::{self, Expected, Fault};
use lab::mode::Mode;
use lab::need::{self, Need};
use lab::part::Part;
use lab::run::{self, Settings};
use lab::topology::Shape;
use lab::{demo, features, identity, interrupt, patience, record, report};
use serde_json::json;

/// Real overlays in network namespaces, broken on purpose, and the agents judged.
///
/// Exit codes: 0 all as it should be, 1 the lab itself failed, 2 an agent was wrong.
#[derive(Debug, Parser)]
#[command(name = "lab", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show all faults and what the agents must say of each
    List(ListArgs),
    /// Show the shapes of overlays, and whether this kernel can have them
    Shapes(ListArgs),
    /// Inject faults, time the verdicts, heal, and print the table
    Run(RunArgs),
    /// Show a mesh live, with a fault if one is named
    Demo(DemoArgs),
    /// Save recordings of standing verdicts as golden cases
    Record(RecordArgs),
    /// Find out what this kernel has of what agents and lab build on, as JSON
    Features(FeaturesArgs),
    /// Remove what a killed lab left behind
    Clean,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Faults of this name, else those whose name contains it; several with commas between
    /// them [default: all]
    pattern: Option<String>,
    /// The agent to judge
    #[arg(long, value_name = "PATH", default_value = BINARY)]
    binary: PathBuf,
    /// Whose overlay to build [default: each shape in turn]
    #[arg(long, value_enum)]
    shape: Option<Shape>,
    /// Each shape in turn, except these
    #[arg(long, value_enum, value_name = "SHAPE", conflicts_with = "shape")]
    except: Vec<Shape>,
    /// Run the agents without the rules that name causes, and judge direction and hop alone
    #[arg(long)]
    no_rules: bool,
    /// Clusters side by side [default: four times the cores, at most 16]
    #[arg(long)]
    jobs: Option<usize>,
    /// Run one part of the faults, such as 1/2: every second one, from the first
    #[arg(long, value_name = "NUMBER/OF")]
    part: Option<Part>,
    /// Try the faults that were not judged rightly once more, alone, if they are few
    #[arg(long)]
    again: bool,
    /// Where recordings and logs of failed runs are kept
    #[arg(long, value_name = "DIRECTORY", default_value = "target/lab")]
    keep: PathBuf,
    /// Wait so many times as long for everything, as where a processor is emulated
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    patience: u32,
    /// Write the rows into this file, too, as `-o json` prints them
    #[arg(long, value_name = "FILE")]
    rows: Option<PathBuf>,
    /// Try the faults, too, that set this machine's clock and its limits
    #[arg(long)]
    own_machine: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Args)]
struct FeaturesArgs {
    /// The agent to run
    #[arg(long, value_name = "PATH", default_value = BINARY)]
    binary: PathBuf,
    /// Wait so many times as long for everything, as where a processor is emulated
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    patience: u32,
}

/// Where Cargo leaves the agent.
const BINARY: &str = "target/release/overlaywatch";

#[derive(Debug, Args)]
struct ClusterArgs {
    /// The agent to judge
    #[arg(long, value_name = "PATH", default_value = BINARY)]
    binary: PathBuf,
    /// Whose overlay to build
    #[arg(long, value_enum, default_value = "flannel")]
    shape: Shape,
}

#[derive(Debug, Args)]
struct DemoArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How many nodes, 2 to 16 [default: as many as the fault needs, else 3]
    #[arg(long)]
    nodes: Option<usize>,
    /// Inject this fault 5 s after all nodes pass
    #[arg(long)]
    fault: Option<String>,
    /// Wait so many times as long for everything, as where a processor is emulated
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    patience: u32,
    /// End after this time, such as 30s or 2m [default: at Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Args)]
struct RecordArgs {
    /// Faults of this name, else those whose name contains it
    pattern: String,
    /// Where case directories are written
    #[arg(long, value_name = "DIRECTORY", default_value = "agent/core/tests/cases")]
    into: PathBuf,
    #[command(flatten)]
    cluster: ClusterArgs,
}

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            // Nothing is left to be done when even this cannot be written.
            let _ = writeln!(io::stderr(), "lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the agents were right.
fn act(command: Command) -> Result<bool> {
    if let Command::List(args) = command {
        list(&args)?;
        return Ok(true);
    }
    if let Command::Shapes(args) = command {
        list_shapes(&args)?;
        return Ok(true);
    }
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it with sudo");
    interrupt::install()?;
    let cleaned = identity::clean()?;
    match command {
        Command::List(_) | Command::Shapes(_) => Ok(true),
        Command::Clean => {
            let mut out = io::stdout().lock();
            cleaned.removed.iter().try_for_each(|what| writeln!(out, "removed {what}"))?;
            ensure!(cleaned.stuck.is_empty(), "cannot remove {}", cleaned.stuck.join(", "));
            Ok(true)
        }
        Command::Run(args) => run(&args),
        Command::Demo(args) => demonstrate(args),
        Command::Record(args) => {
            record_all(&args)?;
            Ok(true)
        }
        Command::Features(args) => {
            patience::set(args.patience);
            let found = features::look(&binary(&args.binary)?)?;
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&found)?)?;
            Ok(true)
        }
    }
}

fn list(args: &ListArgs) -> Result<()> {
    let mut out = io::stdout().lock();
    let lines = |said: Vec<Expected>| said.iter().map(ToString::to_string).collect::<Vec<_>>();
    let expected = |fault: &Fault| lines(fault.said(Mode::Rules));
    let counted = |fault: &Fault| {
        let mut said = fault.said(Mode::NoRules);
        said.retain(|expected| expected.is_demanded(Mode::NoRules));
        lines(said)
    };
    if args.output == Output::Json {
        let faults: Vec<_> = fault::all()
            .map(|fault| {
                json!({
                    "name": fault.name,
                    "about": fault.about,
                    "incident": fault.incident,
                    "nodes": fault.nodes,
                    "expected": expected(fault),
                    "expected_without_rules": counted(fault),
                })
            })
            .collect();
        writeln!(out, "{:#}", json!(faults))?;
        return Ok(());
    }
    for fault in fault::all() {
        writeln!(out, "{:34} {}", fault.name, fault.about)?;
        if let Some(row) = fault.incident {
            writeln!(out, "{:34}   row {row} of the incident", "")?;
        }
        for line in expected(fault) {
            writeln!(out, "{:34}   {line}", "")?;
        }
        if fault.expected.is_empty() {
            writeln!(out, "{:34}   nobody says anything", "")?;
        }
    }
    Ok(())
}

fn list_shapes(args: &ListArgs) -> Result<()> {
    let mut out = io::stdout().lock();
    let shapes = Shape::value_variants();
    if args.output == Output::Json {
        let shapes: Vec<_> = shapes
            .iter()
            .map(|shape| {
                json!({
                    "name": shape.name(),
                    "encapsulation": shape.encapsulation(),
                    "possible": shape.ensure_possible().is_ok(),
                })
            })
            .collect();
        writeln!(out, "{:#}", json!(shapes))?;
        return Ok(());
    }
    for shape in shapes {
        write!(out, "{:20} {:13} {}", shape.name(), shape.device(), shape.encapsulation())?;
        match shape.ensure_possible() {
            Ok(()) => writeln!(out)?,
            Err(why) => writeln!(out, "; {why}")?,
        }
    }
    Ok(())
}

fn run(args: &RunArgs) -> Result<bool> {
    let faults = chosen(args.pattern.as_deref().unwrap_or_default())?;
    patience::set(args.patience);
    let binary = binary(&args.binary)?;
    let mode = if args.no_rules { Mode::NoRules } else { Mode::Rules };
    let mut shapes = shapes(args.shape)?;
    shapes.retain(|shape| !args.except.contains(shape));
    if args.own_machine {
        need::own_machine();
    }
    tell_what_is_left_out(&faults, &shapes)?;
    let runs: Vec<(&'static Fault, Settings)> = shapes
        .into_iter()
        .flat_map(|shape| {
            let settings =
                Settings { binary: binary.clone(), shape, mode, keep: args.keep.clone() };
            let fits = move |fault: &&Fault| fault.fits(shape) && fault.ensure_possible().is_ok();
            let fitting = faults.iter().copied().filter(fits);
            fitting.map(move |fault| (fault, settings.clone())).collect::<Vec<_>>()
        })
        .collect();
    ensure!(!runs.is_empty(), "of these faults none is tried in such a shape: see `lab list`");
    let runs = match args.part {
        Some(part) => part.of(&runs),
        None => runs,
    };
    let jobs = args.jobs.map_or_else(run::default_jobs, Ok)?;
    let show = |row: &report::Row| {
        if args.output == Output::Text {
            // A reader that went away does not stop the run.
            let _ = writeln!(io::stdout(), "{row}");
        }
    };
    if args.output == Output::Text {
        writeln!(io::stdout(), "{}", report::heading())?;
    }
    let mut rows = run::side_by_side(&runs, jobs, |(fault, settings)| {
        let row = run::run(fault, settings);
        show(&row);
        row
    })?;
    if args.again {
        run::again(&runs, &mut rows, show)?;
    }
    let passed = rows.iter().filter(|row| row.is_pass()).count();
    if let Some(file) = &args.rows {
        std::fs::write(file, serde_json::to_string_pretty(&rows)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if args.output == Output::Json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&rows)?)?;
    } else {
        let late = rows.iter().filter(|row| row.is_pass() && !row.first_try.is_empty());
        for row in late {
            writeln!(io::stdout(), "{} needed a second try", row.fault)?;
        }
        writeln!(io::stdout(), "{passed} of {} faults judged rightly", rows.len())?;
    }
    Ok(passed == rows.len())
}

/// Says which of these faults this machine cannot have, and why.
fn tell_what_is_left_out(faults: &[&Fault], shapes: &[Shape]) -> Result<()> {
    for need in Need::ALL {
        let Err(why) = need.ensure_met() else { continue };
        let has_need = |fault: &&&Fault| {
            fault.needs.contains(&need) && shapes.iter().any(|&shape| fault.fits(shape))
        };
        let names: Vec<_> = faults.iter().filter(has_need).map(|fault| fault.name).collect();
        if !names.is_empty() {
            writeln!(io::stderr(), "lab: without {}: {why}", names.join(", "))?;
        }
    }
    Ok(())
}

fn record_all(args: &RecordArgs) -> Result<()> {
    let (binary, shape) = (binary(&args.cluster.binary)?, args.cluster.shape);
    shape.ensure_possible()?;
    let faults = chosen(&args.pattern)?;
    faults.iter().try_for_each(|fault| fault.ensure_possible())?;
    let recorded = run::side_by_side(&faults, run::default_jobs()?, |fault| {
        record::record(fault, fault.shapes.or_first(shape), &binary, &args.into)
    })?;
    let mut failed = 0;
    for (fault, cases) in faults.iter().zip(recorded) {
        match cases {
            Ok(cases) => {
                for case in cases {
                    writeln!(io::stdout(), "wrote {}", case.display())?;
                }
            }
            Err(error) => {
                failed += 1;
                writeln!(io::stderr(), "{}: {error:#}", fault.name)?;
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} faults could not be recorded", faults.len());
    Ok(())
}

fn demonstrate(args: DemoArgs) -> Result<bool> {
    patience::set(args.patience);
    let fault = args
        .fault
        .map(|name| fault::named(&name).with_context(|| format!("no fault {name}: see `lab list`")))
        .transpose()?;
    let needs = fault.map_or(3, |fault| fault.nodes);
    let size = args.nodes.unwrap_or(needs);
    if let Some(fault) = fault {
        ensure!(size >= needs, "{} needs {needs} nodes", fault.name);
    }
    let shape = args.cluster.shape;
    shape.ensure_possible()?;
    if let Some(fault) = fault {
        fault.ensure_possible()?;
        ensure!(fault.fits(shape), "{} is not tried in {}'s shape", fault.name, shape.name());
    }
    let is_json = args.output == Output::Json;
    let demo = demo::Demo {
        binary: binary(&args.cluster.binary)?,
        shape,
        size,
        fault,
        time: args.time,
        live: !is_json,
        redraws: io::stdout().is_terminal(),
    };
    let result = demo.show()?;
    if is_json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&result)?)?;
    }
    Ok(result.is_right())
}

/// The shapes to try: the one that is wanted, else all that this kernel can have.
fn shapes(wanted: Option<Shape>) -> Result<Vec<Shape>> {
    if let Some(shape) = wanted {
        shape.ensure_possible()?;
        return Ok(vec![shape]);
    }
    let mut shapes = Vec::new();
    for &shape in Shape::value_variants() {
        match shape.ensure_possible() {
            Ok(()) => shapes.push(shape),
            Err(why) => writeln!(io::stderr(), "lab: without {}: {why}", shape.name())?,
        }
    }
    Ok(shapes)
}

fn chosen(pattern: &str) -> Result<Vec<&'static Fault>> {
    let faults = fault::matching(pattern);
    ensure!(!faults.is_empty(), "no fault's name contains {pattern}: see `lab list`");
    Ok(faults)
}

fn binary(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| {
        format!(
            "no agent at {}: build it (cargo build --release -p overlaywatch) or name it with \
             --binary",
            path.display()
        )
    })
}

/// A time such as 30s, 2m or 45 (seconds).
fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    match number.parse::<u32>() {
        Ok(number) if number > 0 => Ok(Duration::from_secs(u64::from(number) * unit)),
        _ => bail!("{text} is no time such as 30s or 2m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn times() {
        assert_eq!(duration("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(duration("45").unwrap(), Duration::from_secs(45));
        assert!(duration("soon").is_err() && duration("0s").is_err() && duration("").is_err());
    }
}

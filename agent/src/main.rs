//! The overlaywatch binary: reads the command line and ends with an exit code
//! that says what was found.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use overlaywatch::cli::{self, AgentArgs, CheckArgs, Command, Exit};
use overlaywatch::config::Config;
use overlaywatch::oneshot::OneshotError;
use overlaywatch::preflight::PreflightError;
use overlaywatch::{memory, oneshot, preflight, probe, run, telemetry};

fn main() -> ExitCode {
    memory::share_heap();
    let command = match cli::parse() {
        Ok(command) => command,
        Err(exit) => return exit.into(),
    };
    match execute(command) {
        Ok(exit) => exit.into(),
        // Whoever read the output, `head` for one, has seen enough.
        Err(error) if is_broken_pipe(&error) => Exit::Fine.into(),
        Err(error) => {
            eprintln!("overlaywatch: {}", one_line(&error));
            Exit::ToolFailed.into()
        }
    }
}

fn execute(command: Command) -> anyhow::Result<Exit> {
    // One thread: the work is small, and a second one costs more than it gives.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the system refuses an event loop")?;
    let out = &mut std::io::stdout().lock();
    let paint = oneshot::stdout_paint();
    let exit = match command {
        Command::Agent(args) => agent(&runtime, &args, out)?,
        Command::Check(args) => check(&runtime, &args, out)?,
        Command::Preflight(args) => preflight::run(&args, probe::random_epoch(), paint, out)?,
        Command::Status(args) => runtime.block_on(oneshot::status(&args, paint, out))?,
        Command::Snapshot(args) => runtime.block_on(oneshot::snapshot(&args, out))?,
        Command::Replay(args) => oneshot::replay(&args, paint, out)?,
        Command::Explain(args) => oneshot::explain(&args, paint, out)?,
        Command::Completions(args) => oneshot::completions(&args, out)?,
    };
    out.flush()?;
    // Readers of files that block must not hold up the end.
    runtime.shutdown_background();
    Ok(exit)
}

/// The error and its causes, less those that the error's own words name already.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<OneshotError>().is_some_and(OneshotError::is_broken_pipe)
        || error.downcast_ref::<PreflightError>().is_some_and(PreflightError::is_broken_pipe)
}

fn agent(
    runtime: &tokio::runtime::Runtime,
    args: &AgentArgs,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let mut config = Config::load(&args.node)?;
    config.counted_only = args.no_rules;
    telemetry::init(config.log.level, config.log.format)?;
    if args.detach {
        let removed = run::detach(&config)?;
        writeln!(out, "removed {removed} pinned links and maps from {}", config.pin.display())?;
        return Ok(Exit::Fine);
    }
    runtime.block_on(run::agent(&args.node, config))?;
    Ok(Exit::Fine)
}

fn check(
    runtime: &tokio::runtime::Runtime,
    args: &CheckArgs,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let config = Config::load(&args.node)?;
    telemetry::init(config.log.level, config.log.format)?;
    let published = runtime.block_on(run::check(&config, args.seconds))?;
    let paint = oneshot::stdout_paint();
    let (snapshot, diagnosis) = (&published.snapshot, &published.diagnosis);
    Ok(oneshot::print_diagnosis(snapshot, diagnosis, args.output.format, paint, out)?)
}

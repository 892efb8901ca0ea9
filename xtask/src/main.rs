//! The project's own commands, as `cargo xtask VERB`.
//!
//! They need nothing but Cargo and, for what the system lacks, apt; each does
//! the set-up that it needs by itself.

mod background;
mod bench;
mod demo;
mod duration;
mod fuzz;
mod interrupt;
mod lab;
mod output;
mod setup;
mod shell;
mod tally;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the system packages that building, testing and the lab need
    Setup(Install),
    /// Build a mesh in network namespaces, run an agent on each node, and watch
    Demo(demo::Options),
    /// Check everything: format, lints, tests, licences, fuzzing, and the namespace lab
    Test(Install),
    /// Inject faults into real overlays and judge the verdicts: list, run, clean, record
    Lab(lab::Options),
    /// Feed made-up input to whatever reads packets, kernel messages and files
    Fuzz(fuzz::Options),
    /// Measure against the budgets, and print what was measured
    Bench(bench::Options),
}

/// Whether the system may be changed.
#[derive(Args, Clone, Copy)]
struct Install {
    /// Install no system package; fail and say what is missing
    #[arg(long, global = true)]
    no_install: bool,
}

impl Install {
    /// Installs what is missing, or refuses to.
    fn setup(self) -> Result<()> {
        setup::setup(!self.no_install)
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup(install) => install.setup().map(|()| eprintln!("nothing is missing")),
        Verb::Demo(options) => demo::demo(&options),
        Verb::Test(install) => test::test(install),
        Verb::Lab(options) => lab::lab(&options),
        Verb::Fuzz(options) => fuzz::fuzz(&options),
        Verb::Bench(options) => bench::bench(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

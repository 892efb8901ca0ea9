//! The project's own commands, as `cargo xtask VERB`.
//!
//! They need nothing but Cargo and, for what the system lacks, apt; each does
//! the set-up that it needs by itself.

mod archive;
mod background;
mod bench;
mod codes;
mod debian11;
mod demo;
mod duration;
mod ebpf;
mod fuzz;
mod interrupt;
mod lab;
mod output;
mod setup;
mod shell;
mod tally;
mod test;
mod tools;
mod vm;

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
    /// Check everything: format, lints, tests, licences, generated pages, the eBPF object, fuzzing, and the lab
    Test(Install),
    /// Build the eBPF programs into the object that is committed, or check that it is theirs
    Ebpf(ebpf::Options),
    /// Write the pages that are made from the program, or check that they are current
    Gen(codes::Options),
    /// Inject faults into real overlays and judge the verdicts: list, run, clean, record
    Lab(lab::Options),
    /// Feed made-up input to whatever reads packets, kernel messages and files
    Fuzz(fuzz::Options),
    /// Measure against the budgets, and print what was measured
    Bench(bench::Options),
}

/// Whether the system may be changed.
#[derive(Args, Clone, Copy, Debug)]
struct Install {
    /// Install no system package; fail and say what is missing
    #[arg(long, global = true)]
    no_install: bool,
}

impl Install {
    /// Installs what is missing, or refuses to.
    fn setup(self) -> Result<()> {
        self.provide(&setup::NEEDS)
    }

    /// Gets the older tools that the lab runs, or refuses to.
    fn provide_old_tools(self) -> Result<()> {
        debian11::provide(!self.no_install)
    }

    /// Installs what is missing of `needs`, or refuses to.
    fn provide(self, needs: &[setup::Need<'_>]) -> Result<()> {
        setup::provide(needs, !self.no_install)
    }
}

fn set_up(install: Install) -> Result<()> {
    install.setup()?;
    install.provide_old_tools()?;
    ebpf::set_up(install)?;
    eprintln!("nothing is missing");
    Ok(())
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup(install) => set_up(install),
        Verb::Demo(options) => demo::demo(&options),
        Verb::Test(install) => test::test(install),
        Verb::Ebpf(options) => ebpf::ebpf(&options),
        Verb::Gen(options) => codes::generate(&options),
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

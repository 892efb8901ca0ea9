//! Benchmarks against the budgets of BENCHMARKS.md. They print what was
//! measured and never fail for being slow: that is for people to judge.

mod agent;
mod ebpf;
mod http;
mod netns;
mod process;
mod state;
mod table;

use std::num::NonZeroUsize;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::output::Output;
use crate::shell::{self, root_command};
use crate::{Install, interrupt, lab, vm};

/// What `cargo xtask bench` takes.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
    /// What to print: the table, or one JSON document
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
    #[command(flatten)]
    install: Install,
    /// Programs are built already; set when a benchmark calls itself as root
    #[arg(long, hide = true, global = true)]
    built: bool,
}

#[derive(Clone, Subcommand)]
enum What {
    /// One agent against 1,000 simulated peers: processor, memory, HTTP, bytes
    Agent,
    /// What the eBPF programs cost packets, connections and a burst of drops
    Ebpf {
        /// Under this kernel, in a virtual machine: one of `cargo xtask lab vm`'s
        #[arg(long)]
        kernel: Option<String>,
        /// Pairs of runs with and without agents [default: 11; in a virtual machine,
        /// whose time goes by instructions and spreads little, 3]
        #[arg(long)]
        pairs: Option<NonZeroUsize>,
    },
    /// Whole tables of routes, rules, connections and sets, beside the usual tools
    State,
}

impl What {
    fn name(&self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Ebpf { .. } => "ebpf",
            Self::State => "state",
        }
    }
}

/// Builds as the caller, measures as root.
pub(crate) fn bench(options: &Options) -> Result<()> {
    if !options.built {
        options.install.setup()?;
        match options.what {
            What::Agent => agent::build()?,
            What::Ebpf { .. } => ebpf::build()?,
            What::State => state::build()?,
        }
    }
    if let What::Ebpf { kernel: Some(kernel), pairs } = &options.what {
        interrupt::install()?;
        options.install.provide_old_tools()?;
        lab::build()?;
        print!("{}", vm::bench_ebpf(kernel, *pairs, options.output, options.install)?);
        return Ok(());
    }
    if !shell::is_root() {
        let mut again = root_command(std::env::current_exe()?)?;
        again.args(["bench", options.what.name(), "--built"]);
        if let What::Ebpf { pairs: Some(pairs), .. } = options.what {
            again.args(["--pairs", &pairs.to_string()]);
        }
        if options.output == Output::Json {
            again.args(["-o", "json"]);
        }
        return shell::become_program(again);
    }
    interrupt::install()?;
    match options.what {
        What::Agent => agent::bench(options.output),
        What::Ebpf { pairs, .. } => ebpf::bench(pairs, options.output),
        What::State => state::bench(options.output),
    }
}

/// Bytes in millions, for people; counters stay far below 2^53, so nothing is lost.
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

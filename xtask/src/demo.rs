//! First light: a mesh in namespaces, an agent on each node, and what they say.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{Install, duration, lab, shell};

/// What `cargo xtask demo` takes. All of it is checked here, before a build of
/// minutes, although the lab is what acts on it.
#[derive(Args)]
pub(crate) struct Options {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    nodes: u8,
    /// Inject this fault after 5 s; `cargo xtask lab list` names them
    #[arg(long)]
    fault: Option<String>,
    /// Stop after this time (30s, 2m) instead of at Ctrl-C
    #[arg(long = "for", value_parser = duration::parse)]
    duration: Option<Duration>,
    /// Whose overlay to build
    #[arg(long, default_value = "flannel")]
    shape: String,
    /// What to print: the live table, or one JSON document at the end
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    install: Install,
}

/// What to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: stdout carries one JSON document and nothing else.
    Json,
}

/// Builds what is needed and becomes the lab's demo.
pub(crate) fn demo(options: &Options) -> Result<()> {
    options.install.setup()?;
    lab::build()?;
    shell::become_program(lab::command(&options.arguments())?)
}

impl Options {
    /// The lab's command line.
    fn arguments(&self) -> Vec<String> {
        let mut words = vec!["demo".to_owned()];
        let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
        option("--nodes", self.nodes.to_string());
        option("--shape", self.shape.clone());
        if let Some(fault) = &self.fault {
            option("--fault", fault.clone());
        }
        if let Some(duration) = self.duration {
            option("--for", format!("{}ms", duration.as_millis()));
        }
        if self.output == Output::Json {
            option("-o", "json".to_owned());
        }
        words
    }
}

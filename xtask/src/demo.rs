//! First light: a mesh in namespaces, an agent on each node, and what they say.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::output::Output;
use crate::{Install, duration, lab, shell, vm};

/// What `cargo xtask demo` takes. Numbers and times are checked here already,
/// before a build of minutes, although the lab is what acts on them.
#[derive(Args)]
pub(crate) struct Options {
    /// How many nodes [default: 3, or as many as the fault needs]
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=16))]
    nodes: Option<u8>,
    /// Inject this fault after 5 s; `cargo xtask lab list` names them
    #[arg(long)]
    fault: Option<String>,
    /// Stop after this time (30s, 2m) instead of at Ctrl-C; a virtual machine stops after 30s
    #[arg(long = "for", value_parser = duration::parse)]
    duration: Option<Duration>,
    /// Whose overlay to build, as `cargo xtask lab shapes` names it; where this kernel has no
    /// IPIP, in a virtual machine that has [default: flannel]
    #[arg(long)]
    shape: Option<String>,
    /// What to print: the live table, or one JSON document at the end
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    install: Install,
}

/// Builds what is needed and becomes the lab's demo.
pub(crate) fn demo(options: &Options) -> Result<()> {
    options.install.setup()?;
    lab::build()?;
    let mut arguments = options.arguments();
    let is_elsewhere = options.shape.as_deref().map(is_impossible_here).transpose()?;
    if is_elsewhere == Some(true) {
        options.install.provide_old_tools()?;
        if options.duration.is_none() {
            // No Ctrl-C goes into a guest.
            arguments.extend(["--for", "30s"].map(str::to_owned));
        }
        return vm::demo(&arguments, options.output, options.install);
    }
    shell::become_program(lab::command(&arguments)?)
}

/// Whether the lab knows this shape and this machine's kernel cannot have it.
fn is_impossible_here(shape: &str) -> Result<bool> {
    let words = ["shapes", "-o", "json"].map(str::to_owned);
    let shapes: Value = serde_json::from_str(&shell::output(&mut lab::command(&words)?)?)?;
    let shapes = shapes.as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(shapes.iter().any(|known| known["name"] == shape && known["possible"] == false))
}

impl Options {
    /// The lab's command line.
    fn arguments(&self) -> Vec<String> {
        let mut words = vec!["demo".to_owned()];
        let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
        if let Some(nodes) = self.nodes {
            option("--nodes", nodes.to_string());
        }
        if let Some(shape) = &self.shape {
            option("--shape", shape.clone());
        }
        if let Some(fault) = &self.fault {
            option("--fault", fault.clone());
        }
        if let Some(duration) = self.duration {
            option("--for", format!("{}s", duration.as_secs()));
        }
        if self.output == Output::Json {
            option("-o", "json".to_owned());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn arguments(line: &str) -> String {
        let line = Line::parse_from(line.split(' '));
        line.options.arguments().join(" ")
    }

    #[test]
    fn the_lab_is_told_what_was_asked() {
        assert_eq!(arguments("demo"), "demo");
        assert_eq!(
            arguments("demo --for 1m30s -o json --fault tunnel-down-remote --nodes 5"),
            "demo --nodes 5 --fault tunnel-down-remote --for 90s -o json"
        );
    }

    #[test]
    fn mistakes_show_before_the_build() {
        assert!(Line::try_parse_from(["demo", "--nodes", "1"]).is_err());
        assert!(Line::try_parse_from(["demo", "--for", "soon"]).is_err());
    }
}

//! The namespace lab: built here, then given the word as root.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::shell::{self, build_release, release_command, root, root_command, target};
use crate::{Install, vm};

/// What `cargo xtask lab` takes.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// What the lab takes: `list`, `shapes`, `run [PATTERN]`, `clean`, `record`, `--help`; or
    /// `vm [KERNEL...] [PATTERN]`, which runs it in virtual machines
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "--help")]
    arguments: Vec<String>,
}

/// Builds the agent and the lab, and becomes the lab; or boots machines for it.
pub(crate) fn lab(options: &Options) -> Result<()> {
    if let Some((VM, words)) =
        options.arguments.split_first().map(|(verb, words)| (verb.as_str(), words))
    {
        return vm::run(words, options.install);
    }
    options.install.setup()?;
    options.install.provide_old_tools()?;
    build()?;
    shell::become_program(command(&options.arguments)?)
}

/// The verb that is not the lab's own.
const VM: &str = "vm";

/// What the lab needs: itself, and the agent as it is shipped.
const PACKAGES: [&str; 4] = ["-p", "overlaywatch", "-p", "lab"];

/// Builds what the lab needs.
pub(crate) fn build() -> Result<()> {
    build_release("the agent and the lab", &PACKAGES)
}

/// The command that builds what the lab needs.
pub(crate) fn build_command() -> Command {
    release_command(&PACKAGES)
}

/// The lab with these arguments: as root where it makes namespaces, and with
/// the agent's path where it starts agents.
pub(crate) fn command(arguments: &[String]) -> Result<Command> {
    let release = target()?.join("release");
    let verb = arguments.first().map_or("", String::as_str);
    let only_speaks = ["list", "shapes"].contains(&verb)
        || arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    let program = release.join("lab");
    let mut command = if only_speaks {
        let mut command = Command::new(program);
        command.current_dir(root());
        command
    } else {
        root_command(program)?
    };
    command.args(arguments);
    if !only_speaks && verb != "clean" {
        command.arg("--binary").arg(release.join("overlaywatch"));
    }
    Ok(command)
}

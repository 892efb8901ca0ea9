//! Where the workspace is, and how other programs are run from it.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

/// The workspace's root folder. Cargo builds xtask anew when the folder moves,
/// so the path from compile time is the right one.
pub(crate) fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The folder that Cargo builds into, found from where this program was built:
/// it may be configured by environment, command line or file.
pub(crate) fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("where xtask itself was built")?;
    let target = program.parent().and_then(Path::parent);
    Ok(target.with_context(|| format!("{} is in no target folder", program.display()))?.into())
}

/// Cargo, the same one that runs xtask, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs `command` and fails, naming it, unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed; what it complained about is part
/// of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line(command)))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", line(command), output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Becomes `command`: signals, terminal, output and exit code are its own from
/// here on, with nobody in between who could swallow a Ctrl-C.
pub(crate) fn become_program(mut command: Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", line(&command)))
}

/// `command` as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// The words to put before a command so that it runs as root: none for root
/// itself, else sudo with the caller's environment.
pub(crate) fn as_root() -> Result<Vec<&'static str>> {
    if is_root() {
        return Ok(Vec::new());
    }
    let silent = Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match silent {
        Ok(status) if status.success() => Ok(vec!["sudo", "-n", "-E"]),
        Ok(_) => Ok(vec!["sudo", "-E"]),
        Err(_) => bail!(
            "network namespaces need root, and sudo is not installed: run the command as root"
        ),
    }
}

/// `program` as root.
pub(crate) fn root_command(program: impl AsRef<OsStr>) -> Result<Command> {
    let mut words = as_root()?.into_iter();
    let mut command = match words.next() {
        Some(sudo) => {
            let mut command = Command::new(sudo);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.current_dir(root());
    Ok(command)
}

/// Builds in release mode, quietly: Cargo speaks only of what fails. Progress
/// goes to stderr, since stdout may be somebody's JSON.
pub(crate) fn build_release(what: &str, arguments: &[&str]) -> Result<()> {
    eprintln!("building {what}, optimised (a few minutes the first time)");
    let start = Instant::now();
    run(&mut release_command(arguments))?;
    eprintln!("built in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The command that builds in release mode and speaks only of what fails.
pub(crate) fn release_command(arguments: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["build", "--release", "--quiet"]).args(arguments);
    command
}

//! Named network namespaces for the benchmarks, gone when dropped.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::shell;

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// What names of ours begin with; the maker's process id and a role follow.
const PREFIX: &str = "overlaywatch-bench-";

/// Removes the namespaces of benchmarks that were killed: those whose process
/// has gone. Others may be measuring right now.
pub(crate) fn clean() -> Result<()> {
    let Ok(names) = Path::new(NAMES).read_dir() else { return Ok(()) };
    for name in names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        let maker = maker(&name);
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            shell::output(Command::new("ip").args(["netns", "delete", &name]))?;
            eprintln!("removed {name}, left by a benchmark that was killed");
        }
    }
    Ok(())
}

/// The process that made the namespace of this name, if it is one of ours.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// A network namespace as `ip netns` makes it.
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    /// Makes one; `role` tells it from others of the same benchmark.
    pub(crate) fn new(role: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{role}", std::process::id());
        shell::output(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is named.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `ip` in it; returns what it printed.
    pub(crate) fn ip(&self, arguments: &str) -> Result<String> {
        shell::output(
            Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()),
        )
    }

    /// Runs a shell's script in it, however long that is.
    pub(crate) fn script(&self, text: &str) -> Result<()> {
        let mut shell =
            self.command(Path::new("sh")).stdin(Stdio::piped()).spawn().context("cannot run sh")?;
        let mut input = shell.stdin.take().context("a piped child has a stdin")?;
        input.write_all(text.as_bytes())?;
        drop(input);
        let status = shell.wait()?;
        ensure!(status.success(), "setting up the namespace {} failed ({status})", self.name);
        Ok(())
    }

    /// A command that runs `program` in it and dies with this process,
    /// however that ends.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        // SAFETY: between fork and exec only prctl(2) is called, which is
        // async-signal-safe; the setting survives execve(2) (PR_SET_PDEATHSIG(2const)).
        unsafe {
            command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        command
    }

    /// Runs `work` on a thread in it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = File::open(self.path())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                work()
            });
            thread.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = shell::output(Command::new("ip").args(["netns", "delete", &self.name]))
        {
            eprintln!("{error:#}; remove it by hand");
        }
    }
}

/// A process that is ended when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_a_maker() {
        assert_eq!(maker("overlaywatch-bench-4711-agent"), Some(4711));
        for name in ["overlaywatch-bench-agent", "owlab-4711-node", "4711-agent", "cni-1234"] {
            assert_eq!(maker(name), None, "{name}");
        }
    }
}

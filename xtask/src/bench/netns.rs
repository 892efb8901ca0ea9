//! Named network namespaces for the benchmarks, gone when dropped.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::shell;

/// A network namespace as `ip netns` makes it.
pub(crate) struct Netns {
    name: &'static str,
}

impl Netns {
    /// Makes it anew; one of this name that a killed run left is removed first.
    pub(crate) fn new(name: &'static str) -> Result<Self> {
        if Path::new("/run/netns").join(name).exists() {
            shell::output(Command::new("ip").args(["netns", "delete", name]))?;
        }
        shell::output(Command::new("ip").args(["netns", "add", name]))?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Runs `ip` in it; returns what it printed.
    pub(crate) fn ip(&self, arguments: &str) -> Result<String> {
        shell::output(Command::new("ip").args(["-n", self.name]).args(arguments.split_whitespace()))
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
        command.args(["netns", "exec", self.name]).arg(program);
        // SAFETY: between fork and exec only prctl(2) is called, which is
        // async-signal-safe; the setting survives execve(2) (PR_SET_PDEATHSIG(2const)).
        unsafe {
            command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        command
    }

    /// Runs `work` on a thread in it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = File::open(Path::new("/run/netns").join(self.name))?;
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
        if let Err(error) = shell::output(Command::new("ip").args(["netns", "delete", self.name])) {
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

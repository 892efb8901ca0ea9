//! Work that goes on beside other work and gives way to it.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::shell;

/// A command that runs at the lowest priority; ended when dropped.
pub(crate) struct Background {
    name: String,
    child: Child,
}

impl Background {
    /// Starts `command`, in a process group of its own, so that all that it
    /// starts can be ended with it.
    pub(crate) fn start(command: &Command) -> Result<Self> {
        let name = shell::line(command);
        let mut nice = Command::new("nice");
        nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => nice.env(name, value),
                None => nice.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            nice.current_dir(folder);
        }
        let child = nice.process_group(0).spawn().with_context(|| format!("cannot run {name}"))?;
        Ok(Self { name, child })
    }

    /// Waits for its end, whatever it is: [`wait`](Self::wait) tells.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.child.wait().map(|_| ()).with_context(|| format!("waiting for {}", self.name))
    }

    /// Waits for its end; fails, naming it, unless it succeeded.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        ensure!(status.success(), "{} failed ({status})", self.name);
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Once it was waited for, its process id may be another's: leave that alone.
        if matches!(self.child.try_wait(), Ok(None)) {
            let group = i32::try_from(self.child.id()).map(Pid::from_raw);
            // Neither fails for a child that runs and is ours.
            let _ = group.map(|group| killpg(group, Signal::SIGTERM));
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::os::fd::AsRawFd;
    use std::process::id;

    use super::*;

    #[test]
    fn success_and_failure_are_told() {
        assert!(Background::start(&Command::new("true")).unwrap().wait().is_ok());
        let mut failing = Background::start(&Command::new("false")).unwrap();
        failing.settle().unwrap();
        let error = failing.wait().unwrap_err();
        assert!(error.to_string().contains("false"), "{error}");
    }

    #[test]
    fn the_environment_is_handed_on() {
        let mut command = Command::new("sh");
        command.args(["-c", "test \"$HANDED\" = on -a -z \"$HOME\""]);
        command.env("HANDED", "on").env_remove("HOME");
        assert!(Background::start(&command).unwrap().wait().is_ok());
    }

    #[test]
    fn what_it_started_ends_with_it() {
        let (mut lives, held) = io::pipe().unwrap();
        // The sleeper holds the pipe open for as long as it lives.
        let script = format!("sleep 600 >/proc/{}/fd/{} & wait", id(), held.as_raw_fd());
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        let background = Background::start(&command).unwrap();
        drop(background);
        drop(held);
        // Returns when nobody holds the other end any more.
        lives.read_to_end(&mut Vec::new()).unwrap();
    }
}

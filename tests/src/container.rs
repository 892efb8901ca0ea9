//! What plays a container on a node's network: a process with a mount namespace
//! and a root of its own, which has a shell, ipset, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::interrupt::wait_until;
use crate::netns::Netns;

/// Whose ipset a container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipset {
    /// Debian 11's.
    Old,
    /// The system's own.
    Current,
}

/// What a container's shell needs.
const PROGRAMS: [&str; 2] = ["/bin/sh", "/bin/sleep"];
/// Gives a process the folder `$0` as its root and runs the program `$1` in it
/// with the script `$2`. What is mounted is seen by nobody else.
const ENTER: &str = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,exec \"$0\" && \
                     exec chroot \"$0\" \"$1\" -c \"$2\"";

/// A running container, or a process beside it; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Container {
    child: Child,
    root: PathBuf,
}

impl Container {
    /// Runs a shell script in a container; `root` is made, and `name` is what
    /// the process is called. It dies with the calling thread.
    pub(crate) fn start(
        netns: &Netns,
        root: &Path,
        ipset: Ipset,
        name: &str,
        script: &str,
    ) -> Result<Self> {
        build(root, ipset)
            .with_context(|| format!("cannot make a container's root in {}", root.display()))?;
        // A process is called after the path that was run, also if that is a
        // link (begin_new_exec, fs/exec.c).
        symlink("/bin/sh", root.join(name))?;
        let mut command = netns.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER]);
        command.arg(root).arg(format!("/{name}")).arg(script);
        Self::spawn(command, root)
    }

    /// Runs a shell script among the host's files, as a process called `name`;
    /// `folder` is made, for its link, and is the script's `$0`.
    pub(crate) fn on_host(netns: &Netns, folder: &Path, name: &str, script: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let link = folder.join(name);
        symlink("/bin/sh", &link)?;
        let mut command = netns.command(link);
        command.arg("-c").arg(script).arg(folder);
        Self::spawn(command, folder)
    }

    fn spawn(mut command: Command, root: &Path) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        Ok(Self { child, root: root.to_owned() })
    }

    /// Asks a script to end by a file called `stop`, and waits: killed, it would
    /// leave to others what it was about to do.
    pub(crate) fn finish(&mut self, limit: Duration) -> Result<()> {
        fs::write(self.root.join("stop"), "")?;
        let ended = wait_until(limit, || Ok(self.child.try_wait()?.is_some()))?;
        ensure!(ended, "a script did not end within {limit:?}");
        Ok(())
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The text of a file in it; empty while there is none.
    pub(crate) fn text(&self, file: &str) -> String {
        fs::read_to_string(self.root.join(file)).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A process that already ended is already where it should be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `cargo xtask setup` unpacks Debian 11's tools: beside the folder of
/// this program.
fn debian_11() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.ancestors().map(|folder| folder.join("tools/debian-11"));
    folder
        .into_iter()
        .find(|folder| folder.join("usr/sbin/ipset").is_file())
        .context("Debian 11's ipset is missing: run `cargo xtask setup`")
}

/// Copies what a container has. Links are followed: a root has files.
fn build(root: &Path, ipset: Ipset) -> Result<()> {
    let tool = match ipset {
        Ipset::Old => debian_11()?.join("usr/sbin/ipset"),
        Ipset::Current => PathBuf::from("/usr/sbin/ipset"),
    };
    let mut programs: Vec<_> = PROGRAMS.map(PathBuf::from).into();
    let mut files: BTreeSet<_> = programs.iter().cloned().collect();
    programs.push(tool.clone());
    let old = if ipset == Ipset::Old { old_libraries()? } else { Vec::new() };
    for file in programs.iter().chain(&old) {
        files.extend(libraries(file)?);
    }
    // The system's own is not the old tool's.
    files.retain(|file| old.is_empty() || !is_libipset(file));
    for library in old {
        copy(&library, &root.join(library.strip_prefix(debian_11()?)?))?;
    }
    for file in files {
        copy(&file, &root.join(file.strip_prefix("/")?))?;
    }
    copy(&tool, &root.join("usr/sbin/ipset"))
}

/// Debian 11's libipset, in the folder that bears the machine's name.
fn old_libraries() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in debian_11()?.join("usr/lib").read_dir()? {
        let files = folder?.path().read_dir()?;
        found.extend(files.flatten().map(|file| file.path()).filter(|file| is_libipset(file)));
    }
    Ok(found)
}

fn is_libipset(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libipset.so"))
}

/// The shared libraries that a program is linked with, its loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    ensure!(output.status.success(), "ldd {} failed", program.display());
    let said = String::from_utf8(output.stdout)?;
    let paths = said.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file without a folder")?;
    fs::create_dir_all(folder)?;
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

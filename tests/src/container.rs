//! What plays a container on a node's network: a process with a mount namespace
//! and a root of its own, which has a shell, one of ipset and iptables, and
//! nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::interrupt::wait_until;
use crate::netns::Netns;

/// Which tool a container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// ipset(8).
    Ipset(Age),
    /// iptables(8) on nftables, by the one name of its program: xtables-nft-multi.
    Iptables(Age),
}

/// Whose tool a container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// Debian 11's.
    Old,
    /// The system's own.
    Current,
}

impl Tool {
    const fn age(self) -> Age {
        match self {
            Self::Ipset(age) | Self::Iptables(age) => age,
        }
    }

    /// Where its program is, below a root.
    const fn program(self) -> &'static str {
        match self {
            Self::Ipset(_) => "usr/sbin/ipset",
            Self::Iptables(_) => "usr/sbin/xtables-nft-multi",
        }
    }

    /// How libraries are called that are of its release.
    const fn libraries(self) -> &'static [&'static str] {
        match self {
            Self::Ipset(_) => &["libipset.so"],
            Self::Iptables(_) => &["libxtables.so", "libnftnl.so"],
        }
    }

    fn has_library(self, file: &Path) -> bool {
        let name = file.file_name().map(|name| name.to_string_lossy());
        name.is_some_and(|name| self.libraries().iter().any(|own| name.starts_with(own)))
    }
}

/// What a container's shell needs.
const PROGRAMS: [&str; 2] = ["/bin/sh", "/bin/sleep"];
/// Gives a process the folder `$0` as its root and runs the program `$1` in it
/// with the script `$2`. What is mounted is seen by nobody else.
const ENTER: &str = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,exec \"$0\" && \
                     exec chroot \"$0\" \"$1\" -c \"$2\"";

/// What K3s calls such a folder: a SHA-256.
const K3S_HASH: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";

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
        tool: Tool,
        name: &str,
        script: &str,
    ) -> Result<Self> {
        build(root, tool)
            .with_context(|| format!("cannot make a container's root in {}", root.display()))?;
        // A process is called after the path that was run, also if that is a
        // link (begin_new_exec, fs/exec.c).
        symlink("/bin/sh", root.join(name))?;
        let mut command = netns.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER]);
        command.arg(root).arg(format!("/{name}")).arg(script);
        Self::spawn(command, root)
    }

    /// Runs a shell script among the host's files, as K3s's server runs: from the
    /// folder that it unpacked its programs to. This one unpacked no ipset and no
    /// iptables, so that it finds the host's. `folder` is made, for all that it
    /// keeps (`--data-dir`), and is the script's `$0`.
    pub(crate) fn k3s(netns: &Netns, folder: &Path, script: &str) -> Result<Self> {
        let unpacked = folder.join("data").join(K3S_HASH).join("bin");
        fs::create_dir_all(&unpacked)?;
        // No link: what a process runs is told after all of them.
        let program = unpacked.join("k3s");
        fs::copy("/bin/sh", &program)
            .with_context(|| format!("cannot copy a shell to {}", program.display()))?;
        let link = unpacked.join("k3s-server");
        symlink("k3s", &link)?;
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
fn debian_11(tool: Tool) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.ancestors().map(|folder| folder.join("tools/debian-11"));
    folder
        .into_iter()
        .find(|folder| folder.join(tool.program()).is_file())
        .context("Debian 11's tools are missing: run `cargo xtask setup`")
}

/// Copies what a container has. Links are followed: a root has files.
fn build(root: &Path, tool: Tool) -> Result<()> {
    let (of, old) = match tool.age() {
        Age::Old => (debian_11(tool)?, old_libraries(tool)?),
        Age::Current => (PathBuf::from("/"), Vec::new()),
    };
    let program = of.join(tool.program());
    let mut programs: Vec<_> = PROGRAMS.map(PathBuf::from).into();
    let mut files: BTreeSet<_> = programs.iter().cloned().collect();
    programs.push(program.clone());
    for file in programs.iter().chain(&old) {
        files.extend(libraries(file)?);
    }
    // The system's own are not the old tool's.
    files.retain(|file| old.is_empty() || !tool.has_library(file));
    for library in old {
        copy(&library, &root.join(library.strip_prefix(&of)?))?;
    }
    for file in files {
        copy(&file, &root.join(file.strip_prefix("/")?))?;
    }
    copy(&program, &root.join(tool.program()))
}

/// Debian 11's libraries of a tool, in the folder that bears the machine's name.
fn old_libraries(tool: Tool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in debian_11(tool)?.join("usr/lib").read_dir()? {
        let files = folder?.path().read_dir()?;
        found.extend(files.flatten().map(|file| file.path()).filter(|file| tool.has_library(file)));
    }
    Ok(found)
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

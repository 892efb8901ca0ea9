//! Network namespaces as guards: made, entered, and gone when dropped.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{io, thread};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` looks for names: what is mounted here can be entered with
/// `ip netns exec NAME`.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name. The kernel frees it once the guard is
/// dropped and the last process in it has ended.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Makes a namespace without IPv6, whose router solicitations and
    /// multicast listener reports would be noise in every counter, and
    /// without reverse path filters.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or when the name is taken.
    pub fn create(name: String, forwards: bool) -> Result<Self> {
        let path = Path::new(DIRECTORY).join(&name);
        prepare_directory()?;
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // A thread of its own: unshare(2) moves the calling thread for good.
        let made = thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)
                    .context("cannot make a network namespace: the lab needs root")?;
                let flags = MsFlags::MS_BIND;
                mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, flags, None::<&str>)
                    .with_context(|| format!("cannot mount the namespace on {}", path.display()))?;
                set_switches(forwards)
            });
            thread.join().map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
        });
        let opened = made.and_then(|()| Ok(File::open(&path)?));
        match opened {
            Ok(file) => Ok(Self { name, path, file }),
            Err(error) => {
                remove(&path);
                Err(error)
            }
        }
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn join(&self) -> io::Result<()> {
        Ok(setns(&self.file, CloneFlags::CLONE_NEWNET)?)
    }

    /// Another handle, for a thread that outlives the borrow; it does not
    /// remove the namespace.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn handle(&self) -> io::Result<Handle> {
        Ok(Handle(self.file.try_clone()?))
    }

    /// Runs `work` on a thread in the namespace.
    ///
    /// # Errors
    /// What `work` fails with, or that the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.join().with_context(|| format!("cannot enter {}", self.name))?;
                work()
            });
            thread.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// A command that will run in the namespace and die with the thread that
    /// starts it (prctl(2), PR_SET_PDEATHSIG counts threads).
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let namespace = self.file.as_raw_fd();
        let parent = std::process::id();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only system calls are made that are
        // async-signal-safe; the descriptor is copied by the fork and closed by the exec.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(namespace, libc::CLONE_NEWNET) != 0
                    || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before the signal was asked for.
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Ok(())
            });
        }
        command
    }

    /// Gives `lines` to ip(8): one process for a whole topology.
    ///
    /// # Errors
    /// Names the first line that the kernel refused.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.batch("ip", lines)
    }

    /// Gives `lines` to bridge(8).
    ///
    /// # Errors
    /// Names the first line that the kernel refused.
    pub fn bridge(&self, lines: &str) -> Result<()> {
        self.batch("bridge", lines)
    }

    /// Gives `lines` to tc(8).
    ///
    /// # Errors
    /// Names the first line that the kernel refused.
    pub fn tc(&self, lines: &str) -> Result<()> {
        self.batch("tc", lines)
    }

    /// Sets a switch of the namespace, by its path under /proc/sys/net.
    ///
    /// # Errors
    /// When there is no such switch, or the kernel refuses the value.
    pub fn set(&self, switch: &str, value: &str) -> Result<()> {
        self.enter(|| set_switch(switch, value))
    }

    fn batch(&self, tool: &str, lines: &str) -> Result<()> {
        let mut input = tempfile::tempfile().context("cannot make a temporary file")?;
        io::Write::write_all(&mut input, lines.as_bytes())?;
        io::Seek::rewind(&mut input)?;
        let output = self
            .command(tool)
            .args(["-batch", "-"])
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .with_context(|| format!("cannot run {tool}: install iproute2"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{tool} in {} failed: {}; input was:\n{lines}", self.name, said.trim());
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// A way into a namespace that does not own it.
#[derive(Debug)]
pub struct Handle(File);

impl Handle {
    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn join(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }
}

/// Makes [`DIRECTORY`] a shared mount as ip-netns(8) does, and before anybody
/// else does it: a first `ip netns add` would bind the directory over itself
/// while the lab runs, and hide the lab's mounts where nobody can undo them.
fn prepare_directory() -> Result<()> {
    let act = || -> Result<()> {
        fs::create_dir_all(DIRECTORY)?;
        // ip-netns(8) takes the same lock (iproute2 6.4).
        let _alone = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)?;
        let none = None::<&str>;
        let share = || mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
        match share() {
            // EINVAL: not a mount point yet.
            Err(Errno::EINVAL) => {
                let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
                mount(Some(DIRECTORY), DIRECTORY, none, flags, none)?;
                Ok(share()?)
            }
            done => Ok(done?),
        }
    };
    act().with_context(|| format!("cannot make {DIRECTORY} a shared mount: the lab needs root"))
}

fn remove(path: &Path) {
    // What cannot be removed now is found by the next lab's clean-up.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// /proc/sys/net shows the namespace of the thread that opens it.
fn set_switch(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
}

fn set_switches(forwards: bool) -> Result<()> {
    for scope in ["all", "default"] {
        // A kernel without IPv6 has nothing to switch off.
        if Path::new("/proc/sys/net/ipv6").exists() {
            set_switch(&format!("ipv6/conf/{scope}/disable_ipv6"), "1")?;
        }
        set_switch(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    set_switch("ipv4/ip_forward", if forwards { "1" } else { "0" })
}

//! One run of a guest: booted without hardware virtualisation, watched on its
//! console, and ended after a bound if it does not end by itself.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernels::Unpacked;
use crate::interrupt;
use crate::shell;

/// Memory of a guest, MiB: most goes into the archive that it boots into.
const MEMORY: u16 = 3072;
/// A guest's time goes by what it executes, a nanosecond an instruction, and jumps
/// where it only waits (qemu(1), `-icount`): so it never sees that this machine was
/// busy or slow, and its agents' timing is that of a real one.
const TIME: &str = "shift=0,sleep=off";
/// The most that a guest can bring back, bytes; the file is sparse.
const RESULTS: u64 = 512 << 20;
/// The longest that a guest may say nothing: no fault takes half of it.
pub(crate) const SILENCE: Duration = Duration::from_secs(600);
/// How often is looked whether the guest has ended.
const ATTENTION: Duration = Duration::from_millis(100);

/// For the kernel. The emulated clocks' registers are slow, and the processor's
/// counter is as good; the check of the timer takes it for broken at times; a
/// fifth level of page tables is one more to emulate.
const PARAMETERS: &str = "console=ttyS0 panic=-1 quiet tsc=reliable no_timer_check no5lvl";

/// A guest to run.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// What is said before each line of its console.
    pub(crate) name: &'a str,
    pub(crate) kernel: &'a Unpacked,
    /// The archive that it boots into.
    pub(crate) archive: &'a Path,
    /// Where its disk and its console are kept.
    pub(crate) folder: &'a Path,
    /// The longest that it may take.
    pub(crate) bound: Duration,
}

/// A guest that runs; it is killed when this is dropped.
#[derive(Debug)]
struct Running {
    child: Child,
    console: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that already ended is already where it should be.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.console.take().map(JoinHandle::join);
    }
}

impl Machine<'_> {
    /// Boots it, waits until it is off, and unpacks what it brings back into a
    /// folder.
    pub(crate) fn run(&self) -> Result<PathBuf> {
        let (disk, console) = (self.folder.join("disk"), self.folder.join("console.txt"));
        File::create(&disk)?.set_len(RESULTS)?;
        let mut command = self.command(&disk);
        eprintln!("+ {}", shell::line(&command));
        let mut child = command.spawn().with_context(|| {
            format!("cannot run {}: install qemu-system-x86", shell::line(&command))
        })?;
        let lines = child.stdout.take().context("no console")?;
        let (name, log) = (self.name.to_owned(), File::create(&console)?);
        let start = Instant::now();
        let spoke = Arc::new(Mutex::new(start));
        let heard = Arc::clone(&spoke);
        let console_thread =
            thread::spawn(move || follow(&name, BufReader::new(lines), log, &heard));
        let mut running = Running { child, console: Some(console_thread) };
        let end = start + self.bound;
        let status = loop {
            if let Some(status) = running.child.try_wait()? {
                break status;
            }
            let silent = spoke.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            if Instant::now() >= end || silent >= SILENCE {
                bail!(
                    "the guest was not done after {} s, silent for {} s, and was killed; its \
                     console: {}",
                    start.elapsed().as_secs(),
                    silent.as_secs(),
                    console.display()
                );
            }
            interrupt::sleep_until(Instant::now() + ATTENTION)?;
        };
        drop(running);
        if !status.success() {
            bail!("QEMU failed ({status}); the guest's console: {}", console.display());
        }
        let results = self.folder.join("result");
        fs::create_dir_all(&results)?;
        let unpacked =
            shell::output(Command::new("tar").arg("-xf").arg(&disk).arg("-C").arg(&results));
        unpacked.with_context(|| {
            format!("the guest brought nothing back; its console: {}", console.display())
        })?;
        fs::remove_file(&disk)?;
        Ok(results)
    }

    fn command(&self, disk: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            // /dev/kvm hangs on some machines that have it.
            .args(["-accel", "tcg,thread=single", "-icount", TIME, "-cpu", "max"])
            .args(["-smp", "1", "-m", &MEMORY.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.archive)
            .args(["-append", PARAMETERS])
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }
}

/// Shows a guest's console as it speaks, and keeps it.
fn follow(name: &str, mut lines: impl BufRead, mut log: File, spoke: &Mutex<Instant>) {
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        *spoke.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        // A console that cannot be kept is still shown.
        let _ = writeln!(log, "{text}");
        eprintln!("[{name}] {text}");
        line.clear();
    }
}

//! Network namespaces for tests.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, which lives as long as this value.
pub(crate) struct Namespace(File);

impl Namespace {
    pub(crate) fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self(file.join().unwrap());
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let file = self.0.try_clone().unwrap();
        thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Runs a command inside.
    pub(crate) fn sh(&self, line: &str) {
        let line = line.to_owned();
        self.inside(move || {
            let output = Command::new("sh").args(["-ec", &line]).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "`{line}`: {errors}");
        })
        .join()
        .unwrap();
    }

    /// Runs a command inside, whatever comes of it, and returns its output.
    #[allow(dead_code, reason = "not every test that has namespaces asks")]
    pub(crate) fn try_sh(&self, line: &str) -> String {
        let line = line.to_owned();
        let run = move || Command::new("sh").args(["-c", &line]).output().unwrap();
        let output = self.inside(run).join().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Moves a device to another namespace.
    #[allow(dead_code, reason = "not every test that has namespaces moves devices")]
    pub(crate) fn give(&self, device: &str, to: &Self) {
        let (file, device) = (to.0.try_clone().unwrap(), device.to_owned());
        self.inside(move || {
            let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            let output =
                Command::new("ip").args(["link", "set", &device, "netns", &path]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        })
        .join()
        .unwrap();
    }
}

//! However the lab ends, nothing of it stays.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lab::interrupt::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One test at a time: every lab that starts cleans up after dead ones.
static ALONE: Mutex<()> = Mutex::new(());

/// An agent that never answers, so that the lab waits for it.
struct Mute {
    directory: tempfile::TempDir,
}

impl Mute {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mute = Self { directory };
        fs::write(mute.path(), "#!/bin/sh\nexec sleep 600\n").unwrap();
        fs::set_permissions(mute.path(), fs::Permissions::from_mode(0o755)).unwrap();
        mute
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mute")
    }

    /// A lab that runs it; what is made bears the lab's process number.
    fn lab(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_lab"))
            .args(["demo", "--nodes", "2", "--for", "60s", "--binary"])
            .arg(self.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }
}

/// Namespaces that the lab of this process made.
fn namespaces(lab: &Child) -> Vec<String> {
    let prefix = format!("owlab-{}-", lab.id());
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

/// Processes in the namespace of this name.
fn processes(namespace: &str) -> Vec<String> {
    let output = Command::new("ip").args(["netns", "pids", namespace]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn wait_for_agents(lab: &Child) -> Vec<String> {
    let mut pids = Vec::new();
    let came = wait_until(Duration::from_secs(10), || {
        pids = namespaces(lab)
            .iter()
            .filter(|name| name.contains("-node-"))
            .flat_map(|name| processes(name))
            .collect();
        Ok(pids.len() == 2)
    });
    assert!(came.unwrap(), "agents run: {pids:?}");
    pids
}

fn send(lab: &Child, signal: Signal) {
    kill(Pid::from_raw(lab.id().try_into().unwrap()), signal).unwrap();
}

fn is_gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid).exists()
}

#[test]
fn an_interrupted_lab_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mute = Mute::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut lab = mute.lab();
        let agents = wait_for_agents(&lab);
        send(&lab, signal);
        assert_eq!(lab.wait().unwrap().code(), Some(1), "an interrupted lab has failed");
        assert_eq!(namespaces(&lab), Vec::<String>::new());
        assert!(agents.iter().all(|pid| is_gone(pid)));
    }
}

#[test]
fn what_a_killed_lab_left_is_cleaned_by_the_next() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mute = Mute::new();
    let mut lab = mute.lab();
    let agents = wait_for_agents(&lab);
    let living = namespaces(&lab);
    // A lab that still runs is not touched.
    clean();
    assert_eq!(namespaces(&lab).len(), living.len());
    send(&lab, Signal::SIGKILL);
    lab.wait().unwrap();
    // Agents die with their lab.
    let gone = wait_until(Duration::from_secs(5), || Ok(agents.iter().all(|pid| is_gone(pid))));
    assert!(gone.unwrap(), "agents live on");
    assert_eq!(namespaces(&lab).len(), living.len(), "a killed lab cannot clean up");
    // A process that somebody started in one of them, ended with it.
    let node = living.iter().find(|name| name.contains("-node-")).unwrap();
    let mut visitor =
        Command::new("ip").args(["netns", "exec", node, "sleep", "600"]).spawn().unwrap();
    let entered = wait_until(Duration::from_secs(5), || Ok(!processes(node).is_empty()));
    assert!(entered.unwrap());
    clean();
    assert_eq!(namespaces(&lab), Vec::<String>::new());
    let ended = wait_until(Duration::from_secs(5), || Ok(visitor.try_wait()?.is_some()));
    if !ended.unwrap() {
        visitor.kill().unwrap();
        panic!("a process in a leftover namespace was left alone");
    }
}

/// A first `ip netns add` makes /run/netns a mount of its own: in a mount
/// namespace with an empty /run it is the first.
#[test]
fn somebody_elses_namespace_does_not_bury_the_labs() {
    let mute = Mute::new();
    let script = r#"
        set -e
        mount -t tmpfs lab /run
        "$LAB" demo --nodes 2 --binary "$MUTE" >/dev/null 2>&1 &
        until ip netns list | grep -q node-2; do sleep 0.05; done
        ip netns add visitor
        kill -INT $!
        wait $! || true
        ls /run/netns
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "timeout", "30", "sh", "-c", script])
        .env("LAB", env!("CARGO_BIN_EXE_lab"))
        .env("MUTE", mute.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "visitor\n");
}

/// Cleans up. Whether all that other labs left could be removed is not asked.
fn clean() {
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.arg("clean").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
}

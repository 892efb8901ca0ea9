//! The agent's own process in a node.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::bench::{Namespace, Pins, wait};

/// A running agent that knows node 2 as its peer; it is killed at the end.
pub(crate) struct Agent {
    child: Child,
    _config: tempfile::NamedTempFile,
}

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_overlaywatch");

fn config(pin: &Path, more: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let pin = pin.display();
    write!(
        file,
        "node = \"node-1\"\n[[peers]]\naddress = \"10.0.0.2\"\nname = \"node-2\"\n\
         [ebpf]\npin = \"{pin}\"\n{more}"
    )
    .unwrap();
    file
}

impl Agent {
    /// Starts it; `more` goes to the section `[ebpf]`.
    pub(crate) fn start(node: &Namespace, pins: &Pins, more: &str) -> Self {
        Self::start_under(node, &[], pins, more)
    }

    /// Starts it by another command that runs it, such as setpriv(1).
    pub(crate) fn start_under(node: &Namespace, under: &[&str], pins: &Pins, more: &str) -> Self {
        Self::start_with(node, under, config(pins.path(), more))
    }

    /// Starts it with another place for pins.
    pub(crate) fn start_pinned(node: &Namespace, under: &[&str], pin: &Path) -> Self {
        Self::start_with(node, under, config(pin, ""))
    }

    fn start_with(node: &Namespace, under: &[&str], config: tempfile::NamedTempFile) -> Self {
        let line: Vec<String> =
            under.iter().copied().chain([BINARY, "agent", "--config"]).map(str::to_owned).collect();
        let path = config.path().to_owned();
        let spawn = move || {
            let mut command = Command::new(&line[0]);
            command.args(&line[1..]).arg(path).stderr(Stdio::null()).spawn().unwrap()
        };
        let child = node.inside(spawn).join().unwrap();
        Self { child, _config: config }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it says it does not see.
    pub(crate) fn gaps(&self, node: &Namespace) -> Option<Vec<(String, String, String)>> {
        let text = node.try_sh(&format!("{BINARY} status -o json 2>/dev/null"));
        let status: serde_json::Value = serde_json::from_str(&text).ok()?;
        let word = |gap: &serde_json::Value, key: &str| gap[key].as_str().unwrap_or("").to_owned();
        let gaps = status["health"]["gaps"].as_array()?.iter();
        Some(gaps.map(|gap| (word(gap, "source"), word(gap, "gap"), word(gap, "detail"))).collect())
    }

    /// Waits for a gap of the programs' whose detail has all these words.
    pub(crate) fn wait_gap(&self, node: &Namespace, words: &[&str]) -> (String, String) {
        let mut last = None;
        let what = format!("a gap that says {words:?}");
        wait(&what, || {
            last = self.gaps(node).or(last.take());
            let found = last.iter().flatten().find(|(source, _, detail)| {
                source == "kernel" && words.iter().all(|word| detail.contains(word))
            });
            found.map(|(_, gap, detail)| (gap.clone(), detail.clone()))
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `agent --detach` in a node: whether it succeeded, and what it said.
pub(crate) fn detach(node: &Namespace, pins: &Pins) -> (bool, String) {
    let config = config(pins.path(), "");
    let path = config.path().to_owned();
    let run = move || {
        Command::new(BINARY).args(["agent", "--detach", "--config"]).arg(path).output().unwrap()
    };
    let output = node.inside(run).join().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

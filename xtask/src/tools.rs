//! Programs that only this project's checks use: installed in the target
//! folder, where they disturb nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::shell::{self, cargo};

/// The release of cargo-deny that checks licences: the newest that the
/// workspace's rust-version compiles.
const CARGO_DENY: &str = "0.20.2";

/// A program of a certain release, installed from its crate.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
    /// What `cargo install` calls the root.
    folder: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Tool {
    /// What checks licences.
    pub(crate) fn cargo_deny() -> Result<Self> {
        Ok(Self {
            name: "cargo-deny",
            version: CARGO_DENY,
            folder: shell::target()?.join("tools"),
            arguments: Vec::new(),
            environment: Vec::new(),
        })
    }

    /// What links eBPF programs, for LLVM `major` that lies in `prefix`; each
    /// LLVM has its own.
    pub(crate) fn bpf_linker(version: &'static str, major: u32, prefix: &Path) -> Result<Self> {
        Ok(Self {
            name: "bpf-linker",
            version,
            folder: shell::target()?.join(format!("tools/llvm-{major}")),
            arguments: ["--no-default-features", "--features", &format!("llvm-{major}")]
                .map(str::to_owned)
                .to_vec(),
            environment: vec![("LLVM_PREFIX", prefix.to_owned())],
        })
    }

    /// Where the program is once it is installed.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.join("bin").join(self.name)
    }

    /// The command that installs it, unless this release is there and runs.
    pub(crate) fn install(&self) -> Option<Command> {
        let installed = shell::output(Command::new(self.program()).arg("--version"));
        if installed.unwrap_or_default().trim() == format!("{} {}", self.name, self.version) {
            return None;
        }
        let mut install = cargo();
        install
            .args(["install", self.name, "--quiet", "--locked", "--force"])
            .args(["--version", self.version, "--root"])
            .arg(&self.folder)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        Some(install)
    }
}

//! Debian 11's ipset and iptables beside the system's own: the lab runs them in
//! what plays an older image, whose tools cannot read what newer ones made.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::archive::Archive;
use crate::shell::{self, target};

/// The release, as its archive calls it.
const SUITE: &str = "bullseye";
const PACKAGES: [&str; 5] = ["ipset", "libipset13", "iptables", "libxtables12", "libnftnl11"];
/// The tools, and what they say that they are.
const TOOLS: [(&str, &[&str], &str); 2] = [
    ("usr/sbin/ipset", &["--version"], "v7.10"),
    ("usr/sbin/xtables-nft-multi", &["iptables-nft", "--version"], "v1.8.7"),
];

/// Unpacks the tools below the target folder, once; with `install` unset, fails
/// instead where they are missing.
pub(crate) fn provide(install: bool) -> Result<()> {
    let tools = target()?.join("tools");
    let ready = tools.join("debian-11");
    if TOOLS.iter().all(|(tool, ..)| ready.join(tool).is_file()) {
        return Ok(());
    }
    if !install {
        bail!("--no-install was given, and Debian 11's tools are not in {}", ready.display());
    }
    let draft = tools.join(format!("debian-11.draft-{}", std::process::id()));
    let outcome = fetch(&draft).and_then(|()| {
        // One that has not all of them makes way.
        if ready.exists() {
            fs::rename(&ready, draft.join("before"))?;
        }
        Ok(fs::rename(draft.join("root"), &ready)?)
    });
    // What is left of it would be in nobody's way.
    let _ = fs::remove_dir_all(&draft);
    outcome.context("getting Debian 11's tools for the lab")
}

fn fetch(draft: &Path) -> Result<()> {
    let root = draft.join("root");
    Archive::open(draft, SUITE)?.unpack(PACKAGES, &root)?;
    verify(&root)
}

/// Runs the tools: they must be those that are wanted, and run here.
fn verify(root: &Path) -> Result<()> {
    let libraries = root.join("usr/lib").read_dir()?.flatten().map(|entry| entry.path());
    let path = std::env::join_paths(libraries)?;
    for (tool, arguments, version) in TOOLS {
        let mut command = Command::new(root.join(tool));
        let said = shell::output(command.args(arguments).env("LD_LIBRARY_PATH", &path))?;
        ensure!(said.contains(version), "{tool} says `{}` instead of {version}", said.trim());
    }
    Ok(())
}

//! Debian 11's ipset and iptables beside the system's own: the lab runs them in
//! what plays an older image, whose tools cannot read what newer ones made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::setup;
use crate::shell::{self, target};

/// The release, as its archive calls it.
const SUITE: &str = "bullseye";
const PACKAGES: [&str; 5] = ["ipset", "libipset13", "iptables", "libxtables12", "libnftnl11"];
/// The tools, and what they say that they are.
const TOOLS: [(&str, &[&str], &str); 2] = [
    ("usr/sbin/ipset", &["--version"], "v7.10"),
    ("usr/sbin/xtables-nft-multi", &["iptables-nft", "--version"], "v1.8.7"),
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    let (lists, cache) = (draft.join("lists"), draft.join("cache"));
    for folder in [lists.join("partial"), cache.join("archives/partial"), draft.join("root")] {
        fs::create_dir_all(&folder)?;
    }
    let sources = draft.join("sources.list");
    fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror()?))?;
    // A configuration, lists and a cache of its own: the system's stay as they are.
    let options = [
        ("Dir::Etc::SourceList", sources),
        ("Dir::Etc::SourceParts", PathBuf::from("/dev/null")),
        ("Dir::State::Lists", lists),
        ("Dir::State::Status", PathBuf::from("/dev/null")),
        ("Dir::Cache", cache),
        ("APT::Sandbox::User", PathBuf::from("root")),
    ]
    .map(|(name, value)| format!("{name}={}", value.display()));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-qq").current_dir(draft);
        for option in &options {
            command.arg("-o").arg(option);
        }
        command.args(arguments);
        eprintln!("+ {}", shell::line(&command));
        shell::output(&mut command)
    };
    apt(&["update"])?;
    apt(&[&["download"][..], &PACKAGES].concat())?;
    for file in fs::read_dir(draft)? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            let root = draft.join("root");
            shell::output(Command::new("dpkg").arg("-x").arg(&file).arg(root))?;
        }
    }
    verify(&draft.join("root"))
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

/// Where the system itself gets Debian's packages from.
fn mirror() -> Result<String> {
    if let Some(mirror) = known_mirror()? {
        return Ok(mirror);
    }
    setup::refresh_lists()?;
    known_mirror()?.context("this system gets no packages of Debian's main archive")
}

fn known_mirror() -> Result<Option<String>> {
    let format = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets =
        shell::output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let mut mirrors =
        targets.lines().filter_map(|line| line.strip_prefix("Packages|Debian|Debian|"));
    Ok(mirrors.next().map(str::to_owned))
}

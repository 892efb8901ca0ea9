//! Debian 11's ipset beside the system's own: the lab runs it in what plays an
//! older image, whose tool cannot read what a newer one made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::setup;
use crate::shell::{self, target};

/// The release, as its archive calls it.
const SUITE: &str = "bullseye";
const PACKAGES: [&str; 2] = ["ipset", "libipset13"];
/// What the tool says that it is.
const VERSION: &str = "v7.10";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Unpacks the tools below the target folder, once; with `install` unset, fails
/// instead where they are missing.
pub(crate) fn provide(install: bool) -> Result<()> {
    let tools = target()?.join("tools");
    let ready = tools.join("debian-11");
    if ready.join("usr/sbin/ipset").is_file() {
        return Ok(());
    }
    if !install {
        bail!("--no-install was given, and Debian 11's ipset is not in {}", ready.display());
    }
    let draft = tools.join(format!("debian-11.draft-{}", std::process::id()));
    let outcome = fetch(&draft).and_then(|()| Ok(fs::rename(draft.join("root"), &ready)?));
    // What is left of it would be in nobody's way.
    let _ = fs::remove_dir_all(&draft);
    outcome.context("getting Debian 11's ipset for the lab")
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

/// Runs the tool: it must be the one that is wanted, and run here.
fn verify(root: &Path) -> Result<()> {
    let libraries = root.join("usr/lib").read_dir()?.flatten().map(|entry| entry.path());
    let path = std::env::join_paths(libraries)?;
    let mut ipset = Command::new(root.join("usr/sbin/ipset"));
    let said = shell::output(ipset.arg("--version").env("LD_LIBRARY_PATH", path))?;
    ensure!(said.contains(VERSION), "it says `{}` instead of {VERSION}", said.trim());
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

//! Packages of any of Debian's releases, fetched with apt and unpacked, never
//! installed: the system's own configuration, lists and cache stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup;
use crate::shell;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One release of Debian, as apt sees it from a folder of its own.
#[derive(Debug)]
pub(crate) struct Archive {
    folder: PathBuf,
    options: Vec<String>,
}

impl Archive {
    /// Asks the system's own mirror for the lists of `suite`; all of apt's files
    /// go into `folder`.
    pub(crate) fn open(folder: &Path, suite: &str) -> Result<Self> {
        let (lists, cache) = (folder.join("lists"), folder.join("cache"));
        for folder in [lists.join("partial"), cache.join("archives/partial")] {
            fs::create_dir_all(folder)?;
        }
        let sources = folder.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?))?;
        let options = [
            ("Dir::Etc::SourceList", sources),
            ("Dir::Etc::SourceParts", PathBuf::from("/dev/null")),
            ("Dir::State::Lists", lists),
            ("Dir::State::Status", PathBuf::from("/dev/null")),
            ("Dir::Cache", cache),
            ("APT::Sandbox::User", PathBuf::from("root")),
        ]
        .map(|(name, value)| format!("{name}={}", value.display()))
        .to_vec();
        let archive = Self { folder: folder.to_owned(), options };
        archive.apt("apt-get", &["-qq", "update"])?;
        Ok(archive)
    }

    /// What the lists say of a package's newest version (deb822(5)).
    pub(crate) fn show(&self, package: &str) -> Result<String> {
        self.apt("apt-cache", &["show", "--no-all-versions", package])
    }

    /// Fetches packages and unpacks them into `root`.
    pub(crate) fn unpack<'a>(
        &self,
        packages: impl IntoIterator<Item = &'a str>,
        root: &Path,
    ) -> Result<()> {
        let mut words = vec!["-qq", "download"];
        words.extend(packages);
        self.apt("apt-get", &words)?;
        fs::create_dir_all(root)?;
        for file in fs::read_dir(&self.folder)? {
            let file = file?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                shell::output(Command::new("dpkg").arg("-x").arg(&file).arg(root))?;
            }
        }
        Ok(())
    }

    fn apt(&self, tool: &str, words: &[&str]) -> Result<String> {
        let mut command = Command::new(tool);
        command.current_dir(&self.folder);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command.args(words);
        eprintln!("+ {}", shell::line(&command));
        shell::output(&mut command)
    }
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

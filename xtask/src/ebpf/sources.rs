//! What the object is made from: files, crates, and how the compiler is called.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{build, sha256};

/// The crate of the programs, from the workspace's root.
const CRATE: &str = "agent-ebpf";

/// All that an object is made from but the toolchain. Everything is in order of
/// names, so that no listing of a folder shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sources {
    /// How the compiler is called.
    pub(super) settings: Vec<String>,
    /// The libraries that programs are written with: release and checksum.
    pub(super) crates: BTreeMap<String, String>,
    /// SHA-256 of each file, by path from the workspace's root.
    pub(super) files: BTreeMap<String, String>,
}

/// The part of Cargo.lock that is read.
#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    checksum: Option<String>,
}

impl Sources {
    /// What is in the workspace at `root` now.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let lock = root.join("Cargo.lock");
        let lock = std::fs::read_to_string(&lock)
            .with_context(|| format!("cannot read {}", lock.display()))?;
        let mut files = BTreeMap::new();
        add_file(root, &format!("{CRATE}/Cargo.toml"), &mut files)?;
        add_folder(root, &format!("{CRATE}/src"), &mut files)?;
        Ok(Self { settings: build::settings(), crates: crates(&lock)?, files })
    }

    /// What `now` has that this has not, and the other way round.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        compare(&self.files, &now.files, &mut found);
        compare(&self.crates, &now.crates, &mut found);
        if self.settings != now.settings {
            found.push("the compiler is called in another way".to_owned());
        }
        found
    }
}

fn compare(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    found: &mut Vec<String>,
) {
    for (name, value) in new {
        match old.get(name) {
            None => found.push(format!("{name} is new")),
            Some(recorded) if recorded != value => found.push(format!("{name} was changed")),
            Some(_) => {}
        }
    }
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    found.extend(gone.map(|name| format!("{name} is gone")));
}

/// The crates of Cargo.lock that end up in programs.
fn crates(lock: &str) -> Result<BTreeMap<String, String>> {
    let lock: Lock = toml::from_str(lock).context("Cargo.lock cannot be understood")?;
    let ours = lock.package.into_iter().filter(|package| package.name.starts_with("aya-ebpf"));
    Ok(ours
        .map(|package| {
            let checksum = package.checksum.unwrap_or_default();
            (package.name, format!("{} {checksum}", package.version))
        })
        .collect())
}

fn add_folder(root: &Path, folder: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    let path = root.join(folder);
    let context = || format!("cannot list {}", path.display());
    for entry in path.read_dir().with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().with_context(context)?.is_dir() {
            add_folder(root, &name, files)?;
        } else {
            add_file(root, &name, files)?;
        }
    }
    Ok(())
}

fn add_file(root: &Path, name: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    let content = std::fs::read(root.join(name)).with_context(|| format!("cannot read {name}"))?;
    files.insert(name.to_owned(), sha256(&content));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const LOCK: &str = r#"
        version = 4
        [[package]]
        name = "aya-ebpf"
        version = "0.2.1"
        checksum = "eace"
        [[package]]
        name = "serde"
        version = "1.0.0"
        checksum = "5e4d"
    "#;

    /// A workspace whose files were made in this order, which is that of a
    /// listing on some file systems.
    fn workspace(files: &[&str]) -> TempDir {
        let root = TempDir::new().unwrap();
        for folder in ["agent-ebpf/src/b", "agent-ebpf/src/a"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("Cargo.lock"), LOCK).unwrap();
        for file in files {
            fs::write(root.path().join("agent-ebpf").join(file), file).unwrap();
        }
        root
    }

    #[test]
    fn order_does_not_show() {
        let one = workspace(&["Cargo.toml", "src/lib.rs", "src/a/x.rs", "src/b/y.rs"]);
        let other = workspace(&["src/b/y.rs", "src/a/x.rs", "src/lib.rs", "Cargo.toml"]);
        let one = Sources::read(one.path()).unwrap();
        assert_eq!(one, Sources::read(other.path()).unwrap());
        let names: Vec<_> = one.files.keys().collect();
        assert_eq!(
            names,
            [
                "agent-ebpf/Cargo.toml",
                "agent-ebpf/src/a/x.rs",
                "agent-ebpf/src/b/y.rs",
                "agent-ebpf/src/lib.rs"
            ]
        );
        assert_eq!(one.crates, BTreeMap::from([("aya-ebpf".into(), "0.2.1 eace".into())]));
    }

    #[test]
    fn each_change_is_named() {
        let root = workspace(&["Cargo.toml", "src/lib.rs", "src/a/x.rs"]);
        let before = Sources::read(root.path()).unwrap();
        assert!(before.differences(&before).is_empty());
        let source = root.path().join("agent-ebpf/src");
        fs::write(source.join("lib.rs"), "src/lib.rt").unwrap();
        fs::write(source.join("new.rs"), "").unwrap();
        fs::remove_file(source.join("a/x.rs")).unwrap();
        fs::write(root.path().join("Cargo.lock"), LOCK.replace("0.2.1", "0.2.2")).unwrap();
        let mut after = Sources::read(root.path()).unwrap();
        after.settings.push("-O0".into());
        assert_eq!(
            before.differences(&after),
            [
                "agent-ebpf/src/lib.rs was changed",
                "agent-ebpf/src/new.rs is new",
                "agent-ebpf/src/a/x.rs is gone",
                "aya-ebpf was changed",
                "the compiler is called in another way"
            ]
        );
    }
}

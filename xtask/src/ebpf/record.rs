//! The record beside the object: from what and with what it was built.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::shape::Shape;
use super::sources::Sources;
use super::toolchain::Version;
use super::{OBJECT, REMEDY, sha256};
use crate::shell;

/// Where the record is, from the workspace's root.
const RECORD: &str = "agent-ebpf/overlaywatch.bpf.toml";

const HEAD: &str = "\
# Written by `cargo xtask ebpf` beside the object; `cargo xtask ebpf --check`
# holds it against source and object.

";

/// What is recorded.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) toolchain: Version,
    pub(super) sources: Sources,
    pub(super) object: Object,
}

/// The object.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    pub(super) sha256: String,
    #[serde(flatten)]
    pub(super) shape: Shape,
}

impl Record {
    /// Of an object that was just built.
    pub(super) fn new(toolchain: Version, sources: Sources, object: &[u8]) -> Result<Self> {
        let object = Object { sha256: sha256(object), shape: Shape::read(object)? };
        Ok(Self { toolchain, sources, object })
    }

    /// The committed one.
    pub(super) fn read() -> Result<Self> {
        let text = std::fs::read_to_string(shell::root().join(RECORD))
            .with_context(|| format!("{RECORD} cannot be read: {REMEDY}"))?;
        toml::from_str(&text).with_context(|| format!("{RECORD} cannot be understood: {REMEDY}"))
    }

    /// Replaces the committed one.
    pub(super) fn write(&self) -> Result<()> {
        std::fs::write(shell::root().join(RECORD), self.text()?)
            .with_context(|| format!("cannot write {RECORD}"))
    }

    fn text(&self) -> Result<String> {
        let body = toml::to_string_pretty(self).context("a record is TOML")?;
        Ok(format!("{HEAD}{body}"))
    }

    /// Fails unless the sources are the recorded ones and the object is the
    /// recorded one, in bytes and shape.
    pub(super) fn matches(&self, sources: &Sources, object: &[u8]) -> Result<()> {
        let differences = self.sources.differences(sources);
        if !differences.is_empty() {
            bail!("{OBJECT} was built from other sources ({}): {REMEDY}", differences.join("; "));
        }
        ensure!(
            self.object.sha256 == sha256(object),
            "{OBJECT} is not the object that {RECORD} tells of: {REMEDY}"
        );
        let differences = self.object.shape.differences(&Shape::read(object)?);
        if !differences.is_empty() {
            bail!("{RECORD} tells of another shape than {OBJECT} has ({differences}): {REMEDY}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_read() {
        let committed = std::fs::read_to_string(shell::root().join(RECORD)).unwrap();
        let record = Record::read().unwrap();
        assert_eq!(record.text().unwrap(), committed);
        assert_eq!(toml::from_str::<Record>(&committed).unwrap(), record);
    }

    #[test]
    fn a_changed_byte_is_told() {
        let record = Record::read().unwrap();
        let mut object = std::fs::read(shell::root().join(OBJECT)).unwrap();
        record.matches(&record.sources, &object).unwrap();

        let mut sources = record.sources.clone();
        let changed = "agent-ebpf/src/lib.rs";
        *sources.files.get_mut(changed).unwrap() = sha256(b"another");
        let error = record.matches(&sources, &object).unwrap_err().to_string();
        assert!(error.contains(changed) && error.contains("cargo xtask ebpf"), "{error}");

        *object.last_mut().unwrap() ^= 1;
        let error = record.matches(&record.sources, &object).unwrap_err().to_string();
        assert!(error.contains("cargo xtask ebpf"), "{error}");
    }
}

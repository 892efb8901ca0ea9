//! The eBPF programs, built into an object that is committed: whoever builds
//! the agent needs stable Rust only, and what runs in the kernel is reviewed
//! byte by byte. `--check` proves that object and source belong together.

mod btf;
mod build;
mod record;
mod shape;
mod sources;
mod toolchain;

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use sha2::{Digest, Sha256};

use self::record::Record;
use self::shape::Shape;
use self::sources::Sources;
use self::toolchain::{Compiler, Toolchain};
use crate::{Install, shell};

/// The object, from the workspace's root.
const OBJECT: &str = "agent-ebpf/overlaywatch.bpf.o";
/// What a check that fails asks for.
const REMEDY: &str = "run `cargo xtask ebpf` and commit what it writes";

/// What `cargo xtask ebpf` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// Write nothing; fail unless the committed object was built from the committed source
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    install: Install,
}

/// Builds the object and its record, or checks them.
pub(crate) fn ebpf(options: &Options) -> Result<()> {
    if options.check { check(options.install) } else { write(options.install) }
}

/// Installs the packages that building the programs needs.
pub(crate) fn set_up(install: Install) -> Result<()> {
    Compiler::get(install).map(|_| ())
}

/// The command that installs the programs' linker, unless it is there.
pub(crate) fn linker_install(install: Install) -> Result<Option<Command>> {
    Ok(Compiler::get(install)?.linker()?.install())
}

/// Proves that the committed object was built from the committed source, and
/// says how.
pub(crate) fn check(install: Install) -> Result<()> {
    let record = Record::read()?;
    let path = shell::root().join(OBJECT);
    let committed =
        std::fs::read(&path).with_context(|| format!("{OBJECT} cannot be read: {REMEDY}"))?;
    // What needs no compiler first: it says more exactly what is wrong.
    record.matches(&Sources::read(shell::root())?, &committed)?;
    let toolchain = Toolchain::get(install)?;
    let built = build::build(&toolchain)?;
    println!("{OBJECT}: {}", judge(&record, &committed, &toolchain.version, &built)?);
    Ok(())
}

/// Holds what was built now against what is committed: the bytes where the
/// toolchain is the recorded one, the shape where it is another. Returns what
/// was done.
fn judge(
    record: &Record,
    committed: &[u8],
    toolchain: &toolchain::Version,
    built: &[u8],
) -> Result<String> {
    if *toolchain == record.toolchain {
        ensure!(
            built == committed,
            "{OBJECT} differs from what its source gives with the very toolchain that it was built \
             with ({toolchain}): {REMEDY}"
        );
        return Ok(format!("built again with the recorded toolchain ({toolchain}): same bytes"));
    }
    let differences = record.object.shape.differences(&Shape::read(built)?);
    if !differences.is_empty() {
        bail!("{OBJECT} has another shape than what its source gives: {differences}; {REMEDY}");
    }
    Ok(format!(
        "built with {toolchain}, which is not the recorded toolchain ({}): same source and same \
         shape of programs, maps and types; bytes were not compared",
        record.toolchain
    ))
}

/// Builds and writes the object and its record.
fn write(install: Install) -> Result<()> {
    // Read first: what is edited meanwhile must not pass for what was built.
    let sources = Sources::read(shell::root())?;
    let toolchain = Toolchain::get(install)?;
    let built = build::build(&toolchain)?;
    let record = Record::new(toolchain.version, sources, &built)?;
    std::fs::write(shell::root().join(OBJECT), &built)
        .with_context(|| format!("cannot write {OBJECT}"))?;
    record.write()?;
    println!("{OBJECT}: {} bytes, built with {}", built.len(), record.toolchain);
    Ok(())
}

/// SHA-256 in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> (Record, Vec<u8>) {
        (Record::read().unwrap(), std::fs::read(shell::root().join(OBJECT)).unwrap())
    }

    #[test]
    fn hashes_as_everybody_does() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), expected);
    }

    #[test]
    fn the_recorded_toolchain_must_give_the_same_bytes() {
        let (record, object) = committed();
        let said = judge(&record, &object, &record.toolchain, &object).unwrap();
        assert!(said.contains("same bytes"), "{said}");
        let mut other = object.clone();
        *other.last_mut().unwrap() ^= 1;
        let error = judge(&record, &object, &record.toolchain, &other).unwrap_err().to_string();
        assert!(error.contains("cargo xtask ebpf"), "{error}");
    }

    #[test]
    fn another_toolchain_must_give_the_same_shape() {
        let (mut record, object) = committed();
        let newer =
            toolchain::Version { rustc: "rustc 9.9.9".to_owned(), ..record.toolchain.clone() };
        let said = judge(&record, &object, &newer, &object).unwrap();
        assert!(said.contains("bytes were not compared"), "{said}");
        record.object.shape.maps.pop();
        let error = judge(&record, &object, &newer, &object).unwrap_err().to_string();
        assert!(error.contains("cargo xtask ebpf"), "{error}");
    }
}

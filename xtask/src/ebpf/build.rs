//! Builds the object so that its bytes depend on nothing but source and
//! toolchain: not on where the checkout, Cargo's home or the compiler lie.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::shape::Shape;
use super::toolchain::{Compiler, Toolchain};
use crate::shell;

const PACKAGE: &str = "overlaywatch-ebpf";
const PROGRAM: &str = "overlaywatch-ladder";
const TARGET: &str = "bpfel-unknown-none";

/// The release profile, spelt out: what the agent's own says must not show here.
const PROFILE: [&str; 6] = [
    "opt-level=3",
    "codegen-units=1",
    "lto=\"off\"",
    "panic=\"abort\"",
    "strip=\"none\"",
    // BTF is made from it.
    "debug=\"full\"",
];
const FLAGS: [&str; 2] = ["-Dwarnings", "-Clink-arg=--btf"];
/// The bindings take the building machine's architecture otherwise. The programs
/// read no registers, so the object serves every little-endian machine.
const BINDINGS: (&str, &str) = ("AYA_BPF_TARGET_ARCH", "x86_64");

/// Everything about how the compiler is called that can show in the object.
pub(super) fn settings() -> Vec<String> {
    let bindings = format!("{}={}", BINDINGS.0, BINDINGS.1);
    PROFILE.iter().chain(&FLAGS).map(|&word| word.to_owned()).chain([bindings]).collect()
}

/// The part of `cargo metadata` that is read.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
}

/// Builds the object and returns its bytes.
pub(super) fn build(toolchain: &Toolchain) -> Result<Vec<u8>> {
    let target = shell::target()?.join("bpf");
    let compiler = &toolchain.compiler;
    let registry = registry(compiler)?;
    // Cargo knows neither of a linker that changed nor of a source whose time
    // stamp did not; the rest stays, and this is seconds.
    shell::run(cargo(compiler, &target, "clean").args(["--package", PACKAGE]))?;
    eprintln!("building the eBPF programs (half a minute the first time)");
    shell::run(&mut command(toolchain, &target, &registry)?)?;
    let linked = target.join(TARGET).join("release").join(PROGRAM);
    let stripped = target.join("overlaywatch.bpf.o");
    // BTF is no debug information, and stays.
    shell::run(Command::new(&toolchain.objcopy).arg("--strip-debug").args([&linked, &stripped]))?;
    let object =
        std::fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    ensure!(Shape::read(&object)?.has_btf(), "{} lacks BTF", stripped.display());
    for folder in [shell::root(), registry.as_path(), compiler.source.as_path()] {
        if contains(&object, folder) {
            bail!("{} names {}, a path of this machine", stripped.display(), folder.display());
        }
    }
    Ok(object)
}

/// A verb of the compiler's own Cargo, in a target folder of its own.
fn cargo(compiler: &Compiler, target: &Path, verb: &str) -> Command {
    let mut command = Command::new(&compiler.cargo);
    command
        .current_dir(shell::root())
        .env("RUSTC", &compiler.rustc)
        .args([verb, "--quiet", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(target);
    command
}

fn command(toolchain: &Toolchain, target: &Path, registry: &Path) -> Result<Command> {
    let mut command = cargo(&toolchain.compiler, target, "build");
    command
        .args(["--package", PACKAGE, "--features", "programs", "--bin", PROGRAM])
        // Stable compilers have no libcore for BPF; this alone lets them build it.
        .args(["-Z", "build-std=core"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        .env(BINDINGS.0, BINDINGS.1);
    for setting in PROFILE {
        command.arg("--config").arg(format!("profile.release.{setting}"));
    }
    let mut flags: Vec<_> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
    flags.extend(remaps(&toolchain.compiler.source, registry)?);
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    Ok(command)
}

/// Names for the folders that sources lie in: BTF's line information has them.
/// The workspace is where the linker runs, so BTF gets the text of our own
/// lines too, and the verifier can quote them.
fn remaps(source: &Path, registry: &Path) -> Result<Vec<String>> {
    // Debian's source is behind a link.
    let behind =
        source.canonicalize().with_context(|| format!("cannot find {}", source.display()))?;
    // Of two that match, the compiler takes the later.
    let folders: [(&Path, &str); 4] =
        [(shell::root(), "."), (registry, "/registry"), (source, "/rustc"), (&behind, "/rustc")];
    let remap = |(from, to): (&Path, &str)| {
        let from = from.to_str().with_context(|| format!("{} is not UTF-8", from.display()))?;
        Ok(format!("--remap-path-prefix={from}={to}"))
    };
    folders.into_iter().map(remap).collect()
}

/// The folder that Cargo keeps the sources of libraries in.
fn registry(compiler: &Compiler) -> Result<PathBuf> {
    let mut command = Command::new(&compiler.cargo);
    command
        .current_dir(shell::root())
        .env("RUSTC", &compiler.rustc)
        .args(["metadata", "--quiet", "--locked", "--format-version", "1", "--all-features"])
        // Else Cargo downloads what other systems need.
        .args(["--filter-platform", TARGET]);
    let metadata: Metadata = serde_json::from_str(&shell::output(&mut command)?)
        .context("what cargo metadata says cannot be understood")?;
    let library = metadata.packages.into_iter().find(|package| package.name == "aya-ebpf");
    let folder = library.as_ref().and_then(|package| package.manifest_path.ancestors().nth(2));
    Ok(folder.context("Cargo knows no crate aya-ebpf")?.to_owned())
}

/// Whether the bytes of a path are in an object.
fn contains(object: &[u8], path: &Path) -> bool {
    let path = path.as_os_str().as_encoded_bytes();
    object.windows(path.len()).any(|window| window == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_path() {
        let path = Path::new("/home/one/checkout");
        assert!(contains(b"\0/home/one/checkout/lib.rs\0", path));
        assert!(!contains(b"\0./lib.rs\0/home/one/check", path));
    }

    #[test]
    fn the_committed_object_names_no_absolute_path_of_a_source() {
        let object = std::fs::read(shell::root().join(super::super::OBJECT)).unwrap();
        for folder in ["/home/", "/root/", "/usr/", "/tmp/", ".cargo"] {
            assert!(!contains(&object, Path::new(folder)), "{folder}");
        }
    }
}

//! What builds the programs: a compiler with the source of its core library,
//! and a linker on the same LLVM.
//!
//! Debian has both as packages. Elsewhere the toolchain that runs xtask is
//! taken, if it has the source.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::setup::{Need, What};
use crate::tools::Tool;
use crate::{Install, shell};

/// The release of the linker.
const BPF_LINKER: &str = "0.13.0";
/// The major releases of LLVM that it can be built for.
const LLVMS: [u32; 3] = [21, 22, 23];
/// The one that Debian's compiler was last seen with; another is followed.
const USUAL_LLVM: u32 = 22;

/// Debian's compiler for its browsers, which it keeps new in every release.
const COMPILER: [Need<'static>; 3] = [
    Need {
        what: What::Package("rustc-web"),
        package: "rustc-web",
        purpose: "compiles the eBPF programs",
    },
    Need {
        what: What::Package("cargo-web"),
        package: "cargo-web",
        purpose: "builds the eBPF programs",
    },
    Need {
        what: What::Package("rust-web-src"),
        package: "rust-web-src",
        purpose: "eBPF programs need libcore built for them",
    },
];

/// Versions that decide about bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    /// As `rustc --version` says it.
    pub(super) rustc: String,
    /// The system that the compiler runs on.
    pub(super) host: String,
    /// The compiler's LLVM.
    pub(super) llvm: String,
    /// As `bpf-linker --version` says it.
    pub(super) linker: String,
    /// The linker's LLVM, which makes the instructions.
    pub(super) linker_llvm: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, LLVM {}, {}", self.rustc, self.llvm, self.linker)?;
        if self.linker_llvm == self.llvm {
            Ok(())
        } else {
            write!(f, " with LLVM {}", self.linker_llvm)
        }
    }
}

/// A compiler that can build for BPF.
pub(super) struct Compiler {
    pub(super) cargo: PathBuf,
    pub(super) rustc: PathBuf,
    /// Where the source of the standard library lies.
    pub(super) source: PathBuf,
    said: Said,
}

/// What `rustc --version --verbose` says.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    line: String,
    host: String,
    llvm: String,
    llvm_major: u32,
}

/// Compiler and linker, ready for use.
pub(super) struct Toolchain {
    pub(super) compiler: Compiler,
    pub(super) linker: PathBuf,
    pub(super) objcopy: PathBuf,
    pub(super) version: Version,
}

impl Toolchain {
    /// Finds or installs one.
    pub(super) fn get(install: Install) -> Result<Self> {
        let compiler = Compiler::get(install)?;
        let linker = compiler.linker()?;
        if let Some(mut command) = linker.install() {
            eprintln!("installing bpf-linker {BPF_LINKER} (a minute)");
            shell::run(&mut command)?;
        }
        let bin = compiler.llvm_prefix().join("bin");
        let ask = |program: &Path| shell::output(Command::new(program).arg("--version"));
        let version = Version {
            rustc: compiler.said.line.clone(),
            host: compiler.said.host.clone(),
            llvm: compiler.said.llvm.clone(),
            linker: ask(&linker.program())?.trim().to_owned(),
            linker_llvm: ask(&bin.join("llvm-config"))?.trim().to_owned(),
        };
        Ok(Self { compiler, linker: linker.program(), objcopy: bin.join("llvm-objcopy"), version })
    }
}

impl Compiler {
    /// Finds one whose LLVM is there, or installs what is missing.
    pub(super) fn get(install: Install) -> Result<Self> {
        let compiler = match Self::find() {
            Ok(compiler) => compiler,
            Err(lacks) => {
                // All in one go, so that a refusal names all.
                let llvm = LlvmNames::new(USUAL_LLVM);
                let needs: Vec<_> = COMPILER.into_iter().chain(llvm.needs()).collect();
                install.provide(&needs).context(lacks)?;
                Self::find().map_err(anyhow::Error::msg)?
            }
        };
        let names = LlvmNames::new(compiler.said.llvm_major);
        let prefix = compiler.llvm_prefix();
        if prefix == Path::new(&names.prefix) {
            install.provide(&names.needs()).with_context(|| {
                format!(
                    "{} builds for BPF with LLVM {} only, whose development files are not in {} \
                     (LLVM_PREFIX names another place)",
                    compiler.rustc.display(),
                    compiler.said.llvm_major,
                    names.prefix
                )
            })?;
        }
        for program in ["bin/llvm-config", "bin/llvm-objcopy"] {
            let program = prefix.join(program);
            ensure!(
                program.is_file(),
                "the eBPF programs need LLVM {} with its development files: {} is not there",
                compiler.said.llvm_major,
                program.display()
            );
        }
        Ok(compiler)
    }

    /// The first compiler that has everything, or what each of them lacks.
    fn find() -> std::result::Result<Self, String> {
        let mut lacks = String::from("no compiler here can build the eBPF programs");
        let running = std::env::var_os("CARGO").map(PathBuf::from);
        for cargo in [Some(PathBuf::from("/usr/bin/cargo")), running].into_iter().flatten() {
            match Self::at(&cargo) {
                Ok(compiler) => return Ok(compiler),
                Err(error) => lacks += &format!("; {error:#}"),
            }
        }
        Err(lacks)
    }

    /// The compiler beside a Cargo.
    fn at(cargo: &Path) -> Result<Self> {
        let rustc = cargo.with_file_name("rustc");
        let name = rustc.display();
        ensure!(cargo.is_file() && rustc.is_file(), "{name} is not there with a cargo beside it");
        let said = shell::output(Command::new(&rustc).args(["--version", "--verbose"]))?;
        let said = Said::parse(&said).with_context(|| format!("{name} does not say its LLVM"))?;
        if !LLVMS.contains(&said.llvm_major) {
            bail!(
                "{name} has LLVM {}, bpf-linker {BPF_LINKER} is for one of {LLVMS:?}",
                said.llvm_major
            );
        }
        let sysroot = shell::output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        ensure!(
            source.join("library/core/Cargo.toml").is_file(),
            "{name} lacks libcore's source (`rustup component add rust-src`, or rust-web-src)"
        );
        Ok(Self { cargo: cargo.to_owned(), rustc, source, said })
    }

    /// Where its LLVM's development files lie.
    fn llvm_prefix(&self) -> PathBuf {
        std::env::var_os("LLVM_PREFIX")
            .map_or_else(|| LlvmNames::new(self.said.llvm_major).prefix.into(), PathBuf::from)
    }

    /// The linker on the same LLVM.
    pub(super) fn linker(&self) -> Result<Tool> {
        Tool::bpf_linker(BPF_LINKER, self.said.llvm_major, &self.llvm_prefix())
    }
}

impl Said {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let llvm = field("LLVM version: ")?.to_owned();
        Some(Self {
            line: text.lines().next()?.to_owned(),
            host: field("host: ")?.to_owned(),
            llvm_major: llvm.split('.').next()?.parse().ok()?,
            llvm,
        })
    }
}

/// What Debian and apt.llvm.org call an LLVM's parts.
struct LlvmNames {
    prefix: String,
    config: String,
    polly: String,
    llvm_package: String,
    polly_package: String,
}

impl LlvmNames {
    fn new(major: u32) -> Self {
        let prefix = format!("/usr/lib/llvm-{major}");
        Self {
            config: format!("{prefix}/bin/llvm-config"),
            polly: format!("{prefix}/lib/libPolly.a"),
            prefix,
            llvm_package: format!("llvm-{major}-dev"),
            polly_package: format!("libpolly-{major}-dev"),
        }
    }

    fn needs(&self) -> [Need<'_>; 5] {
        let purpose = "the linker of the eBPF programs is built with it";
        [
            Need { what: What::File(&self.config), package: &self.llvm_package, purpose },
            Need { what: What::File(&self.polly), package: &self.polly_package, purpose },
            Need {
                what: What::Program("pkg-config"),
                package: "pkg-config",
                purpose: "finds the libraries that the linker of the eBPF programs links",
            },
            Need { what: What::Library("libzstd"), package: "libzstd-dev", purpose },
            Need { what: What::Library("zlib"), package: "zlib1g-dev", purpose },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_compiler_says() {
        let said = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
                    binary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\n\
                    LLVM version: 22.1.8\n";
        assert_eq!(
            Said::parse(said),
            Some(Said {
                line: "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)".into(),
                host: "x86_64-unknown-linux-gnu".into(),
                llvm: "22.1.8".into(),
                llvm_major: 22,
            })
        );
        assert_eq!(Said::parse("rustc 1.96.0\n"), None);
    }

    #[test]
    fn a_compiler_that_is_not_there_is_named() {
        let error = Compiler::at(Path::new("/no/such/bin/cargo")).err().unwrap().to_string();
        assert!(error.contains("/no/such/bin/rustc"), "{error}");
    }
}

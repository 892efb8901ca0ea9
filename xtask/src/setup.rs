//! What this project needs from the system, and how to get it.
//!
//! Needs are looked for by what they do (a program on the path, a library that
//! pkg-config knows), so a system that has them by other means is left alone.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::shell::{self, root_command};

/// Something that must be there, and the package that brings it.
pub(crate) struct Need<'a> {
    pub(crate) what: What<'a>,
    pub(crate) package: &'a str,
    /// What it is needed for.
    pub(crate) purpose: &'a str,
}

/// How a need shows itself.
pub(crate) enum What<'a> {
    Program(&'a str),
    Library(&'a str),
    /// By its path, for what is known by no name.
    File(&'a str),
    /// A package itself, where others bring the same files in older releases.
    Package(&'a str),
}

/// What the checks, the lab and the benchmarks need, as Debian 12, 13 and
/// Ubuntu 24.04 call it.
pub(crate) const NEEDS: [Need<'static>; 15] = [
    Need {
        what: What::Program("c++"),
        package: "g++",
        purpose: "builds libFuzzer, which the fuzz targets link",
    },
    Need {
        what: What::Program("pkg-config"),
        package: "pkg-config",
        purpose: "finds the libraries that the lab links",
    },
    Need {
        what: What::Library("libmnl"),
        package: "libmnl-dev",
        purpose: "the lab sends its netfilter faults through it",
    },
    Need {
        what: What::Library("libnftnl"),
        package: "libnftnl-dev",
        purpose: "the lab builds its netfilter faults with it",
    },
    Need {
        what: What::Program("ip"),
        package: "iproute2",
        purpose: "the benchmarks and tests make namespaces and compare with it",
    },
    Need {
        what: What::Program("nft"),
        package: "nftables",
        purpose: "the benchmark of the agent simulates its peers with it",
    },
    Need {
        what: What::Program("iptables-legacy"),
        package: "iptables",
        purpose: "the lab makes a fault of old firewalls with it",
    },
    Need {
        what: What::Program("iperf3"),
        package: "iperf3",
        purpose: "the benchmark of the eBPF programs measures TCP with it",
    },
    Need {
        what: What::Program("conntrack"),
        package: "conntrack",
        purpose: "the lab fills tables of tracked connections with it",
    },
    Need {
        what: What::Program("bird"),
        package: "bird2",
        purpose: "the lab's nodes speak BGP with it",
    },
    Need {
        what: What::Program("ipset"),
        package: "ipset",
        purpose: "the lab fills IP sets and makes them anew with it",
    },
    Need {
        what: What::Program("qemu-system-x86_64"),
        package: "qemu-system-x86",
        purpose: "the lab runs under other kernels in it",
    },
    Need {
        what: What::Program("busybox"),
        package: "busybox-static",
        purpose: "brings back what the lab's virtual machines found",
    },
    Need {
        what: What::Program("depmod"),
        package: "kmod",
        purpose: "makes the index of these kernels' modules",
    },
    Need {
        what: What::Program("xz"),
        package: "xz-utils",
        purpose: "unpacks these kernels' modules",
    },
];

/// Installs what is missing of `needs`, after saying so; with `install` unset,
/// fails instead and names what is missing.
pub(crate) fn provide(needs: &[Need<'_>], install: bool) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("missing on this system:");
    for need in &missing {
        eprintln!("  {:<16} {}", need.package, need.purpose);
    }
    let packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    let remedy = format!("apt-get install {}", packages.join(" "));
    if !install {
        bail!(
            "--no-install was given, and these packages are missing; install them with: {remedy}"
        );
    }
    if !exists("apt-get") {
        bail!(
            "this system has no apt-get; install what its own packages call {}",
            packages.join(", ")
        );
    }
    install_packages(&packages)?;
    let still = self::missing(needs);
    if let Some(need) = still.first() {
        bail!(
            "{} was installed, yet {} is not found; see: {remedy}",
            need.package,
            need.what.name()
        );
    }
    Ok(())
}

fn missing<'n>(needs: &'n [Need<'n>]) -> Vec<&'n Need<'n>> {
    needs.iter().filter(|need| !need.what.is_there()).collect()
}

impl What<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Program(name) | Self::Library(name) | Self::File(name) | Self::Package(name) => {
                name
            }
        }
    }

    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => exists(name),
            Self::File(path) => Path::new(path).is_file(),
            Self::Package(name) => shell::output(Command::new("dpkg-query").args([
                "--show",
                "--showformat=${db:Status-Status}",
                name,
            ]))
            .is_ok_and(|status| status == "installed"),
            Self::Library(name) => Command::new("pkg-config")
                .args(["--exists", name])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
        }
    }
}

/// Whether a program is on the path, or where root's programs are: a plain
/// user's path on Debian lacks those folders.
fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

/// Installs packages; refreshes apt's lists first where they are empty, as in
/// a new container, and again where they turn out too old to find a package.
fn install_packages(packages: &[&str]) -> Result<()> {
    if lists_are_empty(Path::new("/var/lib/apt/lists")) {
        apt_get(&["update"])?;
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    match apt_get(&arguments) {
        Err(error) if lists_are_stale(&error.to_string()) => {
            apt_get(&["update"])?;
            apt_get(&arguments)
        }
        outcome => outcome,
    }
}

/// Runs apt-get as root, quietly unless it fails.
fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = root_command("env")?;
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"])
        // Another apt may be at work, as at the first boot of a cloud machine.
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(arguments);
    eprintln!("+ {}", shell::line(&command));
    shell::output(&mut command).map(|_| ())
}

/// Asks for apt's lists anew.
pub(crate) fn refresh_lists() -> Result<()> {
    apt_get(&["update"])
}

/// Whether apt knows no package at all.
fn lists_are_empty(folder: &Path) -> bool {
    let Ok(entries) = folder.read_dir() else { return true };
    !entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Whether apt's complaint means that its lists are older than the archive.
fn lists_are_stale(complaint: &str) -> bool {
    [
        "Unable to locate package",
        "has no installation candidate",
        "Unable to fetch",
        "404  Not Found",
    ]
    .iter()
    .any(|sign| complaint.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_stale_lists_from_other_failures() {
        assert!(lists_are_stale("E: Unable to locate package libnftnl-dev"));
        assert!(lists_are_stale("E: Package 'pkg-config' has no installation candidate"));
        assert!(lists_are_stale(
            "E: Failed to fetch http://deb.example/libmnl-dev.deb  404  Not Found\n\
             E: Unable to fetch some archives, maybe run apt-get update?"
        ));
        assert!(!lists_are_stale(
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)"
        ));
    }

    #[test]
    fn tells_empty_lists_from_filled_ones() {
        let folder = std::env::temp_dir().join(format!("xtask-lists-{}", std::process::id()));
        assert!(lists_are_empty(&folder), "a folder that is not there holds nothing");
        std::fs::create_dir_all(folder.join("partial")).unwrap();
        std::fs::write(folder.join("lock"), "").unwrap();
        assert!(lists_are_empty(&folder));
        // Debian compresses them on some images and not on others.
        std::fs::write(folder.join("deb.example_main_binary-amd64_Packages.lz4"), "").unwrap();
        assert!(!lists_are_empty(&folder));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn finds_programs() {
        assert!(exists("sh"));
        assert!(!exists("no-such-program-anywhere"));
    }

    #[test]
    fn names_a_need_that_is_not_met() {
        assert!(!What::Library("no-such-library-anywhere").is_there());
        assert!(!What::File("/no/such/file").is_there());
        assert!(!What::Package("no-such-package-anywhere").is_there());
    }
}

//! The kernels that the lab knows, and where they are got from.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::archive::Archive;
use crate::shell::{self, target};

/// A kernel, as Debian builds it for clouds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// The release of Debian that has it, as the archive calls it.
    suite: &'static str,
}

/// All of them, the oldest first. A further one is a line here.
pub(crate) const KERNELS: [Kernel; 4] = [
    Kernel { name: "5.10", suite: "bullseye" },
    Kernel { name: "6.1", suite: "bookworm" },
    Kernel { name: "6.12", suite: "trixie" },
    Kernel { name: "newest", suite: "sid" },
];

/// The package that leads to a release's kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// What names of packages begin with that hold a kernel: in one, or from 7.x on
/// in several that it depends on.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// A kernel that is on disk.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    /// What `uname -r` says of it.
    pub(crate) release: String,
    /// The kernel itself.
    pub(crate) image: PathBuf,
    /// Its modules' folder, indexed by depmod(8).
    pub(crate) modules: PathBuf,
}

/// A version, to be compared with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u16, pub(crate) u16, pub(crate) u16);

impl Version {
    /// The version in a release such as `6.12.107+deb13-cloud-amd64`.
    pub(crate) fn of(release: &str) -> Option<Self> {
        let numbers = release.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
        let mut numbers = numbers.split('.').map(str::parse::<u16>);
        let (first, second) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Self(first, second, numbers.next().and_then(Result::ok).unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(first, second, third) = self;
        write!(f, "{first}.{second}")?;
        if *third > 0 { write!(f, ".{third}") } else { Ok(()) }
    }
}

impl Kernel {
    /// The kernel of this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name)
    }

    /// Fetches it, once: what is on disk is taken as it is. With `install`
    /// unset, fails instead where it is missing.
    pub(crate) fn provide(&self, install: bool) -> Result<Unpacked> {
        let kernels = target()?.join("kernels");
        let ready = kernels.join(self.name);
        if !ready.exists() {
            if !install {
                bail!("--no-install was given, and kernel {} is not there", self.name);
            }
            let draft = kernels.join(format!("{}.draft-{}", self.name, std::process::id()));
            let outcome = self
                .fetch(&draft)
                .and_then(|()| Ok(fs::rename(draft.join("root"), &ready)?))
                .with_context(|| format!("getting kernel {} from {}", self.name, self.suite));
            // What is left of it would be in nobody's way.
            let _ = fs::remove_dir_all(&draft);
            outcome?;
        }
        find(&ready)
    }

    fn fetch(&self, draft: &Path) -> Result<()> {
        let archive = Archive::open(draft, self.suite)?;
        let mut packages = parts(&archive.show(META_PACKAGE)?);
        ensure!(!packages.is_empty(), "{META_PACKAGE} leads to no kernel");
        for package in packages.clone() {
            packages.extend(parts(&archive.show(&package)?));
        }
        let root = draft.join("root");
        archive.unpack(packages.iter().map(String::as_str), &root)?;
        let Unpacked { release, modules, .. } = find(&root)?;
        decompress(&modules)?;
        // depmod(8) looks below lib; with /usr merged that is a link.
        if !root.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
        }
        shell::output(Command::new(DEPMOD).arg("-b").arg(&root).arg(release))?;
        Ok(())
    }
}

/// A plain user's path on Debian lacks its folder.
const DEPMOD: &str = "/usr/sbin/depmod";

/// Packages that hold a kernel, of those that one depends on by its record.
fn parts(record: &str) -> Vec<String> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends: "));
    depends
        .into_iter()
        .flat_map(|depends| depends.split(", "))
        .filter_map(|one| one.split_ascii_whitespace().next())
        .filter(|name| PARTS.iter().any(|part| name.starts_with(part)))
        .map(str::to_owned)
        .collect()
}

/// Finds kernel and modules in unpacked packages.
fn find(root: &Path) -> Result<Unpacked> {
    let modules = ["usr/lib/modules", "lib/modules"].map(|folder| root.join(folder));
    let modules = modules.iter().find_map(|folder| folder.read_dir().ok());
    let modules = modules.and_then(|mut folders| folders.next()).context("no modules")??.path();
    let release = modules.file_name().context("no name")?.to_string_lossy().into_owned();
    let images = [root.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = images.into_iter().find(|image| image.is_file()).context("no kernel")?;
    Ok(Unpacked { release, image, modules })
}

/// Newer packages have their modules compressed; the guest has better things to do.
fn decompress(folder: &Path) -> Result<()> {
    let mut command = Command::new("find");
    command.arg(folder).args(["-name", "*.ko.xz", "-exec", "xz", "-d", "-T", "1", "{}", "+"]);
    shell::output(&mut command)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let of = |release| Version::of(release).unwrap();
        assert_eq!(of("5.10.0-32-cloud-amd64"), Version(5, 10, 0));
        assert_eq!(of("6.12.107+deb13-cloud-amd64"), Version(6, 12, 107));
        assert!(of("6.1.0-50-cloud-amd64") < of("6.12.46") && of("6.12.46") < of("7.2"));
        assert_eq!(Version::of("cloud"), None);
        assert_eq!(Version(6, 6, 0).to_string(), "6.6");
        assert_eq!(Version(6, 12, 46).to_string(), "6.12.46");
    }

    #[test]
    fn a_record_names_the_parts_of_a_kernel() {
        let whole = "Package: linux-image-6.1.0-50-cloud-amd64\n\
                     Depends: kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool\n";
        assert_eq!(parts(whole), Vec::<String>::new());
        let split = "Package: linux-image-7.2-cloud-amd64\n\
                     Depends: linux-binary-7.2-cloud-amd64 (= 7.2-1), linux-modules-7.2-cloud-amd64 \
                     (= 7.2-1), linux-base-7.2-cloud-amd64 (= 7.2-1)\n";
        assert_eq!(parts(split), ["linux-binary-7.2-cloud-amd64", "linux-modules-7.2-cloud-amd64"]);
        assert!(parts("Package: nothing\n").is_empty());
    }

    #[test]
    fn names_are_unique() {
        for kernel in &KERNELS {
            assert_eq!(Kernel::named(kernel.name), Some(kernel));
        }
        assert_eq!(Kernel::named("2.4"), None);
    }
}

//! The machine as its files and its firmware tell it: what nearly never changes,
//! read every few minutes.

pub mod translate;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::Machine;
use tokio::sync::mpsc::Sender;

use super::meter::{Closed, disabled, metered, pause};
use super::{Options, SourceError};

/// A package may be installed, a kernel be unpacked.
const EVERY: Duration = Duration::from_secs(300);
/// A modules.dep of a distribution has 700 KB; none of these files has more.
const MOST_BYTES: u64 = 4 << 20;
/// What an Azure machine has as its chassis's asset tag, whatever Microsoft calls
/// itself in the vendor's field (Azure/WALinuxAgent, common/osutil).
const AZURE: &str = "7783-7084-3265-9085-8269-3286-77";

/// Where to read.
#[derive(Clone, Debug)]
pub struct Roots {
    /// The host's own files.
    pub host: PathBuf,
    /// What the firmware says of the machine.
    pub dmi: PathBuf,
    /// The running kernel's release.
    pub release: PathBuf,
}

impl Roots {
    /// The running system's, with the host's files below `host`.
    #[must_use]
    pub fn of(host: &Path) -> Self {
        Self {
            host: host.to_owned(),
            dmi: "/sys/class/dmi/id".into(),
            release: "/proc/sys/kernel/osrelease".into(),
        }
    }
}

/// Reads now and then until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, updates: &Sender<Update>) -> Result<(), Closed> {
    if !options.enabled.contains(&SourceId::Machine) {
        return disabled(updates, SourceId::Machine);
    }
    let roots = Roots::of(&options.host_root);
    loop {
        metered(updates, SourceId::Machine, || {
            Ok::<_, SourceError>(Update::Machine(Box::new(read(&roots)?)))
        })?;
        pause(EVERY, updates)?;
    }
}

/// One reading. What a machine does not have, as firmware in a container, is left
/// out.
///
/// # Errors
/// When the kernel's release cannot be read.
pub fn read(roots: &Roots) -> Result<Machine, SourceError> {
    let failed = |error| SourceError::io(format!("reading {}", roots.release.display()), error);
    let release = load(&roots.release).map_err(failed)?;
    let etc = load(&roots.host.join("etc/os-release"));
    let os = etc.or_else(|_| load(&roots.host.join("usr/lib/os-release"))).unwrap_or_default();
    let firmware =
        |file: &str| load(&roots.dmi.join(file)).ok().and_then(|text| translate::name(&text));
    let vendor = match firmware("chassis_asset_tag") {
        Some(tag) if tag == AZURE => Some("Microsoft Azure".to_owned()),
        _ => firmware("sys_vendor").or_else(|| firmware("board_vendor")),
    };
    let folders = ["lib/modules", "usr/lib/modules"]
        .map(|folder| roots.host.join(folder).join(release.trim()));
    let modules = folders.iter().find_map(|folder| {
        let dep = load(&folder.join("modules.dep")).ok()?;
        let builtin = load(&folder.join("modules.builtin")).unwrap_or_default();
        Some(translate::modules(&builtin, &dep))
    });
    Ok(Machine {
        distribution: translate::os_release(&os, "PRETTY_NAME"),
        distribution_id: translate::os_release(&os, "ID"),
        vendor,
        product: firmware("product_name"),
        modules,
    })
}

/// A whole file of text, as far as it is of a sane size.
fn load(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, write};

    use overlaywatch_core::model::Module;

    use super::*;

    fn roots(files: &[(&str, &str)]) -> (tempfile::TempDir, Roots) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            create_dir_all(path.parent().unwrap()).unwrap();
            write(path, text).unwrap();
        }
        let at = |name: &str| root.path().join(name);
        let roots = Roots { host: at("host"), dmi: at("dmi"), release: at("osrelease") };
        (root, roots)
    }

    #[test]
    fn every_field_comes_from_its_file() {
        let (_root, roots) = roots(&[
            ("osrelease", "6.1.0-test\n"),
            ("host/usr/lib/os-release", "ID=debian\nPRETTY_NAME=\"Debian 12\"\n"),
            ("host/lib/modules/6.1.0-test/modules.dep", "kernel/net/ipv4/ipip.ko:\n"),
            ("dmi/sys_vendor", "Hetzner\n"),
            ("dmi/product_name", "vServer\n"),
        ]);
        let machine = read(&roots).unwrap();
        assert_eq!(machine.distribution.as_deref(), Some("Debian 12"));
        assert_eq!(machine.distribution_id.as_deref(), Some("debian"));
        assert_eq!(machine.vendor.as_deref(), Some("Hetzner"));
        assert_eq!(machine.product.as_deref(), Some("vServer"));
        assert_eq!(machine.modules.unwrap()["ipip"], Module::Loadable);
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let (root, roots) = roots(&[("osrelease", "6.1.0-test\n")]);
        assert_eq!(read(&roots).unwrap(), Machine::default());
        fs::remove_file(root.path().join("osrelease")).unwrap();
        assert!(read(&roots).unwrap_err().to_string().contains("osrelease"));
    }

    #[test]
    fn azure_is_told_by_its_asset_tag() {
        let (_root, roots) = roots(&[
            ("osrelease", "6.1.0-test\n"),
            ("dmi/sys_vendor", "Microsoft Corporation\n"),
            ("dmi/chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n"),
        ]);
        assert_eq!(read(&roots).unwrap().vendor.as_deref(), Some("Microsoft Azure"));
    }
}

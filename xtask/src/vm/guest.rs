//! What the guest boots into: this system's own tools, the agent, the lab, and
//! the modules that overlays need, as one archive in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cpio::{Contents, Entry};
use super::kernels::Unpacked;
use crate::shell::{self, target};

/// Programs that the guest's start, the lab, its faults and their scripts run.
const PROGRAMS: [&str; 50] = [
    "bash",
    "bird",
    "birdc",
    "bridge",
    "busybox",
    "cat",
    "chroot",
    "conntrack",
    "cp",
    "cut",
    "dash",
    "date",
    "echo",
    "env",
    "false",
    "grep",
    "head",
    "ip",
    "ip6tables",
    "ip6tables-legacy",
    "ip6tables-nft",
    "ipset",
    "iptables",
    "iptables-legacy",
    "iptables-nft",
    "kmod",
    "ldd",
    "ln",
    "ls",
    "mkdir",
    "modprobe",
    "mount",
    "mv",
    "nft",
    "nsenter",
    "rm",
    "rmmod",
    "sed",
    "sh",
    "sleep",
    "ss",
    "stat",
    "sync",
    "sysctl",
    "tc",
    "touch",
    "true",
    "umount",
    "uname",
    "unshare",
];
/// Files and folders that these read.
const FILES: [&str; 7] = [
    "/etc/group",
    "/etc/iproute2",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
    "/usr/share/iproute2",
];
/// Plugins: programs open them by name. The system's folder of libraries is put before.
const PLUGINS: [&str; 1] = ["xtables"];
/// Modules that go along with all that they need: whole folders, or files.
const MODULES: [&str; 15] = [
    "kernel/crypto/",
    "kernel/net/",
    "kernel/drivers/block/virtio_blk.ko",
    "kernel/drivers/net/dummy.ko",
    "kernel/drivers/net/geneve.ko",
    "kernel/drivers/net/ifb.ko",
    "kernel/drivers/net/ipvlan/ipvlan.ko",
    "kernel/drivers/net/macvlan.ko",
    "kernel/drivers/net/tun.ko",
    "kernel/drivers/net/veth.ko",
    "kernel/drivers/net/vrf.ko",
    "kernel/drivers/net/vxlan.ko",
    "kernel/drivers/net/vxlan/vxlan.ko",
    "kernel/drivers/net/wireguard/wireguard.ko",
    "kernel/drivers/virtio/virtio_pci.ko",
];
/// Where the guest has what was built here.
const HOME: &str = "lab";

/// What some guests have beside what all have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extra {
    /// Programs of this system.
    pub(crate) system: &'static [&'static str],
    /// Programs that were built here, as paths in the target folder; in the guest
    /// they are in the lab's folder under the same names.
    pub(crate) built: &'static [&'static str],
}

/// Writes the archive; `script` is what the guest does.
pub(crate) fn write(kernel: &Unpacked, script: String, extra: Extra, into: &Path) -> Result<()> {
    let mut contents = Contents::default();
    contents.add("init", Entry::Script(script));
    // As on this system: merged into /usr.
    for (link, folder) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
    {
        contents.add(link, Entry::Link(folder.into()));
    }
    for folder in ["dev", "proc", "sys", "run", "tmp", "result", "var/log"] {
        contents.add(folder, Entry::Folder);
    }
    contents.add("var/run", Entry::Link("/run".into()));
    let release = target()?.join("release");
    for program in ["lab", "overlaywatch"] {
        let path = release.join(program);
        add_libraries(&mut contents, &path)?;
        contents.add(Path::new(HOME).join(program), Entry::File(path));
    }
    for program in extra.built {
        let path = target()?.join(program);
        add_libraries(&mut contents, &path)?;
        contents.add(Path::new(HOME).join(program), Entry::File(path));
    }
    add_tree(
        &mut contents,
        &target()?.join("tools/debian-11"),
        &format!("{HOME}/tools/debian-11"),
    )?;
    for program in PROGRAMS.iter().chain(extra.system) {
        add_file(&mut contents, &on_path(program)?)?;
    }
    for file in FILES.map(Path::new) {
        if file.is_dir() {
            add_tree(&mut contents, file, &file.to_string_lossy())?;
        } else if file.exists() {
            add_file(&mut contents, file)?;
        }
    }
    for plugins in PLUGINS {
        let folder = Path::new("/usr/lib").join(triplet()?).join(plugins);
        for file in folder.read_dir().with_context(|| format!("{}", folder.display()))? {
            add_file(&mut contents, &file?.path())?;
        }
    }
    add_modules(&mut contents, kernel)?;
    let mut out = BufWriter::new(File::create(into)?);
    contents.write(&mut out).with_context(|| format!("writing {}", into.display()))?;
    // Dropping it would hide an error.
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    Ok(())
}

/// The folder of libraries that bears this machine's name.
fn triplet() -> Result<String> {
    let machine = shell::output(Command::new("uname").arg("-m"))?;
    Ok(format!("{}-linux-gnu", machine.trim()))
}

/// A program, wherever root would find it.
fn on_path(program: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/usr/bin"]
        .map(|folder| Path::new(folder).join(program))
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("this system has no {program} in /usr/sbin and /usr/bin"))
}

/// Adds a file at its own path: as a link to where it really is, if it is one,
/// so that programs with many names keep them; and what it is linked with.
fn add_file(contents: &mut Contents, path: &Path) -> Result<()> {
    let real = fs::canonicalize(path).with_context(|| format!("{}", path.display()))?;
    let place = merged(path);
    if place != real {
        contents.add(inside(&place), Entry::Link(real.clone()));
    }
    if contents.get(&inside(&real)).is_none() {
        add_libraries(contents, &real)?;
        contents.add(inside(&real), Entry::File(real));
    }
    Ok(())
}

/// Adds the shared libraries that a program is linked with, its loader included.
fn add_libraries(contents: &mut Contents, program: &Path) -> Result<()> {
    // It fails for what is no program and for what is linked with nothing.
    let Ok(said) = shell::output(Command::new("ldd").arg(program)) else { return Ok(()) };
    for library in said.split_ascii_whitespace().filter(|word| word.starts_with('/')) {
        let path = Path::new(library);
        let real = fs::canonicalize(path)?;
        let place = merged(path);
        if place != real {
            contents.add(inside(&place), Entry::Link(real.clone()));
        }
        contents.add(inside(&real), Entry::File(real));
    }
    Ok(())
}

/// Adds a folder with all that is in it, as `place`.
fn add_tree(contents: &mut Contents, folder: &Path, place: &str) -> Result<()> {
    let entries = folder.read_dir().with_context(|| format!("{}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let inner = format!("{place}/{}", entry.file_name().to_string_lossy());
        if kind.is_dir() {
            add_tree(contents, &path, &inner)?;
        } else if kind.is_symlink() {
            contents.add(inside(Path::new(&inner)), Entry::Link(fs::read_link(&path)?));
        } else {
            contents.add(inside(Path::new(&inner)), Entry::File(path));
        }
    }
    Ok(())
}

/// A path of this system in the archive.
fn inside(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

/// The path with what is merged into /usr written out.
fn merged(path: &Path) -> PathBuf {
    let rest = inside(path);
    let is_merged = ["bin", "sbin", "lib", "lib64"].iter().any(|folder| rest.starts_with(folder));
    if is_merged { Path::new("/usr").join(rest) } else { path.to_owned() }
}

/// Adds modules and the index of all modules.
fn add_modules(contents: &mut Contents, kernel: &Unpacked) -> Result<()> {
    let place = Path::new("usr/lib/modules").join(&kernel.release);
    for file in kernel.modules.read_dir()? {
        let file = file?;
        let name = file.file_name();
        if name.to_string_lossy().starts_with("modules.") {
            contents.add(place.join(name), Entry::File(file.path()));
        }
    }
    let index = fs::read_to_string(kernel.modules.join("modules.dep"))?;
    let wanted = with_dependencies(&index, &MODULES);
    ensure!(!wanted.is_empty(), "{} has no modules", kernel.release);
    for module in wanted {
        contents.add(place.join(module), Entry::File(kernel.modules.join(module)));
    }
    Ok(())
}

/// Modules whose path begins with one of `wanted`, and all that they need, by an
/// index of the form of modules.dep(5).
fn with_dependencies<'a>(index: &'a str, wanted: &[&str]) -> BTreeSet<&'a str> {
    let needs: BTreeMap<&str, &str> =
        index.lines().filter_map(|line| line.split_once(':')).collect();
    let is_wanted = |path: &&str| wanted.iter().any(|wanted| path.starts_with(wanted));
    let mut open: VecDeque<&str> = needs.keys().copied().filter(is_wanted).collect();
    let mut found = BTreeSet::new();
    while let Some(module) = open.pop_front() {
        if found.insert(module) {
            let needed = needs.get(module).copied().unwrap_or_default();
            open.extend(needed.split_ascii_whitespace());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_need() {
        let index = "kernel/net/ipv4/ipip.ko: kernel/net/ipv4/ip_tunnel.ko\n\
                     kernel/net/ipv4/ip_tunnel.ko: kernel/lib/core.ko\n\
                     kernel/lib/core.ko:\n\
                     kernel/drivers/gpu/big.ko: kernel/lib/core.ko\n";
        let found = with_dependencies(index, &["kernel/net/ipv4/ipip.ko", "kernel/none/"]);
        let all = ["kernel/lib/core.ko", "kernel/net/ipv4/ip_tunnel.ko", "kernel/net/ipv4/ipip.ko"];
        assert_eq!(found.into_iter().collect::<Vec<_>>(), all);
    }

    #[test]
    fn what_is_merged_has_one_path() {
        assert_eq!(merged(Path::new("/lib/x/libc.so.6")), Path::new("/usr/lib/x/libc.so.6"));
        assert_eq!(merged(Path::new("/usr/bin/ip")), Path::new("/usr/bin/ip"));
        assert_eq!(merged(Path::new("/library")), Path::new("/library"));
        assert_eq!(inside(Path::new("/usr/bin/ip")), Path::new("usr/bin/ip"));
    }
}

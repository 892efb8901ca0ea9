use std::fs::{Permissions, create_dir_all, set_permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

use nix::unistd::{Uid, setfsuid};
use overlaywatch_core::model::ToolVersion;

use super::*;

fn process(pid: u32, name: &str) -> ToolProcess {
    ToolProcess { pid, name: name.to_owned() }
}

#[test]
fn those_that_matter_are_named_first_and_few() {
    let mut found = Inhabitants::default();
    for pid in 10..40 {
        found.take(process(pid, "sh"));
    }
    found.take(process(99, "calico-node"));
    found.take(process(50, "kube-proxy"));
    let named: Vec<_> = found.processes.iter().map(|(_, process)| process.pid).collect();
    assert_eq!(named, [99, 50, 10, 11, 12, 13, 14, 15]);
}

#[test]
fn a_slow_look_is_taken_seldom() {
    assert_eq!(rest(2_000_000), INTERVAL);
    assert_eq!(rest(60_000_000), Duration::from_secs(30));
    assert_eq!(rest(10_000_000_000), LONGEST);
}

#[test]
fn the_host_is_found_and_comes_first() {
    let tools = Finder::new(Place::default()).look().unwrap();
    assert!(tools.spaces[0].is_host);
    assert!(tools.spaces.iter().skip(1).all(|space| !space.processes.is_empty()));
}

#[test]
fn a_proc_without_processes_is_no_empty_list_of_tools() {
    let empty = tempfile::tempdir().unwrap();
    let place = Place { proc: empty.path().to_owned() };
    assert!(matches!(Finder::new(place).look(), Err(SourceError::Io { .. })));
}

const HASH: &str = "7c994f47fd344e1637da337b92c51433c255b387d207b30b3e0262779457afe4";
const OLD: &str = "7.11";
const HOSTS: &str = "7.17";

/// A /proc with the first process, and a K3s in the same file system that runs
/// this program.
fn node(k3s: &str) -> tempfile::TempDir {
    let machine = tempfile::tempdir().unwrap();
    let proc = machine.path().join("proc");
    for (process, name) in [("thread-self", "agent"), ("1", "init"), ("7", "k3s-server")] {
        let folder = proc.join(process);
        create_dir_all(folder.join("ns")).unwrap();
        symlink("net:[4]", folder.join("ns/net")).unwrap();
        symlink("mnt:[5]", folder.join("ns/mnt")).unwrap();
        symlink(machine.path().join("host"), folder.join("root")).unwrap();
        fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
    }
    symlink(k3s, proc.join("7/exe")).unwrap();
    ipset(&machine, "usr/sbin", HOSTS);
    machine
}

/// Puts an ipset of this version into a folder of the host.
fn ipset(machine: &tempfile::TempDir, folder: &str, version: &str) {
    let folder = machine.path().join("host").join(folder);
    create_dir_all(&folder).unwrap();
    let mark = "Kernel and userspace incompatible: settype %s with revision %u not supported";
    fs::write(folder.join("ipset"), format!("\0{version}\0{mark} by userspace.\0")).unwrap();
}

/// The ipset that K3s uses; none where it is not known.
fn of_k3s(machine: &tempfile::TempDir) -> Option<ToolVersion> {
    let tools = Finder::new(Place { proc: machine.path().join("proc") }).look().unwrap();
    assert_eq!(tools.spaces[0].ipset, HOSTS.parse().ok(), "the host has its own");
    let mut spaces = tools.spaces.iter().filter(|space| {
        space
            .processes
            .iter()
            .any(|process| (process.pid, process.name.as_str()) == (7, "k3s-server"))
    });
    let found = spaces.next().unwrap();
    assert!(found.is_host && spaces.next().is_none());
    found.ipset
}

#[test]
fn k3s_uses_what_it_carries_wherever_it_keeps_it() {
    for data in ["var/lib/rancher/k3s", "mnt/disk"] {
        let folder = format!("{data}/data/{HASH}/bin");
        let machine = node(&format!("/{folder}/k3s"));
        create_dir_all(machine.path().join("host").join(&folder)).unwrap();
        assert_eq!(of_k3s(&machine), HOSTS.parse().ok(), "there is none in its folder");
        ipset(&machine, &folder, OLD);
        assert_eq!(of_k3s(&machine), OLD.parse().ok());
    }
}

#[test]
fn of_a_k3s_that_runs_from_elsewhere_nothing_is_known() {
    // As a distribution packs it, with a path of its own.
    assert_eq!(of_k3s(&node("/nix/store/x-k3s/bin/.k3s-wrapped")), None);
    // Upgraded and not restarted.
    let machine = node(&format!("/mnt/disk/data/{HASH}/bin/k3s (deleted)"));
    ipset(&machine, &format!("mnt/disk/data/{HASH}/bin"), OLD);
    assert_eq!(of_k3s(&machine), None);
    fs::remove_file(machine.path().join("proc/7/exe")).unwrap();
    assert_eq!(of_k3s(&machine), None);
}

#[test]
fn a_folder_of_k3s_that_may_not_be_read_is_no_empty_one() {
    let folder = format!("var/lib/rancher/k3s/data/{HASH}/bin");
    let machine = node(&format!("/{folder}/k3s"));
    ipset(&machine, &folder, OLD);
    let allow = |path: &str, mode| {
        set_permissions(machine.path().join(path), Permissions::from_mode(mode)).unwrap();
    };
    for path in ["", "proc", "host", "host/usr", "host/usr/sbin", "host/var", "host/var/lib"] {
        allow(path, 0o755);
    }
    allow("host/var/lib/rancher", 0o700);
    // Only this thread becomes nobody.
    let (is_denied, found) = thread::scope(|scope| {
        let read = scope.spawn(|| {
            setfsuid(Uid::from_raw(65_534));
            let file = machine.path().join("host").join(&folder).join("ipset");
            (fs::read(file).is_err(), of_k3s(&machine))
        });
        read.join().unwrap()
    });
    // Whoever is not root stays the folder's owner.
    assert_eq!(found, (!is_denied).then(|| OLD.parse().unwrap()));
}

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
        found.take(process(pid, "sh"), 7);
    }
    found.take(process(99, "calico-node"), 7);
    found.take(process(50, "kube-proxy"), 7);
    let named: Vec<_> = found.named().iter().map(|process| process.pid).collect();
    assert_eq!(named, [99, 50, 10, 11, 12, 13, 14, 15]);
    assert_eq!(found.first(), Some(99));
    let users: Vec<_> = found.users().iter().map(|process| process.pid).collect();
    assert_eq!(users, [99, 50]);
}

#[test]
fn whoever_was_there_first_is_named_whatever_its_number() {
    let mut found = Inhabitants::default();
    // Numbers of processes have begun anew since.
    found.take(process(1_642, "sleep"), 900);
    found.take(process(31_000, "nginx"), 300);
    assert_eq!(found.first(), Some(31_000));
    let mut host = Inhabitants::default();
    host.take(process(1, "init"), 0);
    host.take_all(&found);
    let named: Vec<_> = host.named().iter().map(|process| process.pid).collect();
    assert_eq!(named, [1, 31_000, 1_642]);
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
        fs::write(folder.join("stat"), status(process.parse().unwrap_or(9), name, 5)).unwrap();
    }
    symlink(k3s, proc.join("7/exe")).unwrap();
    ipset(&machine, "usr/sbin", HOSTS);
    machine
}

/// What /proc says of a process that was started then.
fn status(pid: u32, name: &str, started: u64) -> String {
    format!("{pid} ({name}) S 1 7 7 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 {started} 0 0 1844\n")
}

/// A further process of a mount namespace of its own, whose root is this folder of
/// the machine.
fn apart(machine: &tempfile::TempDir, pid: u32, name: &str, root: &str) {
    let folder = machine.path().join("proc").join(pid.to_string());
    create_dir_all(folder.join("ns")).unwrap();
    create_dir_all(machine.path().join(root)).unwrap();
    symlink("net:[4]", folder.join("ns/net")).unwrap();
    symlink(format!("mnt:[{pid}]"), folder.join("ns/mnt")).unwrap();
    symlink(machine.path().join(root), folder.join("root")).unwrap();
    fs::write(folder.join("stat"), status(pid, name, 5)).unwrap();
    fs::copy("/proc/self/mountinfo", folder.join("mountinfo")).unwrap();
}

fn finder(machine: &tempfile::TempDir) -> Finder {
    Finder::new(Place { proc: machine.path().join("proc") })
}

#[test]
fn a_service_with_a_view_of_its_own_is_the_hosts() {
    let machine = node("/usr/local/bin/k3s");
    apart(&machine, 20, "systemd-resolve", "host");
    apart(&machine, 21, "dockerd", "host");
    apart(&machine, 22, "calico-node", "container");
    ipset(&machine, "../container/usr/sbin", OLD);
    // It has nothing of the host's, nor anything else.
    apart(&machine, 23, "pause", "empty");
    let spaces = finder(&machine).look().unwrap().spaces;
    let names = |space: &ToolSpace| -> Vec<_> {
        space.processes.iter().map(|process| process.name.clone()).collect()
    };
    let found: Vec<_> = spaces.iter().map(|it| (it.mount_namespace, names(it))).collect();
    let named = |name: &str| vec![name.to_owned()];
    let expected = [
        (5, named("dockerd")),
        (5, named("k3s-server")),
        (22, named("calico-node")),
        (23, named("pause")),
    ];
    assert_eq!(found, expected);
    assert_eq!(spaces[2].ipset, OLD.parse().ok());
}

#[test]
fn what_a_look_does_not_come_to_is_as_it_was_or_not_known() {
    let machine = node("/usr/local/bin/k3s");
    apart(&machine, 22, "calico-node", "container");
    ipset(&machine, "../container/usr/sbin", OLD);
    let mut finder = finder(&machine);
    let mut look = |patience_ns| {
        finder.patience_ns = patience_ns;
        let spaces = finder.look().unwrap().spaces;
        assert_eq!(spaces[0].ipset, HOSTS.parse().ok(), "the host is read in any case");
        let space = spaces.into_iter().find(|space| space.mount_namespace == 22).unwrap();
        assert_eq!(space.processes, [process(22, "calico-node")]);
        (space.is_unread, space.ipset)
    };
    assert_eq!(look(0), (true, None));
    assert_eq!(look(PATIENCE_NS), (false, OLD.parse().ok()));
    assert_eq!(look(0), (false, OLD.parse().ok()));
}

#[test]
fn agents_are_looked_at_first_and_nobody_is_left_for_ever() {
    let inhabited = |names: &[(u64, &str)]| -> BTreeMap<u64, Inhabitants> {
        let them = names.iter().map(|&(number, name)| {
            let mut them = Inhabitants::default();
            them.take(process(9, name), 7);
            (number, them)
        });
        them.collect()
    };
    let order = |left: &[u64]| -> Vec<_> {
        let all = inhabited(&[(1, "sh"), (2, "flanneld"), (3, "sh"), (4, "calico-node")]);
        let order = in_order(all, &left.iter().copied().collect());
        order.into_iter().map(|(number, _)| number).collect()
    };
    assert_eq!(order(&[]), [4, 2, 1, 3]);
    assert_eq!(order(&[2, 3]), [2, 4, 3, 1]);
}

#[test]
fn of_too_many_mount_namespaces_the_agents_stay() {
    let machine = node("/usr/local/bin/k3s");
    let many = u32::try_from(MOST_SPACES).unwrap() + 20;
    for pid in 100..100 + many {
        apart(&machine, pid, "sh", "empty");
    }
    apart(&machine, 99_999, "calico-node", "container");
    let found = finder(&machine).inhabitants(5, clock::mono().plus(PATIENCE_NS)).unwrap();
    assert_eq!(found.len(), MOST_SPACES);
    assert!(found.contains_key(&5) && found.contains_key(&99_999));
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

use std::fs::{self, create_dir_all, write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::Duration;

use overlaywatch_core::model::{
    AgentKind, CniAgent, K3S_CONTAINERD, Plugin, USUAL_DIRECTORY, Untold,
};
use overlaywatch_core::time::SECOND;

use super::*;
use crate::clock;

const FLANNEL: &str = r#"{"name": "cbr0", "plugins": [{"type": "flannel"}]}"#;

fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        put(root.path(), path, text);
    }
    root
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    create_dir_all(path.parent().unwrap()).unwrap();
    write(path, text).unwrap();
}

fn files(root: &Path) -> Cni {
    Files::new(root.to_owned()).read()
}

#[test]
fn a_host_without_cni_has_none() {
    let root = host(&[]);
    assert_eq!(files(root.path()), Cni::default());
}

#[test]
fn files_are_in_order_and_each_fails_alone() {
    let root = host(&[
        ("etc/cni/net.d/20-b.conflist", FLANNEL),
        ("etc/cni/net.d/10-a.conf", "{"),
        ("etc/cni/net.d/00-off.conflist.bak", FLANNEL),
    ]);
    create_dir_all(root.path().join("etc/cni/net.d/15-folder.conf")).unwrap();
    let cni = files(root.path());
    let directory = cni.in_use().unwrap().unwrap();
    let names: Vec<_> =
        directory.files.iter().map(|f| (f.path.as_str(), f.content.is_ok())).collect();
    assert_eq!(
        names,
        [
            ("/etc/cni/net.d/10-a.conf", false),
            ("/etc/cni/net.d/15-folder.conf", false),
            ("/etc/cni/net.d/20-b.conflist", true),
        ]
    );
    assert_eq!(cni.in_force(), Ok(None));
}

#[test]
fn k3s_own_folder_is_in_use_where_k3s_says_so() {
    let folder = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
    let root = host(&[
        ("var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist", FLANNEL),
        (
            "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
            "  conf_dir = \"/var/lib/rancher/k3s/agent/etc/cni/net.d\"\n",
        ),
    ]);
    let mut cni = files(root.path());
    assert_eq!(cni.in_use().unwrap().unwrap().path, folder);
    assert_eq!(cni.in_force().unwrap().unwrap().plugin(), Some(Plugin::Flannel));
    // It says nothing any more where K3s does not run.
    cni.running = Some(Vec::new());
    assert!(cni.in_use().unwrap().is_none_or(|directory| directory.path == USUAL_DIRECTORY));
}

#[test]
fn a_link_is_followed_inside_the_root_and_never_out_of_it() {
    let outside = host(&[("secret.conf", FLANNEL)]);
    let root = host(&[("opt/cni/10-a.conflist", FLANNEL)]);
    create_dir_all(root.path().join("etc/cni/net.d")).unwrap();
    let folder = root.path().join("etc/cni/net.d");
    // As the host means it: from its own root.
    symlink("/opt/cni/10-a.conflist", folder.join("10-a.conflist")).unwrap();
    symlink(outside.path().join("secret.conf"), folder.join("20-b.conf")).unwrap();
    symlink("../../../../../../../../etc/hostname", folder.join("30-c.conf")).unwrap();
    symlink("40-d.conf", folder.join("40-d.conf")).unwrap();
    let cni = files(root.path());
    let seen = &cni.in_use().unwrap().unwrap().files;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[0].content.is_ok());
    assert!(seen[1].path.ends_with("40-d.conf") && seen[1].content.is_err());
}

#[test]
fn what_is_too_large_or_no_file_is_told_and_not_read() {
    let root = host(&[("etc/cni/net.d/10-a.conf", &" ".repeat((1 << 20) + 1))]);
    nix::unistd::mkfifo(
        &root.path().join("etc/cni/net.d/20-b.conf"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    let cni = files(root.path());
    let errors: Vec<&String> = cni
        .in_use()
        .unwrap()
        .unwrap()
        .files
        .iter()
        .filter_map(|f| f.content.as_ref().err())
        .collect();
    assert_eq!(errors.len(), 2);
    assert!(errors[0].contains("larger than") && errors[1].contains("not a regular file"));
}

/// What a user without any capability reads, where this test's user can become
/// one: whoever is not root stays the files' owner.
fn as_nobody(root: &Path, closed: &str) -> Option<Cni> {
    let (path, closed) = (root.to_owned(), root.join(closed));
    // Only this thread becomes nobody.
    let read = thread::spawn(move || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
        let is_denied = fs::File::open(closed).is_err();
        is_denied.then(|| Files::new(path).read())
    });
    read.join().unwrap()
}

fn allow(root: &Path, path: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
}

fn denied(cni: &Cni) -> Vec<&str> {
    for unread in &cni.unread {
        assert!(unread.denied);
        let detail = &unread.detail;
        assert!(detail.contains(&unread.path), "{detail}");
        assert!(detail.contains("grant CAP_DAC_READ_SEARCH"), "{detail}");
    }
    cni.unread.iter().map(|unread| unread.path.as_str()).collect()
}

#[test]
fn a_file_that_may_not_be_read_hides_no_other() {
    let root = host(&[
        ("etc/cni/net.d/05-cilium.conflist", FLANNEL),
        ("etc/cni/net.d/10-flannel.conflist", FLANNEL),
        ("run/flannel/subnet.env", "FLANNEL_NETWORK=10.42.0.0/16\n"),
    ]);
    allow(root.path(), "", 0o755);
    allow(root.path(), "etc/cni/net.d/05-cilium.conflist", 0o600);
    let Some(cni) = as_nobody(root.path(), "etc/cni/net.d/05-cilium.conflist") else { return };
    assert_eq!(denied(&cni), ["/etc/cni/net.d/05-cilium.conflist"]);
    assert_eq!(cni.flannel.as_ref().unwrap().network, Some("10.42.0.0/16".parse().unwrap()));
    let directory = cni.in_use().unwrap().unwrap();
    assert_eq!(directory.files[0].path, "/etc/cni/net.d/10-flannel.conflist");
    assert_eq!(cni.winner(), Err(Untold), "the first one is not known");
}

#[test]
fn a_folder_that_may_not_be_entered_hides_no_other() {
    let root = host(&[
        ("etc/cni/net.d/10-flannel.conflist", FLANNEL),
        ("var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist", FLANNEL),
        ("var/lib/rancher/k3s/agent/etc/containerd/config.toml", ""),
    ]);
    allow(root.path(), "", 0o755);
    allow(root.path(), "var/lib/rancher/k3s", 0o700);
    let Some(mut cni) = as_nobody(root.path(), "var/lib/rancher/k3s/agent") else { return };
    let folder = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
    assert_eq!(denied(&cni), [K3S_CONTAINERD, folder]);
    assert_eq!(cni.in_force(), Err(Untold), "K3s may run");
    // What K3s says matters where it runs.
    cni.running = Some(Vec::new());
    assert_eq!(cni.in_force().unwrap().unwrap().plugin(), Some(Plugin::Flannel));
}

#[test]
fn a_folder_of_too_many_files_is_cut_and_says_so() {
    let root = host(&[]);
    for number in 0..70 {
        put(root.path(), &format!("etc/cni/net.d/{number:02}.conflist"), FLANNEL);
    }
    let cni = files(root.path());
    let directory = cni.in_use().unwrap().unwrap();
    assert!(directory.is_cut && directory.files.len() == 64);
}

#[test]
fn a_file_is_read_again_when_it_changed() {
    let root = host(&[("etc/cni/net.d/10-a.conf", "{")]);
    let mut reader = Files::new(root.path().to_owned());
    assert_eq!(reader.read().in_force(), Ok(None));
    // Renamed into place, as installers do: another file of the same name.
    put(root.path(), "draft", r#"{"name": "a", "type": "flannel"}"#);
    fs::rename(root.path().join("draft"), root.path().join("etc/cni/net.d/10-a.conf")).unwrap();
    let cni = reader.read();
    assert_eq!(cni.in_force().unwrap().unwrap().types, ["flannel"]);
    assert_eq!(reader.read(), cni);
}

/// A /proc with processes in two namespaces; namespaces are told apart by file.
fn machine(processes: &[(u32, &str, bool)]) -> tempfile::TempDir {
    let root = host(&[("here", ""), ("elsewhere", ""), ("1/comm", "init\n"), ("self/x", "")]);
    create_dir_all(root.path().join("thread-self/ns")).unwrap();
    symlink(root.path().join("here"), root.path().join("thread-self/ns/net")).unwrap();
    for (pid, name, is_here) in processes.iter().copied().chain([(1, "init", true)]) {
        put(root.path(), &format!("{pid}/comm"), &format!("{name}\n"));
        create_dir_all(root.path().join(format!("{pid}/ns"))).unwrap();
        let namespace = root.path().join(if is_here { "here" } else { "elsewhere" });
        symlink(namespace, root.path().join(format!("{pid}/ns/net"))).unwrap();
    }
    root
}

#[test]
fn agents_of_this_namespace_are_found_by_name() {
    let root = machine(&[
        (70, "calico-node", true),
        (7, "calico-node", true),
        (8, "flanneld", false),
        (9, "sleep", true),
        (10, "k3s-server", true),
    ]);
    let found = processes::running(root.path(), u64::MAX).unwrap().agents().unwrap();
    let found: Vec<_> = found.iter().map(|a| (a.kind, a.name.as_str(), a.pid)).collect();
    assert_eq!(
        found,
        [(AgentKind::Of(Plugin::Calico), "calico-node", 7), (AgentKind::K3s, "k3s-server", 10)]
    );
}

#[test]
fn where_others_processes_are_hidden_nobody_is_said_to_be_away() {
    let root = machine(&[(7, "calico-node", true)]);
    fs::remove_dir_all(root.path().join("1")).unwrap();
    assert_eq!(processes::running(root.path(), u64::MAX).unwrap(), Looked::Hidden);
}

#[test]
fn this_machines_processes_can_be_read() {
    // A process of our own with an agent's name, and so in this namespace.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("kube-router");
    symlink("/bin/sleep", &program).unwrap();
    let mut child = std::process::Command::new(program).arg("60").spawn().unwrap();
    // Spawning may return a moment before the new name is in force: execve(2)
    // lets the parent go on once its memory is its own again (begin_new_exec).
    let began = clock::mono();
    let is_found =
        |found: &[CniAgent]| found.iter().any(|it| it.kind == AgentKind::Of(Plugin::KubeRouter));
    let found = loop {
        let found = processes::running(Path::new("/proc"), u64::MAX).unwrap().agents().unwrap();
        if is_found(&found) || clock::mono().since(began) > 10 * SECOND {
            break found;
        }
        thread::sleep(Duration::from_millis(5));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_found(&found), "{found:?}");
}

#[test]
fn too_many_processes_are_a_gap_and_no_empty_list() {
    let many: Vec<_> = (100..200).map(|pid| (pid, "sleep", true)).collect();
    let root = machine(&many);
    assert_eq!(processes::running(root.path(), 0).unwrap(), Looked::GaveUp);
    assert_eq!(processes::running(root.path(), u64::MAX).unwrap(), Looked::Agents(Vec::new()));
}

#[test]
fn processes_that_take_long_are_looked_at_seldom() {
    assert_eq!(rest(1_000_000), PROCESSES_EVERY);
    assert_eq!(rest(60_000_000), Duration::from_secs(60));
    assert_eq!(rest(u64::MAX), PROCESSES_LONGEST);
}

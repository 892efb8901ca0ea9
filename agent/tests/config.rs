//! The configuration file and the peers file, as an operator meets them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy.toml exempts test functions, and this spares their helpers too"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use overlaywatch::cli::NodeArgs;
use overlaywatch::config::{
    Config, LogFormat, LogLevel, follow_peers, parse_peers, read_peers_file,
};
use overlaywatch_core::assembly::{SourceId, SourceReport, Update};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::fact::Gap;
use overlaywatch_core::model::PeerListEntry;
use overlaywatch_core::policy::Policy;
use tokio::sync::mpsc::{self, Receiver};

/// Far more than a change takes that an event tells of, and less than the
/// recheck that would hide a missing one.
const EVENT: Duration = Duration::from_secs(8);
/// More than the recheck.
const RECHECK: Duration = Duration::from_secs(15);

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/overlaywatch.toml");

fn parse(text: &str) -> Config {
    Config::parse(Path::new("o.toml"), text).unwrap()
}

fn mistake(text: &str) -> String {
    let message = Config::parse(Path::new("o.toml"), text).unwrap_err().to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    message
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = parse("");
    assert_eq!(config.listen, "0.0.0.0:9977".parse().unwrap());
    assert_eq!(config.probe_port, 9977);
    assert_eq!(config.policy(), Policy::default());
    assert!(SourceId::ALL.into_iter().all(|source| config.is_enabled(source)));
    assert_eq!(config.http.max_connections, 64);
}

#[test]
fn the_example_shows_the_defaults() {
    let mut example = Config::read(Path::new(EXAMPLE)).unwrap();
    example.file = None;
    assert_eq!(example, parse(""));
    // What is commented out must be right as well.
    let text = fs::read_to_string(EXAMPLE).unwrap();
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest.to_owned(),
        _ => line.to_owned(),
    };
    let config = parse(&text.lines().map(uncommented).collect::<Vec<_>>().join("\n"));
    assert_eq!(config.node.unwrap().as_str(), "node-a");
    assert_eq!(config.peers.len(), 1);
    assert!(config.peers_file.is_some());
}

#[test]
fn every_key_is_taken() {
    let config = parse(
        r#"
        node = "n"
        listen = "[::1]:1"
        peers_file = "/p"
        forget_departed_seconds = 5
        silence = ["peer-departed"]
        peers = [{ address = "10.0.0.2", name = "b", overlay = "10.42.1.0" }]
        [probe]
        port = 7
        probes_per_second = 8
        [sources]
        procfs = false
        probe = false
        [host]
        root = "/host"
        [log]
        level = "debug"
        format = "json"
        [http]
        max_connections = 3
        read_timeout_seconds = 4
        [preflight]
        serve = true
        port = 9
        "#,
    );
    assert_eq!(config.preflight_port, Some(9));
    assert_eq!(parse("[preflight]\nserve = false").preflight_port, None);
    assert_eq!(config.node.as_ref().unwrap().as_str(), "n");
    assert_eq!(config.listen, "[::1]:1".parse().unwrap());
    assert_eq!((config.probe_port, config.probes_per_second), (7, 8));
    assert_eq!(config.disabled, [SourceId::Procfs, SourceId::Probe].into());
    assert_eq!(config.host_root.to_str(), Some("/host"));
    assert_eq!((config.log.level, config.log.format), (LogLevel::Debug, LogFormat::Json));
    assert_eq!(config.http.max_connections, 3);
    assert_eq!(config.http.read_timeout, Duration::from_secs(4));
    let policy = config.policy();
    assert_eq!((policy.forget_departed_seconds, policy.probes_per_second), (5, 8));
    let peer = PeerListEntry {
        address: [10, 0, 0, 2].into(),
        name: Some("b".parse().unwrap()),
        overlay: Some([10, 42, 1, 0].into()),
    };
    assert_eq!(policy.peers, [peer]);
    assert_eq!(policy.silenced, [Code::PeerDeparted].into());
}

#[test]
fn the_command_line_outranks_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("o.toml");
    fs::write(&path, "node = \"file\"\nlisten = \"1.2.3.4:5\"\npeers_file = \"f\"").unwrap();
    let mut args = NodeArgs { config: Some(path.clone()), ..NodeArgs::default() };
    let config = Config::load(&args).unwrap();
    assert_eq!(config.node.as_ref().unwrap().as_str(), "file");
    assert_eq!(config.file.as_ref(), Some(&path));
    args.node = Some("option".parse().unwrap());
    args.listen = Some("127.0.0.1:1".parse().unwrap());
    args.peers = Some("g".into());
    let config = Config::load(&args).unwrap();
    assert_eq!(config.node.unwrap().as_str(), "option");
    assert_eq!(config.listen, "127.0.0.1:1".parse().unwrap());
    assert_eq!(config.peers_file.unwrap().to_str(), Some("g"));
}

#[test]
fn mistakes_name_place_key_and_remedy() {
    insta::assert_snapshot!(mistake("listne = \"0.0.0.0:1\""), @"o.toml:1:1: unknown key `listne`; did you mean `listen`?");
    insta::assert_snapshot!(mistake("\n[probe]\n  prot = 9977"), @"o.toml:3:3: unknown key `prot`; did you mean `port`?");
    insta::assert_snapshot!(mistake("[log]\nqqqqqq = 1"), @"o.toml:2:1: unknown key `qqqqqq`; known here: level, format");
    insta::assert_snapshot!(mistake("listen = 9977"), @r#"o.toml:1:10: `listen`: invalid type: integer `9977`, expected socket address; give an address and a port, e.g. "0.0.0.0:9977" or "[::]:9977""#);
    insta::assert_snapshot!(mistake("listen = \"9977\""), @r#"o.toml:1:10: `listen`: invalid socket address syntax; give an address and a port, e.g. "0.0.0.0:9977" or "[::]:9977""#);
    insta::assert_snapshot!(mistake("[probe]\nprobes_per_second = 0"), @"o.toml:2:21: `probe.probes_per_second`: 0 is not within 1 to 1000");
    insta::assert_snapshot!(mistake("[log]\nlevel = \"loud\""), @"o.toml:2:9: `log.level`: unknown variant `loud`, expected one of `error`, `warn`, `info`, `debug`, `trace`");
    insta::assert_snapshot!(mistake("node = \"a b\""), @r#"o.toml:1:8: `node`: `a b` cannot be a node's name: 1 to 253 bytes without control characters or spaces; give a name, e.g. "node-a""#);
    insta::assert_snapshot!(mistake("[[peers]]\nname = \"b\""), @"o.toml:1:1: missing field `address`");
    insta::assert_snapshot!(mistake("[[peers]]\naddress = \"node-b\""), @r#"o.toml:2:11: `peers.address`: invalid IP address syntax; give an IP address, e.g. "10.0.0.2""#);
    insta::assert_snapshot!(mistake("[[peers]]\naddress = \"::\""), @"o.toml:1:1: `peers.address`: :: cannot be a node's address; give its underlay address");
    let twice = "[[peers]]\naddress = \"10.0.0.2\"\n[[peers]]\naddress = \"::ffff:10.0.0.2\"";
    insta::assert_snapshot!(mistake(twice), @"o.toml:3:1: `peers.address`: 10.0.0.2 is listed twice; keep one of the two sections");
    insta::assert_snapshot!(mistake("node = \"a\"\nnode = \"b\""), @"o.toml:2:1: `node`: duplicate key; keep one of the two");
    insta::assert_snapshot!(mistake("node = \"a"), @r#"o.toml:1:10: `node`: invalid basic string, expected `"`; give a name, e.g. "node-a""#);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.toml");
    let message = |path: &Path| {
        let args = NodeArgs { config: Some(path.to_owned()), ..NodeArgs::default() };
        Config::load(&args).unwrap_err().to_string()
    };
    let said = message(&missing);
    assert!(said.starts_with(&format!("{}: cannot be read", missing.display())), "{said}");
    assert!(said.contains("--config"), "{said}");
    assert!(message(directory.path()).contains("cannot be read"));
    let binary = directory.path().join("binary.toml");
    fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(message(&binary).contains("not UTF-8"));
    let huge = directory.path().join("huge.toml");
    fs::write(&huge, " ".repeat((1 << 20) + 1)).unwrap();
    assert!(message(&huge).contains("larger than"));
}

fn entry(address: &str, name: Option<&str>, overlay: Option<&str>) -> PeerListEntry {
    PeerListEntry {
        address: address.parse().unwrap(),
        name: name.map(|name| name.parse().unwrap()),
        overlay: overlay.map(|overlay| overlay.parse().unwrap()),
    }
}

#[test]
fn peers_are_read_as_prometheus_writes_them() {
    let list = |text: &str| parse_peers(Path::new("p.json"), text.as_bytes()).unwrap();
    assert_eq!(list("[]"), []);
    let text = r#"[
        {"targets": ["10.0.0.3:9977", "10.0.0.3"], "labels": {"job": "x", "nodename": "c"}},
        {"targets": ["[2001:db8::2]:9977"], "labels": {"name": "n", "node": "v6"}},
        {"targets": ["10.0.0.2"], "labels": {"name": "b", "overlay": "10.42.1.0"}},
        {"targets": ["10.0.0.4", "10.0.0.5:9100"]},
        {"targets": ["10.0.0.4:1"], "labels": {"node": "d", "__meta_x": "y"}}
    ]"#;
    let expected = [
        entry("10.0.0.2", Some("b"), Some("10.42.1.0")),
        entry("10.0.0.3", Some("c"), None),
        entry("10.0.0.4", Some("d"), None),
        entry("10.0.0.5", None, None),
        entry("2001:db8::2", Some("v6"), None),
    ];
    assert_eq!(list(text), expected);
}

#[test]
fn mistakes_in_the_peers_file_name_the_line() {
    let mistake = |text: &str| {
        let message = parse_peers(Path::new("p.json"), text.as_bytes()).unwrap_err().to_string();
        let shape = r#"; a peers file looks like [{"targets": ["10.0.0.2"], "labels": {"node": "node-b"}}]"#;
        message.strip_suffix(shape).expect(&message).to_owned()
    };
    insta::assert_snapshot!(mistake(""), @"p.json:1:1: EOF while parsing a value");
    insta::assert_snapshot!(mistake("{}"), @"p.json:1:1: invalid type: map, expected a list of target groups");
    insta::assert_snapshot!(mistake("[\n {\"targets\": [\"node-b:9977\"]}\n]"), @"p.json:2:27: `node-b:9977` is not an address: write 10.0.0.2, 10.0.0.2:9977 or [2001:db8::2]:9977");
    insta::assert_snapshot!(mistake("[{\"target\": []}]"), @"p.json:1:10: unknown field `target`, expected `targets` or `labels`");
    insta::assert_snapshot!(mistake("[{\"targets\": [\"0.0.0.0\"]}]"), @"p.json:1:23: 0.0.0.0 cannot be a node's address; give its underlay address");
    insta::assert_snapshot!(mistake("[{\"targets\": [\"10.0.0.2\"], \"labels\": {\"overlay\": \"x\"}}]"), @"p.json:1:52: invalid IP address syntax");
    insta::assert_snapshot!(mistake("[{\"targets\": [\"10.0.0.2\"], \"labels\": {\"node\": \"\\u001b\"}}]"), @r#"p.json:1:55: `\u{1b}` cannot be a node's name: 1 to 253 bytes without control characters or spaces"#);
    insta::assert_snapshot!(mistake("[{\"targets\": [\"10.0.0.2\", \"10.0.0.3\"], \"labels\": {\"node\": \"b\"}}]"), @"p.json:1:64: one name or overlay address for several nodes: give each node a group of its own");
    let two = r#"[{"targets": ["10.0.0.2"], "labels": {"node": "b"}},
        {"targets": ["10.0.0.2"], "labels": {"node": "c"}}]"#;
    insta::assert_snapshot!(mistake(two), @"p.json:2:59: 10.0.0.2 has the name `b` and the name `c`: keep the right one");
    let many: Vec<String> =
        (0..=10_000).map(|n| format!("\"10.1.{}.{}\"", n / 256, n % 256)).collect();
    let many = format!("[{{\"targets\": [{}]}}]", many.join(","));
    assert!(mistake(&many).ends_with("more than 10000 nodes"));
}

#[test]
fn only_regular_files_of_a_list_s_size_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let said = read_peers_file(directory.path()).unwrap_err().to_string();
    assert!(said.contains("not a regular file"), "{said}");
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(read_peers_file(&pipe).unwrap_err().to_string().contains("not a regular file"));
    let huge = directory.path().join("huge");
    fs::File::create(&huge).unwrap().set_len((16 << 20) + 1).unwrap();
    assert!(read_peers_file(&huge).unwrap_err().to_string().contains("larger than"));
}

/// What the follower told next: a list if it is a good one, and the report.
async fn told(
    updates: &mut Receiver<Update>,
    patience: Duration,
) -> (Option<Vec<PeerListEntry>>, SourceReport) {
    let told = async {
        let mut list = None;
        loop {
            match updates.recv().await.expect("the follower lives") {
                Update::PeersFile(peers) => list = peers,
                Update::Source(report) => return (list, report),
                other => panic!("not of the peers file: {other:?}"),
            }
        }
    };
    tokio::time::timeout(patience, told).await.expect("the change was not noticed")
}

/// The next reading that found exactly these addresses.
async fn wait_for(updates: &mut Receiver<Update>, patience: Duration, addresses: &[&str]) {
    let addresses: Vec<_> = addresses.iter().map(|text| entry(text, None, None)).collect();
    loop {
        let (list, report) = told(updates, patience).await;
        assert_eq!(report.source, SourceId::Peers);
        if list.is_some_and(|list| list == addresses) {
            assert_eq!(report.gap, None);
            return;
        }
    }
}

fn follow(path: &Path) -> Receiver<Update> {
    let (sender, updates) = mpsc::channel(16);
    tokio::spawn(follow_peers(path.to_owned(), sender));
    updates
}

const ONE: &str = r#"[{"targets": ["10.0.0.1"]}]"#;
const TWO: &str = r#"[{"targets": ["10.0.0.1", "10.0.0.2"]}]"#;

#[tokio::test]
async fn a_file_renamed_over_or_written_in_place_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("peers.json");
    fs::write(&path, ONE).unwrap();
    let mut updates = follow(&path);
    wait_for(&mut updates, EVENT, &["10.0.0.1"]).await;
    let new = directory.path().join("peers.json.new");
    fs::write(&new, TWO).unwrap();
    fs::rename(&new, &path).unwrap();
    wait_for(&mut updates, EVENT, &["10.0.0.1", "10.0.0.2"]).await;
    fs::write(&path, ONE).unwrap();
    wait_for(&mut updates, EVENT, &["10.0.0.1"]).await;
}

#[tokio::test]
async fn a_configmap_s_link_swap_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, text) in [("..1", ONE), ("..2", TWO)] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("peers.json"), text).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/peers.json", at("peers.json")).unwrap();
    let mut updates = follow(&at("peers.json"));
    wait_for(&mut updates, EVENT, &["10.0.0.1"]).await;
    // As kubelet does it (pkg/volume/util/atomic_writer.go).
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    wait_for(&mut updates, EVENT, &["10.0.0.1", "10.0.0.2"]).await;
}

#[tokio::test]
async fn a_bad_file_keeps_the_old_list_and_leaves_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("peers.json");
    fs::write(&path, ONE).unwrap();
    let mut updates = follow(&path);
    wait_for(&mut updates, EVENT, &["10.0.0.1"]).await;
    let new = directory.path().join("new");
    fs::write(&new, "[\n{").unwrap();
    fs::rename(&new, &path).unwrap();
    let (list, report) = told(&mut updates, EVENT).await;
    assert_eq!((list, report.gap), (None, Some(Gap::Failed)));
    assert!(report.detail.starts_with(&format!("{}:2:", path.display())), "{}", report.detail);
    fs::remove_file(&path).unwrap();
    let (list, report) = told(&mut updates, EVENT).await;
    assert_eq!((list, report.gap), (None, Some(Gap::Failed)));
    assert!(report.detail.contains("cannot be read"), "{}", report.detail);
    fs::write(&path, TWO).unwrap();
    wait_for(&mut updates, EVENT, &["10.0.0.1", "10.0.0.2"]).await;
}

#[tokio::test]
async fn a_change_behind_a_link_is_noticed_without_an_event() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let real = elsewhere.path().join("real.json");
    fs::write(&real, ONE).unwrap();
    let path = directory.path().join("peers.json");
    symlink(&real, &path).unwrap();
    let mut updates = follow(&path);
    wait_for(&mut updates, EVENT, &["10.0.0.1"]).await;
    fs::write(&real, TWO).unwrap();
    wait_for(&mut updates, RECHECK, &["10.0.0.1", "10.0.0.2"]).await;
}

#[tokio::test]
async fn the_follower_ends_with_its_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("peers.json");
    fs::write(&path, ONE).unwrap();
    let (sender, mut updates) = mpsc::channel(16);
    let follower = tokio::spawn(follow_peers(path, sender));
    wait_for(&mut updates, EVENT, &["10.0.0.1"]).await;
    drop(updates);
    tokio::time::timeout(EVENT, follower).await.expect("it goes on").unwrap();
}

//! One-shot commands against real agents' answers and files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy.toml exempts test functions, and this spares their helpers too"
)]

mod http_fixture;

use std::net::TcpListener;
use std::path::PathBuf;

use http_fixture::{Fate, Server, snapshot};
use overlaywatch::cli::{
    Command, CompletionsArgs, Exit, ExplainArgs, Output, OutputArgs, ReplayArgs, SnapshotArgs,
    StatusArgs, description, parse_from,
};
use overlaywatch::oneshot;
use overlaywatch::serve::Limits;
use overlaywatch::serve::text::Paint;
use overlaywatch_core::catalog::CATALOG;
use overlaywatch_core::record::Recording;
use serde_json::Value;

const TEXT: OutputArgs = OutputArgs { format: Output::Text };
const JSON: OutputArgs = OutputArgs { format: Output::Json };

/// The end of `status` of an agent, and what it printed.
async fn status(url: String, output: OutputArgs, paint: Paint) -> Result<(Exit, String), String> {
    let mut out = Vec::new();
    let exit = oneshot::status(&StatusArgs { url, output }, paint, &mut out).await;
    let exit = exit.map_err(|error| error.to_string())?;
    Ok((exit, String::from_utf8(out).unwrap()))
}

#[tokio::test]
async fn status_draws_the_peers() {
    let server = Server::of(&[Fate::Healthy, Fate::DeadOutbound, Fate::Unproved]).await;
    let url = server.address.to_string();
    let (exit, text) = status(url.clone(), TEXT, Paint::Plain).await.unwrap();
    assert_eq!(exit, Exit::Problem);
    assert!(text.starts_with("FAIL  node-a: VXLAN (udp 8472) to node-c does not"), "{text}");
    let table = text.split("\n\n").last().unwrap();
    insta::assert_snapshot!(table, @r"
    PEER               UNDERLAY  OVERLAY  LOSS     RTT       VERDICT
    node-c (10.0.0.3)  ok        dead     100.0 %  -         broken
    node-d (10.0.0.4)  -         -        -        -         unknown
    node-b (10.0.0.2)  ok        ok       0.0 %    0.250 ms  healthy
    ");
    let (_, coloured) = status(url.clone(), TEXT, Paint::Colour).await.unwrap();
    assert!(coloured.contains("\x1b[1;31m"), "{coloured}");
    let (exit, json) = status(url, JSON, Paint::Plain).await.unwrap();
    assert_eq!(exit, Exit::Problem);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["health"]["status"], "fail");
    assert_eq!(json["report"]["peers"][1]["state"], "broken");
}

#[tokio::test]
async fn a_healthy_agent_is_fine_and_a_starting_one_cannot_tell() {
    let server = Server::of(&[Fate::Healthy]).await;
    let (exit, _) = status(server.address.to_string(), TEXT, Paint::Plain).await.unwrap();
    assert_eq!(exit, Exit::Fine);
    let server = Server::start(Limits::default()).await;
    let (exit, text) = status(server.address.to_string(), TEXT, Paint::Plain).await.unwrap();
    assert_eq!(exit, Exit::ToolFailed);
    assert!(text.starts_with("UNKNOWN  the agent is starting"), "{text}");
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_named_with_the_remedy() {
    // Bound and closed again: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = status(free.to_string(), TEXT, Paint::Plain).await.unwrap_err();
    assert!(error.starts_with(&format!("no agent answers at http://{free}: ")), "{error}");
    assert!(error.contains("systemctl status overlaywatch"), "{error}");
    let error = status("ftp://x".to_owned(), TEXT, Paint::Plain).await.unwrap_err();
    assert!(error.contains("is not an http:// URL"), "{error}");
    // Something that is no HTTP server: it hangs up at once.
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    tokio::spawn(async move { drop(other.accept().await) });
    let error = status(address.to_string(), TEXT, Paint::Plain).await.unwrap_err();
    assert!(error.contains("did not answer in HTTP"), "{error}");
}

#[tokio::test]
async fn a_snapshot_can_be_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node-a.json");
    let server = Server::of(&[Fate::Healthy, Fate::DeadOutbound]).await;
    let url = server.address.to_string();
    let args = SnapshotArgs { url: url.clone(), output: Some(path.clone()) };
    let mut out = Vec::new();
    assert_eq!(oneshot::snapshot(&args, &mut out).await.unwrap(), Exit::Fine);
    assert!(out.is_empty());
    let (exit, text) = replay(vec![path.clone()], TEXT).unwrap();
    assert_eq!(exit, Exit::Problem);
    assert!(text.starts_with("FAIL  node-a: VXLAN (udp 8472) to node-c"), "{text}");
    // To the standard output the same bytes go.
    oneshot::snapshot(&SnapshotArgs { url, output: None }, &mut out).await.unwrap();
    assert_eq!(out, std::fs::read(&path).unwrap());
}

fn replay(files: Vec<PathBuf>, output: OutputArgs) -> Result<(Exit, String), String> {
    let mut out = Vec::new();
    let exit = oneshot::replay(&ReplayArgs { files, config: None, output }, Paint::Plain, &mut out);
    let exit = exit.map_err(|error| error.to_string())?;
    Ok((exit, String::from_utf8(out).unwrap()))
}

#[test]
fn the_worst_of_several_recordings_is_the_exit() {
    let directory = tempfile::tempdir().unwrap();
    let record = |name: &str, fates: &[Fate]| {
        let path = directory.path().join(name);
        let text = Recording::new(None, &snapshot(fates)).to_json().unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    let good = record("good.json", &[Fate::Healthy]);
    let bad = record("bad.json", &[Fate::DeadOutbound]);
    assert_eq!(replay(vec![good.clone()], TEXT).unwrap().0, Exit::Fine);
    let (exit, json) = replay(vec![bad.clone(), good.clone()], JSON).unwrap();
    assert_eq!(exit, Exit::Problem);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["health"]["findings"][0]["code"], "encapsulation-lost");
    assert_eq!(json[1]["health"]["status"], "pass");
    let (_, text) = replay(vec![bad, good.clone()], TEXT).unwrap();
    assert!(text.contains(&format!("== {}\nPASS  ", good.display())), "{text}");

    let broken = directory.path().join("broken.json");
    std::fs::write(&broken, "{}").unwrap();
    let error = replay(vec![broken.clone()], TEXT).unwrap_err();
    assert!(error.starts_with(&format!("{}: not a recording", broken.display())), "{error}");
    std::fs::write(&broken, r#"{"version": 99}"#).unwrap();
    assert!(replay(vec![broken], TEXT).unwrap_err().contains("version 99"));
    let error = replay(vec![directory.path().join("none.json")], TEXT).unwrap_err();
    assert!(error.contains("cannot be read"), "{error}");
}

fn explain(code: Option<&str>, output: OutputArgs) -> Result<String, String> {
    let mut out = Vec::new();
    let args = ExplainArgs { code: code.map(str::to_owned), output };
    oneshot::explain(&args, Paint::Plain, &mut out).map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn every_code_is_explained() {
    let all = explain(None, TEXT).unwrap();
    for entry in CATALOG {
        assert!(all.contains(entry.slug), "{}", entry.slug);
        let one = explain(Some(entry.slug), TEXT).unwrap();
        assert!(one.starts_with(&format!("{} (", entry.slug)), "{one}");
        assert!(!one.contains('{'), "a placeholder: {one}");
        assert!(one.lines().all(|line| line.chars().count() <= 100), "{one}");
    }
    let json: Value = serde_json::from_str(&explain(None, JSON).unwrap()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), CATALOG.len());
    insta::assert_snapshot!(explain(Some("peer-unreachable"), TEXT).unwrap(), @r"
    peer-unreachable (critical): nothing of the peer answers

    What it means
      Neither the peer's agent nor its kernel answers, with or without encapsulation; other
      peers do.

    What to do
      If the evidence says that this host's kernel refused to send, see `ip route get
      ADDRESS` and `ip rule`. Else see whether PEER is powered on and its NIC is up; then
      the network between the two nodes.

    When
      Raised when two observations agree and it has lasted 0.5 s; cleared when it has been
      gone for 30 s.

    Explained by
      underlay-link-down, node-isolated

    Explains
      remote-tunnel-down, vni-mismatch, vxlan-port-mismatch, stale-vtep-mac, fdb-missing,
      fdb-misdirected, vtep-neighbour-missing, route-missing, route-blackhole,
      route-bypasses-tunnel, local-output-drop, encapsulation-lost, overlay-loss,
      underlay-loss, mtu-blackhole, agent-silent, probe-port-filtered,
      encapsulation-refused, unexplained-loss, policy-rule-diverts, leftover-route,
      host-source-without-tunnel-address, bgp-session-down, tunnel-address-duplicate
    ");
}

#[test]
fn an_unknown_code_suggests_the_nearest() {
    let error = explain(Some("encapsulaton-lost"), TEXT).unwrap_err();
    assert_eq!(
        error,
        "no verdict has the code `encapsulaton-lost`; did you mean `encapsulation-lost`?"
    );
    let error = explain(Some("xyz"), TEXT).unwrap_err();
    assert!(error.ends_with("`overlaywatch explain` lists all"), "{error}");
}

#[test]
fn help_leads_a_newcomer() {
    let help = |line: &[&str]| parse_from(line).unwrap_err().to_string();
    let top = help(&["overlaywatch", "--help"]);
    for command in description().get_subcommands() {
        let name = command.get_name();
        assert!(top.contains(name), "{name}");
        let text = help(&["overlaywatch", name, "--help"]);
        assert!(text.contains("Example"), "{name}: {text}");
    }
    assert!(top.contains("Exit codes: 0 all is well"), "{top}");
    // clap's own suggestion for a mistyped command.
    assert!(help(&["overlaywatch", "statsu"]).contains("status"));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let line = ["overlaywatch", "completions", shell];
        let Ok(Command::Completions(CompletionsArgs { shell })) = parse_from(line) else {
            panic!("not completions")
        };
        let mut out = Vec::new();
        let args = CompletionsArgs { shell };
        assert_eq!(oneshot::completions(&args, &mut out).unwrap(), Exit::Fine);
        assert!(String::from_utf8(out).unwrap().contains("explain"), "{shell}");
    }
}

#[test]
fn a_reader_that_left_is_no_failure() {
    struct Gone;
    impl std::io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for output in [TEXT, JSON] {
        let args = ExplainArgs { code: None, output };
        let error = oneshot::explain(&args, Paint::Plain, &mut Gone).unwrap_err();
        assert!(error.is_broken_pipe(), "{error}");
    }
    let unknown = ExplainArgs { code: Some("x".to_owned()), output: TEXT };
    assert!(!oneshot::explain(&unknown, Paint::Plain, &mut Gone).unwrap_err().is_broken_pipe());
}

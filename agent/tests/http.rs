//! The HTTP interface over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy.toml exempts test functions, and this spares their helpers too"
)]

mod http_fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use http_fixture::{Fate, Server, published, snapshot};
use overlaywatch::serve::metrics::{ALL, PEER_SERIES};
use overlaywatch::serve::{self, Limits};
use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::record::Recording;
use overlaywatch_core::report::NodeReport;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing on the loopback takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends `bytes` and gives everything that comes back until the server closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before it has read all of it: that is its right.
    let _ = stream.write_all(bytes).await;
    until_closed(&mut stream).await
}

async fn until_closed(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // A reset after the answer is an end too.
    let _ = read.expect("the server keeps the connection open");
    String::from_utf8(answer).unwrap()
}

/// Status, head and body of one request.
async fn ask(server: &Server, method: &str, path: &str, headers: &str) -> (u16, String, String) {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
    let answer = exchange(server.address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer in HTTP");
    (status(head), head.to_lowercase(), body.to_owned())
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).expect("a status line").parse().unwrap()
}

async fn get(server: &Server, path: &str) -> (u16, String) {
    let (status, _, body) = ask(server, "GET", path, "").await;
    (status, body)
}

#[tokio::test]
async fn liveness_and_readiness_never_depend_on_peers() {
    let server = Server::start(Limits::default()).await;
    assert_eq!(get(&server, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(get(&server, "/-/healthy").await.0, 200);
    assert_eq!(get(&server, "/readyz").await.0, 503);
    assert_eq!(get(&server, "/-/ready").await.0, 503);
    let (status, body) = get(&server, "/health").await;
    assert_eq!(status, 200, "not yet known is not broken");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["status"], "unknown");
    assert_eq!(get(&server, "/v1/report").await.0, 503);
    assert_eq!(get(&server, "/v1/snapshot").await.0, 503);
    assert!(get(&server, "/metrics").await.1.contains("overlaywatch_build_info"));

    server.publish.send_replace(Some(published(1, snapshot(&[Fate::DeadOutbound; 3]))));
    assert_eq!(get(&server, "/health").await.0, 503);
    for path in ["/livez", "/readyz", "/-/healthy", "/-/ready"] {
        assert_eq!(get(&server, path).await, (200, "ok\n".to_owned()), "{path}");
    }
    let verbose = "[+] http\n[+] first observation\nobservations so far: 1\nok\n";
    assert_eq!(get(&server, "/readyz?verbose").await, (200, verbose.to_owned()));
}

#[tokio::test]
async fn health_is_json_by_the_contract() {
    let server = Server::of(&[Fate::DeadOutbound, Fate::DeadOutbound, Fate::Healthy]).await;
    let (status, head, body) = ask(&server, "GET", "/health", "Accept: */*\r\n").await;
    assert_eq!(status, 503);
    assert!(head.contains("content-type: application/json"));
    let health: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        health["summary"],
        "node-a: VXLAN (udp 8472) to node-b and node-c does not get through outbound; \
         underlay is fine"
    );
    insta::assert_snapshot!(serde_json::to_string_pretty(&health["findings"][0]).unwrap(), @r#"
    {
      "code": "encapsulation-lost",
      "confidence": "high",
      "evidence": [
        {
          "inbound": 0,
          "kind": "lost",
          "of": 12,
          "outbound": 12,
          "seconds": 3,
          "stream": {
            "small": "vxlan/8472"
          },
          "text": "12 of 12 small vxlan/8472 probes lost in 3 s, 12 never reached the peer",
          "undetermined": 0
        },
        {
          "count": 60,
          "kind": "answered",
          "stream": "underlay",
          "text": "60 underlay probes answered meanwhile"
        }
      ],
      "hop": {
        "from": "sent",
        "to": "delivered"
      },
      "id": "encapsulation-lost:node-a:10.0.0.2:vxlan/8472",
      "remedy": "Allow the encapsulation (VXLAN, UDP port 8472) between the nodes, both ways: cloud firewall or security group, host firewall on node-b (input), and NSX/ESXi which claims VXLAN ports for itself. If pods still reach each other, only the probes' UDP 9977 is filtered inside the tunnel.",
      "severity": "critical",
      "since": "2026-01-02T03:04:05.000Z",
      "subject": {
        "address": "10.0.0.2",
        "device": "flannel.1",
        "direction": "outbound",
        "encapsulation": "vxlan/8472",
        "kind": "pair",
        "node": "node-b"
      },
      "title": "the encapsulation does not get through"
    }
    "#);
    assert_eq!(health["node"], "node-a");
    assert_eq!(health["status"], "fail");
    assert_eq!(health["since"], "2026-01-02T03:04:05.000Z");
    assert_eq!(
        health["peers"],
        serde_json::json!({
            "expected": 3, "healthy": 1, "degraded": 0, "broken": 2, "unknown": 0
        })
    );
    assert_eq!(health["gaps"], serde_json::json!([]));
}

#[tokio::test]
async fn health_is_text_for_people() {
    let server = Server::of(&[Fate::DeadOutbound, Fate::Healthy]).await;
    let (status, head, body) = ask(&server, "GET", "/health", "Accept: text/plain\r\n").await;
    assert_eq!(status, 503);
    assert!(head.contains("content-type: text/plain"));
    insta::assert_snapshot!(body, @r#"
    FAIL  node-a: VXLAN (udp 8472) to node-b does not get through outbound; underlay is fine
    since 2026-01-02T03:04:05Z (0 s)
    peers: 2 expected, 1 healthy, 0 degraded, 1 broken, 0 unknown

    1. critical encapsulation-lost: the encapsulation does not get through
       where     node-a -> node-b (10.0.0.2), VXLAN (udp 8472), device flannel.1
       hop       lost between sent and delivered
       evidence  12 of 12 small vxlan/8472 probes lost in 3 s, 12 never reached the peer
                 60 underlay probes answered meanwhile
       since     2026-01-02T03:04:05Z (0 s); high confidence
       remedy    Allow the encapsulation (VXLAN, UDP port 8472) between the nodes, both ways: cloud
                 firewall or security group, host firewall on node-b (input), and NSX/ESXi which claims
                 VXLAN ports for itself. If pods still reach each other, only the probes' UDP 9977 is
                 filtered inside the tunnel.
    "#);
}

#[tokio::test]
async fn a_healthy_node_says_what_was_proved() {
    let server = Server::of(&[Fate::Healthy, Fate::Healthy]).await;
    let (status, _, body) = ask(&server, "GET", "/health", "Accept: text/plain\r\n").await;
    assert_eq!(status, 200);
    insta::assert_snapshot!(body, @r#"
    PASS  node-a: both peers can be reached through VXLAN (udp 8472) and the underlay
    since 2026-01-02T03:04:05Z (0 s)
    peers: 2 expected, 2 healthy, 0 degraded, 0 broken, 0 unknown
    "#);
    let server = Server::of(&[Fate::Healthy, Fate::Unproved]).await;
    let (status, _, body) = ask(&server, "GET", "/health", "Accept: text/plain\r\n").await;
    assert_eq!(status, 200);
    insta::assert_snapshot!(body, @r#"
    UNKNOWN  node-a: nothing is known to be wrong; the way to node-c is not proved yet
    since 2026-01-02T03:04:05Z (0 s)
    peers: 2 expected, 1 healthy, 0 degraded, 0 broken, 1 unknown
    "#);
}

#[tokio::test]
async fn consequences_stand_below_their_cause() {
    let mut node = snapshot(&[Fate::DeadOutbound, Fate::DeadOutbound]);
    // The tunnel device is switched off: everything else follows.
    let tunnels = vec![overlaywatch_core::model::Tunnel {
        up: false,
        ..node.tunnels.seen().unwrap()[0].clone()
    }];
    node.tunnels = overlaywatch_core::fact::Fact::Seen {
        value: std::sync::Arc::new(tunnels),
        at: node.now.mono,
    };
    let server = Server::start(Limits::default()).await;
    server.publish.send_replace(Some(published(1, node)));
    let health: Value = serde_json::from_str(&get(&server, "/health").await.1).unwrap();
    let findings = health["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0]["code"], "tunnel-down");
    assert_eq!(findings[0]["subject"]["device"], "flannel.1");
    let below = findings[0]["consequences"].as_array().unwrap();
    assert!(below.iter().any(|finding| finding["code"] == "encapsulation-lost"));
    assert_eq!(health["omitted"], 0);
    let text = ask(&server, "GET", "/health", "Accept: text/plain\r\n").await.2;
    assert!(text.contains("explains  encapsulation-lost (node-b and node-c)"), "{text}");
    assert!(health["summary"].as_str().unwrap().ends_with("flannel.1: tunnel device is down"));
}

#[tokio::test]
async fn a_thousand_findings_are_not_all_listed() {
    let server = Server::of(&[Fate::DeadOutbound; 1_000]).await;
    let health: Value = serde_json::from_str(&get(&server, "/health").await.1).unwrap();
    assert_eq!(health["findings"].as_array().unwrap().len(), 200);
    assert_eq!(health["omitted"], 800);
    assert_eq!(health["peers"]["broken"], 1_000);
    let text = ask(&server, "GET", "/health", "Accept: text/plain\r\n").await.2;
    assert!(text.starts_with(
        "FAIL  node-a: VXLAN (udp 8472) to node-b, node-c, node-d and 997 more does not get \
         through outbound; underlay is fine\n"
    ));
    assert!(text.ends_with("\n980 more findings: /health has some as JSON, /v1/report all\n"));
}

#[tokio::test]
async fn report_and_snapshot_can_be_read_back() {
    let server = Server::of(&[Fate::Healthy, Fate::DeadOutbound]).await;
    let (status, body) = get(&server, "/v1/report").await;
    assert_eq!(status, 200);
    let report: NodeReport = serde_json::from_str(&body).unwrap();
    assert_eq!(report.peers.len(), 2);
    let (status, body) = get(&server, "/v1/snapshot").await;
    assert_eq!(status, 200);
    assert_eq!(Recording::from_json(&body).unwrap().now.peers.len(), 2);
}

#[tokio::test]
async fn each_tick_is_served_once_it_is_published() {
    let server = Server::of(&[Fate::Healthy]).await;
    assert_eq!(get(&server, "/health").await.0, 200);
    server.publish.send_replace(Some(published(2, snapshot(&[Fate::DeadOutbound]))));
    assert_eq!(get(&server, "/health").await.0, 503);
    let metrics = get(&server, "/metrics").await.1;
    assert!(metrics.contains("overlaywatch_ticks_total 2"), "{metrics}");
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_right() {
    let server = Server::of(&[Fate::Healthy]).await;
    let (status, body) = get(&server, "/helth").await;
    assert_eq!(status, 404);
    assert!(body.contains("/health "), "{body}");
    let (status, head, _) = ask(&server, "POST", "/health", "Content-Length: 0\r\n").await;
    assert_eq!(status, 405);
    assert!(head.contains("allow: get,head"), "{head}");
    let (status, _, body) = ask(&server, "HEAD", "/metrics", "").await;
    assert_eq!((status, body.as_str()), (200, ""));
    let (status, _, _) = ask(&server, "GET", "/health", "Content-Length: 1025\r\n").await;
    assert_eq!(status, 413);
    assert!(exchange(server.address, b"SSH-2.0-x\r\n\r\n").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn header_bombs_are_refused() {
    let server = Server::of(&[Fate::Healthy]).await;
    let many = "X: y\r\n".repeat(1_000);
    assert_eq!(ask(&server, "GET", "/livez", &many).await.0, 431);
    let long = format!("X: {}\r\n", "y".repeat(1 << 20));
    let request = format!("GET /livez HTTP/1.1\r\nHost: a\r\n{long}\r\n");
    let answer = exchange(server.address, request.as_bytes()).await;
    // The rest of the bomb may reset the connection before the refusal is read.
    assert!(answer.is_empty() || status(&answer) == 431, "{answer}");
    assert_eq!(get(&server, "/livez").await.0, 200);
}

#[tokio::test]
async fn slow_clients_are_hung_up_on() {
    let read_timeout = Duration::from_millis(200);
    let server = Server::start(Limits { read_timeout, ..Limits::default() }).await;
    // A head that never ends.
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nX-Slow: ").await.unwrap();
    assert!(!until_closed(&mut slow).await.starts_with("HTTP/1.1 200"));
    // A connection that is kept open and says nothing more.
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(until_closed(&mut idle).await.starts_with("HTTP/1.1 200"));
    // A body that never ends.
    let mut endless = TcpStream::connect(server.address).await.unwrap();
    let head = b"GET /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe";
    endless.write_all(head).await.unwrap();
    assert!(until_closed(&mut endless).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn connections_are_counted() {
    let server = Server::start(Limits { max_connections: 2, ..Limits::default() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        held.push(stream);
    }
    let mut third = TcpStream::connect(server.address).await.unwrap();
    assert!(until_closed(&mut third).await.starts_with("HTTP/1.1 503"));
    drop(held);
    // The server sees the two ends as soon as it looks.
    tokio::time::timeout(PATIENCE, async {
        while !exchange(server.address, b"GET /livez HTTP/1.0\r\n\r\n").await.contains(" 200 ") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("connections that ended are no longer counted");
}

#[tokio::test]
async fn an_address_in_use_is_named_with_the_remedy() {
    let server = Server::start(Limits::default()).await;
    let error = serve::bind(server.address).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("{} is in use", server.address)), "{error}");
    assert!(error.contains("--listen"), "{error}");
    // TEST-NET-1 (RFC 5737) is nobody's.
    let error = serve::bind("192.0.2.1:9977".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("not an address of this host"), "{error}");
}

/// Metrics by name, with the label sets of each; refuses what Prometheus would.
fn parse(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(helped.insert(rest.split(' ').next().unwrap()), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(typed.insert(name), "{line}");
        } else {
            let (what, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            let (name, labels) = what.split_once('{').unwrap_or((what, ""));
            assert!(name.starts_with("overlaywatch_"), "{line}");
            assert!(helped.contains(name) && typed.contains(name), "{line}");
            let new = series.entry(name.to_owned()).or_default().insert(labels.to_owned());
            assert!(new, "twice: {line}");
        }
    }
    series
}

fn count(series: &BTreeMap<String, BTreeSet<String>>) -> usize {
    series.values().map(BTreeSet::len).sum()
}

async fn metrics(fates: &[Fate]) -> BTreeMap<String, BTreeSet<String>> {
    let server = Server::of(fates).await;
    let (status, head, body) = ask(&server, "GET", "/metrics", "").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    parse(&body)
}

#[tokio::test]
async fn metrics_of_a_small_cluster_have_every_pair() {
    let series = metrics(&[Fate::Healthy, Fate::Healthy, Fate::DeadOutbound]).await;
    assert_eq!(series["overlaywatch_peer_state"].len(), 3);
    // Two paths (underlay and tunnel) to each of three peers.
    assert_eq!(series["overlaywatch_pair_loss_ratio"].len(), 3 * 2 * 3);
    assert_eq!(series["overlaywatch_pair_probes_lost_total"].len(), 3 * 2);
    let broken = r#"source_node="node-a",destination_node="node-d",state="broken"}"#;
    let states = &series["overlaywatch_peer_state"];
    assert!(states.iter().any(|labels| labels.contains(broken)), "{states:?}");
    let findings: Vec<_> = series["overlaywatch_findings"].iter().collect();
    assert_eq!(findings, [r#"code="encapsulation-lost",severity="critical"}"#]);
    let known: BTreeSet<String> = ALL.iter().map(|family| family.full_name()).collect();
    assert!(series.keys().all(|name| known.contains(name)));
}

#[tokio::test]
async fn metrics_of_large_clusters_stay_few() {
    let healthy = metrics(&[Fate::Healthy; 1_000]).await;
    assert!(!healthy.contains_key("overlaywatch_peer_state"), "only failing ones");
    // The node's own, and a few of each source.
    let own = 50 + 3 * SourceId::ALL.len();
    assert!(count(&healthy) <= own, "{} of {own}", count(&healthy));
    let broken = metrics(&[Fate::DeadOutbound; 1_000]).await;
    assert_eq!(broken["overlaywatch_peer_state"].len(), 128);
    assert!(count(&broken) <= own + PEER_SERIES, "{}", count(&broken));

    let mut fates = [Fate::Healthy; 1_000];
    fates[500] = Fate::DeadOutbound;
    let one = metrics(&fates).await;
    assert_eq!(one["overlaywatch_peer_state"].len(), 1);
    assert_eq!(one["overlaywatch_pair_loss_ratio"].len(), 6, "a failing peer has its details");
}

#[tokio::test]
async fn repeated_scrapes_of_a_tick_are_the_same_bytes() {
    let server = Server::of(&[Fate::DeadOutbound; 1_000]).await;
    for path in ["/health", "/metrics", "/v1/report", "/v1/snapshot"] {
        let first = get(&server, path).await;
        assert_eq!(first, get(&server, path).await, "{path}");
    }
}

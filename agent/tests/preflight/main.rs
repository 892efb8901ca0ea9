//! `overlaywatch preflight` on real kernel objects: two nodes with a router
//! between them, each a network namespace.
//!
//! Needs root, ip(8), bridge(8) and nft(8); fails without them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy.toml allows them in test functions; what these share is test code too"
)]

#[path = "../namespace/mod.rs"]
mod namespace;
mod nodes;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use nodes::{A, A6, B, B6, Ended, Nodes, PODS_OF_A, PODS_OF_A6, PODS_OF_B, PODS_OF_B6};
use overlaywatch::cli::Exit;
use overlaywatch_core::preflight::frame::{FRAME_BYTES, Frame, Kind};
use overlaywatch_core::preflight::{Cells, Method};

/// Of each encapsulation what became of it: out small, out full, in small, in full.
type Table = BTreeMap<String, [String; 4]>;

/// All that there are, and the same of each.
fn all(outcomes: [&str; 4]) -> Table {
    ["vxlan-8472", "vxlan-4789", "geneve-6081", "wireguard-51820", "ipip", "plain"]
        .map(|name| (name.to_owned(), outcomes.map(str::to_owned)))
        .into()
}

/// Everything passes but these.
fn passes_but<const N: usize>(others: [(&str, [&str; 4]); N]) -> Table {
    let mut table = all(["passes"; 4]);
    for (name, outcomes) in others {
        table.insert(name.to_owned(), outcomes.map(str::to_owned));
    }
    table
}

/// What a run with pods' addresses says.
fn judged(nodes: &Nodes) -> (Exit, Table) {
    let (served, asked) = nodes.run(&["--pods", PODS_OF_B], &["--pods", PODS_OF_A, "-o", "json"]);
    let (exit, table) = read(asked, (A, B));
    assert_eq!(served.unwrap().0, exit, "both ends say the same");
    (exit, table)
}

/// What the JSON of a run between two nodes says.
fn read(asked: Ended, (a, b): (&str, &str)) -> (Exit, Table) {
    let (exit, json) = asked.unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["passes"], exit == Exit::Fine);
    let pair = &json["pairs"][0];
    assert_eq!((&pair["node"], &pair["peer"]), (&a.into(), &b.into()));
    let rows = pair["encapsulations"].as_array().unwrap().iter();
    let table = rows.map(|row| {
        let of = |way: &str, size: &str| row[way][size]["outcome"].as_str().unwrap().to_owned();
        let cells = [
            ("outbound", "small"),
            ("outbound", "full"),
            ("inbound", "small"),
            ("inbound", "full"),
        ];
        (row["encapsulation"].as_str().unwrap().to_owned(), cells.map(|(way, size)| of(way, size)))
    });
    (exit, table.collect())
}

#[test]
fn everything_passes_and_nothing_is_left_behind() {
    let nodes = Nodes::new();
    let before = nodes.state();
    assert_eq!(judged(&nodes), (Exit::Fine, all(["passes"; 4])));
    assert_eq!(nodes.state(), before);
}

#[test]
fn a_filter_on_one_vxlan_port_leaves_ipip_free() {
    let nodes = Nodes::new();
    nodes.filter("udp dport 8472 drop");
    let expected = passes_but([("vxlan-8472", ["lost"; 4])]);
    assert_eq!(judged(&nodes), (Exit::Problem, expected));
}

#[test]
fn a_filter_on_protocol_4_leaves_vxlan_free() {
    let nodes = Nodes::new();
    nodes.filter("ip protocol 4 drop");
    let expected = passes_but([("ipip", ["lost"; 4])]);
    assert_eq!(judged(&nodes), (Exit::Problem, expected));
}

#[test]
fn a_filter_one_way_is_told_from_one_both_ways() {
    let nodes = Nodes::new();
    nodes.filter(&format!("ip saddr {A} udp dport 4789 drop"));
    nodes.filter(&format!("ip saddr {B} ip protocol 4 drop"));
    let expected = passes_but([
        ("vxlan-4789", ["lost", "lost", "passes", "passes"]),
        ("ipip", ["passes", "passes", "lost", "lost"]),
    ]);
    assert_eq!(judged(&nodes), (Exit::Problem, expected));
}

#[test]
fn a_smaller_mtu_on_the_way_loses_full_packets_only() {
    let nodes = Nodes::new();
    nodes.router.sh("ip link set to-b mtu 1400");
    assert_eq!(judged(&nodes), (Exit::Problem, all(["passes", "lost", "passes", "lost"])));
}

#[test]
fn pods_addresses_that_a_network_does_not_know_are_lost() {
    let nodes = Nodes::new();
    nodes.router.sh("ip route del 10.244.2.0/24");
    let expected = passes_but([("plain", ["lost", "lost", "passes", "passes"])]);
    assert_eq!(judged(&nodes), (Exit::Problem, expected));
}

#[test]
fn a_nodes_own_firewall_is_told_from_the_network() {
    let nodes = Nodes::new();
    nodes.b.sh("nft 'add table t; add chain t in { type filter hook input priority 0; }
        add rule t in udp dport 6081 drop'");
    nodes.a.sh("nft 'add table t; add chain t out { type filter hook output priority 0; }
        add rule t out ip protocol 4 drop'");
    let expected = passes_but([
        ("geneve-6081", ["refused", "refused", "passes", "passes"]),
        ("ipip", ["not-sent", "not-sent", "passes", "passes"]),
    ]);
    assert_eq!(judged(&nodes), (Exit::Problem, expected));
}

#[test]
fn a_port_that_a_tunnel_has_is_tried_and_the_tunnel_takes_no_harm() {
    let nodes = Nodes::new();
    nodes.b.sh("ip link add vx type vxlan id 1 dev eth0 dstport 8472
        ip link set vx up");
    // What it learnt, and bytes and packets that it received.
    let state = "bridge fdb show dev vx; awk '$1 == \"vx:\" { print $2, $3 }' /proc/self/net/dev";
    let before = nodes.b.try_sh(state);
    assert!(before.ends_with("0 0\n"), "{before}");
    assert_eq!(judged(&nodes), (Exit::Fine, all(["passes"; 4])));
    assert_eq!(nodes.b.try_sh(state), before);
}

#[test]
fn people_get_a_table() {
    let nodes = Nodes::new();
    nodes.filter("udp dport 8472 drop");
    let (served, asked) = nodes.run(&[], &["--only", "vxlan-8472,ipip,plain"]);
    let (exit, text) = asked.unwrap();
    assert_eq!(exit, Exit::Problem);
    insta::assert_snapshot!(text, @r"
    10.0.1.1 (out) and 10.0.2.2 (in)
    ENCAPSULATION        OUT, SMALL  OUT, 1500 BYTES  IN, SMALL  IN, 1500 BYTES
    VXLAN (UDP 8472)     lost        lost             lost       lost
    IPIP (protocol 4)    passes      passes           passes     passes
    plain pod addresses  not tried   not tried        not tried  not tried
    lost: left the sender, and never reached the other node's NIC
    not tried: give --pods, also to `--serve` at the other end
    ");
    let (exit, text) = served.unwrap();
    assert_eq!(exit, Exit::Problem);
    assert!(text.contains("10.0.2.2 (out) and 10.0.1.1 (in)\n"), "{text}");
}

#[test]
fn strangers_get_no_answer() {
    let nodes = Nodes::new();
    let server = nodes.serve(&["--serve", "10.0.9.9", "--for", "5"]);
    let asked = nodes.ask(&[]).unwrap_err();
    assert!(asked.contains(&format!("does it serve this node's address, {A}, or ")), "{asked}");
    assert_eq!(server.join().unwrap().unwrap().0, Exit::ToolFailed, "nobody was served");
}

#[test]
fn what_keeps_it_from_running_is_said() {
    let nodes = Nodes::new();
    let error = nodes.ask(&[]).unwrap_err();
    assert!(error.contains(&format!("nothing serves at {B}, TCP port 9978")), "{error}");
    let error = nodes.ask(&["--only", "plain"]).unwrap_err();
    assert!(error.contains("--pods OWN,PEER at both ends"), "{error}");
    let (_, asked) = nodes.run(&[], &["--pods", PODS_OF_A]);
    let error = asked.unwrap_err();
    assert!(error.contains("--pods 10.244.2.0,10.244.1.0"), "{error}");
}

#[test]
fn an_agent_answers_its_peers_as_often_as_it_likes() {
    let nodes = Nodes::new();
    nodes.attend(A, PODS_OF_B);
    let before = nodes.state();
    nodes.filter("udp dport 8472 drop");
    let asked = || read(nodes.ask(&["--pods", PODS_OF_A, "-o", "json"]), (A, B));
    let expected = passes_but([("vxlan-8472", ["lost"; 4])]);
    let start = Instant::now();
    assert_eq!(asked(), (Exit::Problem, expected.clone()));
    // The second one waits until the agent serves this node again.
    assert_eq!(asked(), (Exit::Problem, expected));
    assert!(start.elapsed() > Duration::from_secs(5), "it is asked as often as one likes");
    assert_eq!(nodes.state(), before);
}

#[test]
fn an_agent_sends_in_the_name_of_no_pods_but_those_it_knows() {
    let nodes = Nodes::new();
    nodes.attend(A, PODS_OF_B);
    let error = nodes.ask(&["--pods", "192.0.2.1,198.51.100.1"]).unwrap_err();
    assert!(error.contains("does not know these pod addresses"), "{error}");
}

#[test]
fn an_agent_does_not_answer_strangers() {
    let nodes = Nodes::new();
    nodes.attend("10.0.9.9", PODS_OF_B);
    let error = nodes.ask(&[]).unwrap_err();
    assert!(error.contains("does its agent list that as a peer?"), "{error}");
}

/// Asks node B, waits until it accepts, and is gone, as a process is that is killed.
fn ask_and_leave() {
    let ask = Frame {
        kind: Kind::Ask,
        wanted: Method::ALL.into_iter().fold(0, |mask, method| mask | method.bit()),
        nonce: 7,
        pods: None,
        mtu: 1_500,
        cells: Cells::default(),
    };
    let mut stream = TcpStream::connect((B, 9978)).unwrap();
    stream.write_all(&ask.encode()).unwrap();
    let mut accepted = [0; FRAME_BYTES];
    stream.read_exact(&mut accepted).unwrap();
    assert_eq!(Frame::decode(&accepted).unwrap().kind, Kind::Accept);
}

#[test]
fn a_run_whose_other_end_goes_away_ends_at_once() {
    let nodes = Nodes::new();
    nodes.attend(A, PODS_OF_B);
    let before = nodes.state();
    nodes.a.inside(ask_and_leave).join().unwrap();
    let start = Instant::now();
    while nodes.state() != before {
        assert!(start.elapsed() < Duration::from_secs(2), "it still sends or listens");
        thread::sleep(Duration::from_millis(50));
    }
    // All of its packets would have taken half a second, and these at most one round.
    let came = nodes.a.try_sh("cat /proc/self/net/snmp | grep Udp: | sed 1d | cut -d ' ' -f 3");
    let came: u32 = came.trim().parse().unwrap();
    assert!(came <= 20, "{came} packets to ports without a listener");
}

#[test]
fn nodes_with_ipv6_alone_get_a_table_too() {
    let nodes = Nodes::new();
    nodes.add_ipv6();
    nodes.attend(A6, PODS_OF_B6);
    let before = nodes.state();
    let asked = nodes.ask_at(B6, &["--pods", PODS_OF_A6, "-o", "json"]);
    assert_eq!(read(asked, (A6, B6)), (Exit::Fine, all(["passes"; 4])));
    assert_eq!(nodes.state(), before);
    nodes.router.sh(&format!(
        "nft 'add rule ip6 t f ip6 saddr {A6} udp dport 4789 drop
              add rule ip6 t f ip6 saddr {B6} meta l4proto 41 drop'
         ip link set to-b mtu 1400"
    ));
    let server = nodes.serve(&["--serve", A6, "--once", "--for", "60", "--port", "9979"]);
    let asked = nodes.ask_at(B6, &["-o", "json", "--port", "9979"]);
    assert_eq!(server.join().unwrap().unwrap().0, Exit::Problem);
    let mut expected = all(["passes", "lost", "passes", "lost"]);
    let cells = |cells: [&str; 4]| cells.map(str::to_owned);
    expected.insert("vxlan-4789".to_owned(), cells(["lost", "lost", "passes", "lost"]));
    expected.insert("ipip".to_owned(), cells(["passes", "lost", "lost", "lost"]));
    expected.insert("plain".to_owned(), cells(["not-tried"; 4]));
    assert_eq!(read(asked, (A6, B6)), (Exit::Problem, expected));
    let (_, text) = nodes.ask_at(B6, &["--only", "ipip"]).unwrap();
    assert!(text.contains("IP in IPv6 (protocol 41)  passes"), "{text}");
}

#[test]
fn a_link_local_address_is_no_nodes() {
    let nodes = Nodes::new();
    let error = nodes.ask_at("fe80::1", &[]).unwrap_err();
    assert!(error.contains("fe80::1 is no address by which another node is reached"), "{error}");
    let error = nodes.ask(&["--pods", PODS_OF_A6]).unwrap_err();
    assert!(error.contains("cannot be sent to a node of the other"), "{error}");
}

//! The nftables source against a real kernel, with `nft -j` as the oracle. Needs
//! root, nftables and iptables.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy lets tests fail by panicking, but not the helpers they share"
)]

mod namespace;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use namespace::Namespace;
use overlaywatch::source::nftables::Reader;
use overlaywatch_core::model::{ChainHook, Controller, Family, MOST_RULES, Netfilter, Readers};
use serde_json::Value;

/// Far more than any change takes to be told.
const PATIENCE: Duration = Duration::from_secs(20);

/// A ruleset of every kind.
const RULESET: &str = "\
iptables-nft -A FORWARD -p tcp --dport 80 -j ACCEPT
iptables-nft -A INPUT -p udp --dport 8472 -j DROP
iptables-nft -A OUTPUT -p 4 -d 10.0.0.0/24 -j REJECT
iptables-nft -N KUBE-SERVICES
iptables-nft -A KUBE-SERVICES -m comment --comment 'a b' -m conntrack --ctstate NEW -j DROP
iptables-nft -A FORWARD -j KUBE-SERVICES
iptables-nft -t nat -A POSTROUTING -s 10.42.0.0/16 -j MASQUERADE
ip6tables-nft -A INPUT -p udp --sport 1000:2000 -j DROP
nft add table inet mine
nft 'add chain inet mine in { type filter hook input priority -10; policy drop; }'
nft 'add chain inet mine out { type route hook output priority 7; }'
nft 'add chain inet mine side'
nft 'add set inet mine ports { type inet_service; elements = { 1, 2 }; }'
nft 'add rule inet mine in udp dport 4000-9000 ip saddr 10.0.0.0/8 counter drop'
nft 'add rule inet mine in udp dport @ports jump side'
nft 'add rule inet mine in ct state established,related accept'
nft 'add rule inet mine side limit rate over 5/second log prefix \"x\" reject'
nft add table arp a
nft 'add chain arp a in { type filter hook input priority 0; }'
nft add table bridge b
nft 'add chain bridge b f { type filter hook forward priority -200; }'
nft 'add rule bridge b f meta iifname \"eth*\" drop'
nft add table netdev n
nft 'add chain netdev n i { type filter hook ingress device lo priority 0; }'
nft 'add rule netdev n i ip protocol ipencap drop'
";

fn read(reader: Reader, namespace: &Namespace) -> (Reader, Netfilter) {
    namespace
        .inside(move || {
            let mut reader = reader;
            reader.has_changed().unwrap();
            let read = reader.read().unwrap();
            (reader, read)
        })
        .join()
        .unwrap()
}

/// Asks until something changed, and reads that.
fn changed(mut reader: Reader, namespace: &Namespace) -> (Reader, Netfilter) {
    let told = namespace.inside(move || {
        let end = Instant::now() + PATIENCE;
        while !reader.has_changed().unwrap() {
            assert!(Instant::now() < end, "no change was told");
            std::thread::sleep(Duration::from_millis(5));
        }
        let read = reader.read().unwrap();
        (reader, read)
    });
    told.join().unwrap()
}

fn oracle(namespace: &Namespace) -> Vec<Value> {
    let text = namespace.try_sh("nft -a -j list ruleset");
    let all: Value = serde_json::from_str(&text).unwrap();
    all["nftables"].as_array().unwrap().clone()
}

fn key(value: &Value, name: &str) -> (String, String) {
    let word = |key: &str| value[key].as_str().unwrap().to_owned();
    (word("family"), word(name))
}

fn assert_same(read: &Netfilter, namespace: &Namespace) {
    let mut tables: BTreeMap<(String, String), (u64, u32, u32)> = BTreeMap::new();
    let mut base = BTreeMap::new();
    for object in oracle(namespace) {
        if let Some(table) = object.get("table") {
            tables.insert(key(table, "name"), (table["handle"].as_u64().unwrap(), 0, 0));
        } else if let Some(chain) = object.get("chain") {
            let table = key(chain, "table");
            tables.get_mut(&table).unwrap().1 += 1;
            if let Some(hook) = chain["hook"].as_str() {
                let drops = chain["policy"] == "drop";
                let said = (
                    chain["handle"].as_u64().unwrap(),
                    chain["type"].as_str().unwrap().to_owned(),
                    hook.to_owned(),
                    chain["prio"].as_i64().unwrap(),
                    drops,
                );
                base.insert((table, chain["name"].as_str().unwrap().to_owned()), said);
            }
        } else if let Some(rule) = object.get("rule") {
            tables.get_mut(&key(rule, "table")).unwrap().2 += 1;
        }
    }
    let name = |family: Family, name: &str| (family.to_string(), name.to_owned());
    let ours: BTreeMap<_, _> = read
        .tables
        .iter()
        .map(|table| (name(table.family, &table.name), (table.handle, table.chains, table.rules)))
        .collect();
    assert_eq!(ours, tables);
    let mut chains = BTreeMap::new();
    for table in &read.tables {
        for chain in &table.base {
            let hook = chain.hook.map(ChainHook::slug).unwrap_or_default().to_owned();
            let said =
                (chain.handle, chain.kind.clone(), hook, i64::from(chain.priority), chain.drops);
            chains.insert((name(table.family, &table.name), chain.name.clone()), said);
        }
    }
    assert_eq!(chains, base);
}

fn blockers(read: &Netfilter) -> Vec<String> {
    let mut found: Vec<_> = read
        .tables
        .iter()
        .flat_map(|table| {
            table.blockers.iter().map(|blocker| {
                let hooks: Vec<_> = blocker.hooks.iter().map(|hook| hook.slug()).collect();
                let verb = if blocker.rejects { "reject" } else { "drop" };
                format!(
                    "{} {} at {}: {} {verb}",
                    table.title(),
                    blocker.at.chain,
                    hooks.join(","),
                    blocker.matches
                )
            })
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_ruleset_of_every_kind_is_read_as_nft_lists_it() {
    let namespace = Namespace::new();
    RULESET.lines().for_each(|line| namespace.sh(line));
    let (_, read) = read(Reader::default(), &namespace);
    assert_same(&read, &namespace);
    assert_eq!(
        blockers(&read),
        [
            "inet mine in at input: ip saddr 10.0.0.0/8 udp dport 4000-9000 drop",
            // What leads there is a condition, too.
            "inet mine side at input: ip protocol udp further conditions reject",
            "ip filter INPUT at input: udp dport 8472 drop",
            "ip filter OUTPUT at output: ip daddr 10.0.0.0/24 ip protocol ipencap reject",
            "ip6 filter INPUT at input: udp sport 1000-2000 drop",
            "netdev n i at ingress: ip protocol ipencap drop",
        ]
    );
    let proxy = read.programmed(Controller::KubeProxy);
    assert_eq!((proxy.chains, proxy.rules, proxy.anchored), (1, 1, 1));
    let illegible: Vec<_> = read
        .tables
        .iter()
        .flat_map(|table| table.illegible.iter().map(|rule| (table.title(), rule.readers)))
        .collect();
    // iptables writes a range of ports as one since 1.8.8.
    assert_eq!(illegible, [("ip6 filter".to_owned(), Readers::From188)]);
}

/// The chains of firewalld, a rule of one family of IP, and one with a condition.
#[test]
fn what_forwards_nothing_is_told_as_nft_wrote_it() {
    let namespace = Namespace::new();
    for line in [
        "nft add table inet firewalld",
        "nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }'",
        "nft add chain inet firewalld filter_FWD_public",
        "nft add chain inet firewalld filter_IN_public",
        "nft add rule inet firewalld filter_FORWARD ct state established,related accept",
        "nft add rule inet firewalld filter_FORWARD ct state invalid drop",
        "nft add rule inet firewalld filter_FORWARD iifname eth0 goto filter_IN_public",
        "nft add rule inet firewalld filter_FORWARD goto filter_FWD_public",
        "nft add rule inet firewalld filter_FORWARD reject with icmpx type admin-prohibited",
        "nft add rule inet firewalld filter_FWD_public reject with icmpv6 type admin-prohibited",
        "nft add rule inet firewalld filter_IN_public drop",
        "iptables-nft -A FORWARD -j REJECT",
        "iptables-nft -A FORWARD -p tcp -j DROP",
    ] {
        namespace.sh(line);
    }
    let (_, read) = read(Reader::default(), &namespace);
    let told: Vec<_> = read
        .tables
        .iter()
        .flat_map(|table| &table.barriers)
        .map(|rule| (rule.at.chain.as_str(), rule.rejects, rule.matches.v6))
        .collect();
    let expected = [
        ("filter_FORWARD", true, None),
        ("filter_FWD_public", true, Some(true)),
        ("FORWARD", true, None),
    ];
    assert_eq!(told, expected);
}

#[test]
fn what_iptables_cannot_read_is_named_and_the_tool_agrees() {
    let namespace = Namespace::new();
    for (rule, readers) in [
        ("ct state established accept", Readers::Nobody),
        ("tcp dport 80 reject", Readers::Nobody),
        ("tcp dport { 80, 443 } drop", Readers::MisprintedFrom184),
        ("tcp dport != 1000-2000 drop", Readers::From188),
        ("log group 3", Readers::From188),
        ("tcp dport 1000-2000 drop", Readers::MisprintedBefore188),
        ("meta mark set 5", Readers::RefusedFrom189),
    ] {
        namespace.sh("iptables-nft -P FORWARD ACCEPT");
        namespace.sh(&format!("nft 'add rule ip filter FORWARD {rule}'"));
        let (_, read) = read(Reader::default(), &namespace);
        let illegible = &read.tables[0].illegible;
        assert_eq!((illegible.len(), illegible[0].readers), (1, readers), "{rule}");
        let said = namespace.try_sh("iptables-nft-save 2>&1");
        assert_eq!(said.contains("incompatible"), readers == Readers::Nobody, "{rule}: {said}");
        namespace.sh("nft delete table ip filter");
    }
}

#[test]
fn a_foreign_base_chain_is_skipped_as_the_tool_does() {
    let namespace = Namespace::new();
    namespace.sh("iptables-nft -A FORWARD -j ACCEPT");
    namespace.sh("nft 'add chain ip filter late { type filter hook forward priority 10; }'");
    namespace.sh("nft add rule ip filter late ct state established accept");
    let (_, read) = read(Reader::default(), &namespace);
    assert_eq!(read.tables[0].illegible, []);
    let said = namespace.try_sh("iptables-nft-save 2>&1");
    assert!(said.contains("contains incompatible base-chains"), "{said}");
    assert!(said.contains("-A FORWARD -j ACCEPT"), "{said}");
}

#[test]
fn changes_are_followed_table_by_table() {
    let namespace = Namespace::new();
    RULESET.lines().for_each(|line| namespace.sh(line));
    let (reader, before) = read(Reader::default(), &namespace);
    assert_eq!(before.flushed, []);
    namespace.sh("nft 'add rule inet mine side drop'");
    let (reader, _) = {
        let (reader, read) = changed(reader, &namespace);
        assert_same(&read, &namespace);
        (reader, read)
    };
    // Members of sets are nobody's business here.
    namespace.sh("nft 'add element inet mine ports { 3 }'");
    let reader = namespace
        .inside(move || {
            let mut reader = reader;
            for _ in 0..5 {
                assert!(!reader.has_changed().unwrap(), "a set's member is no news");
            }
            reader
        })
        .join()
        .unwrap();
    namespace.sh("nft flush ruleset");
    let (_, after) = changed(reader, &namespace);
    assert_eq!(after.tables, []);
    let flushed = &after.flushed[0];
    assert_eq!((flushed.of, flushed.rules), (Controller::KubeProxy, 1));
    assert_eq!(flushed.by.as_ref().unwrap().name, "nft");
}

/// What a rule counts changes no generation.
#[test]
fn counters_of_rules_that_drop_are_followed() {
    let namespace = Namespace::new();
    namespace.sh("iptables-nft -A OUTPUT -p tcp --dport 80 -j DROP");
    namespace.sh("iptables-nft -A OUTPUT -p udp --dport 8472 -j DROP");
    namespace.sh("nft 'add table ip own { chain out { type filter hook output priority 5; }; }'");
    namespace.sh("nft 'add rule ip own out counter udp dport 4789 drop'");
    let (mut reader, before) = read(Reader::default(), &namespace);
    let counted = |read: &Netfilter| -> Vec<_> {
        let blockers = read.tables.iter().flat_map(|table| &table.blockers);
        blockers.map(|rule| (rule.packets, rule.growth.map(|growth| growth.packets))).collect()
    };
    // One that counts before its condition says nothing of what it takes.
    assert_eq!(counted(&before), [(Some(0), None), (None, None)]);
    reader.set_losing(true);
    let send = |port: u16| {
        let sent = namespace.inside(move || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            // What the rule drops is refused.
            (0..3).filter(|_| socket.send_to(b"x", ("127.0.0.1", port)).is_err()).count()
        });
        assert_eq!(sent.join().unwrap(), 3);
    };
    send(4789);
    send(8472);
    let (reader, after) = changed(reader, &namespace);
    assert_eq!(counted(&after), [(Some(3), Some(3)), (None, None)]);
    assert_eq!(after.generation, before.generation);
    // A change of the table is a look at its counters, too.
    send(8472);
    namespace.sh("iptables-nft -A OUTPUT -p tcp --dport 81 -j DROP");
    let (_, last) = changed(reader, &namespace);
    assert_eq!(counted(&last), [(Some(6), Some(3)), (None, None)]);
}

#[test]
fn tables_of_legacy_xtables_are_counted_without_what_they_begin_with() {
    let namespace = Namespace::new();
    let (_, none) = read(Reader::default(), &namespace);
    assert_eq!(none.legacy, []);
    namespace.sh("iptables-legacy -w -L >/dev/null");
    namespace.sh("iptables-legacy -w -t nat -A POSTROUTING -s 10.0.0.0/8 -j ACCEPT");
    let (_, some) = read(Reader::default(), &namespace);
    let mut counted: Vec<_> = some.legacy.iter().map(|t| (t.name.as_str(), t.rules)).collect();
    counted.sort_unstable();
    assert_eq!(counted, [("filter", Some(0)), ("nat", Some(1))]);
}

/// As a node with many services has it: so many rules are read chain by chain.
#[test]
fn a_large_ruleset_is_read_whole() {
    let namespace = Namespace::new();
    let mut lines = String::from("*filter\n");
    for chain in 0..1_000 {
        lines.push_str(&format!(":KUBE-SVC-{chain} - [0:0]\n"));
    }
    for rule in 0..20_000 {
        let (chain, port) = (rule % 1_000, rule / 1_000 + 1);
        lines.push_str(&format!(
            "-A KUBE-SVC-{chain} -p tcp -m tcp -m comment --comment \"a service {rule}\" --dport {port} -j ACCEPT\n"
        ));
    }
    lines.push_str("-A INPUT -p udp --dport 8472 -j DROP\nCOMMIT\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    namespace.sh(&format!("iptables-nft-restore < {}", file.path().display()));
    let (_, read) = read(Reader::default(), &namespace);
    let table = &read.tables[0];
    assert_eq!((table.rules, table.programmed[0].chains), (20_001, 1_000));
    assert_eq!(table.blockers.len(), 1, "{:?}", table.blockers);
}

/// A transaction's author is told after all that it did: there must be room for it.
#[test]
fn who_flushes_thousands_of_rules_at_once_is_known() {
    let namespace = Namespace::new();
    let mut lines = String::from("*filter\n:KUBE-SERVICES - [0:0]\n");
    for rule in 0..6_000 {
        let (high, low) = (rule / 250, rule % 250);
        lines.push_str(&format!(
            "-A KUBE-SERVICES -d 10.43.{high}.{low} -p tcp -m comment --comment \"of {rule}\" --dport 80 -j ACCEPT\n"
        ));
    }
    lines.push_str("COMMIT\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    namespace.sh(&format!("iptables-nft-restore < {}", file.path().display()));
    let (reader, _) = read(Reader::default(), &namespace);
    namespace.sh("nft flush ruleset");
    let (_, after) = changed(reader, &namespace);
    let flushed = &after.flushed[0];
    assert_eq!((flushed.of, flushed.rules), (Controller::KubeProxy, 6_000));
    assert_eq!(flushed.by.as_ref().unwrap().name, "nft");
}

/// Ten times what a large node has. Every rule is one that might be kept.
#[test]
fn a_hundred_thousand_rules_end_as_a_small_summary_of_the_latest_state() {
    let namespace = Namespace::new();
    let mut lines = String::from("table inet huge {\n");
    for chain in 0..100 {
        lines.push_str(&format!("chain c{chain} {{\n"));
        for rule in 0..1_000 {
            let port = 10_000 + rule;
            lines.push_str(&format!("ip saddr 10.{chain}.0.0/16 udp dport {port} drop\n"));
        }
        lines.push_str("}\n");
    }
    lines.push_str("chain in { type filter hook input priority 0;\n");
    (0..100).for_each(|chain| lines.push_str(&format!("jump c{chain}\n")));
    lines.push_str("}\n}\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    let load = format!("nft -f {}", file.path().display());
    // It is read while it comes, and changes again.
    let (mut reader, mut last) = read(Reader::default(), &namespace);
    let load = namespace.inside(move || {
        for line in [load.as_str(), "nft flush chain inet huge c7; nft add rule inet huge c7 drop"]
        {
            let done = std::process::Command::new("sh").args(["-ec", line]).status().unwrap();
            assert!(done.success());
        }
    });
    let end = Instant::now() + 3 * PATIENCE;
    while !(load.is_finished() && last.tables.first().is_some_and(|huge| huge.rules == 99_101)) {
        assert!(Instant::now() < end, "the latest state was never read");
        let told = namespace.inside(move || {
            let mut reader = reader;
            let read = reader.has_changed().unwrap().then(|| reader.read().ok()).flatten();
            (reader, read)
        });
        let (again, read) = told.join().unwrap();
        (reader, last) = (again, read.unwrap_or(last));
    }
    load.join().unwrap();
    let huge = &last.tables[0];
    assert_eq!((huge.chains, huge.blockers.len()), (101, MOST_RULES));
    let size = serde_json::to_string(&last).unwrap().len();
    assert!(size < 32 << 10, "{size} bytes of summary");
}

#[test]
fn the_last_of_many_changes_in_a_row_is_seen() {
    let namespace = Namespace::new();
    namespace.sh("nft add table inet busy; nft add chain inet busy side");
    let (mut reader, _) = read(Reader::default(), &namespace);
    let writer = namespace.inside(|| {
        for round in 0..150 {
            let line = format!("add rule inet busy side tcp dport {round} accept");
            let done = std::process::Command::new("nft").arg(line).status().unwrap();
            assert!(done.success());
        }
    });
    let end = Instant::now() + PATIENCE;
    let mut last = None;
    while !(writer.is_finished()
        && last.as_ref().is_some_and(|read: &Netfilter| read.tables[0].rules == 150))
    {
        assert!(Instant::now() < end, "the last change was never seen");
        let told = namespace.inside(move || {
            let mut reader = reader;
            // A dump that a change fell into is told as such, and comes again.
            let read = reader.has_changed().unwrap().then(|| reader.read().ok()).flatten();
            (reader, read)
        });
        let (again, read) = told.join().unwrap();
        (reader, last) = (again, read.or(last));
    }
    writer.join().unwrap();
    assert_same(&last.unwrap(), &namespace);
}

//! Our own decoder of nftables messages beside libnftnl's, on the same bytes of a
//! real kernel, and both beside what `nft -j` lists. Needs root, nftables and
//! iptables.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests; numbers of attributes are small"
)]

mod library;

use std::collections::BTreeSet;

use lab::identity;
use lab::netns::Netns;
use library::{Chain, Expression, Message, Rule, Set, Table};
use nftnl::{Batch, MsgType, ProtoFamily};
use overlaywatch::source::nftables::Reader;
use overlaywatch::source::nftables::translate::{self, SUBSYSTEM, Verdict};
use overlaywatch_core::model::{ChainHook, Family, Netfilter, is_of_iptables};

/// Each kind of object, by each of the tools that make them.
const RULESET: &str = "
iptables-nft -A FORWARD -p tcp --dport 80 -j ACCEPT
iptables-nft -A INPUT -p udp --dport 8472 -j DROP
iptables-nft -A INPUT -s 10.9.0.0/16 -p udp --sport 1000:2000 -j DROP
iptables-nft -A OUTPUT -p 4 -d 10.0.0.0/24 -j REJECT
iptables-nft -N KUBE-SERVICES
iptables-nft -A KUBE-SERVICES -m comment --comment 'a b' -m conntrack --ctstate NEW -j DROP
iptables-nft -A FORWARD -j KUBE-SERVICES
iptables-nft -A FORWARD -p tcp -m multiport --dports 80,443 -g KUBE-SERVICES
iptables-nft -t nat -A POSTROUTING -s 10.42.0.0/16 -j MASQUERADE
iptables-nft -t mangle -A PREROUTING -j MARK --set-mark 5
ip6tables-nft -P INPUT DROP
ip6tables-nft -A INPUT -p udp --dport 4789 -j DROP
nft 'add rule ip filter FORWARD ct state established accept'
nft 'add rule ip filter FORWARD tcp dport { 80, 443 } drop'
nft 'add rule ip filter FORWARD meta mark set 5'
nft 'add rule ip filter FORWARD limit rate over 5/second log prefix \"x\" drop'
nft -f - <<'RULES'
table inet mine {
    set ports { type inet_service; elements = { 1, 2 }; }
    set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
    map marks { type ipv4_addr : mark; elements = { 10.0.0.1 : 7 }; }
    chain in {
        type filter hook input priority -10; policy drop;
        udp dport 4000-9000 ip saddr 10.0.0.0/8 counter drop
        udp dport 8472 counter packets 7 bytes 700 drop
        udp dport @ports jump side
        ct state established,related accept
        ip saddr @nets goto side
    }
    chain out { type route hook output priority 7; }
    chain side { limit rate over 5/second log prefix \"x\" reject; return; }
}
table arp a { chain in { type filter hook input priority 0; }; }
table bridge b { chain f { type filter hook forward priority -200; meta iifname \"eth*\" drop; }; }
table netdev n { chain i { type filter hook ingress device lo priority 0; ip protocol 4 drop; }; }
RULES";

/// Of the types of messages (enum nf_tables_msg_types): what they ask for, and
/// what is given for it.
const TABLES: (u16, u16) = (1, 0);
const CHAINS: (u16, u16) = (4, 3);
const RULES: (u16, u16) = (7, 6);
const SETS: (u16, u16) = (10, 9);

fn namespace(name: &str) -> Netns {
    Netns::create(format!("{}-{name}", identity::own().unwrap()), false).unwrap()
}

fn sh(netns: &Netns, script: &str) -> String {
    let output = netns.command("sh").args(["-ec", script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The messages of a dump.
fn dump(netns: &Netns, (asked, given): (u16, u16)) -> Vec<Vec<u8>> {
    let dump = || {
        let socket = mnl::Socket::new(mnl::Bus::Netfilter)?;
        // struct nlmsghdr with NLM_F_REQUEST | NLM_F_DUMP, and struct nfgenmsg.
        let mut question = 20_u32.to_ne_bytes().to_vec();
        question.extend((SUBSYSTEM | asked).to_ne_bytes());
        question.extend(0x301_u16.to_ne_bytes());
        question.extend([0; 12]);
        socket.send(&question)?;
        let mut buffer = vec![0; 64 << 10];
        let mut messages = Vec::new();
        loop {
            for message in socket.recv(&mut buffer)? {
                let message = message?;
                let kind = u16::from_ne_bytes([message[4], message[5]]);
                // NLMSG_ERROR, NLMSG_DONE.
                match kind {
                    2 => panic!("the kernel refused"),
                    3 => return Ok(messages),
                    kind if kind == SUBSYSTEM | given => messages.push(message.to_vec()),
                    _ => panic!("a message of type {kind}"),
                }
            }
        }
    };
    netns.enter(dump).unwrap()
}

/// What follows the header.
fn payload(message: &[u8]) -> &[u8] {
    &message[16..]
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn family(number: u32) -> Family {
    Family::of_number(number as u8).unwrap()
}

fn read(netns: &Netns) -> Netfilter {
    let read = || {
        let mut reader = Reader::default();
        reader.has_changed()?;
        Ok(reader.read()?)
    };
    netns.enter(read).unwrap()
}

/// Compares what both decoders make of everything that there is, and gives what
/// was found: tables, chains, rules, sets.
fn compare(netns: &Netns) -> (Vec<Table>, Vec<Chain>, Vec<Rule>, Vec<Set>) {
    let tables = dump(netns, TABLES).into_iter().map(|message| {
        let theirs = Table::parse(&Message::of(&message));
        let ours = translate::table(payload(&message)).unwrap().unwrap();
        assert_eq!((ours.family, ours.handle), (family(theirs.family), theirs.handle));
        assert_eq!(ours.name, lossy(&theirs.name));
        theirs
    });
    let tables = tables.collect();
    let chains = dump(netns, CHAINS).into_iter().map(|message| {
        let theirs = Chain::parse(&Message::of(&message));
        let ours = translate::chain(payload(&message)).unwrap().unwrap();
        assert_eq!((ours.family, ours.handle), (family(theirs.family), theirs.handle));
        assert_eq!((&*ours.table, &*ours.name), (&*lossy(&theirs.table), &*lossy(&theirs.name)));
        assert_eq!(ours.uses, theirs.uses);
        assert_eq!(ours.base.is_some(), theirs.base.is_some(), "{theirs:?}");
        if let (Some(ours), Some(base)) = (&ours.base, &theirs.base) {
            let hook = ChainHook::of_number(family(theirs.family), base.hook);
            assert_eq!((ours.hook, ours.kind), (hook, &*lossy(&base.kind)));
            assert_eq!((ours.priority, ours.drops), (base.priority, base.policy == 0));
        }
        theirs
    });
    let chains = chains.collect();
    let rules = dump(netns, RULES).into_iter().map(|message| {
        let theirs = Rule::parse(&Message::of(&message));
        let ours = translate::rule(payload(&message)).unwrap().unwrap();
        assert_same_rule(&ours, &theirs);
        theirs
    });
    let rules = rules.collect();
    let sets = dump(netns, SETS).into_iter().map(|message| {
        let theirs = Set::parse(&Message::of(&message));
        // Of sets only notifications are read, and those for the table alone.
        let (of, table) = translate::table_of(payload(&message)).unwrap().unwrap();
        assert_eq!((of, &*table), (family(theirs.family), &*lossy(&theirs.table)));
        theirs
    });
    let sets = sets.collect();
    (tables, chains, rules, sets)
}

fn assert_same_rule(ours: &translate::Rule<'_>, theirs: &Rule) {
    assert_eq!((ours.family, ours.handle), (family(theirs.family), theirs.handle));
    assert_eq!((&*ours.table, &*ours.chain), (&*lossy(&theirs.table), &*lossy(&theirs.chain)));
    let expressions = &theirs.expressions;
    let rejects = |one: &Expression| {
        one.name == "reject"
            || (one.name == "target" && one.extension.as_deref() == Some(b"REJECT"))
    };
    let verdict = if expressions.iter().any(rejects) {
        Verdict::Reject
    } else {
        match expressions.iter().find_map(|one| one.verdict.as_ref()) {
            Some((0, _)) => Verdict::Drop,
            Some((1 | -5, _)) => Verdict::Pass,
            Some((-3 | -4, Some(to))) => Verdict::Jump(lossy(to).into()),
            _ => Verdict::Continue,
        }
    };
    assert_eq!(ours.verdict, verdict, "{theirs:?}");
    // What comes before the last condition counts others, too.
    let ends = ["counter", "immediate", "target", "reject", "log"];
    let last = expressions.iter().rposition(|one| !ends.contains(&one.name.as_str()));
    let rest = expressions.iter().skip(last.map_or(0, |last| last + 1));
    assert_eq!(ours.packets, rest.rev().find_map(|one| one.packets), "{theirs:?}");
    // Ports that are compared as they are.
    for (offset, ports) in [(0, ours.matches.from_ports), (2, ours.matches.to_ports)] {
        let pairs = expressions.iter().zip(expressions.iter().skip(1));
        for (_, is) in pairs.filter(|(load, _)| load.place == Some([2, offset, 2])) {
            if let Some((0, value)) = &is.compared {
                let port = u16::from_be_bytes([value[0], value[1]]);
                assert_eq!(ports, Some((port, port)), "{theirs:?}");
            }
        }
    }
    // What iptables cannot read, by the library's names for it.
    let is_odd = |name: &&str| {
        !["match", "target", "payload", "meta", "cmp", "bitwise", "counter", "immediate", "limit"]
            .contains(name)
    };
    let names = theirs.names();
    let is_read = is_of_iptables(ours.family, &ours.table);
    match ours.illegible {
        Some((_, name)) => assert!(is_read && names.contains(&name), "{theirs:?}"),
        None => assert!(!is_read || !names.iter().any(is_odd), "{theirs:?}"),
    }
}

#[test]
fn both_decoders_and_the_tool_agree_on_a_mixed_ruleset() {
    let netns = namespace("nftnl");
    sh(&netns, RULESET);
    let (tables, chains, rules, sets) = compare(&netns);
    // The tool's own listing: by its handles.
    let listed: serde_json::Value =
        serde_json::from_str(&sh(&netns, "nft -a -j list ruleset")).unwrap();
    let of = |kind: &str| -> BTreeSet<(String, String, u64)> {
        let objects = listed["nftables"].as_array().unwrap().iter();
        let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        objects
            .filter_map(|object| object.get(kind))
            .map(|one| {
                let table = one.get("table").or(one.get("name")).map(word).unwrap();
                (word(&one["family"]), table, one["handle"].as_u64().unwrap())
            })
            .collect()
    };
    let name = |of: u32, table: &[u8], handle| (family(of).to_string(), lossy(table), handle);
    let by_library: BTreeSet<_> =
        tables.iter().map(|t| name(t.family, &t.name, t.handle)).collect();
    assert_eq!(by_library, of("table"));
    let by_library: BTreeSet<_> =
        chains.iter().map(|c| name(c.family, &c.table, c.handle)).collect();
    assert_eq!(by_library, of("chain"));
    let by_library: BTreeSet<_> =
        rules.iter().map(|r| name(r.family, &r.table, r.handle)).collect();
    assert_eq!(by_library, of("rule"));
    // The tool leaves out sets without a name of their own.
    let named = sets.iter().filter(|set| !set.name.starts_with(b"__"));
    let named: BTreeSet<_> = named.map(|set| lossy(&set.name)).collect();
    assert_eq!(named, ["marks", "nets", "ports"].map(str::to_owned).into());
    // And the summary is one of all of them.
    let read = read(&netns);
    assert_eq!(read.tables.len(), tables.len());
    for table in &read.tables {
        let is_here =
            |of: u32, name: &[u8]| family(of) == table.family && *name == *table.name.as_bytes();
        let counted = chains.iter().filter(|chain| is_here(chain.family, &chain.table)).count();
        assert_eq!(table.chains as usize, counted, "{}", table.title());
        let counted = rules.iter().filter(|rule| is_here(rule.family, &rule.table)).count();
        assert_eq!(table.rules as usize, counted, "{}", table.title());
        for base in &table.base {
            let held = rules.iter().filter(|rule| {
                is_here(rule.family, &rule.table) && *rule.chain == *base.name.as_bytes()
            });
            assert_eq!(base.rules as usize, held.count(), "{} {}", table.title(), base.name);
        }
    }
    // Enough of each kind was there to be compared.
    assert!(tables.len() >= 8 && chains.len() >= 13 && rules.len() >= 20 && sets.len() >= 4);
    let names: BTreeSet<_> = rules.iter().flat_map(Rule::names).collect();
    for kind in ["match", "target", "lookup", "ct", "limit", "log", "reject", "range", "bitwise"] {
        assert!(names.contains(kind), "{kind} is not among {names:?}");
    }
}

/// The kernel takes any bytes as a name, and nobody is blinded by it.
#[test]
fn names_that_are_no_text_are_read_beside_all_others() {
    let netns = namespace("odd-names");
    sh(&netns, "iptables-nft -A INPUT -p udp --dport 8472 -j DROP");
    let make = || {
        let table = nftnl::Table::new(c"od\xffd", ProtoFamily::Ipv4);
        let mut chain = nftnl::Chain::new(c"in\xfe", &table);
        chain.set_hook(nftnl::Hook::In, 3);
        chain.set_policy(nftnl::Policy::Accept);
        let mut rule = nftnl::Rule::new(&chain);
        rule.add_expr(&nftnl::nft_expr!(meta l4proto));
        rule.add_expr(&nftnl::nft_expr!(cmp == 4_u8));
        rule.add_expr(&nftnl::nft_expr!(counter));
        rule.add_expr(&nftnl::nft_expr!(verdict drop));
        let mut batch = Batch::new();
        batch.add(&table, MsgType::Add);
        batch.add(&chain, MsgType::Add);
        batch.add(&rule, MsgType::Add);
        lab::filter::commit(&batch.finalize())
    };
    netns.enter(make).unwrap();
    compare(&netns);
    let read = read(&netns);
    let blockers: Vec<_> = read
        .tables
        .iter()
        .flat_map(|table| table.blockers.iter().map(|b| (table.name.as_str(), b.at.chain.as_str())))
        .collect();
    assert_eq!(blockers, [("filter", "INPUT"), ("od\u{fffd}d", "in\u{fffd}")]);
}

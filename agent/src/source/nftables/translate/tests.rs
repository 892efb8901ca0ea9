use overlaywatch_core::model::{Controller, Matches, Netfilter, Readers, RuleAt};
use proptest::prelude::*;

use super::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn name(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), b"\0"].concat())
}

fn expression(kind: &str, data: &[Vec<u8>]) -> Vec<u8> {
    attribute(1, &[name(1, kind), attribute(2, &data.concat())].concat())
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    attribute(kind, &attribute(1, bytes))
}

fn protocol(number_of: u8) -> [Vec<u8>; 2] {
    let load = expression("meta", &[number(2, 16), number(1, 1)]);
    [load, expression("cmp", &[number(1, 1), number(2, 0), value(3, &[number_of])])]
}

fn port(offset: u32, operation: u32, port: u16) -> [Vec<u8>; 2] {
    let place = [number(1, 1), number(2, 2), number(3, offset), number(4, 2)];
    let is = [number(1, 1), number(2, operation), value(3, &port.to_be_bytes())];
    [expression("payload", &place), expression("cmp", &is)]
}

fn verdict(code: i32, to: &str) -> Vec<u8> {
    let verdict = [number(1, code.cast_unsigned()), name(2, to)].concat();
    expression("immediate", &[number(1, 0), attribute(2, &attribute(2, &verdict))])
}

fn counter(packets: u64) -> Vec<u8> {
    expression("counter", &[attribute(2, &packets.to_be_bytes())])
}

fn message(table: &str, chain: &str, handle: u64, expressions: &[Vec<u8>]) -> Vec<u8> {
    let handle = attribute(3, &handle.to_be_bytes());
    let all = [name(1, table), name(2, chain), handle, attribute(4, &expressions.concat())];
    [vec![2, 0, 0, 0], all.concat()].concat()
}

fn filter() -> Table<'static> {
    Table { family: Family::Ip, name: "filter".into(), handle: 1, owner: None }
}

fn base(name: &'static str, hook: ChainHook) -> Chain<'static> {
    let base = Base { kind: "filter", hook: Some(hook), priority: 0, drops: false };
    Chain {
        family: Family::Ip,
        table: "filter".into(),
        name: name.into(),
        handle: 2,
        uses: 1,
        base: Some(base),
    }
}

fn plain(name: &'static str) -> Chain<'static> {
    Chain { base: None, ..base(name, ChainHook::Input) }
}

/// The table `ip filter` with OUTPUT, INPUT, a chain X and these rules.
fn summed_up(rules: &[Vec<u8>]) -> overlaywatch_core::model::NftTable {
    let mut summary = Summary::default();
    summary.table(&filter());
    summary.chain(&base("OUTPUT", ChainHook::Output));
    summary.chain(&base("FORWARD", ChainHook::Forward));
    summary.chain(&plain("X"));
    for message in rules {
        summary.rule(rule(message).unwrap().unwrap());
    }
    summary.finish().remove(0)
}

#[test]
fn a_drop_of_vxlan_is_read_whole() {
    let [meta, is_udp] = protocol(17);
    let [load, is_port] = port(2, 0, 8472);
    let expressions = [meta, is_udp, load, is_port, counter(7), verdict(0, "")];
    let message = message("filter", "OUTPUT", 12, &expressions);
    let rule = rule(&message).unwrap().unwrap();
    assert_eq!((&*rule.table, &*rule.chain, rule.handle), ("filter", "OUTPUT", 12));
    let matches =
        Matches { protocol: Some(17), to_ports: Some((8472, 8472)), ..Matches::default() };
    assert_eq!((rule.matches, rule.verdict, rule.packets), (matches, Verdict::Drop, Some(7)));
    assert_eq!(rule.illegible, None);
}

#[test]
fn a_counter_before_a_condition_counts_other_packets_too() {
    let counted = |expressions: &[Vec<u8>]| {
        rule(&message("odd", "OUTPUT", 1, expressions)).unwrap().unwrap().packets
    };
    let [load, is] = port(2, 0, 8472);
    let dropped = verdict(0, "");
    let after = [load.clone(), is.clone(), counter(7), dropped.clone()];
    assert_eq!(counted(&after), Some(7));
    assert_eq!(counted(&[counter(7), load, is, dropped.clone()]), None);
    let lookup = expression("lookup", &[]);
    assert_eq!(counted(&[counter(7), lookup, dropped.clone()]), None);
    let logged = [counter(7), expression("log", &[]), dropped];
    assert_eq!(counted(&logged), Some(7));
}

#[test]
fn names_that_are_no_text_blind_nobody() {
    let odd = |kind| attribute(kind, b"a\xff\0");
    let header = vec![2, 0, 0, 0];
    let bytes = [header.clone(), odd(1), attribute(4, &9_u64.to_be_bytes())].concat();
    let table = table(&bytes).unwrap().unwrap();
    assert_eq!((&*table.name, table.handle), ("a\u{fffd}", 9));
    assert!(!is_exact(&table.name) && is_exact("filter"));
    let bytes = [header.clone(), odd(1), odd(3)].concat();
    let chain = chain(&bytes).unwrap().unwrap();
    assert_eq!((&*chain.table, &*chain.name), ("a\u{fffd}", "a\u{fffd}"));
    let jump = [number(1, (-3_i32).cast_unsigned()), odd(2)].concat();
    let jump = expression("immediate", &[number(1, 0), attribute(2, &attribute(2, &jump))]);
    let bytes = [header, odd(1), odd(2), attribute(4, &jump)].concat();
    let rule = rule(&bytes).unwrap().unwrap();
    assert_eq!(rule.verdict, Verdict::Jump("a\u{fffd}".into()));
    let by = [vec![0; 4], number(1, 9), number(2, 77), odd(3)].concat();
    assert_eq!(generation(&by).unwrap().by.unwrap().name, "a\u{fffd}");
}

#[test]
fn what_leads_into_kube_routers_chains_is_kept() {
    let jump = |from: &str, handle, to: &str| {
        message("filter", from, handle, &[counter(0), verdict(-3, to)])
    };
    let table = summed_up(&[
        jump("FORWARD", 4, "KUBE-ROUTER-FORWARD"),
        jump("FORWARD", 5, "KUBE-FORWARD"),
        // Not from where packets come.
        jump("X", 6, "KUBE-POD-FW-AB"),
    ]);
    assert_eq!(table.entries, [RuleAt { chain: "FORWARD".to_owned(), handle: 4 }]);
}

#[test]
fn errors_of_too_big_packets_that_are_dropped_are_kept() {
    // As nft writes "icmp type 3 icmp code 4", and iptables its extension.
    let at_once = port(0, 0, 0x0304);
    let apart = |offset: u32, value_of: u8| {
        let place = [number(1, 1), number(2, 2), number(3, offset), number(4, 1)];
        let is = [number(1, 1), number(2, 0), value(3, &[value_of])];
        [expression("payload", &place), expression("cmp", &is)]
    };
    let extension =
        |info: &[u8]| expression("match", &[name(1, "icmp"), number(2, 0), attribute(3, info)]);
    let kept = |conditions: &[Vec<u8>]| {
        let [meta, is_icmp] = protocol(1);
        let expressions = [&[meta, is_icmp], conditions, &[verdict(0, "")]].concat();
        summed_up(&[message("filter", "OUTPUT", 9, &expressions)]).silencers
    };
    for conditions in [
        Vec::new(),
        at_once.to_vec(),
        apart(0, 3).to_vec(),
        [apart(0, 3), apart(1, 4)].concat(),
        vec![extension(&[3, 4, 4, 0])],
        vec![extension(&[3, 0, 255, 0])],
        vec![extension(&[255, 0, 255, 0])],
    ] {
        let silencers = kept(&conditions);
        assert_eq!(silencers.len(), 1, "{conditions:?}");
        assert_eq!(silencers[0].hooks, [ChainHook::Output]);
    }
    for conditions in [
        apart(0, 8).to_vec(),
        [apart(0, 3), apart(1, 3)].concat(),
        vec![extension(&[8, 0, 255, 0])],
        vec![extension(&[3, 4, 4, 1])],
        vec![expression("limit", &[])],
        // What "ct" loads is asked by a comparison.
        vec![expression("ct", &[]), at_once[1].clone()],
    ] {
        assert_eq!(kept(&conditions), [], "{conditions:?}");
    }
}

#[test]
fn what_is_not_tracked_is_kept() {
    let kept =
        |action: Vec<u8>| summed_up(&[message("filter", "FORWARD", 9, &[action])]).untracking.len();
    let target = |what: &str, info: &[u8]| {
        expression("target", &[name(1, what), number(2, 1), attribute(3, info)])
    };
    assert_eq!(kept(expression("notrack", &[])), 1);
    assert_eq!(kept(target("CT", &1_u16.to_ne_bytes())), 1);
    assert_eq!(kept(target("NOTRACK", &[])), 1);
    // A zone, and nothing more.
    assert_eq!(kept(target("CT", &0_u16.to_ne_bytes())), 0);
    assert_eq!(kept(target("MARK", &[])), 0);
}

#[test]
fn ranges_and_what_is_not_read() {
    let [load, from] = port(2, 5, 4000);
    let [again, to] = port(2, 3, 9000);
    let expressions = [load, from, again, to, expression("limit", &[]), verdict(0, "")];
    let message = message("odd", "OUTPUT", 1, &expressions);
    let rule = rule(&message).unwrap().unwrap();
    assert_eq!(rule.matches.to_ports, Some((4000, 9000)));
    assert!(rule.matches.more);
}

#[test]
fn a_prefix_is_an_address_and_a_mask() {
    let place = [number(1, 1), number(2, 1), number(3, 16), number(4, 4)];
    let mask = [number(1, 1), number(2, 1), value(4, &[255, 255, 252, 0]), value(5, &[0; 4])];
    let is = [number(1, 1), number(2, 0), value(3, &[10, 0, 4, 0])];
    let expressions =
        [expression("payload", &place), expression("bitwise", &mask), expression("cmp", &is)];
    let message = message("odd", "OUTPUT", 1, &expressions);
    let matches = rule(&message).unwrap().unwrap().matches;
    let destination = Some("10.0.4.0/22".parse().unwrap());
    assert_eq!(matches, Matches { destination, ..Matches::default() });
}

#[test]
fn iptables_cannot_read_everything() {
    let read = |name: &str, data: &[Vec<u8>]| {
        let message = message("filter", "FORWARD", 1, &[expression(name, data), verdict(1, "")]);
        rule(&message).unwrap().unwrap().illegible.map(|(readers, _)| readers)
    };
    assert_eq!(read("ct", &[]), Some(Readers::Nobody));
    assert_eq!(read("reject", &[]), Some(Readers::Nobody));
    assert_eq!(read("lookup", &[]), Some(Readers::MisprintedFrom184));
    assert_eq!(read("range", &[]), Some(Readers::From188));
    assert_eq!(read("log", &[name(2, "x")]), Some(Readers::Nobody));
    assert_eq!(read("log", &[attribute(1, &[0, 1])]), Some(Readers::From188));
    assert_eq!(read("limit", &[number(4, 0), number(5, 0)]), None);
    assert_eq!(read("limit", &[number(4, 0), number(5, 1)]), Some(Readers::Nobody));
    assert_eq!(read("meta", &[number(2, 3), number(3, 1)]), Some(Readers::RefusedFrom189));
    assert_eq!(read("match", &[name(1, "conntrack")]), None);
    // Nobody reads tables of other names with iptables.
    let message = message("mine", "FORWARD", 1, &[expression("ct", &[])]);
    assert_eq!(rule(&message).unwrap().unwrap().illegible, None);
}

#[test]
fn a_range_of_ports_that_nft_wrote_is_told_from_what_iptables_writes() {
    let read = |expressions: &[Vec<u8>]| {
        let message = message("filter", "FORWARD", 1, &[expressions, &[verdict(0, "")]].concat());
        let illegible = rule(&message).unwrap().unwrap().illegible;
        illegible.map(|(readers, name)| (readers, name.to_owned()))
    };
    let [load, from] = port(2, 5, 4000);
    let [_, to] = port(2, 3, 9000);
    let nft = [load.clone(), from.clone(), to.clone()];
    assert_eq!(read(&nft), Some((Readers::MisprintedBefore188, "cmp".to_owned())));
    // As iptables writes 0:9000, and 80.
    assert_eq!(read(&[load.clone(), to]), None);
    assert_eq!(read(&port(2, 0, 80)), None);
    assert_eq!(read(&[load, from]), None);
}

#[test]
fn of_each_kind_the_first_are_kept() {
    let illegible = |handle, kind| message("filter", "FORWARD", handle, &[expression(kind, &[])]);
    let ranges = (1..=40).map(|handle| illegible(handle, "range"));
    let others = [illegible(41, "lookup"), illegible(42, "ct"), illegible(43, "ct")];
    let table = summed_up(&ranges.chain(others).collect::<Vec<_>>());
    let found: Vec<_> = table.illegible.iter().map(|rule| (rule.readers, rule.at.handle)).collect();
    assert_eq!(found.len(), 19);
    assert_eq!(found[..3], [(Readers::Nobody, 42), (Readers::Nobody, 43), (Readers::From188, 1)]);
    assert_eq!(found[18], (Readers::MisprintedFrom184, 41));
}

#[test]
fn a_foreign_base_chain_is_skipped_with_its_rules() {
    let late = Base { kind: "filter", hook: Some(ChainHook::Forward), priority: 9, drops: false };
    let mut summary = Summary::default();
    summary.table(&filter());
    summary.chain(&Chain { base: Some(late), ..base("late", ChainHook::Forward) });
    summary.chain(&plain("own"));
    for (handle, chain) in [(1, "late"), (2, "own")] {
        let message = message("filter", chain, handle, &[expression("ct", &[])]);
        summary.rule(rule(&message).unwrap().unwrap());
    }
    let found = &summary.finish()[0].illegible;
    assert_eq!(found.iter().map(|rule| rule.at.handle).collect::<Vec<_>>(), [2]);
}

#[test]
fn the_worst_of_a_rule_decides() {
    let expressions = [expression("lookup", &[]), expression("ct", &[]), verdict(0, "")];
    let message = message("filter", "FORWARD", 1, &expressions);
    assert_eq!(rule(&message).unwrap().unwrap().illegible, Some((Readers::Nobody, "ct")));
}

#[test]
fn a_rule_that_drops_has_the_conditions_of_the_one_jump_that_leads_to_it() {
    let [meta, is_udp] = protocol(17);
    let [load, is_port] = port(2, 0, 8472);
    let jump = message("filter", "OUTPUT", 3, &[meta, is_udp, load, is_port, verdict(-3, "X")]);
    let drop = message("filter", "X", 4, &[verdict(0, "")]);
    let table = summed_up(&[jump, drop]);
    assert_eq!(table.blockers.len(), 1);
    let blocker = &table.blockers[0];
    assert_eq!(blocker.hooks, [ChainHook::Output]);
    assert_eq!(blocker.matches.to_ports, Some((8472, 8472)));
    assert_eq!((blocker.at.chain.as_str(), blocker.at.handle), ("X", 4));
}

#[test]
fn what_no_outer_packet_comes_to_is_no_blocker() {
    let everything = message("filter", "FORWARD", 3, &[verdict(0, "")]);
    let never_called = message("filter", "X", 4, &[verdict(0, "")]);
    let [meta, is_tcp] = protocol(6);
    let tcp = message("filter", "OUTPUT", 5, &[meta, is_tcp, verdict(0, "")]);
    assert_eq!(summed_up(&[everything, never_called, tcp]).blockers, []);
}

#[test]
fn what_bars_all_that_is_forwarded_is_kept() {
    let reject = || expression("reject", &[]);
    let meant = |v6: u8| {
        // NFT_META_NFPROTO.
        let load = expression("meta", &[number(2, 15), number(1, 1)]);
        [load, expression("cmp", &[number(1, 1), number(2, 0), value(3, &[v6])])]
    };
    let barred = |rules: &[Vec<u8>]| {
        let barriers = summed_up(rules).barriers.into_iter();
        barriers.map(|rule| (rule.at.chain, rule.matches.v6)).collect::<Vec<_>>()
    };
    let jump = |from: &str, conditions: &[Vec<u8>]| {
        let expressions = [conditions, &[verdict(-4, "X")]].concat();
        message("filter", from, 3, &expressions)
    };
    let own = message("filter", "FORWARD", 9, &[reject()]);
    assert_eq!(barred(std::slice::from_ref(&own)), [("FORWARD".to_owned(), None)]);
    // As firewalld's: some of it, and then everything, goes to the zone's chain.
    let last = message("filter", "X", 4, &[verdict(0, "")]);
    let some = jump("FORWARD", &protocol(17));
    let all = jump("FORWARD", &[]);
    let led = [some.clone(), all.clone(), last.clone()];
    assert_eq!(barred(&led), [("X".to_owned(), None)]);
    // Some of it only, another hook's, nobody's, and a rule with a condition.
    assert_eq!(barred(&[some, last.clone()]), []);
    assert_eq!(barred(&[jump("OUTPUT", &[]), last.clone()]), []);
    assert_eq!(barred(std::slice::from_ref(&last)), []);
    let [load, is_port] = port(2, 0, 80);
    assert_eq!(barred(&[message("filter", "FORWARD", 9, &[load, is_port, reject()])]), []);
    // A controller denies what is of its pods.
    assert_eq!(barred(&[message("filter", "cali-FORWARD", 9, &[reject()])]), []);
    // One family of IP.
    let [load, is_v6] = meant(10);
    let v6 = message("filter", "FORWARD", 9, &[load, is_v6, reject()]);
    assert_eq!(barred(&[v6]), [("FORWARD".to_owned(), Some(true))]);
    assert_eq!(
        barred(&[jump("FORWARD", &meant(2)), last.clone()]),
        [("X".to_owned(), Some(false))]
    );
    let [load, is_v6] = meant(10);
    let never = message("filter", "X", 4, &[load, is_v6, verdict(0, "")]);
    assert_eq!(barred(&[jump("FORWARD", &meant(2)), never]), []);
    // Chains that lead to each other end the search.
    let back = message("filter", "X", 5, &[verdict(-3, "X")]);
    assert_eq!(barred(&[back, last]), []);
}

#[test]
fn what_controllers_deny_is_counted_where_it_is_forwarded_too() {
    let denies = message("filter", "KUBE-POD-FW-A", 3, &[expression("reject", &[])]);
    let drops = message("filter", "cali-tw-b", 4, &[verdict(0, "")]);
    let accepts = message("filter", "CILIUM_FORWARD", 5, &[verdict(1, "")]);
    let others = message("filter", "FORWARD", 6, &[verdict(0, "")]);
    let counted = |rules: &[Vec<u8>]| -> Vec<_> {
        let programmed = summed_up(rules).programmed;
        programmed.iter().map(|part| (part.by, part.rules, part.denials)).collect()
    };
    assert_eq!(
        counted(&[denies, drops, accepts, others]),
        [(Controller::KubeRouter, 1, 1), (Controller::Calico, 1, 1), (Controller::Cilium, 1, 0)]
    );
    // In a table of its own all chains are the controller's.
    let mut summary = Summary::default();
    summary.table(&Table { name: "calico".into(), ..filter() });
    let own = message("calico", "filter-FORWARD", 3, &[verdict(0, "")]);
    summary.rule(rule(&own).unwrap().unwrap());
    let programmed = summary.finish().remove(0).programmed;
    assert_eq!((programmed[0].by, programmed[0].denials), (Controller::Calico, 1));
}

#[test]
fn rules_of_one_policy_with_comments_of_their_own_are_no_flood() {
    let one = |handle: u64, comment: u64| {
        let plain = message("filter", "FORWARD", handle, &[counter(handle), verdict(-5, "")]);
        [plain, attribute(7, format!("\0\x06cali:{comment:02}\0").as_bytes())].concat()
    };
    let own: Vec<_> = (1..=20).map(|handle| one(handle, handle)).collect();
    assert_eq!(summed_up(&own).floods, []);
    let same: Vec<_> = (1..=20).map(|handle| one(handle, 1)).collect();
    assert_eq!(summed_up(&same).floods[0].times, 20);
}

#[test]
fn the_same_rule_again_and_again_is_a_flood() {
    let [meta, is_tcp] = protocol(6);
    let one = |handle: u64| {
        let expressions = [meta.clone(), is_tcp.clone(), counter(handle), verdict(1, "")];
        message("filter", "FORWARD", handle, &expressions)
    };
    let many: Vec<_> = (1..=20).map(one).collect();
    let floods = summed_up(&many).floods;
    assert_eq!((floods.len(), floods[0].times, floods[0].at.handle), (1, 20, 20));
    // Each another protocol.
    let other = |of: u8| {
        let [meta, is] = protocol(of);
        message("filter", "FORWARD", of.into(), &[meta, is, verdict(1, "")])
    };
    let different: Vec<_> = (1..=40).map(other).collect();
    assert_eq!(summed_up(&different).floods, []);
}

#[test]
fn a_hundred_thousand_rules_leave_a_small_summary() {
    let [meta, is_udp] = protocol(17);
    let rules: Vec<_> = (0..100_000_u64)
        .map(|handle| {
            let [load, is_port] = port(2, 0, u16::try_from(handle % 60_000).unwrap());
            let expressions = [meta.clone(), is_udp.clone(), load, is_port, verdict(0, "")];
            message("filter", "OUTPUT", handle, &expressions)
        })
        .collect();
    let table = summed_up(&rules);
    assert_eq!(table.rules, 100_000);
    let ruleset = Netfilter { tables: vec![table], ..Netfilter::default() };
    let size = serde_json::to_string(&ruleset).unwrap().len();
    assert!(size < 64 << 10, "{size} bytes");
}

#[test]
fn generations_name_their_committer() {
    let bytes = [vec![0; 4], number(1, 9), number(2, 77), name(3, "nft")].concat();
    let by = Some(Committer { pid: 77, name: "nft".to_owned() });
    assert_eq!(generation(&bytes).unwrap(), Generation { id: 9, by });
    assert!(generation(&[0; 4]).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = table(&bytes);
        let _ = chain(&bytes);
        let _ = rule(&bytes);
        let _ = generation(&bytes);
        let _ = table_of(&bytes);
    }

    #[test]
    fn rules_that_look_right_are_survived(
        kinds in prop::collection::vec((0..12_usize, 0..7_u16, prop::collection::vec(any::<u8>(), 0..24)), 0..8),
        cut in 0..8_usize,
    ) {
        const NAMES: [&str; 12] = [
            "payload", "meta", "cmp", "bitwise", "range", "immediate", "counter", "match",
            "target", "log", "limit", "lookup",
        ];
        let expressions: Vec<_> = kinds
            .iter()
            .map(|(kind, attribute_kind, bytes)| {
                expression(NAMES[*kind], &[attribute(*attribute_kind, bytes), value(3, bytes)])
            })
            .collect();
        let mut bytes = message("filter", "OUTPUT", 1, &expressions);
        let _ = rule(&bytes);
        bytes.truncate(bytes.len().saturating_sub(cut));
        let _ = rule(&bytes);
    }
}

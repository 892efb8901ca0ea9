//! The sources against a real kernel: what they say equals what `ip -j` and
//! `bridge -j` say, at first and after every change. Needs root and iproute2.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy lets tests fail by panicking, but not the helpers they share"
)]

mod ipset;
mod oracle;
mod tracking;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::Write;
use std::net::UdpSocket;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use overlaywatch::clock;
use overlaywatch::source::{self, Handle, Options};
use overlaywatch_core::assembly::{Assembly, Change, SourceId, SourceReport, Update};
use overlaywatch_core::fact::{Fact, Gap};
use overlaywatch_core::model::{IfIndex, Link, LinkCounters, LinkKind};
use overlaywatch_core::policy::Policy;
use overlaywatch_core::snapshot::{NodeIdentity, Snapshot};
use tokio::sync::mpsc::{Receiver, channel};

use oracle::{index_of, run};

/// Far more than any change takes to arrive, and far less than `NEVER`.
const PATIENCE: Duration = Duration::from_secs(20);
/// A period that no test lives to see the end of: what arrives, arrived by events.
const NEVER: Duration = Duration::from_secs(3600);

/// Runs `test` in a fresh network namespace, which goes with its thread.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

fn setup(script: &str) {
    for command in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        run(command);
    }
}

fn only_events() -> Options {
    Options { poll: NEVER, refresh: NEVER, ..Options::default() }
}

/// The sources, running, and the state that the assembly makes of their updates.
struct Observer {
    updates: Receiver<Update>,
    assembly: Assembly,
    handle: Handle,
    reports: Vec<SourceReport>,
    route_dumps: usize,
}

impl Observer {
    fn start(options: &Options) -> Self {
        let (sender, updates) = channel(64);
        let handle = source::spawn(options, &sender).unwrap();
        let assembly = Assembly::new(NodeIdentity::default(), None, Policy::default());
        Self { updates, assembly, handle, reports: Vec::new(), route_dumps: 0 }
    }

    fn fold(&mut self) {
        while let Ok(update) = self.updates.try_recv() {
            match &update {
                Update::Source(report) => self.reports.push(report.clone()),
                Update::Routes(Change::Replace(_)) => self.route_dumps += 1,
                _ => {}
            }
            self.assembly.fold(update, clock::mono());
        }
    }

    /// Waits until `look` gives what is waited for.
    fn wait_for<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Self, &Snapshot) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        loop {
            self.fold();
            let snapshot = self.assembly.freeze(clock::now());
            if let Some(found) = look(self, &snapshot) {
                return found;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until one subject is what the kernel says it is.
    fn equals<T: PartialEq + Debug>(
        &mut self,
        what: &str,
        ours: impl Fn(&Snapshot) -> Option<Vec<T>>,
        kernel: impl Fn() -> Vec<T>,
    ) {
        let began = Instant::now();
        loop {
            self.fold();
            let found = ours(&self.assembly.freeze(clock::now())).unwrap_or_default();
            let expected = kernel();
            if found == expected {
                return;
            }
            if began.elapsed() > PATIENCE {
                let missing: Vec<_> = expected.iter().filter(|e| !found.contains(e)).collect();
                let wrong: Vec<_> = found.iter().filter(|f| !expected.contains(f)).collect();
                panic!("{what}\n only the kernel: {missing:#?}\n only we: {wrong:#?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until every subject is what the kernel says it is.
    fn settles(&mut self, after: &str) {
        let what = |subject| format!("{subject} after: {after}");
        self.equals(
            &what("links"),
            |s| Some(at_rest(s.links.seen()?)),
            || at_rest(&oracle::links()),
        );
        self.equals(&what("addresses"), |s| Some(s.addresses.seen()?.to_vec()), oracle::addresses);
        self.equals(&what("routes"), |s| values(&s.routes.seen()?.0), || owned(&oracle::routes()));
        self.equals(&what("rules"), |s| Some(s.rules.seen()?.to_vec()), oracle::rules);
        self.equals(
            &what("neighbours"),
            |s| values(s.neighbours.seen()?),
            || owned(&oracle::neighbours()),
        );
        self.equals(&what("fdb"), |s| values(s.fdb.seen()?), || owned(&oracle::fdb()));
    }

    /// Waits until no dump follows from what happened so far.
    fn falls_silent(&mut self) {
        let (mut reports, mut since) = (0, Instant::now());
        while since.elapsed() < Duration::from_millis(1500) {
            self.fold();
            if self.reports.len() != reports {
                (reports, since) = (self.reports.len(), Instant::now());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops, which must not take long.
    fn stop(self) {
        drop(self.updates);
        let began = Instant::now();
        self.handle.join();
        assert!(began.elapsed() < Duration::from_secs(1), "stopping took {:?}", began.elapsed());
    }
}

fn owned<K, V: Clone>(map: &BTreeMap<K, V>) -> Vec<V> {
    map.values().cloned().collect()
}

/// Links without their counters, which differ from one moment to the next.
fn at_rest(links: &BTreeMap<IfIndex, Link>) -> Vec<Link> {
    let still = |link: &Link| Link { counters: LinkCounters::default(), ..link.clone() };
    links.values().map(still).collect()
}

/// In the shape that `Observer::equals` asks for.
fn values<K, V: Clone>(map: &BTreeMap<K, V>) -> Option<Vec<V>> {
    Some(owned(map))
}

fn shared<T: Clone>(fact: &Fact<Arc<T>>) -> Option<T> {
    fact.seen().map(|value| value.as_ref().clone())
}

/// A node as flannel and Calico shape it, and a few things besides. IPv6 is
/// told not to find addresses by itself, for those would come at their own time.
const NODE: &str = "
    sysctl -qw net.ipv6.conf.default.addr_gen_mode=1
    ip link add va type veth peer name vb
    ip addr add 10.0.0.1/24 dev va
    ip addr add 10.0.0.1 peer 10.0.0.99/32 dev va
    ip addr add 2001:db8::1/64 dev va nodad
    ip link set va up
    ip link set vb up
    ip link add cni0 type bridge
    ip link set vb master cni0
    ip link add flannel.1 type vxlan id 1 dstport 8472 local 10.0.0.1 dev va nolearning
    ip link set flannel.1 address 02:00:00:00:00:01 mtu 1450
    ip link set flannel.1 up
    ip addr add 10.42.0.0/32 dev flannel.1
    ip link add vxlan6 type vxlan id 7 dstport 4789 remote 2001:db8::2 local 2001:db8::1
    ip link add meta type vxlan external dstport 4790
    ip link set meta up
    ip route add 10.42.1.0/24 via 10.42.1.0 dev flannel.1 onlink
    ip route add blackhole 10.42.0.0/26 proto 80
    ip route add unreachable 10.42.9.0/24
    ip route add prohibit 10.42.10.0/24 table 77
    ip route add throw 10.42.11.0/24 table 77
    ip route add 10.7.0.0/16 nexthop via 10.0.0.3 dev va nexthop via 10.42.1.0 dev flannel.1 onlink
    ip route add 10.8.0.0/16 dev va src 10.0.0.1 metric 50 proto 12
    ip route add 10.9.0.0/16 via inet6 2001:db8::9 dev va
    ip route add 10.10.0.0/16 via 10.0.0.2
    ip route append 10.10.0.0/16 via 10.0.0.3
    ip route add default via 10.0.0.254
    ip route add 2001:db8:7::/48 nexthop via 2001:db8::3 nexthop via 2001:db8::4
    ip route add 2001:db8:8::/48 encap seg6 mode encap segs 2001:db8::5 dev va
    ip route add 2001:db8:9::/48 from 2001:db8:a::/48 dev va
    ip neigh add 10.42.1.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
    ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:22 dev va nud reachable
    ip neigh add 2001:db8::3 lladdr 02:00:00:00:00:23 dev va nud permanent
    ip neigh add proxy 10.0.0.77 dev va
    bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 10.0.0.2
    bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.0.0.8 port 4789 vni 7
    bridge fdb add 02:00:00:00:00:33 dev vb master static
    ip rule add fwmark 0x200/0xf00 lookup 77 pref 9
    ip rule add from 10.1.0.0/16 to 10.2.0.0/16 blackhole pref 10
    ip rule add iif va lookup 77 pref 11
    ip -6 rule add to 2001:db8::/32 lookup 99 pref 12
";

/// `NODE` without what this kernel cannot do.
fn node() -> String {
    let has_seg6 = std::path::Path::new("/proc/sys/net/ipv6/conf/lo/seg6_enabled").exists();
    let possible = |line: &&str| has_seg6 || !line.contains("seg6");
    NODE.lines().filter(possible).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_first_dump_equals_the_kernels_tables() {
    in_namespace(|| {
        setup(&node());
        let mut observer = Observer::start(&Options::default());
        observer.settles("the first dump");
        observer.wait_for("a report of every source", |observer, _| {
            let heard: BTreeSet<_> = observer.reports.iter().map(|r| r.source).collect();
            (heard == BTreeSet::from(Options::ALL)).then_some(())
        });
        for report in &observer.reports {
            assert_eq!((report.gap, report.detail.as_str()), (None, ""), "{report:?}");
            assert!(report.duration_ns > 0, "{report:?}");
        }
        observer.stop();
    });
}

#[test]
fn every_change_arrives_by_events() {
    in_namespace(|| {
        let mut observer = Observer::start(&only_events());
        observer.settles("the start");
        for command in node().lines().map(str::trim).filter(|line| !line.is_empty()) {
            run(command);
        }
        observer.settles("the node was built");
        for change in [
            // Removals, each with its key.
            "ip route del 10.42.1.0/24 via 10.42.1.0 dev flannel.1",
            "ip route del blackhole 10.42.0.0/26",
            "ip route del prohibit 10.42.10.0/24 table 77",
            "ip neigh del 10.42.1.0 dev flannel.1",
            "bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 10.0.0.2",
            "bridge fdb del 00:00:00:00:00:00 dev flannel.1 dst 10.0.0.8 port 4789 vni 7",
            "ip rule del pref 9",
            "ip -6 rule del pref 12",
            // The same again, and changed in place.
            "ip route add 10.42.1.0/24 via 10.42.1.0 dev flannel.1 onlink",
            "ip route replace 10.42.1.0/24 via 10.42.1.1 dev flannel.1 onlink",
            "bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 10.0.0.2",
            "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 10.0.0.3",
            "ip neigh replace 10.42.1.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
            // One of two with one key: the other stays.
            "ip route del 10.10.0.0/16 via 10.0.0.2",
            "ip -6 route del 2001:db8:7::/48 via 2001:db8::3",
            "ip rule add iif vb lookup 88 pref 20",
            "ip rule add lookup 88 pref 20",
            "ip rule del iif vb lookup 88 pref 20",
            "ip addr del 10.0.0.1 peer 10.0.0.99/32 dev va",
            // Routes through a next-hop object follow it.
            "ip nexthop add id 5 via 10.0.0.5 dev va",
            "ip route add 10.55.0.0/16 nhid 5",
            "ip nexthop replace id 5 via 10.0.0.6 dev va",
            "ip nexthop del id 5",
            // Devices: renamed, freed, down, up, gone.
            "ip link set vb nomaster",
            "ip link set flannel.1 mtu 1400",
            "ip link set flannel.1 down",
            "ip link set flannel.1 up",
            "ip link set va down",
            "ip link set va name renamed",
            "ip link set renamed up",
            "ip addr flush dev renamed",
            "ip link del meta",
            "ip link del flannel.1",
            "ip link del renamed",
        ] {
            run(change);
            observer.settles(change);
        }
        observer.stop();
    });
}

/// Changes of which the kernel's events tell nothing, half, or something that
/// reads like another change: what is there before, and what is then done.
const HALF_TOLD: [(&str, &str); 9] = [
    ("ip route add 10.9.0.0/16 via 10.0.0.2", "ip link set va down"),
    ("ip route add 10.9.0.0/16 via 10.0.0.2", "ip link del va"),
    (
        "ip addr add 10.1.0.1/32 dev va
         ip route add 10.9.0.0/16 via 10.0.0.2 src 10.1.0.1",
        "ip addr del 10.1.0.1/32 dev va",
    ),
    (
        "ip addr add 10.0.0.7 peer 10.0.0.98/32 dev va
         ip addr add 10.0.0.7 peer 10.0.0.99/32 dev va",
        "ip addr del 10.0.0.7 peer 10.0.0.99/32 dev va",
    ),
    ("ip route add 10.9.0.0/16 via 10.0.0.2", "ip route append 10.9.0.0/16 via 10.0.0.3"),
    (
        "ip route add 10.9.0.0/16 via 10.0.0.2
         ip route append 10.9.0.0/16 via 10.0.0.3",
        "ip route del 10.9.0.0/16 via 10.0.0.2",
    ),
    (
        "ip nexthop add id 5 via 10.0.0.5 dev va
         ip route add 10.9.0.0/16 nhid 5",
        "ip nexthop del id 5",
    ),
    (
        "ip rule add blackhole pref 20
         ip rule add unreachable pref 20",
        "ip rule del unreachable pref 20",
    ),
    (
        "ip link add vx type vxlan id 1 dstport 8472 local 10.0.0.1 nolearning
         ip link set vx up
         bridge fdb add 02:00:00:00:00:02 dev vx dst 10.0.0.2",
        "bridge fdb replace 02:00:00:00:00:02 dev vx dst 10.0.0.3",
    ),
];

#[test]
fn what_events_tell_by_halves_is_looked_up() {
    let cases = HALF_TOLD.map(|(before, change)| {
        thread::spawn(move || {
            in_namespace(move || {
                // IPv6 tells of every route that goes, which would give the rest away.
                setup(
                    "sysctl -qw net.ipv6.conf.default.disable_ipv6=1
                     ip link add va type veth peer name vb
                     ip link set va up
                     ip link set vb up
                     ip addr add 10.0.0.1/24 dev va",
                );
                setup(before);
                let mut observer = Observer::start(&only_events());
                observer.settles(before);
                observer.falls_silent();
                run(change);
                observer.settles(&format!("{before}, then {change}"));
                // What came late may have undone it.
                observer.falls_silent();
                observer.settles(&format!("{before}, then {change}, and a while"));
                observer.stop();
            });
        })
    });
    let outcomes = cases.map(thread::JoinHandle::join);
    let failed = HALF_TOLD.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_err());
    let failed: Vec<_> = failed.map(|((_, change), _)| change).collect();
    assert!(failed.is_empty(), "not noticed: {failed:#?}");
}

#[test]
fn lost_events_are_made_good_by_a_new_dump() {
    in_namespace(|| {
        setup("ip link add va type veth peer name vb\nip link set va up\nip link set vb up");
        setup("ip addr add 10.0.0.1/24 dev va");
        // The kernel makes this its least: room for some ten events.
        let options = Options { event_buffer_bytes: 1, ..only_events() };
        let mut observer = Observer::start(&options);
        observer.settles("the start");
        let dumps = observer.route_dumps;
        let add = |i: u32| format!("route add 10.{}.{}.0/24 via 10.0.0.2", 100 + i / 256, i % 256);
        let del = |i: u32| format!("route del 10.{}.{}.0/24", 100 + i / 256, i % 256);
        let adds = (0..20_000).map(add);
        let dels = (0..20_000).filter(|i| i % 3 == 0).map(del);
        batch(adds.chain(dels));
        observer.settles("20,000 routes in one go");
        assert!(observer.route_dumps > dumps, "no event was lost: the test tests nothing");
        // And it hears again.
        run("ip route add 10.99.0.0/16 via 10.0.0.2");
        observer.settles("one more route");
        observer.stop();
    });
}

fn batch(lines: impl Iterator<Item = String>) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let text: String = lines.flat_map(|line| [line, "\n".to_owned()]).collect();
    ip.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

#[test]
fn counters_of_links_and_host_move_without_an_event() {
    in_namespace(|| {
        let poll = Duration::from_millis(50);
        let mut observer = Observer::start(&Options { poll, ..only_events() });
        let before = observer.wait_for("a first reading", |_, snapshot| {
            let host = snapshot.host.seen()?;
            snapshot.links.seen().map(|_| host.counters)
        });
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..7 {
            // A datagram to a closed port makes the next send fail: that is the point of it.
            let _ = socket.send_to(b"anybody?", "127.0.0.1:9");
        }
        observer.wait_for("the datagrams in both", |_, snapshot| {
            let host = snapshot.host.seen()?;
            let lo = snapshot.links.seen()?.get(&index_of("lo"))?.counters;
            let refused = host.counters.udp_no_ports - before.udp_no_ports;
            let both = lo.tx_packets >= 14 && lo.tx_packets == lo.rx_packets;
            (refused == 7 && both).then_some(())
        });
        let ours = observer.wait_for("the counters as `ip` has them", |_, snapshot| {
            let lo = snapshot.links.seen()?.get(&index_of("lo"))?.clone();
            (oracle::links().get(&lo.index) == Some(&lo)).then_some(lo)
        });
        assert_ne!(ours.counters, LinkCounters::default());
        assert_eq!(ours.kind, LinkKind::Loopback);
        observer.stop();
    });
}

#[test]
fn the_host_is_that_of_the_namespace() {
    in_namespace(|| {
        setup(
            "ip link add va type veth peer name vb
             sysctl -qw net.ipv4.ip_forward=1
             sysctl -qw net.ipv6.conf.all.forwarding=1
             sysctl -qw net.ipv4.conf.all.rp_filter=2
             sysctl -qw net.ipv4.conf.va.rp_filter=1
             sysctl -qw net.ipv4.conf.va.forwarding=0",
        );
        let options = Options { enabled: [SourceId::Procfs].into(), ..Options::default() };
        let mut observer = Observer::start(&options);
        let host = observer.wait_for("a reading", |_, snapshot| shared(&snapshot.host));
        assert_eq!(host.kernel_release, run("uname -r").trim());
        assert_eq!(host.boot_id, run("cat /proc/sys/kernel/random/boot_id").trim());
        assert_eq!(host.ipv4_forwarding, Some(true));
        assert_eq!(host.ipv6_forwarding, Some(true));
        assert_eq!(host.rp_filter_all, Some(2));
        let names: Vec<&str> = host.devices.keys().map(String::as_str).collect();
        assert_eq!(names, ["lo", "va", "vb"]);
        assert_eq!(host.devices["va"].rp_filter, Some(1));
        assert_eq!(host.devices["va"].forwarding, Some(false));
        assert_eq!(host.devices["vb"].forwarding, Some(true));
        let has_modules = std::path::Path::new("/proc/modules").exists();
        assert_eq!(host.modules.is_some(), has_modules);
        observer.stop();
    });
}

#[test]
fn what_is_switched_off_says_so_once_and_reads_nothing() {
    let options = Options { enabled: [SourceId::Rules].into(), ..Options::default() };
    let mut observer = Observer::start(&options);
    observer.wait_for("all reports", |observer, _| {
        (observer.reports.len() >= Options::ALL.len()).then_some(())
    });
    for report in &observer.reports {
        let expected = (report.source != SourceId::Rules).then_some(Gap::Disabled);
        assert_eq!(report.gap, expected, "{report:?}");
    }
    let snapshot = observer.assembly.freeze(clock::now());
    assert!(snapshot.rules.seen().is_some());
    assert_eq!(snapshot.routes.gap(), Some(Gap::Disabled));
    assert_eq!(snapshot.host.gap(), Some(Gap::Disabled));
    observer.stop();
}

#[test]
fn with_everything_switched_off_the_threads_end_by_themselves() {
    let (sender, mut updates) = channel(64);
    let options = Options { enabled: BTreeSet::new(), ..Options::default() };
    source::spawn(&options, &sender).unwrap().join();
    drop(sender);
    let mut reported = BTreeSet::new();
    while let Some(update) = updates.blocking_recv() {
        let Update::Source(report) = update else { panic!("{update:?}") };
        assert_eq!(report.gap, Some(Gap::Disabled));
        assert!(reported.insert(report.source), "twice: {report:?}");
    }
    assert_eq!(reported, BTreeSet::from(Options::ALL));
}

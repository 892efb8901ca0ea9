//! Tables with more in them than any verdict could need.

use std::fs;
use std::sync::Arc;

use overlaywatch::source::Options;
use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::kernel::{HookPlan, HookedDevice};
use overlaywatch_core::model::{Encapsulation, IfIndex};
use tokio::sync::watch;

use super::heap::Growth;
use super::{Observer, feed, in_namespace};

/// Connections that are tracked, of which every hundredth is flannel's. A million
/// takes a limit that is the whole machine's, which no test may change.
const CONNECTIONS: u32 = 150_000;
/// What reading them may take: a buffer, and nothing for each entry.
const MOST_BYTES_FOR_CONNECTIONS: usize = 1 << 20;
/// Sets, of which one has so many members.
const SETS: u32 = 1_000;
const MEMBERS: u32 = 1_000_000;
/// What reading them may take: 2 KB for each set, and nothing for members.
const MOST_BYTES_FOR_SETS: usize = 2 << 20;

#[test]
fn connections_are_counted_and_none_is_kept() {
    in_namespace(|| {
        let max = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
        let size = CONNECTIONS.min(max.trim().parse::<u32>().unwrap() / 4 * 3);
        let tunnel = Encapsulation::Vxlan(8472);
        let device = HookedDevice {
            index: IfIndex(2),
            name: "flannel.1".to_owned(),
            tunnel: Some(tunnel),
            is_ethernet: true,
        };
        let plan = HookPlan { devices: vec![device], ports: [8472].into(), ..HookPlan::default() };
        let entries = (0..size).map(|number| {
            let [_, a, b, c] = number.to_be_bytes();
            let port = if number % 100 == 0 { 8472 } else { 53 };
            format!("-A -p udp -s 10.{a}.{b}.{c} -d 10.0.0.2 --sport 1024 --dport {port} -t 3600")
        });
        feed("conntrack", &["--load-file", "-"], entries).join().unwrap();
        let growth = Growth::watch();
        let (_told, watched) = watch::channel(Arc::new(plan));
        let enabled = [SourceId::Conntrack].into();
        let mut observer = Observer::start(&Options { enabled, watched, ..Options::default() });
        let table = observer.wait_for("a count", |_, snapshot| {
            snapshot.conntrack.seen().filter(|table| table.tunnels.is_some()).cloned()
        });
        assert_eq!(table.count, size);
        let flows = &table.tunnels.as_ref().unwrap()[0];
        assert_eq!((flows.encapsulation, flows.entries), (tunnel, size.div_ceil(100)));
        let most = growth.most();
        assert!(most < MOST_BYTES_FOR_CONNECTIONS, "{most} bytes of the heap");
        observer.rests(SourceId::Conntrack, 2);
        observer.stop();
    });
}

#[test]
fn a_thousand_sets_are_told_without_their_million_members() {
    in_namespace(|| {
        let sets = (0..SETS).map(|set| match set {
            0 => format!("create pods hash:ip hashsize 262144 maxelem {}", MEMBERS + 1),
            _ => format!("create policy-{set} hash:ip,port"),
        });
        let members = (0..MEMBERS).map(|number| {
            let [_, a, b, c] = number.to_be_bytes();
            format!("add pods 10.{a}.{b}.{c}")
        });
        feed("ipset", &["restore"], sets.chain(members)).join().unwrap();
        let growth = Growth::watch();
        // Links are read all the time; sets less often the more it costs.
        let enabled = [SourceId::Links, SourceId::Ipset].into();
        let mut observer = Observer::start(&Options { enabled, ..Options::default() });
        let found =
            observer.wait_for("all sets", |_, snapshot| Some(Arc::clone(snapshot.ipsets.seen()?)));
        assert_eq!(found.sets.len(), SETS as usize);
        let pods = found.sets.iter().find(|set| set.name == "pods").unwrap();
        assert_eq!(pods.elements, MEMBERS);
        let most = growth.most();
        assert!(most < MOST_BYTES_FOR_SETS, "{most} bytes of the heap");
        observer.rests(SourceId::Links, 3);
        observer.stop();
    });
}

//! Routes that come, change and go all the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use overlaywatch::source::Options;
use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::model::{Route, RouteKey};

use super::heap::Growth;
use super::oracle;
use super::{Observer, PATIENCE, feed, in_namespace};

/// Prefixes that come and go; of each the kernel tells again and again.
const PREFIXES: u32 = 2_000;
/// Changes while the updates are taken as they come, and as many while nobody
/// takes any.
const CHANGES: u32 = 100_000;
/// What sources and assembly may take on top, whatever the number of changes:
/// of each item only the last word is kept, and no more than 1,024 updates wait.
const MOST_BYTES: usize = 8 << 20;
/// A period that no test lives to see the end of.
const NEVER: Duration = Duration::from_secs(3600);

/// Each prefix is added, changed twice, removed, and so on.
fn changes(from: u32, count: u32) -> impl Iterator<Item = String> + Send + 'static {
    (from..from + count).map(|change| {
        let (turn, prefix) = (change / PREFIXES, change % PREFIXES);
        let net = format!("10.{}.{}.0/24", 100 + prefix / 256, prefix % 256);
        // Neighbouring prefixes are not in step, so that in the end some are there.
        match (turn + prefix) % 4 {
            // Nothing is removed that was never there.
            3 if turn > 0 => format!("route del {net}"),
            0 => format!("route replace {net} via 10.0.0.2 dev va"),
            1 => format!("route replace {net} via 10.0.0.3 dev va"),
            _ => format!("route replace {net} dev va"),
        }
    })
}

fn ours(observer: &mut Observer) -> BTreeMap<RouteKey, Route> {
    observer.snapshot().routes.seen().map(|table| table.0.clone()).unwrap_or_default()
}

#[test]
fn two_hundred_thousand_changes_of_routes_end_in_what_the_kernel_has() {
    in_namespace(|| {
        for line in [
            "ip link add va type veth peer name vb",
            "ip link set va up",
            "ip link set vb up",
            "ip addr add 10.0.0.1/24 dev va",
        ] {
            oracle::run(line);
        }
        // Links are read all the time, as in the agent; routes only when events say so.
        let enabled = [SourceId::Links, SourceId::Routes].into();
        let mut observer =
            Observer::start(&Options { enabled, refresh: NEVER, ..Options::default() });
        observer.wait_for("the first dumps", |_, snapshot| {
            snapshot.links.seen().and(snapshot.routes.seen()).map(drop)
        });
        let growth = Growth::watch();
        // While everything is taken as it comes.
        let heard = observer.route_events + observer.route_dumps;
        let feeding = feed("ip", &["-batch", "-"], changes(0, CHANGES));
        while !feeding.is_finished() {
            observer.hear(PATIENCE);
        }
        feeding.join().unwrap();
        assert!(observer.route_events + observer.route_dumps > heard, "no change was heard of");
        // While nobody takes anything: the source waits, and the kernel drops events.
        feed("ip", &["-batch", "-"], changes(CHANGES, CHANGES)).join().unwrap();
        let expected = oracle::routes();
        assert!(expected.len() > PREFIXES as usize / 2, "too few are left to tell anything");
        let began = Instant::now();
        while ours(&mut observer) != expected {
            assert!(began.elapsed() < PATIENCE, "the kernel's routes are not what is told");
            observer.hear(PATIENCE);
        }
        let most = growth.most();
        assert!(most < MOST_BYTES, "{most} bytes of the heap");
        // And it hears again.
        oracle::run("ip route add 10.99.0.0/16 via 10.0.0.2");
        let expected = oracle::routes();
        observer.wait_for("one more route", |_, snapshot| {
            (snapshot.routes.seen()?.0 == expected).then_some(())
        });
        observer.rests(SourceId::Links, 3);
        observer.stop();
    });
}

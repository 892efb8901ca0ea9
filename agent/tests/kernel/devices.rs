//! Devices come, go and change; hooks follow the whole agent's observations.

use overlaywatch_core::kernel::Attach;
use overlaywatch_core::kernel::HookPlan;

use crate::bench::{
    Loader, Namespace, Pins, SMALL, VXLAN, device, index, make_tunnel, options, pair, plan,
    requests, wait,
};
use crate::daemon::Agent;
use crate::foreign::{Side, filters, tcx};

const EPOCH: u64 = 0xeeee_0000_0000_0001;

/// What is pinned for a device on both of its sides.
fn links(indexes: &[u32]) -> Vec<String> {
    let mut names: Vec<String> =
        indexes.iter().flat_map(|i| [format!("link-{i}-in"), format!("link-{i}-out")]).collect();
    names.sort();
    names
}

fn at(node: &Namespace, device: &str) -> u32 {
    index(node, device).unwrap().0
}

/// The programs are on both devices, and nothing else is pinned or told of.
fn wait_hooked(agent: &Agent, node: &Namespace, pins: &Pins, devices: &[&str]) {
    let mut seen = None;
    let looked = || {
        let indexes: Vec<u32> =
            devices.iter().map(|name| index(node, name).map(|i| i.0)).collect::<Option<_>>()?;
        let on_both = devices.iter().all(|device| {
            [Side::In, Side::Out].into_iter().all(|side| tcx(node, device, side).len() == 1)
        });
        let pinned = pins.links(node);
        let gaps = agent.gaps(node)?;
        let is_quiet = !gaps.iter().any(|(source, ..)| source == "kernel");
        let is_right = on_both && is_quiet && pinned == links(&indexes);
        seen = Some((indexes, on_both, pinned, gaps));
        is_right.then_some(())
    };
    let what = format!("programs on {devices:?} alone");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait(&what, looked)));
    assert!(outcome.is_ok(), "{what}: {seen:?}");
}

#[test]
fn hooks_follow_the_devices() {
    let pins = Pins::new();
    let nodes = pair();
    let [one, _] = &nodes;
    let agent = Agent::start(one, &pins, "");
    let both = ["eth0", "flannel.1"];
    wait_hooked(&agent, one, &pins, &both);

    // As a CNI does when it starts again.
    let old = at(one, "flannel.1");
    one.sh("ip link del flannel.1");
    make_tunnel(one, 1);
    assert_ne!(at(one, "flannel.1"), old);
    wait_hooked(&agent, one, &pins, &both);

    // The device is the same, so the programs stay where they are.
    let before = tcx(one, "flannel.1", Side::In);
    one.sh("ip link set flannel.1 down; ip link set flannel.1 name flannel.9
            ip link set flannel.9 up
            ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.9 nud permanent
            ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.9 onlink");
    wait_hooked(&agent, one, &pins, &["eth0", "flannel.9"]);
    assert_eq!(tcx(one, "flannel.9", Side::In), before);

    one.sh("ip link set eth0 down");
    one.sh("ip link set eth0 up");
    wait_hooked(&agent, one, &pins, &["eth0", "flannel.9"]);

    // Away to another namespace: nothing of ours goes with it for long.
    let away = Namespace::new();
    one.give("flannel.9", &away);
    wait_hooked(&agent, one, &pins, &["eth0"]);
    assert_eq!(tcx(&away, "flannel.9", Side::In), []);
    assert_eq!(tcx(&away, "flannel.9", Side::Out), []);

    // Its VNI is taken as long as it lives.
    away.sh("ip link del flannel.9");
    make_tunnel(one, 1);
    wait_hooked(&agent, one, &pins, &both);
}

#[test]
fn a_renamed_device_keeps_its_counts_and_programs() {
    for attach in [Attach::Tcx, Attach::Clsact] {
        let pins = Pins::new();
        let nodes = pair();
        let mut one = Loader::watching(&nodes[0], options(&pins, attach), plan(&nodes[0], 1));
        requests(&nodes[0], 1, SMALL, EPOCH, 0..10);
        let old = one
            .climb("ten", SMALL, EPOCH, |c| c.requests.encapsulated.is_some_and(|w| w.count == 10));
        // Renamed behind the plan's back: no reason to say anything.
        nodes[0].sh("ip link set flannel.1 name overlay9");
        one.settle();
        let mut renamed = plan_of(&nodes[0], "overlay9");
        renamed.ports = [8472].into();
        one.replan(renamed);
        one.settle();
        assert_eq!(one.counts.problems, Vec::<String>::new());
        let now = one.reader.climb(EPOCH, SMALL).unwrap();
        assert!(now.tunnel_ms > old.tunnel_ms, "{now:?}");
        assert_eq!(now.requests.encapsulated, old.requests.encapsulated);
    }
}

fn plan_of(node: &Namespace, tunnel: &str) -> HookPlan {
    let mut devices = vec![device(node, "eth0", None), device(node, tunnel, Some(VXLAN))];
    devices.sort();
    let peer = overlaywatch_core::model::PeerId(crate::bench::underlay(2));
    HookPlan { devices, peers: [(peer.0.into(), peer)].into(), ..HookPlan::default() }
}

#[test]
fn a_device_that_takes_over_a_name_is_not_taken_for_the_old_one() {
    let pins = Pins::new();
    let nodes = pair();
    let mut one = Loader::watching(&nodes[0], options(&pins, Attach::Tcx), plan(&nodes[0], 1));
    nodes[0].sh("ip link del flannel.1");
    make_tunnel(&nodes[0], 1);
    // The plan still names the old one.
    one.settle();
    assert_eq!(tcx(&nodes[0], "flannel.1", Side::In), []);
    assert_eq!(one.counts.problems, Vec::<String>::new());
    let new = plan(&nodes[0], 1);
    one.replan(new.clone());
    one.wait("the new device", |counts| {
        new.devices.iter().all(|device| counts.devices.contains(&device.index)).then_some(())
    });
    assert_eq!(tcx(&nodes[0], "flannel.1", Side::In).len(), 1);
    assert_eq!(pins.links(&nodes[0]).len(), 4, "{:?}", pins.links(&nodes[0]));
}

#[test]
fn what_earlier_runs_left_is_swept() {
    for (before, after) in [(Attach::Tcx, Attach::Clsact), (Attach::Clsact, Attach::Tcx)] {
        let pins = Pins::new();
        let nodes = pair();
        drop(Loader::watching(&nodes[0], options(&pins, before), plan(&nodes[0], 1)));
        // While no agent runs the tunnel is made anew; then one runs that
        // attaches in another way; and another version was here before.
        nodes[0].sh("ip link del flannel.1");
        make_tunnel(&nodes[0], 1);
        let other = pins.of(&nodes[0]).join("v0");
        std::fs::create_dir(&other).unwrap();
        let one = Loader::watching(&nodes[0], options(&pins, after), plan(&nodes[0], 1));
        let indexes = [at(&nodes[0], "eth0"), at(&nodes[0], "flannel.1")];
        wait("the old to be swept", || {
            let pinned = pins.links(&nodes[0]);
            let expected = match after {
                Attach::Clsact => {
                    let slugs = ["in", "made", "out"];
                    let mut all: Vec<String> = indexes
                        .iter()
                        .flat_map(|i| slugs.map(|slug| format!("clsact-{i}-{slug}")))
                        .collect();
                    all.sort();
                    all
                }
                _ => links(&indexes),
            };
            (pinned == expected && !other.exists()).then_some(())
        });
        for device in ["eth0", "flannel.1"] {
            let is_tcx = tcx(&nodes[0], device, Side::In).len();
            let filters = filters(&nodes[0], device).matches("0x4f57").count();
            assert_eq!((is_tcx, filters), if after == Attach::Tcx { (1, 0) } else { (0, 2) });
        }
        drop(one);
    }
}

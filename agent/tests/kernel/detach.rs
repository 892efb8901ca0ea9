//! Detached by others, and for good.

use std::fs;
use std::process::{Child, Command};

use overlaywatch::source::kernel;
use overlaywatch_core::kernel::Attach;

use crate::bench::{Loader, Namespace, Pins, SMALL, index, options, pair, plan, requests, wait};
use crate::coexistence::detach;
use crate::daemon::{self, Agent};
use crate::foreign::{Side, filters, tcx};

const EPOCH: u64 = 0xdddd_0000_0000_0001;

fn clsact_devices(node: &Namespace) -> usize {
    node.try_sh("tc qdisc show").matches("clsact").count()
}

/// Nothing of ours is on either device.
fn is_clean(node: &Namespace) -> bool {
    ["eth0", "flannel.1"].into_iter().all(|device| {
        [Side::In, Side::Out].into_iter().all(|side| tcx(node, device, side).is_empty())
            && !filters(node, device).contains("ow_")
    })
}

#[test]
fn a_detached_link_is_noticed_and_attached_again() {
    let pins = Pins::new();
    let nodes = pair();
    let mut one = Loader::watching(&nodes[0], options(&pins, Attach::Tcx), plan(&nodes[0], 1));
    let folder = pins.of(&nodes[0]).join(format!("v{}", overlaywatch_ebpf::LAYOUT));
    let eth0 = index(&nodes[0], "eth0").unwrap().0;
    let link = folder.join(format!("link-{eth0}-out"));
    let ways: [&dyn Fn(); 2] = [
        &|| nodes[0].sh(&format!("bpftool link detach pinned {}", link.display())),
        // Nobody holds the link then, so the kernel detaches it.
        &|| fs::remove_file(&link).unwrap(),
    ];
    for (epoch, detach) in (EPOCH..).zip(ways) {
        detach();
        // An unpinned link is let go of a little later, so the pin comes first.
        wait("its pin", || link.exists().then_some(()));
        wait("the program to be back", || {
            (tcx(&nodes[0], "eth0", Side::Out).len() == 1).then_some(())
        });
        let problem = one.wait("the problem", |counts| counts.problems.first().cloned());
        assert!(problem.contains("detached") && problem.contains("eth0"), "{problem}");
        let climb = one.climb("an age", SMALL, epoch, |c| c.nic_ms < 60_000);
        assert!(climb.tunnel_ms < 60_000);
        requests(&nodes[0], 1, SMALL, epoch, 0..10);
        one.climb("probes again", SMALL, epoch, |c| {
            c.requests.left_nic.is_some_and(|w| w.count == 10)
        });
    }
}

#[test]
fn a_removed_filter_is_noticed_and_attached_again() {
    let pins = Pins::new();
    let nodes = pair();
    let mut one = Loader::watching(&nodes[0], options(&pins, Attach::Clsact), plan(&nodes[0], 1));
    // Whoever removes the discipline takes our filters along.
    for removal in ["tc filter del dev eth0 egress", "tc qdisc del dev eth0 clsact"] {
        nodes[0].sh(removal);
        wait("the filters to be back", || {
            (filters(&nodes[0], "eth0").matches("handle 0x4f57").count() == 2).then_some(())
        });
        one.wait("the problem", |counts| {
            counts.problems.iter().any(|p| p.contains("detached")).then_some(())
        });
    }
}

#[test]
fn detaching_leaves_nothing() {
    for (attach, more) in [("tcx", ""), ("clsact", "attach = \"clsact\"\n")] {
        let pins = Pins::new();
        let nodes = pair();
        let mut agent = Agent::start(&nodes[0], &pins, more);
        wait("the programs", || {
            let links = pins.links(&nodes[0]);
            (links.iter().filter(|name| !name.ends_with("-made")).count() == 4).then_some(())
        });
        assert_eq!(clsact_devices(&nodes[0]), if attach == "tcx" { 0 } else { 2 });
        // Beside a running agent nothing is removed: it would attach again.
        let (done, said) = daemon::detach(&nodes[0], &pins);
        assert!(!done && said.contains("an agent is running"), "{said}");
        assert!(!is_clean(&nodes[0]));
        agent.kill();
        assert!(!is_clean(&nodes[0]), "programs outlive their agent");
        let (done, said) = daemon::detach(&nodes[0], &pins);
        assert!(done && said.starts_with("removed "), "{said}");
        assert!(is_clean(&nodes[0]), "{attach}");
        assert_eq!(clsact_devices(&nodes[0]), 0);
        assert!(pins.is_gone());
        let (done, said) = daemon::detach(&nodes[0], &pins);
        assert!(done && said.starts_with("removed 0 "), "{said}");
    }
}

#[test]
fn a_discipline_that_was_there_or_is_in_use_stays() {
    let pins = Pins::new();
    let nodes = pair();
    nodes[0].sh("tc qdisc add dev eth0 clsact");
    let one = Loader::watching(&nodes[0], options(&pins, Attach::Clsact), plan(&nodes[0], 1));
    // Ours, on flannel.1, but somebody came to use it.
    nodes[0].sh("tc filter add dev flannel.1 egress bpf bytecode '1,6 0 0 0' direct-action");
    drop(one);
    detach(&nodes[0], &pins);
    assert!(is_clean(&nodes[0]));
    assert_eq!(clsact_devices(&nodes[0]), 2);
}

/// A process that keeps a namespace findable.
struct Keeper(Child);

impl Keeper {
    fn start(node: &Namespace) -> Self {
        let spawn = || Command::new("sleep").arg("1000").spawn().unwrap();
        Self(node.inside(spawn).join().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn filters_in_other_namespaces_are_removed_too() {
    let pins = Pins::new();
    let nodes = pair();
    for (n, node) in [1, 2].into_iter().zip(&nodes) {
        drop(Loader::watching(node, options(&pins, Attach::Clsact), plan(node, n)));
    }
    let keepers = [Keeper::start(&nodes[0]), Keeper::start(&nodes[1])];
    kernel::detach(pins.path()).unwrap();
    drop(keepers);
    for node in &nodes {
        assert!(is_clean(node));
        assert_eq!(clsact_devices(node), 0);
    }
}

#[test]
fn an_agent_puts_back_what_was_removed_by_hand() {
    let pins = Pins::new();
    let nodes = pair();
    let agent = Agent::start(&nodes[0], &pins, "");
    wait("the programs", || (pins.links(&nodes[0]).len() == 4).then_some(()));
    let folder = pins.of(&nodes[0]).join(format!("v{}", overlaywatch_ebpf::LAYOUT));
    for name in pins.links(&nodes[0]) {
        fs::remove_file(folder.join(name)).unwrap();
    }
    agent.wait_gap(&nodes[0], &["something detached", "eth0"]);
    wait("the programs", || (pins.links(&nodes[0]).len() == 4).then_some(()));
    assert!(!is_clean(&nodes[0]));
}

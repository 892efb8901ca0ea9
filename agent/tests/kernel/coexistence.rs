//! Other programs on the same hooks: nobody displaces anybody.

use overlaywatch::source::kernel;
use overlaywatch_core::kernel::Attach;

use crate::bench::{Loader, Namespace, Pins, SMALL, options, pair, plan, requests, sink, wait};
use crate::foreign::{By, Foreign, Side, filters, tcx};

const EPOCH: u64 = 0x5555_6666_7777_8888;

/// Sends both ways, and waits until the foreign program and ours counted all.
fn both_count(nodes: &[Namespace; 2], loader: &Loader, foreign: &Foreign, epoch: u64) {
    let _sinks = [sink(&nodes[0]), sink(&nodes[1])];
    let before = [Side::In, Side::Out].map(|side| foreign.counted(side));
    requests(&nodes[0], 1, SMALL, epoch, 0..50);
    requests(&nodes[1], 2, SMALL, epoch, 0..40);
    loader.climb("ours", SMALL, epoch, |c| {
        // Both nodes send requests of one stream here; the counts of the two
        // directions are apart.
        c.requests.left_nic.is_some_and(|w| w.count == 50)
            && c.requests.reached_nic.is_some_and(|w| w.count == 40)
    });
    for (side, before, sent) in [(Side::In, before[0], 40), (Side::Out, before[1], 50)] {
        wait("the foreign program's count", || {
            (foreign.counted(side) >= before + sent).then_some(())
        });
    }
}

/// Detaches all of ours, in the node.
pub(crate) fn detach(node: &Namespace, pins: &Pins) {
    let path = pins.path().to_owned();
    node.inside(move || kernel::detach(&path).unwrap()).join().unwrap();
    assert!(pins.is_gone());
}

fn names(node: &Namespace, side: Side, foreign: &Foreign) -> Vec<&'static str> {
    let who = |(id, _): (u32, String)| if id == foreign.id(side) { "foreign" } else { "ours" };
    tcx(node, "eth0", side).into_iter().map(who).collect()
}

#[test]
fn beside_tcx_programs_that_were_there_before() {
    for by in [By::TcxFirst, By::TcxLast] {
        let pins = Pins::new();
        let nodes = pair();
        let foreign = Foreign::attach(&nodes[0], by);
        let one = Loader::watching(&nodes[0], options(&pins, Attach::Tcx), plan(&nodes[0], 1));
        assert_eq!(names(&nodes[0], Side::In, &foreign), ["ours", "foreign"]);
        assert_eq!(names(&nodes[0], Side::Out, &foreign), ["foreign", "ours"]);
        both_count(&nodes, &one, &foreign, EPOCH);
        foreign.detach(&nodes[0]);
    }
}

#[test]
fn beside_tcx_programs_that_come_later() {
    for by in [By::TcxFirst, By::TcxLast] {
        let pins = Pins::new();
        let nodes = pair();
        let mut one = Loader::watching(&nodes[0], options(&pins, Attach::Tcx), plan(&nodes[0], 1));
        let foreign = Foreign::attach(&nodes[0], by);
        // Ours goes to where it counts best, without a word.
        wait("ours to be the outermost", || {
            (names(&nodes[0], Side::In, &foreign) == ["ours", "foreign"]
                && names(&nodes[0], Side::Out, &foreign) == ["foreign", "ours"])
            .then_some(())
        });
        both_count(&nodes, &one, &foreign, EPOCH);
        one.settle();
        assert_eq!(one.counts.problems, Vec::<String>::new());
        foreign.detach(&nodes[0]);
    }
}

#[test]
fn a_program_that_insists_on_its_place_keeps_it_and_is_told_of() {
    let pins = Pins::new();
    let nodes = pair();
    let mut one = Loader::watching(&nodes[0], options(&pins, Attach::Clsact), plan(&nodes[0], 1));
    // A later filter of the same priority runs first; ours goes around it once.
    let foreign = Foreign::attach(&nodes[0], By::Filter(1));
    let order = |node: &Namespace| {
        let text = node.try_sh("tc filter show dev eth0 ingress");
        let handles = text.lines().filter_map(|line| line.split("handle ").nth(1));
        handles.map(|rest| rest.starts_with("0x4f57")).collect::<Vec<_>>()
    };
    wait("ours to be the first", || (order(&nodes[0]) == [true, false]).then_some(()));
    // It moves in front again, as the same filter.
    let line = nodes[0].try_sh("tc filter show dev eth0 ingress");
    let handle =
        line.split("handle ").find(|rest| !rest.contains("0x4f57") && rest.contains("ow_"));
    let handle = handle.unwrap().split_whitespace().next().unwrap().to_owned();
    let id = foreign.id(Side::In);
    nodes[0].sh(&format!(
        "bpftool prog pin id {id} {pin}
         tc filter del dev eth0 ingress prio 1 handle {handle} protocol all bpf
         tc filter add dev eth0 ingress prio 1 handle {handle} protocol all bpf direct-action \
             object-pinned {pin}
         rm {pin}",
        pin = pins.path().join("foreign").display()
    ));
    assert_eq!(order(&nodes[0]), [false, true]);
    let problem = one.wait("the problem", |counts| counts.problems.first().cloned());
    assert!(problem.contains("insist") && problem.contains("eth0"), "{problem}");
    assert_eq!(order(&nodes[0]), [false, true]);
    both_count(&nodes, &one, &foreign, EPOCH);
    nodes[0].sh("tc filter del dev eth0 ingress prio 1 handle 0x1 protocol all bpf");
    one.wait("the problem's end", |counts| counts.problems.is_empty().then_some(()));
    foreign.leave();
}

#[test]
fn beside_clsact_filters() {
    // However ours is attached, and whatever came first.
    for attach in [Attach::Tcx, Attach::Clsact] {
        for is_before in [true, false] {
            let pins = Pins::new();
            let nodes = pair();
            let early = is_before.then(|| Foreign::attach(&nodes[0], By::Filter(0)));
            let one = Loader::watching(&nodes[0], options(&pins, attach), plan(&nodes[0], 1));
            let foreign = early.unwrap_or_else(|| Foreign::attach(&nodes[0], By::Filter(0)));
            both_count(&nodes, &one, &foreign, EPOCH);
            if attach == Attach::Clsact {
                let text = filters(&nodes[0], "eth0");
                assert_eq!(text.matches("handle 0x4f57").count(), 2, "{text}");
            }
            // Restarted, both are still there.
            drop(one);
            let one = Loader::watching(&nodes[0], options(&pins, attach), plan(&nodes[0], 1));
            both_count(&nodes, &one, &foreign, EPOCH + 1);
            // Gone, the foreign one is alone and counts.
            drop(one);
            detach(&nodes[0], &pins);
            let text = filters(&nodes[0], "eth0");
            assert_eq!(text.matches("direct-action").count(), 2, "{text}");
            assert!(!text.contains("0x4f57"), "{text}");
            let before = foreign.counted(Side::Out);
            requests(&nodes[0], 1, SMALL, EPOCH + 2, 0..5);
            wait("the foreign program's count", || {
                (foreign.counted(Side::Out) >= before + 5).then_some(())
            });
            foreign.leave();
        }
    }
}

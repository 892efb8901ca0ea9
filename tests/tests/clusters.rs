//! Clusters and faults in real namespaces, judged by live traffic alone: each
//! fault breaks what it promises, spares what it promises, and heals.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use lab::fault::{self, Fault};
use lab::interrupt::wait_until;
use lab::prove::prove;
use lab::run::default_jobs;
use lab::topology::{Cluster, Shape};
use lab::traffic::{Flow, Path, full_pods, moved_pods, nodes, pods};

/// Proves all faults that somebody must speak of, side by side. What live
/// traffic cannot see, such as a protocol that is refused, they make sure of themselves.
/// What takes a machine of the lab's own is proved in guests alone, where it runs.
fn prove_all(shape: Shape, at_least: usize) {
    let is_possible = |fault: &&Fault| fault.fits(shape) && fault.ensure_possible().is_ok();
    let faults: Vec<&Fault> =
        fault::all().filter(is_possible).filter(|fault| !fault.expected.is_empty()).collect();
    assert!(faults.len() >= at_least, "only {} faults", faults.len());
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..default_jobs().unwrap() {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = Cluster::build(shape, fault.nodes)
                        .and_then(|mut cluster| prove(fault, &mut cluster));
                    if let Err(error) = outcome {
                        failures.lock().unwrap().push(format!("{}: {error:#}", fault.name));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn faults_break_and_heal_flannel() {
    prove_all(Shape::Flannel, 35);
}

#[test]
fn faults_break_and_heal_calico() {
    prove_all(Shape::CalicoVxlan, 35);
}

#[test]
fn faults_break_and_heal_over_ipv6() {
    prove_all(Shape::FlannelV6, 12);
    prove_all(Shape::FlannelDual, 6);
}

/// Shapes with IPIP are proved where the kernel has it, as in the guests of `lab vm`;
/// any other kernel refuses them.
#[test]
fn shapes_with_ipip_are_whole_or_refused() {
    let unusual = |shape: &&Shape| !shape.is_vxlan();
    for &shape in Shape::value_variants().iter().filter(unusual) {
        let built = Cluster::build(shape, 3);
        if shape.ensure_possible().is_err() {
            assert!(built.is_err(), "{}", shape.name());
            continue;
        }
        let cluster = built.unwrap();
        let mut paths = Vec::new();
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            paths.extend([pods(a, b), full_pods(b, a), nodes(a, b)]);
            if shape == Shape::CalicoMigration {
                paths.push(moved_pods(a, b));
            }
        }
        all_arrive(&cluster, paths);
    }
}

#[test]
fn the_largest_cluster_is_a_full_mesh() {
    let cluster = Cluster::build(Shape::Flannel, 16).unwrap();
    let mut paths = Vec::new();
    for a in 0..16 {
        // Every node once as sender and once as receiver, next door and far away.
        paths.extend([pods(a, (a + 1) % 16), full_pods(a, (a + 8) % 16), nodes(a, (a + 3) % 16)]);
    }
    all_arrive(&cluster, paths);
}

fn all_arrive(cluster: &Cluster, paths: Vec<Path>) {
    let flows: Vec<Flow> =
        paths.into_iter().map(|path| Flow::start(cluster, path).unwrap()).collect();
    let began = std::time::Instant::now();
    for flow in &flows {
        let arrived = || Ok(flow.lost(began).1 - flow.lost(began).0 >= 5);
        assert!(wait_until(Duration::from_secs(10), arrived).unwrap(), "{}", flow.path);
    }
}

#[test]
fn a_cluster_leaves_nothing_behind() {
    let cluster = Cluster::build(Shape::CalicoVxlan, 2).unwrap();
    let mut names: Vec<String> = vec![cluster.switch.name().to_owned()];
    for node in &cluster.nodes {
        names.extend([node.netns.name().to_owned(), node.pod.name().to_owned()]);
    }
    let directory = cluster.directory().to_owned();
    let exists = |name: &String| std::path::Path::new("/run/netns").join(name).exists();
    assert!(names.iter().all(exists) && directory.exists());
    // As an agent leaves it behind.
    let pins: Vec<_> = cluster.nodes.iter().map(|node| node.pins.path().to_owned()).collect();
    for pins in &pins {
        std::fs::create_dir_all(pins.join("4026531840/v1")).unwrap();
    }
    drop(cluster);
    assert!(!names.iter().any(exists), "{names:?}");
    assert!(!directory.exists());
    assert!(!pins.iter().any(|pins| pins.exists()), "{pins:?}");
}

#[test]
fn a_cluster_has_two_to_sixteen_nodes() {
    assert!(Cluster::build(Shape::Flannel, 1).is_err());
    assert!(Cluster::build(Shape::Flannel, 17).is_err());
}

//! What concerns the whole machine: only on one that is the lab's alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;

use super::expected::{
    ARRIVAL, DELIVERY, INBOUND, OUTBOUND, RECEIPT, SENDING, Subject, counts, says, says_itself,
};
use super::ipip::IN_IPIP;
use super::quiet::watch;
use super::{A, B, C, Fault, GRAY, LIVE, Loss, PLAIN, Shapes};
use crate::guest::Worker;
use crate::need::Need;
use crate::netns::Netns;
use crate::topology::{Cluster, Shape};
use crate::traffic::{full_pods, nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "clock-stepped",
        about: "the clock of all nodes is set forward by an hour, and back",
        needs: &[Need::Machine],
        inject: |_| step("1 hour"),
        heal: |_| step("1 hour ago"),
        spares: &[pods(A, B), pods(B, C), pods(C, A), nodes(A, B)],
        unlike: &[Code::AgentSilent, Code::UnderlayLoss, Code::PeerUnreachable],
        limits: watch(30),
        ..IN_IPIP
    },
    Fault {
        name: "neighbour-table-overflow",
        about: "all neighbours that the kernel has room for are there, and one node is to reach \
                its own pod for the first time",
        needs: &[Need::Machine],
        inject: |cluster| {
            keep_neighbours(cluster)?;
            fill_neighbours(cluster)?;
            let node = cluster.node(A)?;
            let pod = node.pod_address();
            let known = neighbours(&node.netns)?;
            let of_pod = known.iter().find(|known| known.address == pod.to_string());
            let device = &of_pod.context("the node does not know its pod")?.device;
            node.netns.ip(&format!("neigh del {pod} dev {device}\n"))
        },
        heal: |cluster| {
            cluster.switch.ip(&format!("link del {CROWD}\n"))?;
            cluster.guests.clear();
            namespaces(cluster).try_for_each(|netns| netns.ip("neigh flush all nud permanent\n"))
        },
        breaks: &[pods(B, A), pods(C, A)],
        spares: &[pods(A, B), pods(B, C), nodes(A, B), nodes(B, A)],
        // The table is the machine's, and so is its count of refusals.
        expected: &[
            says_itself(A, Code::NeighbourTableOverflow, Subject::Node)
                .going(INBOUND, DELIVERY)
                .telling(&["of at most 64 (gc_thresh3)", "NEIGH_CREATEFAIL"]),
            says_itself(B, Code::NeighbourTableOverflow, Subject::Node).going(OUTBOUND, SENDING),
            says_itself(C, Code::NeighbourTableOverflow, Subject::Node).going(OUTBOUND, SENDING),
        ],
        counted: &[counts(A, B, INBOUND, DELIVERY), counts(A, C, INBOUND, DELIVERY)],
        unlike: &[Code::ForwardPolicyDrop, Code::VtepNeighbourMissing],
        limits: LIVE,
        ..IN_IPIP
    },
    Fault {
        name: "softirq-backlog",
        about: "a node's CPU takes 20 packets at a time, and they come in bursts of more",
        nodes: 2,
        needs: &[Need::Machine, Need::Netem],
        inject: |cluster| {
            Switch::set(cluster, "net/core/netdev_max_backlog", "20")?;
            let b = cluster.node(B)?;
            // What comes to B waits at its port, and then comes all at once.
            cluster
                .switch
                .tc(&format!("qdisc add dev {} root netem delay 1ms slot 60ms 140ms\n", b.name))?;
            let discard = Worker::discard(&b.netns)?;
            let flood = Worker::send(&cluster.switch, vec![b.underlay()], 64)?;
            cluster.guests.push(Box::new(flood));
            cluster.guests.push(Box::new(discard));
            Ok(())
        },
        heal: |cluster| {
            cluster.guests.clear();
            cluster.switch.tc(&format!("qdisc del dev {} root\n", cluster.node(B)?.name))
        },
        breaks: &[pods(A, B)],
        loss: Loss::Partial,
        // All nodes share the only CPU, and what it has no room for is anybody's.
        spares: &[],
        expected: &[
            says_itself(B, Code::SoftirqBacklog, Subject::Node)
                .going(INBOUND, ARRIVAL)
                .telling(&["CPU_BACKLOG", "dropped"]),
            says(A, Code::UnderlayLoss, B, OUTBOUND, RECEIPT),
        ],
        unlike: &[Code::PeerUnreachable, Code::EncapsulationLost, Code::QdiscDrops],
        limits: GRAY,
        ..IN_IPIP
    },
    Fault {
        name: "bridge-packets-filtered",
        about: "br_netfilter is loaded, and one node's bridge is told to go past iptables",
        shapes: Shapes::Only(Shape::Flannel),
        needs: &[Need::Machine],
        inject: |cluster| {
            run("modprobe", &["br_netfilter"])?;
            cluster.node(A)?.netns.set("bridge/bridge-nf-call-iptables", "0")
        },
        // modprobe(8) would take the bridge's own module away with it, and all bridges.
        heal: |_| run("rmmod", &["br_netfilter"]),
        spares: &[pods(A, B), pods(B, A), full_pods(A, B), nodes(A, B)],
        unlike: &[Code::ForwardPolicyDrop, Code::UnexplainedLoss, Code::MtuBlackhole],
        limits: watch(30),
        ..PLAIN
    },
];

/// Sets the machine's clock, by what date(1) takes.
fn step(by: &str) -> Result<()> {
    run("date", &["--set", by])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed: {}", said.trim());
    Ok(())
}

/// A switch of the whole machine, which has its old value again when this is dropped.
#[derive(Debug)]
pub(super) struct Switch {
    path: PathBuf,
    before: String,
}

impl Switch {
    /// Sets the switch of this path under /proc/sys until the cluster's guests go.
    pub(super) fn set(cluster: &mut Cluster, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        let named = || format!("{}", path.display());
        let before = fs::read_to_string(&path).with_context(named)?;
        fs::write(&path, value).with_context(named)?;
        cluster.guests.push(Box::new(Self { path, before }));
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // The machine is the lab's alone, and ends with it.
        let _ = fs::write(&self.path, self.before.trim());
    }
}

/// The device whose neighbours fill the table.
const CROWD: &str = "crowd";

/// A neighbour, as ip-neighbour(8) shows it.
struct Known {
    address: String,
    device: String,
    mac: String,
}

fn neighbours(netns: &Netns) -> Result<Vec<Known>> {
    let arguments = ["-4", "neigh", "show", "nud", "all"];
    let output = netns.command("ip").args(arguments).output().context("cannot run ip")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // ADDRESS dev DEVICE lladdr MAC STATE
    let known = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match *words {
            [address, "dev", device, "lladdr", mac, ..] => {
                Some(Known { address: address.into(), device: device.into(), mac: mac.into() })
            }
            _ => None,
        }
    });
    Ok(known.collect())
}

fn namespaces(cluster: &Cluster) -> impl Iterator<Item = &Netns> {
    let of_nodes = cluster.nodes.iter().flat_map(|node| [&node.netns, &node.pod]);
    of_nodes.chain([&cluster.switch])
}

/// Makes all neighbours that anybody knows permanent, those of loopbacks and tunnels
/// too: these are not evicted, nor do they count (neigh_alloc, net/core/neighbour.c).
fn keep_neighbours(cluster: &Cluster) -> Result<()> {
    namespaces(cluster).try_for_each(|netns| {
        let lines = neighbours(netns)?.iter().fold(String::new(), |lines, known| {
            let Known { address, device, mac } = known;
            lines + &format!("neigh replace {address} lladdr {mac} dev {device} nud permanent\n")
        });
        netns.ip(&lines)
    })
}

/// Fills what is left of a small table with neighbours that are being asked for an
/// hour: as long as their timers run they are not evicted.
fn fill_neighbours(cluster: &mut Cluster) -> Result<()> {
    for threshold in ["gc_thresh2", "gc_thresh3"] {
        Switch::set(cluster, &format!("net/ipv4/neigh/default/{threshold}"), "64")?;
    }
    let switch = &cluster.switch;
    switch.ip(&format!(
        "link add {CROWD} type bridge\n\
         addr add 198.51.100.1/24 dev {CROWD}\n\
         link set {CROWD} up\n"
    ))?;
    switch.set(&format!("ipv4/neigh/{CROWD}/retrans_time_ms"), "3600000")?;
    for host in 2..=250 {
        let entry = format!(
            "neigh add 198.51.100.{host} lladdr 02:00:5e:00:53:{host:02x} dev {CROWD} nud probe\n"
        );
        // The kernel has no room for one more.
        if switch.ip(&entry).is_err() {
            return Ok(());
        }
    }
    anyhow::bail!("the table of neighbours takes more than it is said to")
}

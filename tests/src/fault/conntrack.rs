//! The table of tracked connections of one node: filled, or filled by tunnels.
//!
//! The limit is the machine's (`nf_conntrack_max` cannot be written in a
//! namespace), the entries are each namespace's own.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;

use super::expected::{Subject, says_itself};
use super::ipip::IN_IPIP;
use super::machine::Switch;
use super::{A, B, C, Fault, HARD, Limits, PLAIN};
use crate::guest::Worker;
use crate::need::Need;
use crate::topology::Cluster;
use crate::traffic::{nodes, pods};

/// The source ports of a pod that speaks on all of them at once. The outer
/// source ports follow from them, and fewer differ.
const PORTS: std::ops::Range<u16> = 2_000..34_000;
/// Makes the kernel track what passes a node.
const TRACK: &str = "\
table ip overlaywatch-lab-track {
  chain seen { type filter hook prerouting priority 0; ct state new counter; }
}
";

/// The same of what goes to the discard port alone: a full table evicts what it has
/// seen no reply of, as it never does of IPIP, and then drops that, too.
const TRACK_NEW: &str = "\
table ip overlaywatch-lab-track {
  chain in { type filter hook prerouting priority -300; udp dport 9 accept; notrack; }
  chain out { type filter hook output priority -300; notrack; }
  chain seen { type filter hook prerouting priority 0; ct state new counter; }
}
";

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "conntrack-nearly-full",
        about: "four fifths of the connections that one node may track are taken",
        inject: |cluster| fill(cluster, 80),
        heal: flush,
        spares: &[pods(A, B), pods(B, A), nodes(A, B)],
        expected: &[says_itself(A, Code::ConntrackNearlyFull, Subject::Node)
            .telling(&["connections are tracked (80 %)"])],
        unlike: &[Code::ConntrackFull, Code::ConntrackTunnelFlows],
        limits: FILLED,
        ..PLAIN
    },
    Fault {
        name: "conntrack-full",
        about: "one node tracks as many connections as it may",
        inject: |cluster| fill(cluster, 100),
        heal: flush,
        spares: &[pods(A, B), pods(B, A), nodes(A, B)],
        expected: &[says_itself(A, Code::ConntrackFull, Subject::Node)
            .telling(&["connections are tracked (100 %)"])],
        unlike: &[Code::ConntrackNearlyFull],
        limits: FILLED,
        ..PLAIN
    },
    Fault {
        name: "conntrack-full-drops",
        about: "one node tracks as many connections as it may, and drops what begins a new one",
        needs: &[Need::Machine],
        inject: |cluster| {
            nft(cluster, TRACK_NEW)?;
            Switch::set(cluster, "net/netfilter/nf_conntrack_max", "2000")?;
            fill(cluster, 100)?;
            let (a, b) = (cluster.node(A)?, cluster.node(B)?);
            let discard = Worker::discard(&b.pod)?;
            let sender = Worker::send_anew(&a.pod, b.pod_address())?;
            cluster.guests.push(Box::new(sender));
            cluster.guests.push(Box::new(discard));
            Ok(())
        },
        heal: |cluster| {
            cluster.guests.clear();
            nft(cluster, "delete table ip overlaywatch-lab-track\n")?;
            flush(cluster)
        },
        spares: &[pods(A, B), pods(B, A), nodes(A, B)],
        expected: &[says_itself(A, Code::ConntrackFull, Subject::Node)
            .telling(&["connections are tracked (100 %)", "connection tracking dropped"])],
        unlike: &[Code::ConntrackNearlyFull, Code::ForwardPolicyDrop, Code::UntrackedInner],
        limits: FILLED,
        ..IN_IPIP
    },
    Fault {
        name: "conntrack-half-full",
        about: "seven tenths of the connections that one node may track are taken",
        inject: |cluster| fill(cluster, 70),
        heal: flush,
        spares: &[pods(A, B), pods(B, A), nodes(A, B)],
        unlike: &[Code::ConntrackNearlyFull, Code::ConntrackFull],
        limits: Limits { settle: Duration::from_secs(15), ..HARD },
        ..PLAIN
    },
    Fault {
        name: "conntrack-tunnel-flows",
        about: "one node tracks its own tunnel's packets while a pod speaks from many ports",
        inject: |cluster| {
            // Flows stay in the table however seldom a busy machine lets them speak.
            cluster.node(A)?.netns.set("netfilter/nf_conntrack_udp_timeout", "120")?;
            nft(cluster, TRACK)?;
            let (a, b) = (cluster.node(A)?, cluster.node(B)?);
            let discard = Worker::discard(&b.pod)?;
            let sender = Worker::send_from_ports(&a.pod, b.pod_address(), PORTS)?;
            cluster.guests.push(Box::new(sender));
            cluster.guests.push(Box::new(discard));
            Ok(())
        },
        heal: |cluster| {
            cluster.guests.clear();
            nft(cluster, "delete table ip overlaywatch-lab-track\n")?;
            flush(cluster)
        },
        spares: &[pods(A, C), pods(B, A), nodes(A, B)],
        expected: &[says_itself(A, Code::ConntrackTunnelFlows, Subject::Node)
            .telling(&["tracked connections are vxlan/", "without a reply"])],
        unlike: &[Code::ConntrackNearlyFull],
        // Entries are counted every ten seconds at most, and the verdict stays a minute.
        limits: Limits { detect: Duration::from_secs(60), clear: Duration::from_secs(120), ..HARD },
        ..PLAIN
    },
];

/// A second or two go into filling, and a table is cleared after half a minute.
const FILLED: Limits =
    Limits { detect: Duration::from_secs(20), clear: Duration::from_secs(75), ..HARD };

/// Gives the first node's table so many entries, in per cent of its limit, as
/// connections of others that saw replies.
fn fill(cluster: &mut Cluster, percent: usize) -> Result<()> {
    let max = switch(cluster, "nf_conntrack_max")?;
    let entries = (max * percent).div_ceil(100) - switch(cluster, "nf_conntrack_count")?;
    let mut lines = String::new();
    for number in 0..entries {
        let [host, ports] = [number >> 15, number & 0x7fff];
        writeln!(
            lines,
            "-I -p udp -s 192.0.2.1 -d 198.51.100.{host} --sport {} --dport 53 --timeout 600 \
             -u ASSURED,SEEN_REPLY",
            ports + 1
        )?;
    }
    let file = cluster.directory().join("connections");
    fs::write(&file, lines).context("cannot write the connections to track")?;
    let output = cluster
        .node(A)?
        .netns
        .command("conntrack")
        .arg("-R")
        .arg(&file)
        .output()
        .context("cannot run conntrack: install it")?;
    let count = switch(cluster, "nf_conntrack_count")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let tail = said.lines().last().unwrap_or_default();
    ensure!(count * 100 >= max * percent, "only {count} of {max} entries were made: {tail}");
    Ok(())
}

fn flush(cluster: &mut Cluster) -> Result<()> {
    let output = cluster.node(A)?.netns.command("conntrack").arg("-F").output();
    let output = output.context("cannot run conntrack: install it")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A number of the first node's connection tracking.
fn switch(cluster: &Cluster, name: &str) -> Result<usize> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    cluster.node(A)?.netns.enter(|| {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(text.trim().parse()?)
    })
}

fn nft(cluster: &Cluster, lines: &str) -> Result<()> {
    let file = cluster.directory().join("track.nft");
    fs::write(&file, lines)?;
    let output = cluster.node(A)?.netns.command("nft").arg("-f").arg(&file).output();
    let output = output.context("cannot run nft: install nftables")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

//! What this kernel has of what the agents and the lab build on, each found out
//! by trying it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use overlaywatch_core::report::NodeReport;
use serde::Serialize;

use crate::agent::Launch;
use crate::mode::Mode;
use crate::netns::Netns;
use crate::poll::{self, Poll};
use crate::run::wait_until_ready;
use crate::topology::{Cluster, Shape};

/// The kernel's type information, in which each name stands as it is.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
/// What folders begin with in which agents remember filters, where they could
/// not attach by links.
const FILTERS: &str = "clsact-";

/// What was found.
#[derive(Debug, Serialize)]
pub struct Features {
    /// What `uname -r` says.
    pub release: String,
    /// Whether this kernel has it, by name.
    pub has: BTreeMap<&'static str, bool>,
    /// What agents say on healthy nodes that they cannot see.
    pub gaps: BTreeSet<String>,
}

/// Looks at the running kernel, with two agents on a healthy overlay.
///
/// # Errors
/// When the overlay or its agents do not come to be healthy.
pub fn look(binary: &Path) -> Result<Features> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let types = fs::read(TYPES).unwrap_or_default();
    let names = |name: &str| contains(&types, name.as_bytes());
    let mut has = BTreeMap::from([
        ("types", !types.is_empty()),
        ("drop-reasons", names("SKB_DROP_REASON_NETFILTER_DROP")),
        ("vxlan-drop-reasons", names("SKB_DROP_REASON_VXLAN_")),
    ]);
    let mut cluster = Cluster::build(Shape::Flannel, 2)?;
    let node = &cluster.node(0)?.netns;
    has.insert("ipip", node.ip("tunnel add probe mode ipip remote 192.0.2.1\n").is_ok());
    has.insert("wireguard", node.ip("link add wg0 type wireguard\n").is_ok());
    has.insert("netem", cluster.switch.tc("qdisc add dev br0 root netem delay 1ms\n").is_ok());
    has.insert("ipset-bitmask", newest_set(node)? >= BITMASK_REVISION);
    for (feature, undo) in [("ipip", "tunnel del probe\n"), ("wireguard", "link del wg0\n")] {
        if has.get(feature) == Some(&true) {
            node.ip(undo)?;
        }
    }
    if has.get("netem") == Some(&true) {
        cluster.switch.tc("qdisc del dev br0 root\n")?;
    }
    let launch = Launch { binary: binary.to_owned(), listed: true, ebpf: true, mode: Mode::Rules };
    cluster.start_agents(launch)?;
    let poll = Poll::start(&cluster)?;
    wait_until_ready(&mut cluster, &poll)?;
    let mut gaps = BTreeSet::new();
    let mut by_filters = false;
    for node in &cluster.nodes {
        let report: NodeReport = serde_json::from_str(&poll::fetch(node, "/v1/report")?)
            .context("/v1/report breaks its contract")?;
        gaps.extend(
            report.gaps.iter().map(|gap| format!("{}: {}", gap.source.slug(), gap.gap.slug())),
        );
        by_filters |= has_filters(node.pins.path())?;
    }
    // Ready is who counts, so one that attached neither way is not ready.
    has.insert("tcx", !by_filters);
    Ok(Features { release, has, gaps })
}

/// The revision of `hash:ip` that takes a bit mask (net/netfilter/ipset/ip_set_hash_ip.c).
const BITMASK_REVISION: u8 = 6;

/// The revision that a new set of addresses gets: the newest that both tool and
/// kernel know.
fn newest_set(netns: &Netns) -> Result<u8> {
    let ipset = |words: &[&str]| -> Result<String> {
        let output = netns.command("ipset").args(words).output().context("cannot run ipset")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ipset(&["create", "probe", "hash:ip"])?;
    let said = ipset(&["list", "-t", "probe"])?;
    ipset(&["destroy", "probe"])?;
    let revision = said.lines().find_map(|line| line.strip_prefix("Revision: "));
    let revision =
        revision.with_context(|| format!("no set of addresses could be made: {said}"))?;
    Ok(revision.trim().parse()?)
}

fn contains(bytes: &[u8], name: &[u8]) -> bool {
    bytes.windows(name.len()).any(|window| window == name)
}

/// Whether an agent remembers filters somewhere among its pins.
fn has_filters(pins: &Path) -> Result<bool> {
    for entry in fs::read_dir(pins).with_context(|| format!("{}", pins.display()))? {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        let is_filter = entry.file_name().to_string_lossy().starts_with(FILTERS);
        if is_folder && (is_filter || has_filters(&entry.path())?) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_wherever_it_stands() {
        assert!(contains(b"\0SKB_DROP_REASON_TCP\0", b"REASON"));
        assert!(!contains(b"REASO", b"REASON"));
    }

    #[test]
    fn filters_are_found_at_any_depth() {
        let pins = tempfile::tempdir().unwrap();
        fs::create_dir_all(pins.path().join("4026/maps")).unwrap();
        assert!(!has_filters(pins.path()).unwrap());
        fs::create_dir_all(pins.path().join("4026/clsact-3-in")).unwrap();
        assert!(has_filters(pins.path()).unwrap());
    }
}

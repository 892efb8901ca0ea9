//! Somebody else's traffic classifier on a NIC, which drops packets before
//! netfilter or after it: a filter of its own on clsact, as CNI plugins and
//! security agents have them.

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;
use crate::topology::Shape;

/// The NIC of every node.
const DEVICE: &str = "eth0";
/// The filter's preference, by which it is found again.
const PREFERENCE: u16 = 7;
/// `TC_ACT_SHOT` (include/uapi/linux/pkt_cls.h).
const SHOT: u32 = 2;
/// `TC_ACT_UNSPEC`, -1: the next filter is asked.
const NEXT: u32 = u32::MAX;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the node.
    Ingress,
    /// Out of it.
    Egress,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Drops UDP packets to `port` on the node's NIC until [`pass`] is called.
///
/// # Errors
/// Without CAP_NET_ADMIN in the namespace, or on a kernel without clsact.
pub fn drop_udp(netns: &Netns, way: Way, port: u16) -> Result<()> {
    prepare(netns)?;
    drop_by(netns, way, &udp_to(port))
}

fn drop_by(netns: &Netns, way: Way, program: &str) -> Result<()> {
    netns.tc(&format!(
        "filter add dev {DEVICE} {} pref {PREFERENCE} bpf bytecode \"{program}\" direct-action\n",
        way.name(),
    ))
}

/// Drops what goes through the tunnels of a shape on the node's NIC until [`pass`]
/// is called.
///
/// # Errors
/// Without CAP_NET_ADMIN in the namespace, or on a kernel without clsact.
pub fn drop_tunnelled(netns: &Netns, way: Way, shape: Shape) -> Result<()> {
    if shape.is_vxlan() {
        return drop_udp(netns, way, shape.port());
    }
    prepare(netns)?;
    drop_by(netns, way, &ipip())
}

/// Lets pass again what [`drop_udp`] or [`drop_tunnelled`] dropped. The clsact stays: somebody else's
/// filters may be on it by now.
///
/// # Errors
/// When nothing was dropped there.
pub fn pass(netns: &Netns, way: Way) -> Result<()> {
    netns.tc(&format!("filter del dev {DEVICE} {} pref {PREFERENCE}\n", way.name()))
}

/// Makes the place for filters on the node's NIC, unless it is there.
///
/// # Errors
/// Without CAP_NET_ADMIN in the namespace, or on a kernel without clsact.
pub(crate) fn prepare(netns: &Netns) -> Result<()> {
    if has_clsact(netns)? { Ok(()) } else { netns.tc(&format!("qdisc add dev {DEVICE} clsact\n")) }
}

fn has_clsact(netns: &Netns) -> Result<bool> {
    let output = netns
        .command("tc")
        .args(["qdisc", "show", "dev", DEVICE])
        .output()
        .context("cannot run tc: install iproute2")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).contains("clsact"))
}

/// A classic BPF program that drops unfragmented IPv4 packets to a UDP port, as
/// tc-bpf(8) takes it: how many instructions, and of each code, jumps and value.
fn udp_to(port: u16) -> String {
    let instructions = [
        // EtherType; IPv4, else the end.
        (0x28, 0, 0, 12),
        (0x15, 0, 6, 0x0800),
        // Protocol; UDP, else the end.
        (0x30, 0, 0, 23),
        (0x15, 0, 4, 17),
        // The IPv4 header's length, and the destination port behind it.
        (0xb1, 0, 0, 14),
        (0x48, 0, 0, 16),
        (0x15, 0, 1, u32::from(port)),
        (0x06, 0, 0, SHOT),
        (0x06, 0, 0, NEXT),
    ];
    bytecode(&instructions)
}

/// The same for IPv4 packets in IPv4 packets (RFC 2003).
fn ipip() -> String {
    bytecode(&[
        // EtherType; IPv4, else the end.
        (0x28, 0, 0, 12),
        (0x15, 0, 3, 0x0800),
        // Protocol; IPIP, else the end.
        (0x30, 0, 0, 23),
        (0x15, 0, 1, 4),
        (0x06, 0, 0, SHOT),
        (0x06, 0, 0, NEXT),
    ])
}

fn bytecode(instructions: &[(u16, u8, u8, u32)]) -> String {
    let text: Vec<String> = instructions
        .iter()
        .map(|(code, yes, no, value)| format!("{code} {yes} {no} {value}"))
        .collect();
    format!("{},{}", text.len(), text.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_tc_takes() {
        assert_eq!(
            udp_to(8472),
            "9,40 0 0 12,21 0 6 2048,48 0 0 23,21 0 4 17,177 0 0 14,72 0 0 16,21 0 1 8472,\
             6 0 0 2,6 0 0 4294967295"
        );
        assert_eq!(ipip(), "6,40 0 0 12,21 0 3 2048,48 0 0 23,21 0 1 4,6 0 0 2,6 0 0 4294967295");
    }
}

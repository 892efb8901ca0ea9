//! The two ends of a tunnel do not fit each other.

use super::groups::{DEVICES, ENDS, PEER};
use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        code: Code::RemoteTunnelDown,
        slug: "remote-tunnel-down",
        title: "peer's tunnel device is down",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "The peer itself reports that its tunnel device is switched off.",
        remedy: "On {peer}: restart the CNI agent, which sets the device up and programs its routes again.",
    },
    Entry {
        code: Code::VniMismatch,
        slug: "vni-mismatch",
        title: "the two ends use different VNIs",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, &[Code::RemoteTunnelDown], PEER],
        meaning: "Both ends send VXLAN to the same port with different network identifiers; each drops what the other sends.",
        remedy: "Set the same VNI on both ends in the CNI's configuration (flannel: Backend.VNI; Calico: vxlanVNI), then restart its agent on the node that differs.",
    },
    Entry {
        code: Code::VxlanPortMismatch,
        slug: "vxlan-port-mismatch",
        title: "the two ends use different VXLAN ports",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, &[Code::RemoteTunnelDown], PEER],
        meaning: "Each end sends VXLAN to a UDP port on which the other does not listen.",
        remedy: "Set the same port on both ends in the CNI's configuration (flannel: Backend.Port; Calico: vxlanPort), then restart its agent on the node that differs.",
    },
    Entry {
        code: Code::StaleVtepMac,
        slug: "stale-vtep-mac",
        title: "packets go to a VTEP MAC that the peer no longer has",
        severity: Severity::Critical,
        raise_after_ms: 2500,
        clear_after_seconds: 5,
        parents: &[DEVICES, &[Code::RemoteTunnelDown], PEER],
        meaning: "The peer's tunnel device has another MAC than this node's neighbour and forwarding entries say, so the peer drops what it decapsulates as meant for another host.",
        remedy: "Restart the CNI agent on {peer}, which publishes its MAC again; if it recurs at reboots, set MACAddressPolicy=none for the device (systemd.link(5)).",
    },
    Entry {
        code: Code::EncapsulationRefused,
        slug: "encapsulation-refused",
        title: "the peer's kernel refuses the encapsulation",
        severity: Severity::Critical,
        raise_after_ms: 3000,
        clear_after_seconds: 5,
        parents: &[DEVICES, ENDS, PEER],
        meaning: "The peer answers encapsulated packets with ICMP: protocol unreachable (code 2) means that its kernel has no module for IPIP, port unreachable (code 3; of ICMPv6 type 1, code 4) that no tunnel device listens for them, codes 9, 10 and 13 (of ICMPv6 1) that a firewall rejects them.",
        remedy: "On {peer}, code 2: `modprobe ipip`; code 3 (ICMPv6: 4): `ip -d link show type vxlan` or `type ipip` for a device that is missing, down or on another port, and restart the CNI agent; else: allow {encapsulation} from this node in its firewall.",
    },
];

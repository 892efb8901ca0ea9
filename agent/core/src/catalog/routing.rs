//! Policy rules, leftover and vanished routes, source addresses, and what the
//! kernel's own switches and modules do to packets of the overlay.

use super::groups::{DEVICES, PEER};
use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        code: Code::PolicyRuleDiverts,
        slug: "policy-rule-diverts",
        title: "a policy rule sends the peer's pods past the tunnel",
        severity: Severity::Critical,
        raise_after_ms: 2000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "The main table's route to the peer's pods leads into the tunnel, but a policy rule is asked first and names a table that leads elsewhere: that of a VPN, of policy routing for several uplinks, or of another network plugin.",
        remedy: "`ip rule` (of IPv6 `ip -6 rule`) shows the rule (priority {priority}, table {table}): give it a narrower condition, or let pods pass before it with `ip rule add priority 90 to PODS-CIDR lookup main` (or `ip -6`), with a priority below the rule's; then find who installs it.",
    },
    Entry {
        code: Code::LeftoverRoute,
        slug: "leftover-route",
        title: "a leftover route leads the peer's pods into another plugin's tunnel",
        severity: Severity::Critical,
        raise_after_ms: 2000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "The kernel sends what is meant for the peer's pods into the tunnel device of a network plugin that does not reach that peer: a more specific route that an earlier plugin left behind.",
        remedy: "`ip route del {route}`; when that plugin is gone for good, `ip link del` its tunnel device, which takes all its routes along.",
    },
    Entry {
        code: Code::HostSourceWithoutTunnelAddress,
        slug: "host-source-without-tunnel-address",
        title: "the host reaches pods with the node's address",
        severity: Severity::Warning,
        raise_after_ms: 3000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "The tunnel device has no address, so the host's own packets to the peer's pods carry the node's address: the answers come back without the tunnel. Pods reach each other; processes on the host (kubelet, an ingress on the host network) and their ClusterIP connections fail wherever the reverse path filter is strict, or a cloud or policy drops what is not from a pod.",
        remedy: "Restart the network plugin's agent, which gives {device} its address; with Calico see `calicoctl ipam show` for this node's tunnel address.",
    },
    Entry {
        code: Code::RoutesVanished,
        slug: "routes-vanished",
        title: "routes to many peers went all at once",
        severity: Severity::Critical,
        raise_after_ms: 3000,
        clear_after_seconds: 5,
        parents: &[DEVICES],
        meaning: "The routes of several living peers vanished within two seconds and did not come back: something that manages links removed what it did not make (systemd-networkd, NetworkManager, `netplan apply`), or the tunnel device was switched off and on, which takes its routes.",
        remedy: "Restart the network plugin's agent, which makes them again. To keep it from happening: `ManageForeignRoutes=no` and `ManageForeignRoutingPolicyRules=no` in /etc/systemd/networkd.conf, or `unmanaged-devices=interface-name:{device};interface-name:cali*` for NetworkManager.",
    },
    Entry {
        code: Code::RpFilterStrict,
        slug: "rp-filter-strict",
        title: "a strict reverse path filter drops packets of the overlay",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 10,
        parents: &[DEVICES],
        meaning: "Packets come in on a device that the kernel would not use to answer their sender, and its strict reverse path filter (rp_filter = 1 for the device or for all) drops them.",
        remedy: "`sysctl -w {sysctl}=2` (loose), and keep it in /etc/sysctl.d; then find why the way back differs: `ip route get SENDER`.",
    },
    Entry {
        code: Code::ModuleMissing,
        slug: "module-missing",
        title: "the kernel lacks the module of an encapsulation that is in use",
        severity: Severity::Critical,
        raise_after_ms: 2000,
        clear_after_seconds: 30,
        parents: &[],
        meaning: "Other nodes send this one packets in an encapsulation that its kernel has no module loaded for: they are dropped, and the senders are told \"protocol unreachable\". Or all of them have a VXLAN device, and this node's kernel can make none: its CNI agent fails, and its pods reach no others.",
        remedy: "`modprobe {name}`, and put {name} into a file of /etc/modules-load.d; where the module does not exist, install the kernel's extra modules (linux-modules-extra-$(uname -r) on Ubuntu) or a kernel that has it.",
    },
];

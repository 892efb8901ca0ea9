//! CNI plugins beside each other: what one left behind, whose files come first,
//! and networks that do not fit.

use std::time::Duration;

use anyhow::Result;
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{Expected, Subject, says_itself};
use super::{A, B, C, Fault, HARD, Limits, PLAIN, Shapes, ip};
use crate::topology::{Cluster, Node, Shape};
use crate::traffic::pods;

/// Processes are looked at every 15 s.
const SLOW: Limits = Limits { detect: Duration::from_secs(30), ..HARD };

const AMONG_ALL: &[crate::traffic::Path] = &[pods(A, B), pods(B, C), pods(C, A)];

const FLANNEL_FILE: &str = "etc/cni/net.d/10-flannel.conflist";
const CALICO_FILE: &str = "etc/cni/net.d/10-calico.conflist";
const LATER_FILE: &str = "etc/cni/net.d/20-calico.conflist";
const K3S_FILE: &str = "var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist";

/// As K3s writes it (pkg/agent/flannel).
const FLANNEL: &str = r#"{"name": "cbr0", "cniVersion": "1.0.0", "plugins": [
  {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
/// As calico/node's installer writes it.
const CALICO: &str = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
  {"type": "calico", "mtu": 0, "ipam": {"type": "calico-ipam"}},
  {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}"#;
/// Calico's policies on flannel's network.
const CANAL: &str = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
  {"type": "calico", "ipam": {"type": "host-local", "subnet": "usePodCidr"}},
  {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}"#;
/// As Podman's package has it.
const PODMAN: &str = r#"{"name": "podman", "cniVersion": "0.4.0", "plugins": [
  {"type": "bridge", "bridge": "cni-podman0", "isGateway": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]}}]}"#;

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "incident-leftovers",
        about: "a K3s cluster that went over to Calico still has flannel's devices, routes and files",
        incident: Some(9),
        shapes: Shapes::Only(Shape::CalicoVxlan),
        inject: |cluster| {
            each(cluster, |cluster, node| {
                cluster.write(node, CALICO_FILE, CALICO)?;
                cluster.write(node, K3S_FILE, FLANNEL)?;
                cluster.write(node, K3S_CONTAINERD, "[plugins.cri.containerd]\n")?;
                cluster.run_as(node, "k3s-server")?;
                cluster.run_as(node, "calico-node")
            })?;
            each(cluster, leave_flannel)
        },
        heal: |cluster| {
            each(cluster, |cluster, node| {
                ip(cluster, node, "link del flannel.1\nlink del cni0")?;
                cluster.remove(node, K3S_FILE)
            })
        },
        spares: AMONG_ALL,
        expected: &[left_flannel(A), left_flannel(B), left_flannel(C)],
        unlike: &[Code::CniConfigPrecedence, Code::PoolOutsidePodNetwork],
        limits: SLOW,
        ..PLAIN
    },
    Fault {
        name: "leftover-calico",
        about: "a node of a flannel cluster still has Calico's tunnel device and block",
        shapes: Shapes::Only(Shape::Flannel),
        inject: |cluster| {
            cluster.write(A, FLANNEL_FILE, FLANNEL)?;
            cluster.run_as(A, "flanneld")?;
            let underlay = cluster.node(A)?.underlay();
            ip(
                cluster,
                A,
                &format!(
                    "link add vxlan.calico mtu 1450 type vxlan id 4096 local {underlay} dev eth0 \
                     dstport 4789 nolearning\n\
                     addr add 10.244.1.0/32 dev vxlan.calico\n\
                     link set vxlan.calico up\n\
                     route add blackhole 10.244.1.0/26 proto 80"
                ),
            )
        },
        heal: |cluster| {
            ip(cluster, A, "link del vxlan.calico\nroute del blackhole 10.244.1.0/26 proto 80")
        },
        spares: AMONG_ALL,
        expected: &[says_itself(A, Code::CniLeftover, Subject::Thing(Thing::Leftover, "calico"))
            .telling(&["vxlan.calico", "1 routes", "flanneld"])],
        unlike: &[Code::CniConfigPrecedence],
        limits: SLOW,
        ..PLAIN
    },
    Fault {
        name: "incident-pool-outside",
        about: "Calico's pool is 192.168.0.0/16 while the cluster's pods are in 10.42.0.0/16",
        incident: Some(4),
        inject: |cluster| {
            let pods = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.2.1/24\n";
            cluster.write(B, FLANNEL_NOTE, pods)?;
            ip(
                cluster,
                B,
                "link add cali0123456789a type veth peer name other\n\
                 link set cali0123456789a up\n\
                 link set other up\n\
                 route add blackhole 192.168.77.0/26 proto 80\n\
                 route add 192.168.77.5/32 dev cali0123456789a scope link",
            )
        },
        heal: |cluster| {
            ip(cluster, B, "link del cali0123456789a\nroute del blackhole 192.168.77.0/26 proto 80")
        },
        spares: AMONG_ALL,
        expected: &[says_itself(B, Code::PoolOutsidePodNetwork, Subject::Node).telling(&[
            "2 routes of calico",
            "192.168.77.0/26",
            "10.42.0.0/16",
        ])],
        unlike: &[Code::CniLeftover, Code::PodNetworkOverlap, Code::RouteBlackhole],
        limits: SLOW,
        ..PLAIN
    },
    Fault {
        name: "cni-config-precedence",
        about: "a file of a CNI plugin that no longer runs comes before the running one's",
        inject: |cluster| {
            cluster.write(A, FLANNEL_FILE, FLANNEL)?;
            cluster.write(A, LATER_FILE, CALICO)?;
            cluster.run_as(A, "calico-node")
        },
        // The other one first: with it in force flannel would be a leftover.
        heal: |cluster| {
            cluster.remove(A, LATER_FILE)?;
            cluster.remove(A, FLANNEL_FILE)
        },
        spares: AMONG_ALL,
        expected: &[says_itself(
            A,
            Code::CniConfigPrecedence,
            Subject::Thing(Thing::File, "/etc/cni/net.d/10-flannel.conflist"),
        )
        .telling(&["20-calico.conflist of calico comes later", "calico-node"])],
        unlike: &[Code::CniConfigMalformed],
        limits: SLOW,
        ..PLAIN
    },
    Fault {
        name: "cni-config-malformed",
        about: "the first CNI configuration of a node is cut short",
        inject: |cluster| {
            cluster.write(A, CALICO_FILE, CALICO)?;
            cluster.write(A, "etc/cni/net.d/05-own.conflist", "{\"name\": \"own\", \"plugins\": [")
        },
        heal: |cluster| cluster.remove(A, "etc/cni/net.d/05-own.conflist"),
        spares: AMONG_ALL,
        expected: &[says_itself(
            A,
            Code::CniConfigMalformed,
            Subject::Thing(Thing::File, "/etc/cni/net.d/05-own.conflist"),
        )
        .telling(&["EOF while parsing"])],
        unlike: &[Code::CniConfigPrecedence],
        limits: SLOW,
        ..PLAIN
    },
    Fault {
        name: "pod-network-overlap",
        about: "one node's NIC is also in a network that is part of the pods'",
        inject: |cluster| {
            cluster.write(A, FLANNEL_NOTE, "FLANNEL_NETWORK=10.42.0.0/16\n")?;
            ip(cluster, A, "addr add 10.42.200.7/24 dev eth0")
        },
        heal: |cluster| ip(cluster, A, "addr del 10.42.200.7/24 dev eth0"),
        spares: AMONG_ALL,
        expected: &[says_itself(A, Code::PodNetworkOverlap, Subject::Uplink)
            .telling(&["10.42.200.0/24", "10.42.0.0/16"])],
        unlike: &[Code::PoolOutsidePodNetwork],
        limits: SLOW,
        ..PLAIN
    },
    Fault {
        name: "vtep-address-of-bridge",
        about: "one node's tunnel device sends from the address of Docker's bridge",
        inject: |cluster| {
            ip(cluster, A, DOCKER_BRIDGE)?;
            cluster.remake_tunnel(A, |vtep| vtep.local = [172, 17, 0, 1].into())
        },
        heal: |cluster| {
            cluster.remake_tunnel(A, |_| {})?;
            ip(cluster, A, "link del docker0")
        },
        spares: &[pods(B, C)],
        expected: &[says_itself(A, Code::VtepAddressOfBridge, Subject::Tunnel)
            .telling(&["172.17.0.1", "docker0"])],
        unlike: &[Code::VtepLocalAddressWrong],
        limits: SLOW,
        ..PLAIN
    },
    Fault {
        name: "vxlan-port-claimed-twice",
        about: "Cilium's device was made beside another plugin's and wants the same port",
        inject: |cluster| {
            let port = cluster.shape.port();
            ip(
                cluster,
                A,
                &format!("link add cilium_vxlan mtu 1450 type vxlan external dstport {port}"),
            )
        },
        heal: |cluster| ip(cluster, A, "link del cilium_vxlan"),
        spares: AMONG_ALL,
        expected: &[says_itself(A, Code::VxlanPortClaimedTwice, Subject::Tunnel)
            .telling(&["cilium_vxlan", "is down"])],
        unlike: &[Code::TunnelDown, Code::CniLeftover],
        ..PLAIN
    },
    Fault {
        name: "cni-as-it-should-be",
        about: "one CNI plugin with its files and its agent, and Docker and Podman beside it",
        inject: |cluster| {
            let (name, file) = match cluster.shape {
                Shape::Flannel => ("flanneld", (FLANNEL_FILE, FLANNEL)),
                _ => ("calico-node", (CALICO_FILE, CALICO)),
            };
            cluster.run_as(A, name)?;
            cluster.write(A, file.0, file.1)?;
            cluster.write(A, "etc/cni/net.d/87-podman-bridge.conflist", PODMAN)?;
            cluster.write(A, FLANNEL_NOTE, "FLANNEL_NETWORK=10.42.0.0/16\n")?;
            // A second device of the same kind shares the port.
            let port = cluster.shape.port();
            ip(
                cluster,
                A,
                &format!(
                    "{DOCKER_BRIDGE}\nlink add vxlan77 mtu 1450 type vxlan id 77 dev eth0 dstport {port}\n\
                     link set vxlan77 up"
                ),
            )
        },
        heal: |cluster| ip(cluster, A, "link del docker0\nlink del vxlan77"),
        spares: AMONG_ALL,
        unlike: &[
            Code::CniLeftover,
            Code::CniConfigPrecedence,
            Code::CniConfigMalformed,
            Code::PoolOutsidePodNetwork,
            Code::PodNetworkOverlap,
            Code::VtepAddressOfBridge,
            Code::VxlanPortClaimedTwice,
        ],
        limits: Limits { settle: Duration::from_secs(40), ..HARD },
        ..PLAIN
    },
    Fault {
        name: "cni-agent-restarts",
        about: "Calico's policies on flannel's network, whose agent is away",
        inject: |cluster| {
            cluster.run_as(A, "calico-node")?;
            cluster.write(A, "etc/cni/net.d/10-canal.conflist", CANAL)
        },
        spares: AMONG_ALL,
        unlike: &[Code::CniLeftover],
        limits: Limits { settle: Duration::from_secs(40), ..HARD },
        ..PLAIN
    },
];

const K3S_CONTAINERD: &str = "var/lib/rancher/k3s/agent/etc/containerd/config.toml";
const FLANNEL_NOTE: &str = "run/flannel/subnet.env";
/// Docker's default bridge, which has no carrier as long as no container is on it.
const DOCKER_BRIDGE: &str = "link add docker0 type bridge\n\
                             addr add 172.17.0.1/16 dev docker0\n\
                             link set docker0 up";

const fn left_flannel(node: usize) -> Expected {
    says_itself(node, Code::CniLeftover, Subject::Thing(Thing::Leftover, "flannel")).telling(&[
        "cni0, flannel.1",
        "3 routes",
        "/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist",
        "calico runs: calico-node",
    ])
}

fn each(cluster: &mut Cluster, work: impl Fn(&mut Cluster, usize) -> Result<()>) -> Result<()> {
    (0..cluster.nodes.len()).try_for_each(|node| work(cluster, node))
}

/// Flannel's devices of a former network, with what leads to all other nodes.
fn leave_flannel(cluster: &mut Cluster, node: usize) -> Result<()> {
    let of = |node: &Node| (node.index + 1, node.underlay());
    let (own, underlay) = of(cluster.node(node)?);
    let mut lines = format!(
        "link add flannel.1 address 0e:44:00:00:00:{own:02x} mtu 1450 type vxlan id 1 \
         local {underlay} dev eth0 dstport 8472 nolearning\n\
         addr add 10.244.{own}.0/32 dev flannel.1\n\
         link set flannel.1 up\n\
         link add cni0 mtu 1450 type bridge forward_delay 0\n\
         addr add 10.244.{own}.1/24 dev cni0\n\
         link set cni0 up\n"
    );
    let mut forwarding = String::new();
    for (other, underlay) in cluster.nodes.iter().filter(|it| it.index != node).map(of) {
        let mac = format!("0e:44:00:00:00:{other:02x}");
        lines.push_str(&format!(
            "neigh replace 10.244.{other}.0 lladdr {mac} dev flannel.1 nud permanent\n\
             route replace 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink\n"
        ));
        forwarding
            .push_str(&format!("fdb replace {mac} dev flannel.1 dst {underlay} self permanent\n"));
    }
    let netns = &cluster.node(node)?.netns;
    netns.ip(&lines)?;
    netns.bridge(&forwarding)
}

//! Rules on CNI plugins: each code with what raises it, and with what only
//! looks like it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::catalog::Code;
use overlaywatch_core::diagnose::replay;
use overlaywatch_core::fact::{Fact, Gap};
use overlaywatch_core::finding::{Evidence, Finding, Subject};
use overlaywatch_core::model::{
    Address, AgentKind, Cni, CniAgent, CniConfiguration, CniDirectory, CniFile, Encapsulation,
    FlannelNote, IfIndex, Ipip, K3S_CONTAINERD, K3sNetwork, Link, LinkCounters, LinkKind, NextHop,
    Origin, Peer, PeerId, PeerTunnel, Route, RouteKey, RouteKind, RouteTable, Tunnel,
    USUAL_DIRECTORY, Unread, Vxlan, protocol, table, tunnels,
};
use overlaywatch_core::policy::Policy;
use overlaywatch_core::snapshot::Snapshot;
use overlaywatch_core::time::{Mono, Now, Wall};

const UPLINK: u32 = 2;

/// A node as its facts come up.
#[derive(Default)]
struct Node {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    cni: Cni,
}

fn seen<T>(value: T) -> Fact<T> {
    Fact::Seen { value, at: Mono(1) }
}

impl Node {
    fn new() -> Self {
        Self::default()
            .link(UPLINK, "eth0", LinkKind::Plain)
            .address(UPLINK, "10.0.0.11/24")
            .running(&[])
    }

    fn link(mut self, index: u32, name: &str, kind: LinkKind) -> Self {
        self.links.push(Link {
            index: IfIndex(index),
            name: name.to_owned(),
            kind,
            mac: None,
            mtu: if index == UPLINK { 1500 } else { 1450 },
            admin_up: true,
            carrier: true,
            master: None,
            counters: LinkCounters::default(),
        });
        self
    }

    fn vxlan(self, index: u32, name: &str, vxlan: Vxlan) -> Self {
        self.link(index, name, LinkKind::Vxlan(vxlan))
    }

    fn address(mut self, index: u32, net: &str) -> Self {
        self.addresses.push(Address { index: IfIndex(index), net: net.parse().unwrap() });
        self
    }

    fn route(mut self, net: &str, kind: RouteKind, protocol: u8, device: Option<u32>) -> Self {
        let destination = net.parse().unwrap();
        let key = RouteKey { table: table::MAIN, destination, metric: 0, tos: 0 };
        let next_hop = NextHop { device: device.map(IfIndex), ..NextHop::default() };
        let more_next_hops = Vec::new();
        self.routes.push(Route { key, kind, protocol, source: None, next_hop, more_next_hops });
        self
    }

    fn file(mut self, name: &str, content: Result<CniConfiguration, &str>) -> Self {
        if self.cni.directories.is_empty() {
            let path = USUAL_DIRECTORY.to_owned();
            self.cni.directories.push(CniDirectory { path, files: Vec::new(), is_cut: false });
        }
        let path = format!("{USUAL_DIRECTORY}/{name}");
        let content = content.map_err(str::to_owned);
        self.cni.directories[0].files.push(CniFile { path, content });
        self
    }

    fn running(mut self, names: &[&str]) -> Self {
        let agent = |name: &&str| CniAgent {
            kind: AgentKind::of_process(name).unwrap(),
            name: (*name).to_owned(),
            pid: 100,
        };
        self.cni.running = Some(names.iter().map(agent).collect());
        self
    }

    fn noted(mut self, network: &str) -> Self {
        let network = Some(network.parse().unwrap());
        self.cni.flannel = Some(FlannelNote { network, ..FlannelNote::default() });
        self
    }

    fn snapshot(&self) -> Snapshot {
        let links = self.links.iter().map(|link| (link.index, link.clone())).collect();
        let tunnels: Vec<Tunnel> = tunnels(&links, &self.addresses);
        let routes = self.routes.iter().map(|route| (route.key, route.clone())).collect();
        Snapshot {
            now: Now { mono: Mono(1), wall: Wall(1) },
            links: seen(Arc::new(links)),
            addresses: seen(Arc::new(self.addresses.clone())),
            routes: seen(Arc::new(RouteTable(routes))),
            rules: seen(Arc::default()),
            neighbours: seen(Arc::default()),
            fdb: seen(Arc::default()),
            cni: seen(Arc::new(self.cni.clone())),
            tunnels: seen(Arc::new(tunnels)),
            underlays: Arc::new(vec![IfIndex(UPLINK)]),
            ..Snapshot::default()
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let diagnosis = replay(None, &self.snapshot(), &Policy::default());
        diagnosis.findings.into_iter().map(|active| active.finding).collect()
    }

    fn says(&self) -> Vec<Code> {
        self.findings().iter().map(|finding| finding.code).collect()
    }
}

fn network(types: &[&str], ipam: &str) -> Result<CniConfiguration, &'static str> {
    let types = types.iter().map(|&kind| kind.to_owned()).collect();
    Ok(CniConfiguration { types, ipam: Some(ipam.to_owned()), ..CniConfiguration::default() })
}

fn flannel() -> Result<CniConfiguration, &'static str> {
    network(&["flannel", "portmap"], "")
}

fn calico() -> Result<CniConfiguration, &'static str> {
    network(&["calico", "portmap"], "calico-ipam")
}

fn vxlan(vni: u32, port: u16) -> Vxlan {
    Vxlan { vni, port, local: Some("10.0.0.11".parse().unwrap()), ..Vxlan::default() }
}

/// Flannel's devices and routes.
fn with_flannel(node: Node) -> Node {
    node.vxlan(5, "flannel.1", vxlan(1, 8472)).link(6, "cni0", LinkKind::Bridge).route(
        "10.42.3.0/24",
        RouteKind::Unicast,
        protocol::BOOT,
        Some(5),
    )
}

#[test]
fn what_another_plugin_left_is_named_with_its_devices_routes_and_files() {
    let node = with_flannel(Node::new())
        .file("10-calico.conflist", calico())
        .file("20-flannel.conflist", flannel())
        .running(&["calico-node"]);
    let findings = node.findings();
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!(finding.code, Code::CniLeftover);
    assert!(matches!(&finding.subject, Subject::Thing { name, .. } if name == "flannel"));
    let said = finding.evidence[0].to_string();
    assert!(said.contains("cni0, flannel.1, 1 routes and /etc/cni/net.d/20-flannel"), "{said}");
    let commands = finding.evidence[0].placeholders();
    // Pods may still be on the bridge.
    let commands = &commands[0].1;
    assert!(commands.starts_with("make the pods anew that are still on cni0 ("), "{commands}");
    assert!(commands.contains("), `ip link del flannel.1`, `rm /etc/cni/net.d/20-"), "{commands}");
    assert!(!commands.contains("link del cni0"), "{commands}");
}

fn cleanup_of(node: &Node) -> String {
    let findings = node.findings();
    assert_eq!(findings.iter().map(|it| it.code).collect::<Vec<_>>(), [Code::CniLeftover]);
    let told = findings.iter().flat_map(|it| &it.evidence).flat_map(Evidence::placeholders);
    told.map(|(_, commands)| commands).next().unwrap()
}

#[test]
fn what_has_no_device_of_its_own_is_cleaned_up_too() {
    let base = || Node::new().file("10-flannel.conflist", flannel()).running(&["flanneld"]);
    let blocks = base().route("10.42.7.0/26", RouteKind::Blackhole, protocol::FELIX, None);
    assert_eq!(cleanup_of(&blocks), "`ip route flush proto 80`");
    let tunnel = base().link(7, "tunl0", LinkKind::Ipip(Ipip::default())).route(
        "10.42.9.0/26",
        RouteKind::Unicast,
        protocol::BIRD,
        Some(7),
    );
    assert_eq!(cleanup_of(&tunnel), "`ip link set tunl0 down`");
    let veth = base().link(8, "cali0123456789a", LinkKind::Veth);
    assert!(cleanup_of(&veth).starts_with("make the pods anew that are still on cali0123456789a"));
}

#[test]
fn the_kernels_own_tunnel_is_calicos_where_calico_used_it() {
    let base = || {
        Node::new()
            .link(7, "tunl0", LinkKind::Ipip(Ipip::default()))
            .address(7, "203.0.113.7/32")
            .file("10-flannel.conflist", flannel())
            .running(&["flanneld"])
    };
    // A real server behind LVS.
    assert_eq!(base().says(), []);
    let own = base().route("10.9.0.0/16", RouteKind::Unicast, protocol::STATIC, Some(7));
    assert_eq!(own.says(), []);
    let served = base().route("10.42.9.0/26", RouteKind::Unicast, protocol::BIRD, Some(7));
    assert_eq!(served.says(), [Code::CniLeftover]);
    assert_eq!(base().file("20-calico.conflist", calico()).says(), [Code::CniLeftover]);
    assert_eq!(base().link(8, "cali0123456789a", LinkKind::Veth).says(), [Code::CniLeftover]);
}

impl Node {
    fn unread(mut self, path: &str) -> Self {
        let detail = format!("reading {path}: denied");
        self.cni.unread.push(Unread { path: path.to_owned(), denied: true, detail });
        self
    }

    /// Its tunnel leads to a peer.
    fn leading(&self, index: u32, device: &str) -> Vec<Code> {
        let leads = PeerTunnel {
            index: IfIndex(index),
            device: device.to_owned(),
            encapsulation: Encapsulation::Vxlan(4789),
            overlay: None,
            mac: None,
        };
        let peer = Peer {
            id: PeerId("10.0.0.12".parse().unwrap()),
            name: None,
            origin: Origin::File,
            tunnels: vec![leads],
            pod_networks: Vec::new(),
            other_addresses: Vec::new(),
            departed_since: None,
        };
        let snapshot = Snapshot { peers: Arc::new(vec![peer]), ..self.snapshot() };
        let findings = replay(None, &snapshot, &Policy::default()).findings;
        let codes = findings.into_iter().map(|active| active.finding.code);
        codes.filter(|code| code.slug().starts_with("cni-")).collect()
    }
}

#[test]
fn a_file_that_cannot_be_read_hides_only_what_it_says() {
    let hidden = "/etc/cni/net.d/10-calico.conflist";
    // Pods and their networks are told by other files.
    let pools = Node::new()
        .unread(K3S_CONTAINERD)
        .unread(hidden)
        .noted("10.42.0.0/16")
        .route("192.168.77.0/26", RouteKind::Blackhole, protocol::FELIX, None)
        .address(UPLINK, "10.42.200.7/24")
        .running(&["calico-node", "k3s-server"]);
    let says = pools.says();
    assert!(says.contains(&Code::PoolOutsidePodNetwork), "{says:?}");
    assert!(says.contains(&Code::PodNetworkOverlap), "{says:?}");
    // Who is in charge is told by the tunnel that leads to peers.
    let left = with_flannel(Node::new())
        .vxlan(7, "vxlan.calico", vxlan(4096, 4789))
        .file("20-b.conflist", flannel())
        .unread(hidden)
        .running(&["calico-node"]);
    assert_eq!(left.leading(7, "vxlan.calico"), [Code::CniLeftover]);
    assert_eq!(left.says(), [], "and by nothing else");
    // The one in force may be of the plugin that seems to be left over.
    let named = with_flannel(Node::new())
        .vxlan(7, "vxlan.calico", vxlan(4096, 4789))
        .file("20-b.conflist", calico())
        .unread("/etc/cni/net.d/10-flannel.conflist")
        .running(&["calico-node"]);
    assert_eq!(named.leading(7, "vxlan.calico"), []);
    // What comes after an unread file is not in force; what comes before it is.
    let second = Node::new().file("20-a.conflist", Err("EOF")).unread(hidden);
    assert_eq!(second.says(), []);
    let first = Node::new().file("05-a.conflist", Err("EOF")).unread(hidden);
    assert_eq!(first.says(), [Code::CniConfigMalformed]);
}

#[test]
fn what_cannot_be_read_is_a_gap() {
    let node = Node::new().unread("/etc/cni/net.d/10-calico.conflist");
    let diagnosis = replay(None, &node.snapshot(), &Policy::default());
    let [gap] = diagnosis.gaps.as_slice() else { panic!("{:?}", diagnosis.gaps) };
    assert_eq!((gap.source, gap.gap), (SourceId::Cni, Gap::Denied));
    assert!(gap.detail.contains("10-calico.conflist"), "{}", gap.detail);
}

#[test]
fn the_bridge_that_cri_os_own_file_makes_is_not_flannels() {
    let crio = |bridge: Option<&str>| {
        let types = vec!["bridge".to_owned(), "loopback".to_owned()];
        let bridge = bridge.map(str::to_owned);
        Ok(CniConfiguration { types, bridge, ..CniConfiguration::default() })
    };
    let base = || {
        Node::new()
            .link(6, "cni0", LinkKind::Bridge)
            .file("10-calico.conflist", calico())
            .running(&["calico-node"])
    };
    assert_eq!(base().file("11-crio-ipv4-bridge.conflist", crio(Some("cni0"))).says(), []);
    assert_eq!(base().file("11-default.conflist", crio(None)).says(), []);
    let other = base().file("87-podman-bridge.conflist", crio(Some("cni-podman0")));
    assert_eq!(other.says(), [Code::CniLeftover]);
    // What else flannel left is its own, file or not.
    let both = with_flannel(base()).file("11-crio-ipv4-bridge.conflist", crio(Some("cni0")));
    let said = both.findings()[0].evidence[0].to_string();
    assert!(said.contains("flannel.1") && !said.contains("cni0"), "{said}");
}

#[test]
fn a_plugin_is_no_leftover_while_it_may_be_in_use() {
    let base = || with_flannel(Node::new()).file("10-calico.conflist", calico());
    // Nobody is in charge; its own agent runs; nobody can see who runs.
    assert_eq!(base().running(&[]).says(), []);
    assert_eq!(base().running(&["calico-node", "flanneld"]).says(), []);
    let mut hidden = base();
    hidden.cni.running = None;
    assert_eq!(hidden.says(), []);
    // Calico adds policies to flannel's network, whose agent is being restarted.
    let canal = with_flannel(Node::new())
        .file("10-canal.conflist", network(&["calico"], "host-local"))
        .running(&["calico-node"]);
    assert_eq!(canal.says(), []);
    // The configuration in force chains it to another.
    let chained = with_flannel(Node::new())
        .file("05-cilium.conflist", network(&["flannel", "cilium-cni"], ""))
        .running(&["cilium-agent"]);
    assert_eq!(chained.says(), []);
}

#[test]
fn k3s_runs_flannel_unless_it_says_otherwise() {
    let mut node = with_flannel(Node::new())
        .file("10-calico.conflist", calico())
        .running(&["calico-node", "k3s-server"]);
    assert_eq!(node.says(), [], "nobody can tell");
    node.cni.k3s = Some(K3sNetwork::Own(USUAL_DIRECTORY.to_owned()));
    assert_eq!(node.says(), [], "K3s runs it");
    node.cni.k3s = Some(K3sNetwork::Others);
    assert_eq!(node.says(), [Code::CniLeftover]);
}

#[test]
fn a_leftover_device_is_not_missed() {
    let mut node = with_flannel(Node::new())
        .address(5, "10.42.1.0/32")
        .file("10-calico.conflist", calico())
        .running(&["calico-node"]);
    node.links[1].admin_up = false;
    assert_eq!(node.says(), [Code::CniLeftover]);
    assert!(node.running(&[]).says().contains(&Code::TunnelDown));
}

#[test]
fn the_first_file_must_be_of_a_plugin_that_runs() {
    let node = |running: &[&str]| {
        Node::new()
            .file("10-flannel.conflist", flannel())
            .file("20-calico.conflist", calico())
            .running(running)
    };
    assert_eq!(node(&["calico-node"]).says(), [Code::CniConfigPrecedence]);
    assert_eq!(node(&["flanneld"]).says(), []);
    assert_eq!(node(&["calico-node", "flanneld"]).says(), []);
    assert_eq!(node(&[]).says(), []);
    // A plugin that calls the others comes first by right.
    let multus = Node::new()
        .file("00-multus.conf", network(&["multus"], ""))
        .file("10-flannel.conflist", flannel())
        .file("20-calico.conflist", calico())
        .running(&["calico-node"]);
    assert_eq!(multus.says(), []);
}

#[test]
fn a_malformed_file_matters_where_it_comes_first() {
    let first = Node::new().file("05-a.conf", Err("EOF")).file("10-b.conflist", calico());
    assert_eq!(first.says(), [Code::CniConfigMalformed]);
    let later = Node::new().file("10-b.conflist", calico()).file("20-c.conf", Err("EOF"));
    assert_eq!(later.says(), []);
}

#[test]
fn calicos_blocks_are_to_be_in_the_pod_network() {
    let node = |block: &str, pod: &str| {
        Node::new()
            .link(9, "cali0123456789a", LinkKind::Veth)
            .noted("10.42.0.0/16")
            .route(block, RouteKind::Blackhole, protocol::FELIX, None)
            .route(pod, RouteKind::Unicast, protocol::BOOT, Some(9))
    };
    let outside = node("192.168.77.0/26", "192.168.77.5/32");
    assert_eq!(outside.says(), [Code::PoolOutsidePodNetwork]);
    assert_eq!(node("10.42.77.0/26", "10.42.77.5/32").says(), []);
    // Somebody else's routes, and nothing to compare with.
    let other = node("10.42.77.0/26", "10.42.77.5/32").route(
        "172.16.0.0/12",
        RouteKind::Unicast,
        protocol::STATIC,
        Some(UPLINK),
    );
    assert_eq!(other.says(), []);
    let mut unknown = node("192.168.77.0/26", "192.168.77.5/32");
    unknown.cni.flannel = None;
    assert_eq!(unknown.says(), []);
}

#[test]
fn pods_and_nodes_have_no_address_in_common() {
    let node = |address: &str| Node::new().address(UPLINK, address);
    let inside = node("10.42.200.7/24").noted("10.42.0.0/16");
    assert_eq!(inside.says(), [Code::PodNetworkOverlap]);
    assert_eq!(node("10.42.0.7/16").noted("10.42.0.0/16").says(), [Code::PodNetworkOverlap]);
    // What merely contains the pods' network is left to the longest prefix, unless
    // hosts are among the pods: this node, or another one.
    assert_eq!(node("10.40.0.7/13").noted("10.42.0.0/16").says(), []);
    assert_eq!(node("10.42.0.7/13").noted("10.42.0.0/16").says(), [Code::PodNetworkOverlap]);
    let beside = |peer: &str| {
        let id = PeerId(peer.parse().unwrap());
        let peer = Peer {
            id,
            name: None,
            origin: Origin::File,
            tunnels: Vec::new(),
            pod_networks: Vec::new(),
            other_addresses: Vec::new(),
            departed_since: None,
        };
        let snapshot = Snapshot {
            peers: Arc::new(vec![peer]),
            ..node("10.40.0.7/13").noted("10.42.0.0/16").snapshot()
        };
        let findings = replay(None, &snapshot, &Policy::default()).findings;
        findings.iter().any(|active| active.finding.code == Code::PodNetworkOverlap)
    };
    assert!(beside("10.42.0.8"));
    assert!(!beside("10.40.0.8"));
    assert_eq!(node("10.43.200.7/24").noted("10.42.0.0/16").says(), []);
    // An address without a network, as of a service or a VPN.
    assert_eq!(node("10.42.200.7/32").noted("10.42.0.0/16").says(), []);
    // Pods are put into the nodes' network on purpose.
    let macvlan = CniConfiguration {
        types: vec!["macvlan".to_owned()],
        networks: vec!["10.0.0.0/24".parse().unwrap()],
        ..CniConfiguration::default()
    };
    assert_eq!(Node::new().file("10-lan.conf", Ok(macvlan)).says(), []);
}

#[test]
fn no_tunnel_sends_from_dockers_bridge() {
    let node = |bridge: &str| {
        let local = Some("172.17.0.1".parse().unwrap());
        Node::new().link(7, bridge, LinkKind::Bridge).address(7, "172.17.0.1/16").vxlan(
            5,
            "flannel.1",
            Vxlan { local, ..vxlan(1, 8472) },
        )
    };
    for bridge in ["docker0", "br-0123456789ab", "virbr1"] {
        assert_eq!(node(bridge).says(), [Code::VtepAddressOfBridge], "{bridge}");
    }
    for bridge in ["br0", "vmbr0", "br-lan", "docker-uplink"] {
        assert_eq!(node(bridge).says(), [], "{bridge}");
    }
    assert_eq!(node("docker0").address(UPLINK, "172.17.0.1/24").says(), [], "also on the NIC");
}

#[test]
fn two_kinds_of_device_cannot_share_a_port() {
    let external = Vxlan { collect_metadata: true, ..vxlan(0, 8472) };
    let node = |other: Vxlan| {
        Node::new().vxlan(5, "flannel.1", vxlan(1, 8472)).vxlan(6, "cilium_vxlan", other)
    };
    assert_eq!(node(external.clone()).says(), [Code::VxlanPortClaimedTwice]);
    assert_eq!(node(Vxlan { port: 8473, ..external }).says(), []);
    assert_eq!(node(vxlan(2, 8472)).says(), []);
}

#[test]
fn without_its_facts_nothing_is_said() {
    let node =
        with_flannel(Node::new()).file("10-calico.conflist", calico()).running(&["calico-node"]);
    let blind = Snapshot { cni: Fact::Missing(Gap::Denied), ..node.snapshot() };
    assert!(replay(None, &blind, &Policy::default()).findings.is_empty());
}

//! Clusters of 2 to 16 nodes on one underlay, shaped as a CNI shapes them.
//!
//! ```text
//!   switch namespace:   underlay bridge, one port per node, gateway 10.0.0.1
//!                       (a second one, and a router between, where there are subnets)
//!   node namespace:     eth0 ── port    tunnel device   pod side (cni0 or cali*)
//!   pod namespace:      eth0 ── node
//! ```
//! Faults in the middle are made in the switch, which no agent can see.

mod shape;
mod v6;

use std::any::Any;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, ensure};

pub use shape::{Shape, Vtep};
pub use v6::DEVICE as V6_DEVICE;

use crate::agent::{Agent, Launch};
use crate::identity;
use crate::netns::Netns;
use crate::pins::Pins;

/// The fewest and the most nodes of a cluster.
pub const SIZES: std::ops::RangeInclusive<usize> = 2..=16;
/// MTU of the underlay, bytes.
pub const UNDERLAY_MTU: u16 = 1500;
/// The underlay's prefix length.
const UNDERLAY_PREFIX: u8 = 24;
/// The switch's own address in the first subnet: the nodes' default gateway, which
/// forwards nothing but what goes to another subnet.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// A cluster of namespaces; all of it vanishes when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Whose shape it has.
    pub shape: Shape,
    /// Its nodes. Before the switch, so that agents end first.
    pub nodes: Vec<Node>,
    /// The namespace of the underlay bridge.
    pub switch: Netns,
    /// What a fault keeps running, until this is dropped.
    pub(crate) guests: Vec<Box<dyn Any + Send + Sync>>,
    /// How to run agents; none while the nodes run without.
    pub(crate) agents: Option<Launch>,
    directory: RunDirectory,
}

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    /// Its place in the cluster, from 0.
    pub index: usize,
    /// The subnet of the underlay that it is in, from 0.
    pub subnet: u8,
    /// Its name, and that of its port on the switch.
    pub name: String,
    /// Its agent, if one runs.
    pub agent: Option<Agent>,
    /// What its agents pin. After the agent, which pins while it runs.
    pub pins: Pins,
    /// Its pod's namespace.
    pub pod: Netns,
    /// Its own namespace.
    pub netns: Netns,
}

/// Where the agents' files are.
#[derive(Debug)]
struct RunDirectory(PathBuf);

impl Drop for RunDirectory {
    fn drop(&mut self) {
        identity::remove_run_directory(&self.0);
    }
}

impl Cluster {
    /// Builds a cluster of `size` nodes: links, addresses, tunnels, and on each
    /// node what leads to all others.
    ///
    /// # Errors
    /// Without root, without iproute2, or when `size` is not in [`SIZES`].
    pub fn build(shape: Shape, size: usize) -> Result<Self> {
        static RUNS: AtomicU32 = AtomicU32::new(1);
        let (least, most) = (SIZES.start(), SIZES.end());
        ensure!(SIZES.contains(&size), "a cluster has {least} to {most} nodes, not {size}");
        let run = format!("r{}", RUNS.fetch_add(1, Ordering::Relaxed));
        let directory = RunDirectory(identity::run_directory(&run)?);
        let prefix = format!("{}-{run}", identity::own()?);
        let routes = shape.subnets().len() > 1;
        let switch = Netns::create(format!("{prefix}-switch"), routes)?;
        switch.ip(&shape
            .subnets()
            .iter()
            .map(|&subnet| switch_lines(subnet))
            .collect::<String>())?;
        if shape.has_ipv6() {
            v6::enable(&switch, false)?;
            switch.ip(&v6::switch_lines())?;
        }
        let mut nodes = Vec::with_capacity(size);
        for index in 0..size {
            let name = format!("node-{}", index + 1);
            let namespace = format!("{prefix}-{name}");
            nodes.push(Node {
                index,
                subnet: shape.subnet(index),
                agent: None,
                pins: Pins::of(&namespace)?,
                pod: Netns::create(format!("{prefix}-pod-{}", index + 1), false)?,
                netns: Netns::create(namespace, true)?,
                name,
            });
        }
        let cluster = Self { shape, nodes, switch, guests: Vec::new(), agents: None, directory };
        cluster.on_every_node(|node| cluster.wire(node))?;
        let port = |node: &Node| format!("link set {} master br{} up\n", node.name, node.subnet);
        cluster.switch.ip(&cluster.nodes.iter().map(port).collect::<String>())?;
        Ok(cluster)
    }

    /// The nodes work side by side: most of the time goes into waiting for the
    /// kernel's grace periods.
    fn on_every_node(&self, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> =
                self.nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| anyhow!("a thread that builds a node panicked"))?
            })
        })
    }

    /// Takes away all that a node has of links, addresses and routes, as its end does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unwire(&self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        let lines = self.shape.undo_lines(node);
        node.netns.ip(&format!("{lines}link del eth0\nroute flush table main\n"))
    }

    /// Makes a node's links, addresses and routes anew, as its start does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rewire(&self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        self.wire(node)?;
        self.switch.ip(&format!("link set {} master br0 up\n", node.name))
    }

    fn wire(&self, node: &Node) -> Result<()> {
        if self.shape.has_ipv6() {
            v6::enable(&node.netns, true)?;
            v6::enable(&node.pod, false)?;
        }
        node.netns.ip(&uplink_lines(node, self.shape, &self.switch))?;
        node.netns.ip(&self.shape.device_lines(node, &node.vtep(self.shape)))?;
        if self.shape.families() > 1 {
            node.netns.ip(&self.shape.device_lines(node, &node.vtep_v6()))?;
        }
        let tunnels = self.others(node).map(|peer| self.shape.tunnel_lines(node, peer));
        node.netns.ip(&tunnels.collect::<String>())?;
        node.netns.ip(&self.shape.pod_side_lines(node))?;
        node.pod.ip(&self.shape.pod_lines(node))?;
        for (switch, value) in self.shape.switches(node) {
            node.netns.set(&switch, value)?;
        }
        self.program(node.index)
    }

    /// Programs on `node` what leads to all others, as its CNI agent does when
    /// it starts. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn program(&self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        let (routes, forwarding): (Vec<String>, Vec<String>) =
            self.others(node).map(|peer| self.shape.peer_lines(node, peer)).unzip();
        node.netns.ip(&routes.concat())?;
        node.netns.bridge(&forwarding.concat())
    }

    /// Lets `node` send by VXLAN what it sent by IPIP, while networks change their
    /// encapsulation.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_on(&self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        let routes = self.others(node).map(|peer| self.shape.moving_lines(peer));
        node.netns.ip(&routes.collect::<String>())
    }

    fn others(&self, node: &Node) -> impl Iterator<Item = &Node> {
        let index = node.index;
        self.nodes.iter().filter(move |other| other.index != index)
    }

    /// Takes away on `node` what leads to `peer`, as a CNI agent does when a
    /// node leaves the cluster.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget(&self, node: usize, peer: usize) -> Result<()> {
        let (node, peer) = (self.node(node)?, self.node(peer)?);
        let (routes, forwarding) = self.shape.forget_lines(peer);
        node.netns.ip(&routes)?;
        node.netns.bridge(&forwarding)
    }

    /// Takes away `node`'s forwarding entry for `peer`'s VTEP alone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lose_forwarding_entry(&self, node: usize, peer: usize) -> Result<()> {
        let (_, forwarding) = self.shape.forget_lines(self.node(peer)?);
        self.node(node)?.netns.bridge(&forwarding)
    }

    /// Lets `node`'s forwarding entry for `peer`'s VTEP lead to a third node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn misdirect(&self, node: usize, peer: usize, third: usize) -> Result<()> {
        let mac = self.node(peer)?.vtep(self.shape).mac;
        let (device, third) = (self.shape.device(), self.node(third)?.address(self.shape));
        self.node(node)?
            .netns
            .bridge(&format!("fdb replace {mac} dev {device} dst {third} self permanent\n"))
    }

    /// Makes `node`'s tunnel device anew as one that takes each packet's tunnel
    /// from metadata, with all that goes through it: what is left of a CNI
    /// plugin whose BPF programs are gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remake_external(&self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        node.netns.ip(&format!("link del {}\n", self.shape.device()))?;
        node.netns.ip(&self.shape.external_lines(&node.vtep(self.shape)))?;
        self.program(node.index)
    }

    /// Makes `node`'s tunnel device anew, as `change` wants it, with all that
    /// goes through it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remake_tunnel(&self, node: usize, change: impl FnOnce(&mut Vtep)) -> Result<()> {
        self.node(node)?.netns.ip(&format!("link del {}\n", self.shape.device()))?;
        self.make_tunnel(node, change)
    }

    /// Makes `node`'s tunnel device, as `change` wants it, with all that goes
    /// through it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_tunnel(&self, node: usize, change: impl FnOnce(&mut Vtep)) -> Result<()> {
        let node = self.node(node)?;
        let mut vtep = node.vtep(self.shape);
        change(&mut vtep);
        node.netns.ip(&self.shape.device_lines(node, &vtep))?;
        self.program(node.index)
    }

    /// Makes `node`'s tunnel device over IPv6, where it has one over IPv4 as well, with
    /// all that goes through it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_tunnel_v6(&self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        node.netns.ip(&self.shape.device_lines(node, &node.vtep_v6()))?;
        self.program(node.index)
    }

    /// The node of this index.
    ///
    /// # Errors
    /// When the cluster is smaller.
    pub fn node(&self, index: usize) -> Result<&Node> {
        self.nodes.get(index).with_context(|| format!("the cluster has no node {}", index + 1))
    }

    /// The node of this index, to be changed.
    ///
    /// # Errors
    /// When the cluster is smaller.
    pub fn node_mut(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).with_context(|| format!("the cluster has no node {}", index + 1))
    }

    /// Where the agents' files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }
}

impl Node {
    /// Its number in addresses, from 1.
    fn number(&self) -> u8 {
        // SIZES keeps it small.
        u8::try_from(self.index + 1).unwrap_or(u8::MAX)
    }

    /// Its underlay address.
    #[must_use]
    pub fn underlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.subnet, 10 + self.number())
    }

    /// Its tunnel device's address.
    #[must_use]
    pub fn overlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.number(), 0)
    }

    /// Its tunnel device's address in the pool that pods move to.
    fn moved_overlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 43, self.number(), 0)
    }

    /// Its pod's address.
    #[must_use]
    pub fn pod_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.number(), 2)
    }

    /// Its pod's address in the pool that pods move to.
    #[must_use]
    pub fn moved_pod_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 43, self.number(), 2)
    }

    /// The tunnel device that it ought to have.
    fn vtep(&self, shape: Shape) -> Vtep {
        if !shape.has_ipv4() {
            return self.vtep_v6();
        }
        let address = match shape {
            Shape::CalicoMigration => self.moved_overlay(),
            _ => self.overlay(),
        };
        Vtep {
            vni: shape.vni(),
            port: shape.port(),
            local: self.underlay().into(),
            address: address.into(),
            mac: format!("0e:42:00:00:00:{:02x}", self.number()),
        }
    }
}

/// The switch's address in a subnet.
fn gateway(subnet: u8) -> Ipv4Addr {
    let [a, b, _, d] = GATEWAY.octets();
    Ipv4Addr::new(a, b, subnet, d)
}

fn switch_lines(subnet: u8) -> String {
    let gateway = gateway(subnet);
    format!(
        "link set lo up\n\
         link add br{subnet} mtu {UNDERLAY_MTU} type bridge forward_delay 0 mcast_snooping 0\n\
         addr add {gateway}/{UNDERLAY_PREFIX} dev br{subnet}\n\
         link set br{subnet} up\n"
    )
}

fn uplink_lines(node: &Node, shape: Shape, switch: &Netns) -> String {
    let v4 = format!(
        "addr add {}/{UNDERLAY_PREFIX} dev eth0\nroute add default via {} dev eth0 onlink\n",
        node.underlay(),
        gateway(node.subnet),
    );
    format!(
        "link set lo up\n\
         link add eth0 mtu {UNDERLAY_MTU} type veth peer name {} mtu {UNDERLAY_MTU} netns {}\n\
         link set eth0 up\n\
         {}{}",
        node.name,
        switch.name(),
        if shape.has_ipv4() { v4 } else { String::new() },
        if shape.has_ipv6() { v6::uplink_lines(node) } else { String::new() },
    )
}

//! Observations about CNI plugins, their files and their networks.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Plugin, TUNL0};

/// One observation about CNI plugins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum CniEvidence {
    /// What a plugin that does not run left behind.
    Left {
        /// The plugin.
        plugin: Plugin,
        /// Its devices.
        links: Vec<String>,
        /// How many routes lead into them or are marked as its own.
        routes: u32,
        /// Its configurations.
        files: Vec<String>,
        /// What it marks its routes with, where some of them lead to no device.
        #[serde(default)]
        flush: Option<u8>,
    },
    /// A plugin's agent runs.
    Runs {
        /// The plugin.
        plugin: Plugin,
        /// The process's name.
        process: String,
        /// Its number.
        pid: u32,
    },
    /// Nobody runs who keeps network policies of kube-router's kind, and this is a
    /// node of a cluster.
    NoPolicies {
        /// The kubelet's name.
        process: String,
        /// Its number.
        pid: u32,
    },
    /// A configuration that comes first.
    First {
        /// The file.
        path: String,
        /// Whose it is.
        plugin: Plugin,
    },
    /// A configuration that comes later.
    Later {
        /// The file.
        path: String,
        /// Whose it is.
        plugin: Plugin,
    },
    /// A file that is no configuration.
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        error: String,
    },
    /// The network of pods.
    PodNetwork {
        /// The network.
        network: IpNet,
        /// The file that says so.
        path: String,
    },
    /// Routes to a plugin's pods outside of it.
    RoutesOutside {
        /// Whose they are.
        plugin: Plugin,
        /// How many.
        count: u32,
        /// The first.
        first: IpNet,
    },
    /// A network that this node is in.
    NodeNetwork {
        /// The device.
        device: String,
        /// The network.
        network: IpNet,
    },
    /// A tunnel's source address is on a bridge.
    SourceOnBridge {
        /// The tunnel device.
        tunnel: String,
        /// Its source address.
        address: IpAddr,
        /// The bridge.
        bridge: String,
    },
    /// Two devices want a port.
    SamePort {
        /// The port.
        port: u16,
        /// The two.
        devices: [String; 2],
        /// The one of them that is switched off, if one is.
        down: Option<String>,
    },
}

impl CniEvidence {
    /// See [`Evidence::placeholders`](super::Evidence::placeholders).
    pub(super) fn placeholders(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Left { links, files, flush, .. } => {
                vec![("{cleanup}", cleanup(links, files, *flush))]
            }
            Self::First { path, .. } | Self::Malformed { path, .. } => {
                vec![("{first}", path.clone())]
            }
            Self::PodNetwork { network, .. } => vec![("{pods}", network.to_string())],
            _ => Vec::new(),
        }
    }
}

/// What removes a leftover. Pods that live on its devices are not cut off: they
/// take those with them when they are made anew.
fn cleanup(links: &[String], files: &[String], flush: Option<u8>) -> String {
    let (pods, tunnels): (Vec<&str>, Vec<&str>) =
        links.iter().map(String::as_str).partition(|name| has_pods(name));
    let mut steps = Vec::new();
    if !pods.is_empty() {
        steps.push(format!(
            "make the pods anew that are still on {} (such a device is not to be deleted while \
             a pod is on it)",
            pods.join(", ")
        ));
    }
    steps.extend(tunnels.iter().map(|name| match *name {
        // The kernel makes it with its module and deletes it with nothing else
        // (ip_tunnel_dellink, net/ipv4/ip_tunnel.c).
        TUNL0 => format!("`ip link set {TUNL0} down`"),
        name => format!("`ip link del {name}`"),
    }));
    steps.extend(flush.map(|protocol| format!("`ip route flush proto {protocol}`")));
    steps.extend(files.iter().map(|path| format!("`rm {path}`")));
    steps.join(", ")
}

/// Whether a plugin's device is one that pods are on: a bridge, the host's end of
/// a pod's own pair, or the way to all of Cilium's pods.
fn has_pods(name: &str) -> bool {
    ["cali", "lxc", "vethwe-"].iter().any(|prefix| name.starts_with(prefix))
        || matches!(name, "cni0" | "kube-bridge" | "weave" | "cilium_host" | "cilium_net")
}

impl fmt::Display for CniEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left { plugin, links, routes, files, .. } => {
                write!(f, "no agent of {plugin} runs on this node; of it there are ")?;
                if links.is_empty() {
                    f.write_str("no devices")?;
                } else {
                    write!(f, "the devices {}", links.join(", "))?;
                }
                write!(f, ", {routes} routes")?;
                if files.is_empty() { Ok(()) } else { write!(f, " and {}", files.join(", ")) }
            }
            Self::Runs { plugin, process, pid } => {
                write!(f, "{plugin} runs: {process}, process {pid}")
            }
            Self::NoPolicies { process, pid } => write!(
                f,
                "neither kube-router nor K3s nor RKE2 runs on this node, while {process} (process \
                 {pid}) does"
            ),
            Self::First { path, plugin } => {
                write!(f, "{path} of {plugin} comes first: pods get its network")
            }
            Self::Later { path, plugin } => write!(f, "{path} of {plugin} comes later"),
            Self::Malformed { path, error } => write!(f, "{path}: {error}"),
            Self::PodNetwork { network, path } => {
                write!(f, "pods are in {network}, as {path} says")
            }
            Self::RoutesOutside { plugin, count, first } => {
                write!(f, "{count} routes of {plugin} lead elsewhere, the first to {first}")
            }
            Self::NodeNetwork { device, network } => {
                write!(f, "{device} of this node is in {network}")
            }
            Self::SourceOnBridge { tunnel, address, bridge } => {
                write!(f, "{tunnel} sends from {address}, which is the address of {bridge}")
            }
            Self::SamePort { port, devices: [one, other], down } => {
                write!(f, "{one} and {other} both want UDP port {port}")?;
                down.as_ref().map_or(Ok(()), |down| write!(f, "; {down} is down"))
            }
        }
    }
}

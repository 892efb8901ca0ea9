//! What CNI plugins left in files and which of their agents run: who is in
//! charge of this node's network, and who was.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Link, LinkKind, protocol};

/// What files and processes say of this node's CNI plugins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cni {
    /// Folders with network configurations, also those that hold none.
    pub directories: Vec<CniDirectory>,
    /// Flannel's own note (/run/flannel/subnet.env).
    pub flannel: Option<FlannelNote>,
    /// The folder that K3s told its containerd to read; none where K3s has
    /// written no such file.
    pub k3s: Option<K3sNetwork>,
    /// Agents that run in this network namespace; none where processes of
    /// others cannot be seen.
    pub running: Option<Vec<CniAgent>>,
    /// What is there, or may be, and could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<Unread>,
}

/// A file or folder of which nobody knows what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Its path on the host.
    pub path: String,
    /// A permission is missing; else it failed.
    pub denied: bool,
    /// What went wrong and the remedy, for people.
    pub detail: String,
}

/// Whether K3s wires pods by its own flannel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum K3sNetwork {
    /// It does, and configurations are read from this folder.
    Own(String),
    /// It leaves that to others (`--flannel-backend=none`).
    Others,
}

/// A folder of network configurations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniDirectory {
    /// Its path on the host.
    pub path: String,
    /// Files that a runtime would read, in the order in which it does.
    pub files: Vec<CniFile>,
    /// There are more files than are read.
    #[serde(default)]
    pub is_cut: bool,
}

/// A file with a network configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniFile {
    /// Its path on the host.
    pub path: String,
    /// What it says, or what is wrong with it.
    pub content: Result<CniConfiguration, String>,
}

/// What a network configuration says (CNI specification 1.0, section 1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniConfiguration {
    /// The network's name.
    pub name: String,
    /// The version of the specification.
    pub version: Option<String>,
    /// Types of the plugins, in order.
    pub types: Vec<String>,
    /// The plugin that gives out addresses, of the first plugin that names one.
    pub ipam: Option<String>,
    /// The bridge that pods are put on.
    pub bridge: Option<String>,
    /// Networks that addresses are taken from.
    pub networks: Vec<IpNet>,
    /// MTU of pods, bytes.
    pub mtu: Option<u32>,
}

/// What flannel wrote about its networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlannelNote {
    /// The network of all pods of the cluster (`FLANNEL_NETWORK`).
    pub network: Option<IpNet>,
    /// The network of this node's pods (`FLANNEL_SUBNET`).
    pub subnet: Option<IpNet>,
    /// MTU of pods, bytes (`FLANNEL_MTU`).
    pub mtu: Option<u32>,
}

/// A running process that programs pod networks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CniAgent {
    /// What it is.
    pub kind: AgentKind,
    /// Its name (/proc/PID/comm).
    pub name: String,
    /// The lowest process number of that name.
    pub pid: u32,
}

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentKind {
    /// The agent of a CNI plugin.
    Of(Plugin),
    /// K3s, which carries flannel and kube-router's network policies within it and
    /// may run them or not.
    K3s,
    /// RKE2, which starts a kubelet of its own.
    Rke2,
    /// A kubelet: this machine is a node of a cluster.
    Kubelet,
}

impl AgentKind {
    /// Told from a process's name, of which the kernel keeps 15 bytes
    /// (`TASK_COMM_LEN`, include/linux/sched.h). K3s names itself after its role.
    #[must_use]
    pub fn of_process(name: &str) -> Option<Self> {
        Some(match name {
            "flanneld" => Self::Of(Plugin::Flannel),
            "calico-node" | "calico-felix" => Self::Of(Plugin::Calico),
            "cilium-agent" => Self::Of(Plugin::Cilium),
            "kube-router" => Self::Of(Plugin::KubeRouter),
            "weaver" => Self::Of(Plugin::Weave),
            "k3s" | "k3s-server" | "k3s-agent" => Self::K3s,
            "rke2" => Self::Rke2,
            // The second one is MicroK8s's.
            "kubelet" | "kubelite" => Self::Kubelet,
            _ => return None,
        })
    }
}

/// A CNI plugin that programs the kernel's network tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plugin {
    /// Flannel, also K3s's built-in one.
    Flannel,
    /// Calico.
    Calico,
    /// Cilium.
    Cilium,
    /// kube-router.
    KubeRouter,
    /// Weave Net.
    Weave,
}

impl Plugin {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Flannel, Self::Calico, Self::Cilium, Self::KubeRouter, Self::Weave];

    /// Its name as people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flannel => "flannel",
            Self::Calico => "calico",
            Self::Cilium => "cilium",
            Self::KubeRouter => "kube-router",
            Self::Weave => "weave",
        }
    }

    /// Whether a device of this name and kind is one that it makes. The names
    /// are fixed in the projects' sources, as those of
    /// [`Owner::of_device`](super::Owner::of_device) are.
    #[must_use]
    pub fn makes(self, link: &Link) -> bool {
        let name = link.name.as_str();
        match self {
            Self::Flannel => {
                name.starts_with("flannel.")
                    || name.starts_with("flannel-v6.")
                    || matches!(name, "flannel-wg" | "flannel-wg-v6")
                    || name == "cni0" && link.kind == LinkKind::Bridge
            }
            Self::Calico => match name {
                TUNL0 => link.admin_up,
                _ => {
                    matches!(name, "vxlan.calico" | "vxlan-v6.calico" | "wireguard.cali")
                        || name.starts_with("cali") && link.kind == LinkKind::Veth
                }
            },
            Self::Cilium => {
                name.starts_with("cilium_")
                    || name.starts_with("lxc") && link.kind == LinkKind::Veth
            }
            Self::KubeRouter => {
                matches!(name, "kube-bridge" | "kube-dummy-if")
                    || super::Owner::of_device(name) == super::Owner::KubeRouter
            }
            Self::Weave => {
                matches!(name, "weave" | "vxlan-6784")
                    || name.starts_with("vethwe-") && link.kind == LinkKind::Veth
            }
        }
    }

    /// The number that it marks its routes with (`RTPROT_*`), where nobody else
    /// uses it.
    #[must_use]
    pub const fn route_protocol(self) -> Option<u8> {
        match self {
            Self::Calico => Some(protocol::FELIX),
            Self::KubeRouter => Some(protocol::KUBE_ROUTER),
            Self::Flannel | Self::Cilium | Self::Weave => None,
        }
    }
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl CniDirectory {
    /// Whether this path is of a file in this folder.
    fn holds(&self, path: &str) -> bool {
        let name = path.strip_prefix(self.path.as_str()).and_then(|rest| rest.strip_prefix('/'));
        name.is_some_and(|name| !name.contains('/'))
    }
}

impl CniConfiguration {
    /// Whether one of its plugins is this one's, also one that only adds to
    /// another's network.
    #[must_use]
    pub fn names(&self, plugin: Plugin) -> bool {
        let has = |wanted: &str| self.types.iter().any(|kind| kind == wanted);
        match plugin {
            Plugin::Flannel => has("flannel"),
            Plugin::Calico => has("calico"),
            Plugin::Cilium => has("cilium-cni"),
            Plugin::KubeRouter => self.bridge.as_deref() == Some("kube-bridge"),
            Plugin::Weave => has("weave-net"),
        }
    }

    /// Whether this plugin wires pods by itself. Calico with addresses that are
    /// not its own adds policies to another's network, as in Canal.
    #[must_use]
    pub fn is_network_of(&self, plugin: Plugin) -> bool {
        self.names(plugin)
            && (plugin != Plugin::Calico || self.ipam.as_deref() == Some("calico-ipam"))
    }

    /// The plugin that wires pods, if it is a known one.
    #[must_use]
    pub fn plugin(&self) -> Option<Plugin> {
        Plugin::ALL.into_iter().find(|&plugin| self.is_network_of(plugin))
    }
}

impl Cni {
    /// Whether a file or folder could not be read.
    #[must_use]
    pub fn is_unread(&self, path: &str) -> bool {
        self.unread.iter().any(|unread| unread.path == path)
    }

    /// The folder that the container runtime reads.
    ///
    /// # Errors
    /// [`Untold`] where that folder, or the file that names it, cannot be read.
    pub fn in_use(&self) -> Result<Option<&CniDirectory>, Untold> {
        let path = match &self.k3s {
            Some(K3sNetwork::Own(path)) if self.may_run_k3s() => path.trim_end_matches('/'),
            None if self.is_unread(K3S_CONTAINERD) && self.may_run_k3s() => return Err(Untold),
            _ => USUAL_DIRECTORY,
        };
        let found = self.directories.iter().find(|directory| directory.path == path);
        if found.is_none() && self.is_unread(path) { Err(Untold) } else { Ok(found) }
    }

    /// The file whose network pods get: the first in order of names. containerd
    /// goes no further where that one is no configuration (loadFromConfDir, go-cni).
    ///
    /// # Errors
    /// [`Untold`] where that one, or its folder, cannot be read.
    pub fn winner(&self) -> Result<Option<&CniFile>, Untold> {
        let Some(directory) = self.in_use()? else { return Ok(None) };
        let first = directory.files.first();
        let comes_before = |path: &str| first.is_none_or(|first| path < first.path.as_str());
        let is_hidden = self.unread_of(directory).any(comes_before);
        if is_hidden { Err(Untold) } else { Ok(first) }
    }

    /// Paths of a folder's files that could not be read.
    pub fn unread_of<'a>(&'a self, directory: &'a CniDirectory) -> impl Iterator<Item = &'a str> {
        let paths = self.unread.iter().map(|unread| unread.path.as_str());
        paths.filter(|path| directory.holds(path))
    }

    /// What K3s wrote says nothing where it runs no more.
    fn may_run_k3s(&self) -> bool {
        let is_k3s = |agent: &CniAgent| agent.kind == AgentKind::K3s;
        self.running.as_ref().is_none_or(|running| running.iter().any(is_k3s))
    }

    /// The configuration that pods get; none where there is none, or it is none.
    ///
    /// # Errors
    /// [`Untold`] where it cannot be read.
    pub fn in_force(&self) -> Result<Option<&CniConfiguration>, Untold> {
        Ok(self.winner()?.and_then(|file| file.content.as_ref().ok()))
    }

    /// The running agent of a plugin; `Err` where nobody can tell.
    ///
    /// # Errors
    /// [`Untold`] where processes are not seen, or K3s runs and does not say
    /// whether it runs flannel.
    pub fn agent_of(&self, plugin: Plugin) -> Result<Option<&CniAgent>, Untold> {
        let running = self.running.as_ref().ok_or(Untold)?;
        if let Some(agent) = running.iter().find(|agent| agent.kind == AgentKind::Of(plugin)) {
            return Ok(Some(agent));
        }
        let k3s = running.iter().find(|agent| agent.kind == AgentKind::K3s);
        match (plugin, k3s, &self.k3s) {
            (Plugin::Flannel, Some(k3s), Some(K3sNetwork::Own(_))) => Ok(Some(k3s)),
            (Plugin::Flannel, Some(_), None) => Err(Untold),
            _ => Ok(None),
        }
    }
}

/// The kernel makes it with its module (net/ipv4/ipip.c): Calico's tunnel, and
/// others'.
pub const TUNL0: &str = "tunl0";
/// Where container runtimes look unless told otherwise (libcni).
pub const USUAL_DIRECTORY: &str = "/etc/cni/net.d";
/// What K3s tells its containerd (pkg/agent/templates).
pub const K3S_CONTAINERD: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
/// Flannel's note (`--subnet-file`).
pub const FLANNEL_NOTE: &str = "/run/flannel/subnet.env";

/// Nobody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untold;

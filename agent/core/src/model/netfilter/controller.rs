//! The programs of container networks, by the chains that they keep.

use serde::{Deserialize, Serialize};

use super::Family;

/// Who programs chains of these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Controller {
    /// kube-proxy: KUBE-SERVICES and what hangs on it.
    KubeProxy,
    /// kube-router, also as K3s' network policy: KUBE-ROUTER-*, KUBE-POD-FW-*, KUBE-NWPLCY-*.
    KubeRouter,
    /// Calico's Felix: cali-*.
    Calico,
    /// flannel: FLANNEL-*.
    Flannel,
    /// Cilium: CILIUM_*, and OLD_CILIUM_* while it replaces them.
    Cilium,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::KubeProxy, Self::KubeRouter, Self::Calico, Self::Flannel, Self::Cilium];

    /// Whose chain this is, by its name.
    #[must_use]
    pub fn of_chain(name: &str) -> Option<Self> {
        let begins = |prefix: &str| name.starts_with(prefix);
        Some(if begins("cali-") {
            Self::Calico
        } else if begins("FLANNEL-") {
            Self::Flannel
        } else if begins("CILIUM_") || begins("OLD_CILIUM_") {
            Self::Cilium
        } else if ["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"].into_iter().any(begins) {
            Self::KubeRouter
        } else if begins("KUBE-") {
            Self::KubeProxy
        } else {
            return None;
        })
    }

    /// Whether a chain of this name is there, with rules in it, whenever its
    /// controller runs: services and pods come and go, these stay.
    #[must_use]
    pub fn is_anchor(name: &str) -> bool {
        // Cilium renames its chains, makes new ones, and then removes the old
        // (InstallRules, cilium pkg/datapath/iptables).
        let name = name.strip_prefix("OLD_").filter(|it| it.starts_with("CILIUM_")).unwrap_or(name);
        matches!(
            name,
            "KUBE-SERVICES"
                | "KUBE-FORWARD"
                | "KUBE-POSTROUTING"
                | "KUBE-ROUTER-INPUT"
                | "KUBE-ROUTER-FORWARD"
                | "KUBE-ROUTER-OUTPUT"
                | "cali-INPUT"
                | "cali-FORWARD"
                | "cali-OUTPUT"
                | "cali-PREROUTING"
                | "cali-POSTROUTING"
                | "FLANNEL-FWD"
                | "FLANNEL-POSTRTG"
                | "CILIUM_INPUT"
                | "CILIUM_FORWARD"
                | "CILIUM_OUTPUT"
                | "CILIUM_POST_nat"
        )
    }

    /// Whose own table this is: that of kube-proxy's nftables mode (`kubeProxyTable`,
    /// kubernetes pkg/proxy/nftables), of Felix's nftables dataplane
    /// (felix/dataplane/linux) and of flannel's (`ipv4Table`, flannel
    /// pkg/trafficmngr/nftables), which take the place of their iptables chains.
    #[must_use]
    pub fn of_table(family: Family, name: &str) -> Option<Self> {
        match (family, name) {
            (Family::Ip | Family::Ip6, "kube-proxy") => Some(Self::KubeProxy),
            (Family::Ip | Family::Ip6, "calico") => Some(Self::Calico),
            (Family::Ip, "flannel-ipv4") | (Family::Ip6, "flannel-ipv6") => Some(Self::Flannel),
            _ => None,
        }
    }

    /// Its name as people say it.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::KubeProxy => "kube-proxy",
            Self::KubeRouter => "kube-router",
            Self::Calico => "calico",
            Self::Flannel => "flannel",
            Self::Cilium => "cilium",
        }
    }
}

/// What one controller keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programmed {
    /// Who.
    pub by: Controller,
    /// Its chains.
    pub chains: u32,
    /// Rules in them.
    pub rules: u32,
    /// Rules in those that are there whenever it runs ([`Controller::is_anchor`]).
    pub anchored: u32,
    /// Rules in them that drop or reject.
    #[serde(default)]
    pub denials: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_known_by_their_names() {
        assert_eq!(Controller::of_chain("KUBE-ROUTER-INPUT"), Some(Controller::KubeRouter));
        assert_eq!(Controller::of_chain("KUBE-SVC-ABC"), Some(Controller::KubeProxy));
        assert_eq!(Controller::of_chain("OLD_CILIUM_INPUT"), Some(Controller::Cilium));
        assert_eq!(Controller::of_chain("DOCKER-USER"), None);
        assert!(Controller::is_anchor("OLD_CILIUM_INPUT"));
        assert!(!Controller::is_anchor("OLD_cali-INPUT"));
    }
}

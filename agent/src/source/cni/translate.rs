//! Text of CNI's files in, model out.

use std::net::IpAddr;

use ipnet::IpNet;
use overlaywatch_core::model::{CniConfiguration, FlannelNote, K3sNetwork};
use serde_json::Value;

/// Plugins of one list, and networks of one plugin, that are read.
const MOST: usize = 64;
/// Names longer than this are cut.
const NAME_CHARACTERS: usize = 128;

/// Whether a runtime reads a file of this name (`ConfFiles`, libcni): those
/// with another ending, as of editors and of plugins that are switched off, it
/// leaves alone.
#[must_use]
pub fn is_configuration(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    matches!(ending, Some("conf" | "conflist" | "json"))
}

/// A network configuration: a list of plugins where the file's name ends in
/// `.conflist`, else a single one.
///
/// # Errors
/// Why a runtime cannot use it, for people.
pub fn configuration(path: &str, text: &str) -> Result<CniConfiguration, String> {
    let whole: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let plugins: Vec<&Value> = if path.ends_with(".conflist") {
        let list = whole.get("plugins").and_then(Value::as_array);
        list.ok_or("it has no list `plugins`")?.iter().take(MOST).collect()
    } else {
        vec![&whole]
    };
    let types: Vec<String> = plugins.iter().filter_map(|it| word(it, "type")).collect();
    if types.is_empty() {
        return Err("it names no plugin: `type` is missing".to_owned());
    }
    // Flannel's plugin hands what it delegates to another plugin.
    let parts =
        || plugins.iter().copied().chain(plugins.iter().filter_map(|it| it.get("delegate")));
    let ipam = parts().find_map(|it| it.get("ipam").filter(|ipam| ipam.is_object()));
    Ok(CniConfiguration {
        name: word(&whole, "name").unwrap_or_default(),
        version: word(&whole, "cniVersion"),
        types,
        ipam: ipam.and_then(|ipam| word(ipam, "type")),
        bridge: parts().find_map(|it| word(it, "bridge")),
        networks: ipam.map(networks).unwrap_or_default(),
        mtu: parts().find_map(|it| u32::try_from(it.get("mtu")?.as_u64()?).ok()),
    })
}

fn word(of: &Value, key: &str) -> Option<String> {
    Some(of.get(key)?.as_str()?.chars().take(NAME_CHARACTERS).collect())
}

/// Networks that addresses are taken from: `subnet` and `ranges` of host-local,
/// `ipv4_pools` and `ipv6_pools` of Calico.
fn networks(ipam: &Value) -> Vec<IpNet> {
    let list = |value: Option<&Value>| -> Vec<Value> {
        value
            .and_then(Value::as_array)
            .map_or_else(Vec::new, |all| all.iter().take(MOST).cloned().collect())
    };
    let mut texts = vec![ipam.get("subnet").cloned().unwrap_or_default()];
    for range in list(ipam.get("ranges")) {
        texts.extend(list(Some(&range)).iter().filter_map(|part| part.get("subnet").cloned()));
    }
    for pools in ["ipv4_pools", "ipv6_pools"] {
        texts.extend(list(ipam.get(pools)));
    }
    let parsed = texts.iter().filter_map(|text| text.as_str()?.parse::<IpNet>().ok());
    let mut networks: Vec<IpNet> = parsed.map(|net| net.trunc()).take(MOST).collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// Flannel's note: lines `NAME=VALUE` (WriteSubnetFile, flannel).
#[must_use]
pub fn flannel_note(text: &str) -> FlannelNote {
    let value = |name: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))
    };
    // Since 0.21 there may be several networks; the first is the oldest.
    let network = |name: &str| value(name)?.split(',').next()?.trim().parse::<IpNet>().ok();
    FlannelNote {
        network: network("FLANNEL_NETWORK").map(|net| net.trunc()),
        subnet: network("FLANNEL_SUBNET").filter(|net| matches!(net.addr(), IpAddr::V4(_))),
        mtu: value("FLANNEL_MTU").and_then(|mtu| mtu.trim().parse().ok()),
    }
}

/// Whether K3s wires pods itself: only then it names a folder of network
/// configurations to its containerd (`NoFlannel`, pkg/agent/templates).
#[must_use]
pub fn k3s_network(text: &str) -> K3sNetwork {
    let folder = text.lines().find_map(|line| {
        let value = line.trim().strip_prefix("conf_dir")?.trim_start().strip_prefix('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        (value.starts_with('/') && value.len() <= 4_096).then(|| value.to_owned())
    });
    match folder {
        // Others' configurations are where every runtime looks for them.
        Some(folder)
            if folder.trim_end_matches('/') != overlaywatch_core::model::USUAL_DIRECTORY =>
        {
            K3sNetwork::Own(folder)
        }
        _ => K3sNetwork::Others,
    }
}

#[cfg(test)]
mod tests {
    use overlaywatch_core::model::Plugin;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_a_runtime_reads_is_a_configuration() {
        assert!(["10-a.conf", "10-a.conflist", "x.json"].into_iter().all(is_configuration));
        let others = [
            "10-a.conflist.bak",
            "README",
            "a.conflist~",
            ".conf.swp",
            "conf",
            "calico-kubeconfig",
        ];
        assert!(!others.into_iter().any(is_configuration));
    }

    #[test]
    fn a_list_tells_plugins_addresses_and_mtu() {
        let text = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
            {"type": "calico", "mtu": 1440,
             "ipam": {"type": "calico-ipam", "ipv4_pools": ["192.168.0.0/16", "10.42.7.9/24"]}},
            {"type": "portmap"}]}"#;
        let told = configuration("/etc/cni/net.d/10-calico.conflist", text).unwrap();
        assert_eq!(told.types, ["calico", "portmap"]);
        assert_eq!((told.plugin(), told.mtu), (Some(Plugin::Calico), Some(1440)));
        assert_eq!(told.networks, [net("10.42.7.0/24"), net("192.168.0.0/16")]);
    }

    #[test]
    fn ranges_of_host_local_are_networks() {
        let text = r#"{"name": "cbr0", "type": "bridge", "bridge": "kube-bridge",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.1.0/24"}]]}}"#;
        let told = configuration("/etc/cni/net.d/10-kuberouter.conf", text).unwrap();
        assert_eq!(told.networks, [net("10.42.1.0/24")]);
        assert_eq!(told.plugin(), Some(Plugin::KubeRouter));
    }

    #[test]
    fn policies_on_anothers_network_are_no_network() {
        let text = r#"{"name": "n", "plugins": [
            {"type": "calico", "ipam": {"type": "host-local", "subnet": "usePodCidr"}}]}"#;
        let told = configuration("10-canal.conflist", text).unwrap();
        assert!(told.names(Plugin::Calico) && told.plugin().is_none());
    }

    #[test]
    fn what_a_runtime_refuses_is_refused_with_its_reason() {
        let refused = |path: &str, text: &str| configuration(path, text).unwrap_err();
        assert!(refused("a.conflist", "{\"plugins\": [").contains("EOF"));
        assert!(refused("a.conflist", "{\"type\": \"bridge\"}").contains("plugins"));
        // A list in a file for a single plugin.
        assert!(refused("a.conf", "{\"plugins\": [{\"type\": \"bridge\"}]}").contains("type"));
        assert!(refused("a.conflist", "{\"plugins\": []}").contains("names no plugin"));
    }

    #[test]
    fn flannels_note_is_read_and_a_foreign_one_is_empty() {
        let text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\n\
                    FLANNEL_IPMASQ=true\n";
        let note = flannel_note(text);
        assert_eq!(note.network, Some(net("10.42.0.0/16")));
        assert_eq!((note.subnet, note.mtu), (Some(net("10.42.1.1/24")), Some(1450)));
        assert_eq!(flannel_note("FLANNEL_NETWORKS=1\n"), FlannelNote::default());
    }

    #[test]
    fn k3s_names_a_folder_only_when_it_wires_pods_itself() {
        let own = "[plugins.cri.cni]\n  bin_dir = \"/bin\"\n  conf_dir = \"/var/lib/x/net.d\"\n";
        assert_eq!(k3s_network(own), K3sNetwork::Own("/var/lib/x/net.d".to_owned()));
        assert_eq!(k3s_network("[plugins.cri.containerd]\n"), K3sNetwork::Others);
        assert_eq!(k3s_network("conf_dir = \"/etc/cni/net.d\"\n"), K3sNetwork::Others);
    }
}

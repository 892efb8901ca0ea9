//! The host under the network: kernel, switches and counters from /proc.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What /proc says of this host, read once a tick.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel_release: String,
    /// Identifies this boot (/proc/sys/kernel/random/boot_id).
    pub boot_id: String,
    /// net.ipv4.ip_forward.
    pub ipv4_forwarding: Option<bool>,
    /// net.ipv6.conf.all.forwarding; none without IPv6.
    pub ipv6_forwarding: Option<bool>,
    /// net.ipv4.conf.all.rp_filter: 0 off, 1 strict, 2 loose.
    pub rp_filter_all: Option<u8>,
    /// Settings by device name (/proc/sys/net/ipv4/conf/NAME).
    pub devices: BTreeMap<String, DeviceSettings>,
    /// Counters of the IP stack (/proc/net/snmp, /proc/net/netstat).
    pub counters: IpCounters,
    /// Packets dropped because a CPU's backlog was full (/proc/net/softnet_stat, column 2).
    pub softnet_dropped: u64,
    /// Times a CPU ran out of its receive budget (column 3).
    pub softnet_squeezed: u64,
    /// Loaded modules among those that overlays need (/proc/modules); none where the file is absent.
    pub modules: Option<Vec<String>>,
    /// The machine's tables of neighbours (/proc/net/stat/arp_cache, ndisc_cache; from
    /// within another network namespace than the first, RTM_GETNEIGHTBL).
    #[serde(default)]
    pub neighbour_tables: Vec<NeighbourTable>,
}

/// A table of neighbours, which all network namespaces share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourTable {
    /// Of IPv6; else of IPv4.
    pub v6: bool,
    /// Entries in it.
    pub entries: u32,
    /// Times that one more was refused since boot (`table_fulls`, Linux 4.3).
    pub refused: u64,
    /// The most that there may be (`gc_thresh3`, Documentation/networking/ip-sysctl);
    /// permanent entries do not count.
    pub limit: Option<u32>,
}

/// IPv4 switches of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSettings {
    /// Forwards packets that come in here.
    pub forwarding: Option<bool>,
    /// Reverse-path filter: 0 off, 1 strict, 2 loose; the kernel uses the
    /// larger of this and the one of `all` (Documentation/networking/ip-sysctl).
    pub rp_filter: Option<u8>,
}

/// Counters of the IP stack since boot, by the kernel's own names
/// (`Ip:InNoRoutes` is `in_no_routes` of `IpExt`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpCounters {
    /// IpExt:InNoRoutes.
    pub in_no_routes: u64,
    /// Ip:OutNoRoutes.
    pub out_no_routes: u64,
    /// Ip:InAddrErrors.
    pub in_addr_errors: u64,
    /// Ip:InUnknownProtos.
    pub in_unknown_protos: u64,
    /// Ip:ReasmFails.
    pub reasm_fails: u64,
    /// Ip:FragFails.
    pub frag_fails: u64,
    /// Ip:FragCreates.
    pub frag_creates: u64,
    /// Udp:NoPorts.
    pub udp_no_ports: u64,
    /// Udp:InErrors.
    pub udp_in_errors: u64,
    /// Udp:RcvbufErrors.
    pub udp_rcvbuf_errors: u64,
    /// Udp:InCsumErrors.
    pub udp_in_csum_errors: u64,
    /// Icmp:InDestUnreachs.
    pub icmp_in_dest_unreachs: u64,
    /// TcpExt:IPReversePathFilter.
    pub ip_reverse_path_filter: u64,
}

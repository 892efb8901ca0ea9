//! Text in, model out; and the kernel's answers about what it shows nobody as text.

use netlink_packet_core::{DecodeError, NlasIterator};
use overlaywatch_core::model::{IpCounters, NeighbourTable};

/// Modules that an overlay's data path may need, by the names that
/// /proc/modules has for them.
const OF_INTEREST: [&str; 18] = [
    "br_netfilter",
    "bridge",
    "geneve",
    "ip_set",
    "ip_tables",
    "ip_tunnel",
    "ip_vs",
    "ip6_udp_tunnel",
    "ipip",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "overlay",
    "tunnel4",
    "udp_tunnel",
    "veth",
    "vxlan",
    "wireguard",
];

/// The counters of /proc/net/snmp or /proc/net/netstat, whichever the text is
/// of; those that the kernel does not have are zero.
///
/// Both are pairs of lines with one prefix, first the names, then the values
/// (snmp_seq_show, net/ipv4/proc.c).
#[must_use]
pub fn counters(text: &str) -> IpCounters {
    let mut counters = IpCounters::default();
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let (Some((group, names)), Some((same, values))) =
            (names.split_once(':'), values.split_once(':'))
        else {
            continue;
        };
        if group != same {
            continue;
        }
        for (name, value) in names.split_ascii_whitespace().zip(values.split_ascii_whitespace()) {
            if let (Some(counter), Ok(value)) = (counter(&mut counters, group, name), value.parse())
            {
                *counter = value;
            }
        }
    }
    counters
}

fn counter<'a>(counters: &'a mut IpCounters, group: &str, name: &str) -> Option<&'a mut u64> {
    Some(match (group, name) {
        ("IpExt", "InNoRoutes") => &mut counters.in_no_routes,
        ("Ip", "OutNoRoutes") => &mut counters.out_no_routes,
        ("Ip", "InAddrErrors") => &mut counters.in_addr_errors,
        ("Ip", "InUnknownProtos") => &mut counters.in_unknown_protos,
        ("Ip", "ReasmFails") => &mut counters.reasm_fails,
        ("Ip", "FragFails") => &mut counters.frag_fails,
        ("Ip", "FragCreates") => &mut counters.frag_creates,
        ("Udp", "NoPorts") => &mut counters.udp_no_ports,
        ("Udp", "InErrors") => &mut counters.udp_in_errors,
        ("Udp", "RcvbufErrors") => &mut counters.udp_rcvbuf_errors,
        ("Udp", "InCsumErrors") => &mut counters.udp_in_csum_errors,
        ("Icmp", "InDestUnreachs") => &mut counters.icmp_in_dest_unreachs,
        ("TcpExt", "IPReversePathFilter") => &mut counters.ip_reverse_path_filter,
        _ => return None,
    })
}

/// Packets dropped and budgets exhausted, summed over the CPUs: the second and
/// third hexadecimal column of /proc/net/softnet_stat (softnet_seq_show,
/// net/core/net-procfs.c).
#[must_use]
pub fn softnet(text: &str) -> (u64, u64) {
    let column = |line: &str, position: usize| {
        let value = line.split_ascii_whitespace().nth(position)?;
        u64::from_str_radix(value, 16).ok()
    };
    text.lines().fold((0, 0), |(dropped, squeezed): (u64, u64), line| {
        (
            dropped.saturating_add(column(line, 1).unwrap_or(0)),
            squeezed.saturating_add(column(line, 2).unwrap_or(0)),
        )
    })
}

/// Entries of a table of neighbours, and how often it refused one more, of
/// /proc/net/stat/arp_cache or ndisc_cache; none where the text is neither.
///
/// A line of names, then one for each CPU in hexadecimal: the entries are the
/// whole table's on each, the rest is summed (neigh_stat_seq_show,
/// net/core/neighbour.c).
#[must_use]
pub fn neighbours(text: &str) -> Option<(u32, u64)> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.split_ascii_whitespace().collect();
    let at = |name: &str| names.iter().position(|known| *known == name);
    let (entries, refused) = (at("entries")?, at("table_fulls"));
    let mut told = None;
    for line in lines {
        let column = |position: usize| {
            let value = line.split_ascii_whitespace().nth(position)?;
            u64::from_str_radix(value, 16).ok()
        };
        let (_, sum) = told.unwrap_or((0, 0_u64));
        let refused = refused.and_then(column).unwrap_or(0);
        let entries = u32::try_from(column(entries)?).unwrap_or(u32::MAX);
        told = Some((entries, sum.saturating_add(refused)));
    }
    told
}

/// `NDTA_NAME`, `NDTA_THRESH3`, `NDTA_CONFIG` and `NDTA_STATS` (linux/neighbour.h).
const NAME: u16 = 1;
const THRESHOLD: u16 = 4;
const CONFIG: u16 = 5;
const STATISTICS: u16 = 7;
/// Bytes of `struct ndtmsg`.
const TABLE_HEADER_BYTES: usize = 4;
/// Where `struct ndt_config` has its entries, and `struct ndt_stats` its refusals.
const ENTRIES_AT: usize = 4;
const REFUSALS_AT: usize = 80;

/// A table of neighbours as RTM_NEWNEIGHTBL tells of it, in any network namespace
/// (neightbl_fill_info, net/core/neighbour.c); none where the message is of one
/// device's parameters, or of a kernel before 4.3, which does not count refusals.
///
/// # Errors
/// When its attributes make no sense.
pub fn neighbour_table(payload: &[u8]) -> Result<Option<NeighbourTable>, DecodeError> {
    let (mut v6, mut entries, mut refused, mut limit) = (None, None, None, None);
    for attribute in NlasIterator::new(payload.get(TABLE_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        let value = attribute.value();
        let word = |at: usize| {
            let bytes = value.get(at..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        match attribute.kind() {
            NAME => {
                v6 = match value {
                    b"arp_cache\0" => Some(false),
                    b"ndisc_cache\0" => Some(true),
                    _ => None,
                }
            }
            THRESHOLD => limit = word(0),
            CONFIG => entries = word(ENTRIES_AT),
            STATISTICS => {
                let bytes = value.get(REFUSALS_AT..).and_then(<[u8]>::first_chunk);
                refused = bytes.map(|bytes| u64::from_ne_bytes(*bytes));
            }
            _ => {}
        }
    }
    let (Some(v6), Some(entries), Some(refused)) = (v6, entries, refused) else { return Ok(None) };
    Ok(Some(NeighbourTable { v6, entries, refused, limit }))
}

/// The loaded modules that matter here, in order.
#[must_use]
pub fn modules(text: &str) -> Vec<String> {
    let mut modules: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .filter(|name| OF_INTEREST.contains(name))
        .map(str::to_owned)
        .collect();
    modules.sort_unstable();
    modules
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SNMP: &str = "\
Ip: Forwarding DefaultTTL InAddrErrors InUnknownProtos OutNoRoutes ReasmFails FragFails FragCreates
Ip: 1 64 3 4 5 6 7 8
Icmp: InMsgs InDestUnreachs
Icmp: 9 10
Tcp: RtoAlgorithm MaxConn
Tcp: 1 -1
Udp: InDatagrams NoPorts InErrors RcvbufErrors InCsumErrors
Udp: 20 11 12 13 14
";
    const NETSTAT: &str = "\
TcpExt: SyncookiesSent IPReversePathFilter
TcpExt: 0 15
IpExt: InNoRoutes InTruncatedPkts
IpExt: 16 0
";

    #[test]
    fn counters_are_found_by_name() {
        let expected = IpCounters {
            in_addr_errors: 3,
            in_unknown_protos: 4,
            out_no_routes: 5,
            reasm_fails: 6,
            frag_fails: 7,
            frag_creates: 8,
            icmp_in_dest_unreachs: 10,
            udp_no_ports: 11,
            udp_in_errors: 12,
            udp_rcvbuf_errors: 13,
            udp_in_csum_errors: 14,
            ..IpCounters::default()
        };
        assert_eq!(counters(SNMP), expected);
        let expected =
            IpCounters { ip_reverse_path_filter: 15, in_no_routes: 16, ..IpCounters::default() };
        assert_eq!(counters(NETSTAT), expected);
    }

    #[test]
    fn softnet_sums_hexadecimal_columns_over_cpus() {
        let text = "0000a1b2 0000000a 00000002 00000000\n00000001 00000006 0000001f 00000000\n";
        assert_eq!(softnet(text), (16, 33));
        assert_eq!(softnet(""), (0, 0));
    }

    #[test]
    fn neighbours_are_counted_once_and_refusals_summed() {
        let text = "entries  allocs   destroys table_fulls\n\
                    00000400 00000001 00000002 0000000a\n00000400 00000001 00000002 00000006\n";
        assert_eq!(neighbours(text), Some((1024, 16)));
        // Kernels before 4.3 do not count them.
        assert_eq!(neighbours("entries allocs\n00000002 00000001\n"), Some((2, 0)));
        assert_eq!(neighbours(""), None);
        assert_eq!(neighbours("a b\n1 2\n"), None);
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_table_of_neighbours_is_told_over_netlink_too() {
        let config = [40_u16.to_ne_bytes(), 408_u16.to_ne_bytes()].concat();
        let config = [config, 1024_u32.to_ne_bytes().to_vec(), vec![0; 24]].concat();
        let mut statistics = vec![0; 80];
        statistics.extend(16_u64.to_ne_bytes());
        let whole = [
            vec![2, 0, 0, 0],
            attribute(1, b"arp_cache\0"),
            attribute(4, &1024_u32.to_ne_bytes()),
            attribute(5, &config),
            attribute(7, &statistics),
        ];
        let table = NeighbourTable { v6: false, entries: 1024, refused: 16, limit: Some(1024) };
        assert_eq!(neighbour_table(&whole.concat()).unwrap(), Some(table));
        // One device's parameters, a kernel that counts no refusals, another table.
        assert_eq!(neighbour_table(&whole[..2].concat()).unwrap(), None);
        let old = [&whole[..4], &[attribute(7, &statistics[..80])]].concat().concat();
        assert_eq!(neighbour_table(&old).unwrap(), None);
        let other = [whole[0].clone(), attribute(1, b"dn_neigh_cache\0"), whole[3..].concat()];
        assert_eq!(neighbour_table(&other.concat()).unwrap(), None);
        assert_eq!(neighbour_table(&[]).unwrap(), None);
    }

    #[test]
    fn only_modules_that_overlays_need_are_kept() {
        let text = "xfs 100 1 - Live 0x0\nvxlan 90 0 - Live 0x0\nipip 16 0 - Live 0x0\n";
        assert_eq!(modules(text), ["ipip", "vxlan"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = neighbour_table(&bytes);
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}(\n[A-Za-z]{0,5}:( [A-Za-z0-9-]{0,5}){0,5}){0,8}") {
            let _ = (counters(&text), softnet(&text), modules(&text), neighbours(&text));
        }
    }
}

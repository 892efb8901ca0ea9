//! The kernel's tables as `ip -j` and `bridge -j` print them, as the model's
//! values: written apart from the code under test.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use overlaywatch_core::model::{
    Address, FdbEntry, FdbKey, IfIndex, Link, LinkCounters, LinkKind, Mac, Neighbour,
    NeighbourState, NextHop, PolicyRule, Route, RouteKey, RouteKind, Vxlan,
};
use serde_json::Value;

/// Runs a command line in the calling thread's namespace; it must succeed.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_ascii_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .stderr(Stdio::piped())
        .output()
        .unwrap_or_else(|error| panic!("`{command}`: {error}; is iproute2 installed?"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{command}` failed: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: &str) -> Vec<Value> {
    let text = run(command);
    // Without a single entry the tools print nothing at all.
    if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn number(value: &Value, key: &str) -> Option<u32> {
    value.get(key)?.as_u64().map(|number| number.try_into().unwrap())
}

fn parsed<T: std::str::FromStr>(value: &Value, key: &str) -> Option<T> {
    text(value, key)?.parse().ok()
}

fn has(value: &Value, key: &str, flag: &str) -> bool {
    value[key].as_array().is_some_and(|flags| flags.iter().any(|f| f == flag))
}

/// The index of a device.
pub(crate) fn index_of(name: &str) -> IfIndex {
    IfIndex(nix::net::if_::if_nametoindex(name).unwrap())
}

fn device(value: &Value, key: &str) -> Option<IfIndex> {
    text(value, key).map(index_of)
}

/// Links.
pub(crate) fn links() -> BTreeMap<IfIndex, Link> {
    let all = json("ip -j -d -s link show").into_iter().map(|link| {
        let info = &link["linkinfo"]["info_data"];
        let kind = match text(&link["linkinfo"], "info_kind") {
            Some("vxlan") => LinkKind::Vxlan(Vxlan {
                vni: number(info, "id").unwrap_or(0),
                port: number(info, "port").unwrap().try_into().unwrap(),
                local: parsed(info, "local").or_else(|| parsed(info, "local6")),
                group: ["group", "group6", "remote", "remote6"]
                    .into_iter()
                    .find_map(|key| parsed(info, key)),
                underlay: device(info, "link"),
                learning: info["learning"] == true,
                collect_metadata: info["external"] == true,
            }),
            Some("bridge") => LinkKind::Bridge,
            Some("veth") => LinkKind::Veth,
            Some(other) => LinkKind::Other(other.to_owned()),
            None if link["link_type"] == "loopback" => LinkKind::Loopback,
            None => LinkKind::Plain,
        };
        let index = IfIndex(number(&link, "ifindex").unwrap());
        let link = Link {
            index,
            name: text(&link, "ifname").unwrap().to_owned(),
            kind,
            mac: parsed(&link, "address"),
            mtu: number(&link, "mtu").unwrap(),
            admin_up: has(&link, "flags", "UP"),
            carrier: has(&link, "flags", "LOWER_UP"),
            master: device(&link, "master"),
            counters: counters(&link["stats64"]),
        };
        (index, link)
    });
    all.collect()
}

fn counters(stats: &Value) -> LinkCounters {
    let of = |side: &str, key: &str| stats[side][key].as_u64().unwrap_or(0);
    LinkCounters {
        rx_packets: of("rx", "packets"),
        tx_packets: of("tx", "packets"),
        rx_bytes: of("rx", "bytes"),
        tx_bytes: of("tx", "bytes"),
        rx_errors: of("rx", "errors"),
        tx_errors: of("tx", "errors"),
        rx_dropped: of("rx", "dropped"),
        tx_dropped: of("tx", "dropped"),
        rx_missed: 0,
        tx_carrier_errors: of("tx", "carrier_errors"),
    }
}

/// Addresses, in the model's order.
pub(crate) fn addresses() -> Vec<Address> {
    let mut all = Vec::new();
    for link in json("ip -j addr show") {
        let index = IfIndex(number(&link, "ifindex").unwrap());
        for address in link["addr_info"].as_array().unwrap() {
            let length = number(address, "prefixlen").unwrap().try_into().unwrap();
            let own: IpAddr = parsed(address, "local").unwrap();
            all.push(Address { index, net: IpNet::new(own, length).unwrap() });
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Routes of all tables; of several with one key, the first.
pub(crate) fn routes() -> BTreeMap<RouteKey, Route> {
    let mut all = BTreeMap::new();
    for (family, any) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        for route in json(&format!("ip -j -N -d {family} route show table all")) {
            // Of some sources only: the model leaves those out.
            if route.get("from").is_some() {
                continue;
            }
            let route = one_route(&route, any);
            all.entry(route.key).or_insert(route);
        }
    }
    all
}

fn one_route(route: &Value, any: &str) -> Route {
    let destination = match text(route, "dst").unwrap() {
        "default" => any.parse().unwrap(),
        host if !host.contains('/') => IpNet::from(host.parse::<IpAddr>().unwrap()),
        net => net.parse().unwrap(),
    };
    let several = route["nexthops"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut hops: Vec<NextHop> = several.iter().map(next_hop).collect();
    if hops.is_empty() {
        hops.push(next_hop(route));
    }
    Route {
        key: RouteKey {
            table: parsed(route, "table").unwrap(),
            destination,
            metric: number(route, "metric").unwrap_or(0),
            tos: 0,
        },
        kind: match text(route, "type").unwrap() {
            "1" => RouteKind::Unicast,
            "2" => RouteKind::Local,
            "6" => RouteKind::Blackhole,
            "7" => RouteKind::Unreachable,
            "8" => RouteKind::Prohibit,
            "9" => RouteKind::Throw,
            other => RouteKind::Other(other.parse().unwrap()),
        },
        protocol: parsed(route, "protocol").unwrap(),
        source: parsed(route, "prefsrc"),
        next_hop: hops.remove(0),
        more_next_hops: hops,
    }
}

fn next_hop(value: &Value) -> NextHop {
    NextHop {
        gateway: parsed(value, "gateway").or_else(|| parsed(&value["via"], "host")),
        device: device(value, "dev"),
        onlink: has(value, "flags", "onlink"),
    }
}

/// Policy rules, in the model's order.
pub(crate) fn rules() -> Vec<PolicyRule> {
    let mut all = Vec::new();
    for (family, v6) in [("-4", false), ("-6", true)] {
        for rule in json(&format!("ip -j -N {family} rule show")) {
            let selective =
                ["iif", "oif", "ipproto", "not"].iter().any(|key| rule.get(key).is_some());
            let net = |address: &str, length: &str| {
                let address: IpAddr = parsed(&rule, address)?;
                let full = if v6 { 128 } else { 32 };
                let length = number(&rule, length).unwrap_or(full).try_into().unwrap();
                Some(IpNet::new(address, length).unwrap())
            };
            let hexadecimal = |key: &str| {
                let digits = text(&rule, key)?.strip_prefix("0x").unwrap();
                Some(u32::from_str_radix(digits, 16).unwrap())
            };
            all.push(PolicyRule {
                priority: number(&rule, "priority").unwrap(),
                table: parsed(&rule, "table"),
                from: net("src", "srclen"),
                to: net("dst", "dstlen"),
                mark: hexadecimal("fwmark")
                    .map(|value| (value, hexadecimal("fwmask").unwrap_or(u32::MAX))),
                v6,
                selective,
            });
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Neighbours of both families, without the multicast addresses.
pub(crate) fn neighbours() -> BTreeMap<(IfIndex, IpAddr), Neighbour> {
    let all = json("ip -j neigh show nud all").into_iter().filter_map(|neighbour| {
        let state = |name| has(&neighbour, "state", name);
        let (index, address) =
            (device(&neighbour, "dev").unwrap(), parsed::<IpAddr>(&neighbour, "dst").unwrap());
        if address.is_multicast() {
            return None;
        }
        let neighbour = Neighbour {
            index,
            address,
            mac: parsed(&neighbour, "lladdr"),
            state: if state("PERMANENT") || state("NOARP") {
                NeighbourState::Permanent
            } else if state("REACHABLE") {
                NeighbourState::Reachable
            } else if state("STALE") || state("DELAY") || state("PROBE") {
                NeighbourState::Stale
            } else if state("INCOMPLETE") {
                NeighbourState::Incomplete
            } else if state("FAILED") {
                NeighbourState::Failed
            } else {
                NeighbourState::None
            },
        };
        Some(((index, address), neighbour))
    });
    all.collect()
}

/// Forwarding entries of VXLAN devices.
pub(crate) fn fdb() -> BTreeMap<FdbKey, FdbEntry> {
    let links = links();
    let mut all = BTreeMap::new();
    for entry in json("bridge -j fdb show") {
        let index = device(&entry, "ifname").unwrap();
        let is_vxlan = matches!(links[&index].kind, LinkKind::Vxlan(_));
        if !is_vxlan || !has(&entry, "flags", "self") {
            continue;
        }
        let key = FdbKey {
            index,
            mac: parsed::<Mac>(&entry, "mac").unwrap(),
            destination: parsed(&entry, "dst"),
        };
        let permanent = text(&entry, "state") == Some("permanent");
        let port = number(&entry, "port").map(|port| port.try_into().unwrap());
        all.insert(key, FdbEntry { key, permanent, vni: number(&entry, "vni"), port });
    }
    all
}

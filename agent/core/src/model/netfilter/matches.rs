//! Which packets a rule is about, as far as it is read here.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::Encapsulation;

/// IPPROTO_UDP.
const UDP: u8 = 17;
/// IPPROTO_IPIP.
const IPIP: u8 = 4;
/// IPPROTO_ICMP.
const ICMP: u8 = 1;
/// IPPROTO_ICMPV6.
const ICMP6: u8 = 58;

/// Conditions of a rule; all of them must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Matches {
    /// Of IPv6 alone, or of IPv4 alone.
    #[serde(default)]
    pub v6: Option<bool>,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Destination ports, first and last.
    pub to_ports: Option<(u16, u16)>,
    /// Source ports, first and last.
    pub from_ports: Option<(u16, u16)>,
    /// An ICMP type, and its code.
    #[serde(default)]
    pub icmp: Option<(u8, Option<u8>)>,
    /// Source addresses.
    pub source: Option<IpNet>,
    /// Destination addresses.
    pub destination: Option<IpNet>,
    /// Device that they came in by.
    pub in_device: Option<String>,
    /// Device that they leave by.
    pub out_device: Option<String>,
    /// There are further conditions, which are not read here.
    pub more: bool,
}

/// The outer header of a tunnel's packets.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'a> {
    /// What they are.
    pub encapsulation: Encapsulation,
    /// Where they come from, where that is known.
    pub from: Option<IpAddr>,
    /// Where they go, where that is known.
    pub to: Option<IpAddr>,
    /// The device that they came in by; none for one's own.
    pub in_device: Option<&'a str>,
}

impl Matches {
    /// Both conditions together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        fn both<T: Clone + PartialEq>(
            one: &Option<T>,
            two: &Option<T>,
            more: &mut bool,
        ) -> Option<T> {
            match (one, two) {
                (Some(one), Some(two)) => {
                    *more |= one != two;
                    Some(two.clone())
                }
                (one, two) => two.clone().or_else(|| one.clone()),
            }
        }
        let mut more = self.more || other.more;
        Self {
            v6: both(&self.v6, &other.v6, &mut more),
            protocol: both(&self.protocol, &other.protocol, &mut more),
            to_ports: both(&self.to_ports, &other.to_ports, &mut more),
            from_ports: both(&self.from_ports, &other.from_ports, &mut more),
            icmp: both(&self.icmp, &other.icmp, &mut more),
            source: both(&self.source, &other.source, &mut more),
            destination: both(&self.destination, &other.destination, &mut more),
            in_device: both(&self.in_device, &other.in_device, &mut more),
            out_device: both(&self.out_device, &other.out_device, &mut more),
            more,
        }
    }

    /// Whether packets of some tunnel may meet them: not those of other protocols.
    #[must_use]
    pub fn may_be_outer(&self) -> bool {
        self.protocol.is_none_or(|protocol| protocol == UDP || protocol == IPIP)
    }

    /// Whether they mean every packet of a family of IP.
    #[must_use]
    pub fn are_none(&self) -> bool {
        *self == Self { v6: self.v6, ..Self::default() }
    }

    /// Source and destination ports.
    #[must_use]
    pub const fn ports(&self) -> [Option<(u16, u16)>; 2] {
        [self.from_ports, self.to_ports]
    }

    /// Whether they name several ports with a first and a last one.
    #[must_use]
    pub fn is_range(&self) -> bool {
        let has_two_ends = |(first, last)| first > 0 && first < last && last < u16::MAX;
        self.ports().into_iter().flatten().any(has_two_ends)
    }

    /// Whether they are about the errors that tell a sender that its packets are
    /// too big, whoever gets them: "fragmentation needed" (RFC 1191), "packet too
    /// big" (RFC 8201).
    #[must_use]
    pub fn are_too_big_errors(&self) -> bool {
        let is_meant = match (self.protocol, self.icmp) {
            (Some(ICMP), icmp) => matches!(icmp, None | Some((3, None | Some(4)))),
            (Some(ICMP6), icmp) => matches!(icmp, None | Some((2, _))),
            _ => false,
        };
        is_meant && !self.more && self.to_ports.is_none() && self.from_ports.is_none()
    }

    /// How likely it is that they mean a tunnel's packets: less is likelier.
    #[must_use]
    pub fn rank(&self) -> u8 {
        let names = self.protocol == Some(IPIP) || self.to_ports.is_some();
        u8::from(!names) * 2 + u8::from(self.more)
    }

    /// Whether a tunnel's packets may meet them; what is not known of a packet
    /// keeps nothing away from it.
    #[must_use]
    pub fn may_meet(&self, outer: Outer<'_>) -> bool {
        let (protocol, port) = match outer.encapsulation {
            Encapsulation::Ipip => (IPIP, None),
            Encapsulation::Vxlan(port) => (UDP, Some(port)),
        };
        let lies_in = |net: Option<IpNet>, address: Option<IpAddr>| match (net, address) {
            (Some(net), Some(address)) => net.contains(&address),
            _ => true,
        };
        let family = outer.to.or(outer.from).map(|address| address.is_ipv6());
        self.protocol.is_none_or(|own| own == protocol)
            && (family.is_none() || self.v6.is_none() || self.v6 == family)
            && match (self.to_ports, port) {
                (None, _) => true,
                (Some((first, last)), Some(port)) => (first..=last).contains(&port),
                (Some(_), None) => false,
            }
            // A VXLAN source port is made from the inner packet's hash
            // (udp_flow_src_port, include/net/udp.h): anything.
            && (self.from_ports.is_none() || port.is_some())
            && lies_in(self.source, outer.from)
            && lies_in(self.destination, outer.to)
            && match (&self.in_device, outer.in_device) {
                (Some(own), Some(device)) => own == device,
                (Some(_), None) => false,
                (None, _) => true,
            }
    }
}

impl fmt::Display for Matches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        // Addresses tell it as well, and a protocol is written as one of IPv4.
        let is_told =
            |v6: bool| self.source.or(self.destination).is_some() || !v6 && self.protocol.is_some();
        if let Some(v6) = self.v6.filter(|v6| !is_told(*v6)) {
            words.push(format!("meta nfproto ipv{}", if v6 { 6 } else { 4 }));
        }
        if let Some(device) = &self.in_device {
            words.push(format!("iifname {device}"));
        }
        if let Some(device) = &self.out_device {
            words.push(format!("oifname {device}"));
        }
        for (side, net) in [("saddr", self.source), ("daddr", self.destination)] {
            if let Some(net) = net {
                let family = if net.addr().is_ipv6() { "ip6" } else { "ip" };
                let is_host = net.prefix_len() == net.max_prefix_len();
                let net = if is_host { net.addr().to_string() } else { net.to_string() };
                words.push(format!("{family} {side} {net}"));
            }
        }
        let name = match self.protocol {
            Some(UDP) => "udp".to_owned(),
            Some(6) => "tcp".to_owned(),
            Some(IPIP) => "ipencap".to_owned(),
            Some(ICMP) => "icmp".to_owned(),
            Some(ICMP6) => "icmpv6".to_owned(),
            Some(number) => number.to_string(),
            None => "th".to_owned(),
        };
        let ports = [("sport", self.from_ports), ("dport", self.to_ports)];
        for (side, (first, last)) in ports.iter().filter_map(|(side, p)| Some((side, (*p)?))) {
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            words.push(format!("{name} {side} {range}"));
        }
        if let Some((kind, code)) = self.icmp {
            words.push(format!("{name} type {kind}"));
            words.extend(code.map(|code| format!("{name} code {code}")));
        } else if self.protocol.is_some() && ports.iter().all(|(_, ports)| ports.is_none()) {
            words.push(format!("ip protocol {name}"));
        }
        if self.more {
            words.push("further conditions".to_owned());
        }
        if words.is_empty() {
            words.push("everything".to_owned());
        }
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VXLAN: Outer<'static> =
        Outer { encapsulation: Encapsulation::Vxlan(8472), from: None, to: None, in_device: None };

    fn ports(first: u16, last: u16) -> Matches {
        Matches { protocol: Some(UDP), to_ports: Some((first, last)), ..Matches::default() }
    }

    #[test]
    fn a_tunnel_meets_its_port_and_its_protocol() {
        let ipip = Outer { encapsulation: Encapsulation::Ipip, ..VXLAN };
        assert!(ports(8472, 8472).may_meet(VXLAN) && ports(1, 9000).may_meet(VXLAN));
        assert!(!ports(4789, 4789).may_meet(VXLAN) && !ports(8472, 8472).may_meet(ipip));
        let protocol = Matches { protocol: Some(IPIP), ..Matches::default() };
        assert!(protocol.may_meet(ipip) && !protocol.may_meet(VXLAN));
        assert!(Matches::default().may_meet(ipip) && Matches::default().may_meet(VXLAN));
    }

    #[test]
    fn addresses_and_devices_keep_others_away() {
        let to = |text: &str| Outer { to: Some(text.parse().unwrap()), ..VXLAN };
        let net = Some("10.0.0.0/30".parse().unwrap());
        let matches = Matches { destination: net, ..ports(8472, 8472) };
        assert!(matches.may_meet(to("10.0.0.2")) && !matches.may_meet(to("10.0.0.9")));
        let inwards = Matches { in_device: Some("docker0".to_owned()), ..Matches::default() };
        assert!(!inwards.may_meet(VXLAN));
        assert!(inwards.may_meet(Outer { in_device: Some("docker0"), ..VXLAN }));
        assert!(!inwards.may_meet(Outer { in_device: Some("eth0"), ..VXLAN }));
    }

    #[test]
    fn what_is_of_one_family_keeps_the_other_away() {
        let to = |text: &str| Outer { to: Some(text.parse().unwrap()), ..VXLAN };
        let of = |v6| Matches { v6: Some(v6), ..Matches::default() };
        assert!(of(true).may_meet(to("fd00::2")) && !of(true).may_meet(to("10.0.0.2")));
        assert!(of(false).may_meet(to("10.0.0.2")) && !of(false).may_meet(to("fd00::2")));
        assert!(of(true).may_meet(VXLAN), "nobody knows");
        assert_eq!(of(true).to_string(), "meta nfproto ipv6");
        assert!(of(true).are_none() && !ports(1, 2).are_none());
        assert!(of(true).and(&of(false)).more);
    }

    #[test]
    fn reads_as_nft_writes_it() {
        let net = Some("10.0.0.2/32".parse().unwrap());
        let matches = Matches { destination: net, more: true, ..ports(8472, 8473) };
        assert_eq!(matches.to_string(), "ip daddr 10.0.0.2 udp dport 8472-8473 further conditions");
        assert_eq!(Matches::default().to_string(), "everything");
        let ipip = Matches { protocol: Some(4), ..Matches::default() };
        assert_eq!(ipip.to_string(), "ip protocol ipencap");
    }

    #[test]
    fn errors_of_too_big_packets_are_told_from_other_icmp() {
        let icmp = |protocol, icmp| Matches { protocol, icmp, ..Matches::default() };
        for (protocol, meant) in
            [(1, Some((3, Some(4)))), (1, Some((3, None))), (58, Some((2, None)))]
        {
            let matches = icmp(Some(protocol), meant);
            assert!(matches.are_too_big_errors(), "{matches}");
            assert!(!Matches { more: true, ..matches }.are_too_big_errors());
            assert!(icmp(Some(protocol), None).are_too_big_errors());
        }
        for (protocol, other) in
            [(Some(1), (8, None)), (Some(1), (3, Some(3))), (Some(6), (3, None))]
        {
            assert!(!icmp(protocol, Some(other)).are_too_big_errors());
        }
        assert!(!Matches::default().are_too_big_errors());
        let written = icmp(Some(1), Some((3, Some(4)))).to_string();
        assert_eq!(written, "icmp type 3 icmp code 4");
    }

    #[test]
    fn conditions_that_contradict_each_other_are_uncertain() {
        let both = ports(1, 2).and(&ports(8472, 8472));
        assert!(both.more && both.to_ports == Some((8472, 8472)));
        assert!(!ports(1, 2).and(&Matches::default()).more);
    }
}

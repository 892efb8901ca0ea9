//! A rule's expressions (`struct nft_expr`): what it matches, what it does, and
//! who can read it.

use std::borrow::Cow;
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use overlaywatch_core::model::{Family, Matches, Readers, is_of_iptables};

use super::Malformed;
use super::attribute::{Attributes, be32, be64, text, word};

/// Registers: the verdict's is 0, the data's are 1 to 4 and, in smaller parts of
/// the same, 8 to 23 (enum nft_registers).
const REGISTERS: usize = 24;

/// A rule, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: Cow<'a, str>,
    /// Its chain.
    pub chain: Cow<'a, str>,
    /// Its handle.
    pub handle: u64,
    /// Which packets it is about.
    pub matches: Matches,
    /// What it does with them.
    pub verdict: Verdict<'a>,
    /// Packets that its counter counted; none where a condition comes after the
    /// counter, which then counts others, too.
    pub packets: Option<u64>,
    /// It keeps packets out of connection tracking.
    pub untracks: bool,
    /// Who can read it, and the first expression that others cannot: in tables of
    /// iptables-nft only; none when everybody can.
    pub illegible: Option<(Readers, &'a str)>,
    /// The same for rules that say the same.
    pub digest: u64,
}

/// What becomes of a packet that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The next rule sees it, or this one's verdict is not a fixed one.
    Continue,
    /// It is accepted, or goes back to the chain before.
    Pass,
    /// It is dropped in silence.
    Drop,
    /// It is dropped and answered with an error.
    Reject,
    /// Another chain sees it.
    Jump(Cow<'a, str>),
}

/// What a register holds.
#[derive(Clone, Copy, Debug, Default)]
enum Held {
    Protocol,
    FromPort,
    ToPort,
    IcmpType,
    IcmpCode,
    /// An address, and how many bits of it count.
    Source(u8),
    Destination(u8),
    InDevice,
    OutDevice,
    /// Which of the two IP families, which an address tells as well.
    IpFamily,
    /// Anything else, a comparison of which is a condition that is not read.
    #[default]
    Other,
}

impl Rule<'_> {
    /// Rules that do the same with another comment are not the same: Calico has
    /// "return if accepted" after each rule of a policy, each with a comment of its
    /// own, and nobody appended those by mistake.
    pub(super) fn tell_apart(&mut self, comment: &[u8]) {
        if !comment.is_empty() {
            let mut hasher = Fnv(self.digest);
            hasher.write(comment);
            self.digest = hasher.finish();
        }
    }
}

pub(super) fn read<'a>(
    family: Family,
    table: Cow<'a, str>,
    chain: Cow<'a, str>,
    handle: u64,
    expressions: &'a [u8],
) -> Result<Rule<'a>, Malformed> {
    let mut rule = Rule {
        family,
        table,
        chain,
        handle,
        matches: Matches::default(),
        verdict: Verdict::Continue,
        packets: None,
        untracks: false,
        illegible: None,
        digest: 0,
    };
    let judges = is_of_iptables(family, &rule.table);
    let mut held = [Held::Other; REGISTERS];
    let mut hasher = Fnv::default();
    for element in Attributes::of(expressions) {
        let (mut name, mut data) = ("", &[][..]);
        for attribute in Attributes::of(element?.1) {
            let (kind, value) = attribute?;
            match kind {
                1 => name = word(value)?,
                2 => data = value,
                _ => {}
            }
        }
        hasher.write(name.as_bytes());
        if name != "counter" {
            hasher.write(data);
        }
        if judges
            && let Some(readers) = readers(name, data)?
            && rule.illegible.is_none_or(|(worst, _)| worst < readers)
        {
            rule.illegible = Some((readers, name));
        }
        let before = rule.matches.ports();
        take(&mut rule, &mut held, name, data)?;
        // nft writes a range of ports as two comparisons; no iptables does.
        let is_range = name == "cmp" && rule.matches.ports() != before && rule.matches.is_range();
        if judges && is_range && rule.illegible.is_none() {
            rule.illegible = Some((Readers::MisprintedBefore188, name));
        }
    }
    rule.digest = hasher.finish();
    Ok(rule)
}

fn take<'a>(
    rule: &mut Rule<'a>,
    held: &mut [Held; REGISTERS],
    name: &str,
    data: &'a [u8],
) -> Result<(), Malformed> {
    match name {
        "payload" => load(held, Some(data), payload(data)?),
        "meta" => load(held, Some(data), meta(data)?),
        "bitwise" => bitwise(held, data),
        "cmp" => {
            rule.packets = None;
            compare(&mut rule.matches, held, data)
        }
        "range" => {
            rule.packets = None;
            range(&mut rule.matches, held, data)
        }
        "immediate" => immediate(rule, data),
        "reject" => {
            rule.verdict = Verdict::Reject;
            Ok(())
        }
        "counter" => {
            for attribute in Attributes::of(data) {
                if let (2, value) = attribute? {
                    rule.packets = Some(be64(value)?);
                }
            }
            Ok(())
        }
        "match" => {
            rule.packets = None;
            xt_match(&mut rule.matches, data)
        }
        "target" => target(rule, data),
        "notrack" => {
            rule.untracks = true;
            Ok(())
        }
        // These do something, and all packets pass them.
        "log" | "last" | "objref" | "dup" | "masq" | "snat" | "nat" | "redir" | "tproxy"
        | "queue" | "fwd" | "flow_offload" | "synproxy" => Ok(()),
        // These fill a register, which a comparison then asks.
        "ct" | "byteorder" | "exthdr" | "numgen" | "hash" | "rt" | "socket" | "osf" | "tunnel"
        | "fib" | "xfrm" | "inner" => load(held, Some(data), Held::Other),
        // lookup, limit, quota, connlimit, dynset, and what newer kernels have.
        _ => {
            rule.packets = None;
            rule.matches.more = true;
            Ok(())
        }
    }
}

/// Notes what an expression puts into its destination register. Of these all
/// but `payload` and `meta`, whose number is 1 too, have other numbers for it:
/// then nothing is known of any register.
fn load(held: &mut [Held; REGISTERS], data: Option<&[u8]>, what: Held) -> Result<(), Malformed> {
    if matches!(what, Held::Other) {
        *held = [Held::Other; REGISTERS];
        return Ok(());
    }
    for attribute in Attributes::of(data.unwrap_or_default()) {
        if let (1, value) = attribute?
            && let Some(place) = held.get_mut(be32(value)? as usize)
        {
            *place = what;
        }
    }
    Ok(())
}

/// `NFTA_PAYLOAD_...`: what is at that place of the packet.
fn payload(data: &[u8]) -> Result<Held, Malformed> {
    let (mut base, mut offset, mut length) = (0, 0, 0);
    for attribute in Attributes::of(data) {
        let (kind, value) = attribute?;
        match kind {
            2 => base = be32(value)?,
            3 => offset = be32(value)?,
            4 => length = be32(value)?,
            _ => {}
        }
    }
    let bits = u8::try_from(length.saturating_mul(8)).unwrap_or(0);
    // NFT_PAYLOAD_NETWORK_HEADER: RFC 791 and RFC 8200; NFT_PAYLOAD_TRANSPORT_HEADER.
    Ok(match (base, offset, length) {
        (1, 9 | 6, 1) => Held::Protocol,
        (1, 12, 1..=4) | (1, 8, 16) => Held::Source(bits),
        (1, 16, 1..=4) | (1, 24, 16) => Held::Destination(bits),
        (2, 0, 2) => Held::FromPort,
        (2, 2, 2) => Held::ToPort,
        // RFC 792 and RFC 4443.
        (2, 0, 1) => Held::IcmpType,
        (2, 1, 1) => Held::IcmpCode,
        _ => Held::Other,
    })
}

/// `NFTA_META_KEY` (enum nft_meta_keys).
fn meta(data: &[u8]) -> Result<Held, Malformed> {
    for attribute in Attributes::of(data) {
        if let (2, value) = attribute? {
            return Ok(match be32(value)? {
                6 => Held::InDevice,
                7 => Held::OutDevice,
                1 | 15 => Held::IpFamily,
                16 => Held::Protocol,
                _ => Held::Other,
            });
        }
    }
    Ok(Held::Other)
}

/// `NFTA_BITWISE_...`: a mask on an address is a prefix.
fn bitwise(held: &mut [Held; REGISTERS], data: &[u8]) -> Result<(), Malformed> {
    let (mut from, mut to, mut mask, mut changes) = (0, 0, &[][..], false);
    for attribute in Attributes::of(data) {
        let (kind, value) = attribute?;
        match kind {
            1 => from = be32(value)? as usize,
            2 => to = be32(value)? as usize,
            4 => mask = bytes_of(value)?,
            5 => changes = bytes_of(value)?.iter().any(|byte| *byte != 0),
            _ => {}
        }
    }
    let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
    let all: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let cut = mask.windows(2).any(|two| matches!(two, [one, two] if *one != 255 && *two != 0));
    let bits = u8::try_from(ones).ok().filter(|_| ones == all && !cut && !changes);
    let now = match (held.get(from), bits) {
        (Some(Held::Source(_)), Some(bits)) => Held::Source(bits),
        (Some(Held::Destination(_)), Some(bits)) => Held::Destination(bits),
        _ => Held::Other,
    };
    if let Some(place) = held.get_mut(to) {
        *place = now;
    }
    Ok(())
}

/// The value of a `NFTA_DATA_VALUE`.
fn bytes_of(data: &[u8]) -> Result<&[u8], Malformed> {
    for attribute in Attributes::of(data) {
        if let (1, value) = attribute? {
            return Ok(value);
        }
    }
    Ok(&[])
}

/// `NFTA_CMP_...` (enum nft_cmp_ops).
fn compare(matches: &mut Matches, held: &[Held; REGISTERS], data: &[u8]) -> Result<(), Malformed> {
    let (mut register, mut operation, mut value) = (0, 0, &[][..]);
    for attribute in Attributes::of(data) {
        let (kind, own) = attribute?;
        match kind {
            1 => register = be32(own)? as usize,
            2 => operation = be32(own)?,
            3 => value = bytes_of(own)?,
            _ => {}
        }
    }
    let held = held.get(register).copied().unwrap_or_default();
    let port = || value.first_chunk().copied().map(u16::from_be_bytes);
    let known = match (held, operation) {
        (Held::IpFamily, 0) => match is_v6(value) {
            Some(v6) if matches.v6.is_none_or(|own| own == v6) => {
                matches.v6 = Some(v6);
                true
            }
            _ => false,
        },
        (Held::Protocol, 0) => {
            matches.protocol = value.first().copied();
            true
        }
        // Type and code at once, where the ports of others are.
        (Held::FromPort, 0) if is_icmp(matches.protocol) => {
            matches.icmp = value.first_chunk().map(|&[kind, code]| (kind, Some(code)));
            matches.icmp.is_some()
        }
        (Held::IcmpType, 0) if is_icmp(matches.protocol) => {
            matches.icmp = value.first().map(|&kind| (kind, None));
            matches.icmp.is_some()
        }
        (Held::IcmpCode, 0) => match (&mut matches.icmp, value.first()) {
            (Some((_, own)), Some(&code)) => {
                *own = Some(code);
                true
            }
            _ => false,
        },
        (Held::ToPort, _) => narrow(&mut matches.to_ports, operation, port()),
        (Held::FromPort, _) => narrow(&mut matches.from_ports, operation, port()),
        (Held::Source(bits), 0) => {
            matches.source = network(value, bits);
            matches.source.is_some()
        }
        (Held::Destination(bits), 0) => {
            matches.destination = network(value, bits);
            matches.destination.is_some()
        }
        (Held::InDevice, 0) => {
            matches.in_device = device(value);
            matches.in_device.is_some()
        }
        (Held::OutDevice, 0) => {
            matches.out_device = device(value);
            matches.out_device.is_some()
        }
        _ => false,
    };
    matches.more |= !known;
    Ok(())
}

/// NFPROTO_IPV4 or NFPROTO_IPV6 (linux/netfilter.h), or their EtherTypes.
const fn is_v6(value: &[u8]) -> Option<bool> {
    match value {
        [2] | [0x08, 0x00] => Some(false),
        [10] | [0x86, 0xdd] => Some(true),
        _ => None,
    }
}

/// ICMP, or ICMPv6.
fn is_icmp(protocol: Option<u8>) -> bool {
    matches!(protocol, Some(1 | 58))
}

/// Narrows a range of ports by a comparison; whether it is one that can.
fn narrow(ports: &mut Option<(u16, u16)>, operation: u32, port: Option<u16>) -> bool {
    let Some(port) = port else { return false };
    let (first, last) = ports.unwrap_or((0, u16::MAX));
    *ports = Some(match operation {
        0 => (port, port),
        2 => (first, port.saturating_sub(1)),
        3 => (first, port),
        4 => (port.saturating_add(1), last),
        5 => (port, last),
        _ => return false,
    });
    true
}

/// `NFTA_RANGE_...`.
fn range(matches: &mut Matches, held: &[Held; REGISTERS], data: &[u8]) -> Result<(), Malformed> {
    let (mut register, mut operation) = (0, 0);
    let (mut from, mut to) = (None, None);
    for attribute in Attributes::of(data) {
        let (kind, value) = attribute?;
        let port = |value| bytes_of(value).map(|bytes| bytes.first_chunk().copied());
        match kind {
            1 => register = be32(value)? as usize,
            2 => operation = be32(value)?,
            3 => from = port(value)?.map(u16::from_be_bytes),
            4 => to = port(value)?.map(u16::from_be_bytes),
            _ => {}
        }
    }
    match (held.get(register), operation, from.zip(to)) {
        (Some(Held::ToPort), 0, Some(ports)) => matches.to_ports = Some(ports),
        (Some(Held::FromPort), 0, Some(ports)) => matches.from_ports = Some(ports),
        _ => matches.more = true,
    }
    Ok(())
}

fn network(value: &[u8], bits: u8) -> Option<IpNet> {
    let address = if value.len() <= 4 {
        let mut octets = [0; 4];
        octets.get_mut(..value.len())?.copy_from_slice(value);
        IpAddr::from(Ipv4Addr::from(octets))
    } else {
        IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?))
    };
    IpNet::new(address, bits).ok().map(|net| net.trunc())
}

/// A device's name: only whole ones end with a zero, others are patterns.
fn device(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(value.get(..end)?).ok().map(str::to_owned)
}

/// `NFTA_IMMEDIATE_...`: a verdict, where the register is the verdict's.
fn immediate<'a>(rule: &mut Rule<'a>, data: &'a [u8]) -> Result<(), Malformed> {
    for attribute in Attributes::of(data) {
        let (2, value) = attribute? else { continue };
        for attribute in Attributes::of(value) {
            let (2, verdict) = attribute? else { continue };
            let (mut code, mut chain) = (None, None);
            for attribute in Attributes::of(verdict) {
                let (kind, value) = attribute?;
                match kind {
                    1 => code = Some(be32(value)?.cast_signed()),
                    2 => chain = Some(text(value)),
                    _ => {}
                }
            }
            // NF_DROP, NF_ACCEPT; NFT_RETURN, NFT_GOTO, NFT_JUMP (enum nft_verdicts).
            rule.verdict = match (code, chain) {
                (Some(0), _) => Verdict::Drop,
                (Some(1 | -5), _) => Verdict::Pass,
                (Some(-3 | -4), Some(chain)) => Verdict::Jump(chain),
                _ => Verdict::Continue,
            };
        }
    }
    Ok(())
}

/// The name of an extension of xtables and what it was told: `NFTA_TARGET_NAME` and
/// `NFTA_TARGET_INFO`, which have the numbers of `NFTA_MATCH_NAME` and `NFTA_MATCH_INFO`.
fn extension(data: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (mut name, mut info) = ("", &[][..]);
    for attribute in Attributes::of(data) {
        let (kind, value) = attribute?;
        match kind {
            1 => name = word(value)?,
            3 => info = value,
            _ => {}
        }
    }
    Ok((name, info))
}

/// `NFTA_TARGET_...`: an action of xtables.
fn target(rule: &mut Rule<'_>, data: &[u8]) -> Result<(), Malformed> {
    let (name, info) = extension(data)?;
    match name {
        "REJECT" => rule.verdict = Verdict::Reject,
        "NOTRACK" => rule.untracks = true,
        // XT_CT_NOTRACK in the flags of struct xt_ct_target_info
        // (linux/netfilter/xt_CT.h).
        "CT" => {
            let flags = info.first_chunk().copied().map(u16::from_ne_bytes);
            rule.untracks = flags.is_some_and(|flags| flags & 1 != 0);
        }
        _ => {}
    }
    Ok(())
}

/// `NFTA_MATCH_...`: an extension of xtables.
fn xt_match(matches: &mut Matches, data: &[u8]) -> Result<(), Malformed> {
    let (name, info) = extension(data)?;
    match (name, info) {
        ("comment", _) => {}
        // struct xt_udp: two source ports, two destination ports, flags that invert.
        ("udp", [a, b, c, d, e, f, g, h, 0, ..]) => {
            let ports = |low: [u8; 2], high: [u8; 2]| {
                let ports = (u16::from_ne_bytes(low), u16::from_ne_bytes(high));
                (ports != (0, u16::MAX)).then_some(ports)
            };
            matches.from_ports = ports([*a, *b], [*c, *d]).or(matches.from_ports);
            matches.to_ports = ports([*e, *f], [*g, *h]).or(matches.to_ports);
        }
        // struct ipt_icmp: a type, of which 255 is any, the first and the last code,
        // a flag that inverts; struct ip6t_icmp is the same and has no such type.
        ("icmp", [255, _, _, 0, ..]) => {}
        ("icmp" | "icmp6", [kind, first, last, 0, ..]) => match (first, last) {
            (0, 255) => matches.icmp = Some((*kind, None)),
            (first, last) if first == last => matches.icmp = Some((*kind, Some(*first))),
            _ => matches.more = true,
        },
        _ => matches.more = true,
    }
    Ok(())
}

/// Who of iptables-nft's versions reads an expression; none when all do
/// (nft_is_expr_compatible, iptables/nft.c, and its history).
fn readers(name: &str, data: &[u8]) -> Result<Option<Readers>, Malformed> {
    Ok(match name {
        "match" | "target" | "payload" | "cmp" | "bitwise" | "counter" | "immediate" => None,
        "meta" => sets_mark(data)?.then_some(Readers::RefusedFrom189),
        "lookup" => Some(Readers::MisprintedFrom184),
        "range" => Some(Readers::From188),
        "limit" => is_odd_limit(data)?.then_some(Readers::Nobody),
        "log" => {
            let mut has_group = false;
            for attribute in Attributes::of(data) {
                has_group |= attribute?.0 == 1;
            }
            Some(if has_group { Readers::From188 } else { Readers::Nobody })
        }
        _ => Some(Readers::Nobody),
    })
}

/// NFTA_META_SREG with NFT_META_MARK: iptables sets marks with a target.
fn sets_mark(data: &[u8]) -> Result<bool, Malformed> {
    let (mut sets, mut key) = (false, 0);
    for attribute in Attributes::of(data) {
        let (kind, value) = attribute?;
        match kind {
            2 => key = be32(value)?,
            3 => sets = true,
            _ => {}
        }
    }
    Ok(sets && key == 3)
}

/// NFTA_LIMIT_TYPE other than NFT_LIMIT_PKTS, or NFTA_LIMIT_FLAGS.
fn is_odd_limit(data: &[u8]) -> Result<bool, Malformed> {
    let mut odd = false;
    for attribute in Attributes::of(data) {
        let (kind, value) = attribute?;
        odd |= matches!(kind, 4 | 5) && be32(value)? != 0;
    }
    Ok(odd)
}

/// FNV-1a, 64 bits: the rules of one chain are few enough for it.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

//! Reads the maps, and tells how much of each count is of late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap};
use overlaywatch_core::kernel::{
    DropForm, DropSite, IcmpError, LATELY_SECONDS, PacketDrop, Traffic,
};
use overlaywatch_core::model::{Encapsulation, IfIndex, PeerId};
use overlaywatch_core::probing::Stream;
use overlaywatch_core::time::{Mono, SECOND};
use overlaywatch_ebpf as layout;
use overlaywatch_ebpf::{Address, DropKey, Dropped, Icmp, IcmpKey, Slots, TrafficKey, missed};

use super::names::Names;
use crate::source::SourceError;

/// Drops that are told; the longest idle are left out.
const MOST_DROPS: usize = 256;

/// What a map is called, for people.
const MISSED: [(u32, &str); 4] = [
    (missed::PROBES, "streams of probes"),
    (missed::TRAFFIC, "traffic"),
    (missed::DROPS, "drops"),
    (missed::ICMP, "ICMP errors"),
];

/// The maps that programs fill.
pub(super) struct Counts {
    drops: HashMap<MapData, DropKey, Dropped>,
    icmp: HashMap<MapData, IcmpKey, Icmp>,
    slots: PerCpuArray<MapData, Slots>,
    traffic: PerCpuHashMap<MapData, TrafficKey, layout::Traffic>,
    missed: PerCpuArray<MapData, u64>,
    grown_drops: Growth<DropKey>,
    grown_icmp: Growth<IcmpKey>,
    grown_traffic: Growth<TrafficKey>,
    grown_missed: Growth<u32>,
}

/// How much counts grew in the last seconds.
#[derive(Debug)]
struct Growth<K> {
    /// Earlier readings, the oldest first.
    readings: VecDeque<(Mono, BTreeMap<K, u64>)>,
}

impl<K: Ord + Copy> Growth<K> {
    const fn new() -> Self {
        Self { readings: VecDeque::new() }
    }

    /// Takes a reading; the growth of each count since the oldest remembered
    /// one, which is [`LATELY_SECONDS`] old or a little more: whoever compares it
    /// with losses of that time must find all of their drops. In the first
    /// reading after the start all is old.
    fn take(&mut self, at: Mono, counts: BTreeMap<K, u64>) -> BTreeMap<K, u64> {
        let is_old = |(old, _): &(Mono, _)| at.since(*old) >= LATELY_SECONDS * SECOND;
        while self.readings.get(1).is_some_and(is_old) {
            self.readings.pop_front();
        }
        let oldest = self.readings.front().map(|(_, counts)| counts);
        let lately = counts
            .iter()
            .map(|(key, &count)| {
                let before = oldest.map_or(count, |old| old.get(key).copied().unwrap_or(0));
                (*key, count.saturating_sub(before))
            })
            .collect();
        let is_due =
            self.readings.back().is_none_or(|(last, _)| at.since(*last) >= SECOND - SECOND / 20);
        if is_due {
            self.readings.push_back((at, counts));
        }
        lately
    }
}

/// Takes a map out of the object.
pub(super) fn take<M>(ebpf: &mut Ebpf, name: &str) -> Result<M, SourceError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| SourceError::Malformed {
        what: "the eBPF object".to_owned(),
        reason: format!("it has no map {name}"),
    })?;
    M::try_from(map).map_err(|error| SourceError::kernel(format!("opening the map {name}"), &error))
}

/// A map by its pin.
pub(super) fn pinned<M>(folder: &Path, name: &str) -> Result<M, SourceError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let failed = |error| SourceError::kernel(format!("opening the pinned map {name}"), &error);
    let map = MapData::from_pin(folder.join(name)).map_err(failed)?;
    Map::from_map_data(map).and_then(M::try_from).map_err(failed)
}

/// All entries of a map, as far as it holds still: an entry that goes while it
/// is read is left out.
fn entries<V>(keys: impl Iterator<Item = Result<V, MapError>>) -> impl Iterator<Item = V> {
    keys.map_while(Result::ok)
}

impl Counts {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, SourceError> {
        Ok(Self {
            drops: take(ebpf, "DROPS")?,
            icmp: take(ebpf, "ICMP")?,
            slots: take(ebpf, "SLOTS")?,
            traffic: take(ebpf, "TRAFFIC")?,
            missed: take(ebpf, "MISSED")?,
            grown_drops: Growth::new(),
            grown_icmp: Growth::new(),
            grown_traffic: Growth::new(),
            grown_missed: Growth::new(),
        })
    }

    /// Drops, the most of late first. Of `ipip`, the devices that encapsulate so,
    /// come packets that look like inner ones.
    pub(super) fn drops(
        &mut self,
        at: Mono,
        names: &mut Names,
        ipip: &BTreeSet<IfIndex>,
    ) -> Vec<PacketDrop> {
        let counts: BTreeMap<DropKey, u64> =
            entries(self.drops.iter()).map(|(key, dropped)| (key, dropped.packets)).collect();
        let lately = self.grown_drops.take(at, counts.clone());
        names.learn(counts.keys().map(|key| key.location));
        let mut drops: Vec<PacketDrop> = counts
            .into_iter()
            .filter_map(|(key, total)| {
                let form = form_of(&key, ipip)?;
                Some(drop_of(&key, form, total, lately.get(&key).copied().unwrap_or(0), names))
            })
            .collect();
        drops.sort_by_key(|drop| std::cmp::Reverse((drop.lately, drop.total)));
        drops.truncate(MOST_DROPS);
        drops
    }

    pub(super) fn icmp(&mut self, at: Mono) -> Vec<IcmpError> {
        let counts: BTreeMap<IcmpKey, Icmp> = entries(self.icmp.iter()).collect();
        let totals = counts.iter().map(|(key, icmp)| (*key, icmp.errors)).collect();
        let lately = self.grown_icmp.take(at, totals);
        counts
            .into_iter()
            .filter_map(|(key, icmp)| {
                Some(IcmpError {
                    peer: ip_of(key.peer),
                    from: ip_of(key.from),
                    encapsulation: encapsulation_of(key.encapsulation, key.port)?,
                    kind: key.kind,
                    code: key.code,
                    mtu: (icmp.mtu > 0).then_some(icmp.mtu),
                    total: icmp.errors,
                    lately: lately.get(&key).copied().unwrap_or(0),
                })
            })
            .collect()
    }

    pub(super) fn traffic(&mut self, at: Mono) -> Vec<Traffic> {
        let counts = self.all_traffic();
        let live = counts.iter().map(|(key, t)| (*key, t.packets.saturating_sub(t.probes)));
        let lately = self.grown_traffic.take(at, live.collect());
        counts
            .into_iter()
            .filter_map(|(key, traffic)| {
                Some(Traffic {
                    peer: ip_of(key.peer),
                    encapsulation: encapsulation_of(key.encapsulation, key.port)?,
                    outbound: key.direction == layout::direction::EGRESS,
                    packets: traffic.packets,
                    bytes: traffic.bytes,
                    fragments: traffic.fragments,
                    lately: lately.get(&key).copied().unwrap_or(0),
                })
            })
            .collect()
    }

    /// Sums over the processors, and over slots and map: a key may be in both.
    fn all_traffic(&self) -> BTreeMap<TrafficKey, layout::Traffic> {
        let mut counts = BTreeMap::new();
        for (key, processors) in entries(self.traffic.iter()) {
            processors.iter().for_each(|more| add(counts.entry(key).or_default(), more));
        }
        for processors in entries(self.slots.iter()) {
            let slots = processors.iter().flat_map(|slots| &slots.0);
            for slot in slots.filter(|s| s.key.encapsulation != layout::encapsulation::NONE) {
                add(counts.entry(slot.key).or_default(), &slot.traffic);
            }
        }
        counts
    }

    /// What full maps could not count of late.
    pub(super) fn missed(&mut self, at: Mono) -> Vec<String> {
        let count = |index: u32| self.missed.get(&index, 0).map(|each| each.iter().sum());
        let counts = MISSED.iter().filter_map(|&(index, _)| Some((index, count(index).ok()?)));
        let lately = self.grown_missed.take(at, counts.collect());
        let lately = MISSED.into_iter().map(|(index, what)| (what, lately.get(&index)));
        lately
            .filter_map(|(what, count)| {
                let count = count.filter(|&&count| count > 0)?;
                Some(format!(
                    "{count} packets were not counted in the last {LATELY_SECONDS} s because the \
                     map of {what} is full; what was in it before goes on being counted, and \
                     `overlaywatch agent --detach` beside a stopped agent empties it"
                ))
            })
            .collect()
    }
}

fn add(sum: &mut layout::Traffic, more: &layout::Traffic) {
    sum.packets = sum.packets.wrapping_add(more.packets);
    sum.bytes = sum.bytes.wrapping_add(more.bytes);
    sum.fragments = sum.fragments.wrapping_add(more.fragments);
    sum.probes = sum.probes.wrapping_add(more.probes);
}

/// What was dropped. An outer packet keeps the device that made it until it is
/// routed (iptunnel_xmit, net/ipv4/ip_tunnel_core.c). VXLAN's is told by its port
/// all the same; IPIP's is told from a packet inside of a tunnel by that device,
/// which takes none from a pod before it is routed there (ip_output), so that what
/// a policy for pods' own IPIP drops is not meant.
fn form_of(key: &DropKey, ipip: &BTreeSet<IfIndex>) -> Option<DropForm> {
    let is_made_here = key.ip_protocol == layout::encapsulation::IPIP
        && key.direction == layout::direction::EGRESS
        && ipip.contains(&IfIndex(key.ifindex));
    match key.form {
        layout::form::OUTER => Some(DropForm::Outer),
        layout::form::INNER if is_made_here => Some(DropForm::Outer),
        layout::form::INNER => Some(DropForm::Inner),
        layout::form::BARE => Some(DropForm::Bare),
        _ => None,
    }
}

fn drop_of(key: &DropKey, form: DropForm, total: u64, lately: u64, names: &Names) -> PacketDrop {
    let site = DropSite {
        reason: names.reason(key.reason),
        function: names.function(key.location),
        device: names.device(key.ifindex),
    };
    let probe = match key.probe {
        layout::REQUEST => Some(false),
        layout::REPLY => Some(true),
        _ => None,
    };
    PacketDrop {
        site,
        peer: (key.peer != Address::default()).then(|| PeerId(ip_of(key.peer))),
        form,
        outbound: key.direction == layout::direction::EGRESS,
        probe: probe.and_then(|is_reply| Some((stream_of(key.stream)?, is_reply))),
        ethertype: key.ethertype,
        ip_protocol: key.ip_protocol,
        total,
        lately,
    }
}

/// A stream as on the wire (`probe::wire`).
pub(super) fn stream_of([class, encapsulation, high, low]: [u8; 4]) -> Option<Stream> {
    let port = u16::from_be_bytes([high, low]);
    match class {
        layout::UNDERLAY_STREAM => Some(Stream::Underlay),
        1 => encapsulation_of(encapsulation, port).map(Stream::Small),
        2 => encapsulation_of(encapsulation, port).map(Stream::Full),
        _ => None,
    }
}

/// The stream on the wire; an echo has none.
pub(super) fn stream_bytes(stream: Stream) -> Option<[u8; 4]> {
    let class = match stream {
        Stream::Echo => return None,
        Stream::Underlay => layout::UNDERLAY_STREAM,
        Stream::Small(_) => 1,
        Stream::Full(_) => 2,
    };
    let (number, port) = match stream.encapsulation() {
        None => (layout::encapsulation::NONE, 0),
        Some(Encapsulation::Ipip) => (layout::encapsulation::IPIP, 0),
        Some(Encapsulation::Vxlan(port)) => (layout::encapsulation::VXLAN, port),
    };
    let [high, low] = port.to_be_bytes();
    Some([class, number, high, low])
}

const fn encapsulation_of(number: u8, port: u16) -> Option<Encapsulation> {
    match number {
        layout::encapsulation::IPIP => Some(Encapsulation::Ipip),
        layout::encapsulation::VXLAN => Some(Encapsulation::Vxlan(port)),
        _ => None,
    }
}

/// An address of a map.
pub(super) fn ip_of(address: Address) -> IpAddr {
    let mut octets = [0; 16];
    for (four, word) in octets.chunks_exact_mut(4).zip(address.0) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets).to_canonical()
}

/// An address for a map.
pub(super) fn address_of(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, four) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*four);
    }
    Address(words)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn growth_is_what_came_in_the_last_seconds() {
        let mut growth = Growth::new();
        let at = |seconds: u64| Mono(seconds * SECOND);
        let mut read = |seconds, count| growth.take(at(seconds), BTreeMap::from([(1, count)]))[&1];
        assert_eq!(read(1, 100), 0, "what was there before is old");
        assert_eq!(read(2, 105), 5);
        assert_eq!(read(5, 110), 10);
        assert_eq!(read(30, 110), 0);
        assert_eq!(read(31, 7), 0, "a counter that began anew did not grow");
    }

    #[test]
    fn growth_covers_all_of_its_time() {
        let mut growth = Growth::new();
        let at = |tenths: u64| Mono(tenths * (SECOND / 10));
        let mut read = |tenths, count| growth.take(at(tenths), BTreeMap::from([(1, count)]))[&1];
        read(0, 0);
        // A burst between the first two readings, then one a second.
        for second in 1..=5 {
            read(10 * second, 9 + second);
        }
        assert_eq!(read(55, 14), 14, "the burst may be less than five seconds old");
        assert_eq!(read(60, 15), 5, "now it is older");
    }

    #[test]
    fn addresses_go_both_ways() {
        for text in ["10.0.0.1", "fd00::1", "::", "255.255.255.255"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(ip_of(address_of(ip)), ip);
        }
        let v4 = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(address_of(v4.into()), Address::v4(u32::from_ne_bytes(v4.octets())));
    }

    #[test]
    fn what_ipip_made_is_an_outer_packet_on_its_own_device() {
        let key = DropKey {
            ifindex: 3,
            ip_protocol: layout::encapsulation::IPIP,
            form: layout::form::INNER,
            direction: layout::direction::EGRESS,
            ..DropKey::default()
        };
        let form = |key: DropKey| form_of(&key, &BTreeSet::from([IfIndex(3)]));
        assert_eq!(form(key), Some(DropForm::Outer));
        let (from_pod, inner, ingress) = (
            DropKey { ifindex: 7, ..key },
            DropKey { ip_protocol: 17, ..key },
            DropKey { direction: layout::direction::INGRESS, ..key },
        );
        for other in [from_pod, inner, ingress] {
            assert_eq!(form(other), Some(DropForm::Inner));
        }
    }

    #[test]
    fn streams_go_both_ways() {
        for stream in [
            Stream::Underlay,
            Stream::Small(Encapsulation::Ipip),
            Stream::Full(Encapsulation::Vxlan(8472)),
        ] {
            assert_eq!(stream_of(stream_bytes(stream).unwrap()), Some(stream));
        }
        assert_eq!(stream_bytes(Stream::Echo), None);
    }
}

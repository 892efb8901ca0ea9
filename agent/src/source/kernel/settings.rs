//! The maps that tell programs what to look for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use ipnet::IpNet;
use overlaywatch_core::kernel::HookPlan;
use overlaywatch_core::model::Encapsulation;
use overlaywatch_core::time::Mono;
use overlaywatch_ebpf::{Address, role};

use super::counts;
use crate::clock;
use crate::source::SourceError;

/// The maps, and what they were told.
pub(super) struct Settings {
    devices: HashMap<MapData, u32, u32>,
    port_bits: Array<MapData, [u64; 1024]>,
    peers: LpmTrie<MapData, Address, Address>,
    told: HookPlan,
    /// Since when each port is told; zero for those of the first plan, which an
    /// earlier run may have told already.
    ports: BTreeMap<u16, Mono>,
    /// Since when encapsulations that had a tunnel device have none.
    gone: BTreeMap<Encapsulation, Mono>,
    /// What the programs could not be told.
    problem: Option<String>,
}

impl Settings {
    /// Takes the maps out of the object.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, SourceError> {
        Ok(Self {
            devices: counts::take(ebpf, "DEVICES")?,
            port_bits: counts::take(ebpf, "PORTS")?,
            peers: counts::take(ebpf, "PEERS")?,
            told: HookPlan::default(),
            ports: BTreeMap::new(),
            gone: BTreeMap::new(),
            problem: None,
        })
    }

    /// The latest plan.
    pub(super) const fn told(&self) -> &HookPlan {
        &self.told
    }

    /// Since when each VXLAN port is known to the programs.
    pub(super) const fn ports(&self) -> &BTreeMap<u16, Mono> {
        &self.ports
    }

    /// Since when encapsulations that had a tunnel device have none.
    pub(super) const fn gone(&self) -> &BTreeMap<Encapsulation, Mono> {
        &self.gone
    }

    /// What the programs do not know although they should.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> + use<> {
        self.problem.clone().into_iter()
    }

    /// Tells the programs what changed in the plan. What they cannot be told is
    /// a problem; the rest is counted all the same.
    pub(super) fn tell(&mut self, plan: &HookPlan) {
        if self.told == *plan && self.problem.is_none() {
            return;
        }
        if self.told == HookPlan::default() {
            self.forget_earlier_run();
        }
        let mut failures = Failures::default();
        for device in self.told.devices.iter().filter(|device| !plan.devices.contains(device)) {
            // It may have gone already.
            let _ = self.devices.remove(&device.index.0);
            if let Some(encapsulation) = device.tunnel {
                self.gone.insert(encapsulation, clock::mono());
            }
        }
        let has_device = |one: &Encapsulation| plan.devices.iter().any(|d| d.tunnel == Some(*one));
        self.gone.retain(|encapsulation, _| !has_device(encapsulation));
        for device in &plan.devices {
            let role = if device.tunnel.is_some() { role::TUNNEL } else { role::UNDERLAY };
            failures.note("devices", self.devices.insert(device.index.0, role, 0));
        }
        if self.told.ports != plan.ports {
            let mut bits = [0_u64; 1024];
            for &port in &plan.ports {
                bits[usize::from(port >> 6)] |= 1 << (port & 63);
            }
            failures.note("VXLAN ports", self.port_bits.set(0, bits, 0));
            let now = if self.told.ports.is_empty() { Mono(0) } else { clock::mono() };
            self.ports.retain(|port, _| plan.ports.contains(port));
            for &port in &plan.ports {
                self.ports.entry(port).or_insert(now);
            }
        }
        for network in self.told.peers.keys().filter(|net| !plan.peers.contains_key(net)) {
            let _ = self.peers.remove(&key_of(network));
        }
        for (network, peer) in &plan.peers {
            // One that did not fit may fit now.
            if self.told.peers.get(network) != Some(peer) || self.problem.is_some() {
                let address = counts::address_of(peer.0);
                failures.note("peers", self.peers.insert(&key_of(network), address, 0));
            }
        }
        self.told = plan.clone();
        self.problem = failures.told();
    }

    /// What an earlier run told may hold no more.
    fn forget_earlier_run(&mut self) {
        let devices: Vec<u32> = self.devices.keys().map_while(Result::ok).collect();
        for index in devices {
            let _ = self.devices.remove(&index);
        }
        let peers: Vec<Key<Address>> = self.peers.keys().map_while(Result::ok).collect();
        for network in peers {
            let _ = self.peers.remove(&network);
        }
    }
}

/// What could not be told.
#[derive(Default)]
struct Failures {
    count: usize,
    latest: Option<String>,
}

impl Failures {
    fn note(&mut self, what: &str, told: Result<(), aya::maps::MapError>) {
        if let Err(error) = told {
            self.count += 1;
            self.latest =
                Some(SourceError::kernel(format!("telling of {what}"), &error).to_string());
        }
    }

    fn told(self) -> Option<String> {
        let Self { count, latest } = self;
        latest.map(|latest| {
            format!(
                "{count} things that are to be counted are unknown to the eBPF programs: {latest}"
            )
        })
    }
}

/// A network as the trie has it: IPv4 mapped into IPv6.
fn key_of(network: &IpNet) -> Key<Address> {
    let bits = match network.network() {
        IpAddr::V4(_) => 96,
        IpAddr::V6(_) => 0,
    };
    let length = bits + u32::from(network.prefix_len());
    Key::new(length, counts::address_of(network.network()))
}

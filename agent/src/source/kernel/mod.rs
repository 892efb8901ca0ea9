//! What the kernel counts at this node's hops: loads the eBPF programs, keeps
//! them where the plan wants them, and reads what they counted.
//!
//! The only part that knows aya. A thread of its own: it keeps the network
//! namespace in which it was started, and blocks in system calls.

pub mod btf;
mod counts;
mod hooks;
mod names;
mod pins;
mod programs;
pub mod symbols;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use ipnet::IpNet;
use overlaywatch_core::assembly::{SourceId, SourceReport, Update};
use overlaywatch_core::kernel::{HookPlan, KernelCounts, PacketDrop};
use overlaywatch_core::ladder::{Climb, HopWindows, Window};
use overlaywatch_core::model::{Encapsulation, PeerId};
use overlaywatch_core::probing::{ProbeDrop, Stream};
use overlaywatch_core::time::{MILLISECOND, Mono, SECOND};
use overlaywatch_ebpf as layout;
use overlaywatch_ebpf::{Address, ProbeKey, Windows, hop, role};
use tokio::sync::{mpsc, watch};

use self::counts::Counts;
pub use self::hooks::Attach;
use self::hooks::Hooks;
use self::names::Names;
pub use self::pins::detach;
use self::programs::Programs;
use super::SourceError;
use super::meter::{Closed, send};
use crate::clock;

/// How often counts are read and the plan is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two readings of the drops.
const DROPS_EVERY: u32 = 2;
/// Ticks between two readings of the traffic, for every so many addresses of
/// peers: one entry a peer and way is to be read.
const TRAFFIC_EVERY: u32 = 4;
/// See [`TRAFFIC_EVERY`].
const TRAFFIC_ADDRESSES: usize = 1_000;
/// Ticks between two looks whether our programs are still there.
const INSPECT_EVERY: u32 = 8;
/// Ticks between two prunings of streams that nobody uses any more.
const PRUNE_EVERY: u32 = 2_400;
/// A tunnel device that is gone from the plan may be there again, and not yet
/// known, for this long.
const GONE_NS: u64 = 3 * SECOND;
/// After a failed start it is tried again: the remedy may need no restart.
const RETRY: Duration = Duration::from_secs(60);

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to pin.
    pub pin: PathBuf,
    /// How to attach.
    pub attach: Attach,
    /// UDP port of probes.
    pub probe_port: u16,
}

/// What readers of hops need: the map itself, and what is counted.
#[derive(Debug)]
struct Counted {
    probes: Arc<HashMap<MapData, ProbeKey, Windows>>,
    /// Since when all underlay NICs are watched; none while one is not.
    underlay: Option<Mono>,
    /// Since when each tunnel device is; none where it should be and is not.
    tunnels: BTreeMap<Encapsulation, Option<Mono>>,
    /// Since when packets to a port are known to be VXLAN.
    ports: BTreeMap<u16, Mono>,
    /// Since when encapsulations that had a tunnel device have none.
    gone: BTreeMap<Encapsulation, Mono>,
    drops: Arc<Vec<PacketDrop>>,
}

/// Reads what passed this node's hops. Cheap to clone; nothing is counted until
/// the programs are loaded.
#[derive(Clone, Debug)]
pub struct HopReader(watch::Receiver<Option<Arc<Counted>>>);

impl HopReader {
    /// What passed this node's hops of one stream, by the epoch of its
    /// requester; none while nothing is counted.
    #[must_use]
    pub fn climb(&self, epoch: u64, stream: Stream) -> Option<Climb> {
        let counted = self.0.borrow().clone()?;
        let key = ProbeKey { epoch: epoch.to_be_bytes(), stream: counts::stream_bytes(stream)? };
        // A stream that is not there passed nowhere yet.
        let windows = counted.probes.get(&key, 0).unwrap_or_default();
        let (nic, tunnel) = counted.since(stream);
        let now = clock::mono();
        let age = |since: Option<Mono>| {
            since.map_or(0, |since| {
                u32::try_from(now.since(since) / MILLISECOND).unwrap_or(u32::MAX)
            })
        };
        let at = |hops: &[layout::Window; 4]| HopWindows {
            encapsulated: tunnel.map(|_| window(hops[hop::ENCAPSULATED])),
            left_nic: nic.map(|_| window(hops[hop::LEFT_NIC])),
            reached_nic: nic.map(|_| window(hops[hop::REACHED_NIC])),
            decapsulated: tunnel.map(|_| window(hops[hop::DECAPSULATED])),
        };
        Some(Climb {
            requests: at(&windows.requests),
            replies: at(&windows.replies),
            nic_ms: age(nic),
            tunnel_ms: age(tunnel),
        })
    }

    /// Requests of a peer, and replies to it, that were dropped here lately, the
    /// most first.
    #[must_use]
    pub fn drops(&self, peer: PeerId) -> Vec<ProbeDrop> {
        let Some(counted) = self.0.borrow().clone() else { return Vec::new() };
        counted
            .drops
            .iter()
            .filter(|drop| drop.peer == Some(peer) && drop.lately > 0)
            .filter_map(|drop| {
                let (stream, reply) = drop.probe.filter(|(_, reply)| *reply == drop.outbound)?;
                let packets = u32::try_from(drop.lately).unwrap_or(u32::MAX);
                Some(ProbeDrop { stream, reply, packets, site: drop.site.clone() })
            })
            .collect()
    }
}

impl Counted {
    /// Since when a stream is counted on the NICs and on its tunnel device; none
    /// where it is not.
    fn since(&self, stream: Stream) -> (Option<Mono>, Option<Mono>) {
        let Some(encapsulation) = stream.encapsulation() else { return (self.underlay, None) };
        let nic = match encapsulation {
            Encapsulation::Ipip => self.underlay,
            Encapsulation::Vxlan(port) => {
                self.underlay.zip(self.ports.get(&port).copied()).map(|(nic, port)| nic.max(port))
            }
        };
        // What has no device here passes none: that is counted, too.
        let without = || {
            let gone = self.gone.get(&encapsulation).map(|&at| at.plus(GONE_NS));
            nic.map(|nic| gone.map_or(nic, |gone| nic.max(gone)))
        };
        let tunnel = self.tunnels.get(&encapsulation).copied().unwrap_or_else(without);
        (nic, tunnel)
    }
}

const fn window(of: layout::Window) -> Window {
    Window { highest: of.highest, mask: of.mask, count: of.count }
}

/// Starts the thread in the calling thread's network namespace.
///
/// # Errors
/// When the system refuses a thread.
pub fn spawn(
    options: Options,
    plan: watch::Receiver<Arc<HookPlan>>,
    updates: mpsc::Sender<Update>,
) -> io::Result<HopReader> {
    let (publish, reader) = watch::channel(None);
    let work = move || {
        let Closed = run(&options, &plan, &updates, &publish);
        tracing::debug!("nobody listens any more");
    };
    thread::Builder::new().name("ebpf".to_owned()).spawn(work)?;
    Ok(HopReader(reader))
}

/// Loads and follows until nobody listens; a failure is a gap, and tried again.
fn run(
    options: &Options,
    plan: &watch::Receiver<Arc<HookPlan>>,
    updates: &mpsc::Sender<Update>,
    publish: &watch::Sender<Option<Arc<Counted>>>,
) -> Closed {
    loop {
        let began = clock::mono();
        let error = match Watcher::start(options) {
            Ok(watcher) => match watcher.watch(plan, updates, publish) {
                Ok(error) => error,
                Err(closed) => return closed,
            },
            Err(error) => error,
        };
        publish.send_replace(None);
        let report = SourceReport {
            source: SourceId::Kernel,
            gap: Some(error.gap()),
            detail: error.to_string(),
            duration_ns: clock::mono().since(began),
        };
        if send(updates, Update::Source(report)).is_err() {
            return Closed;
        }
        let retry = clock::mono().plus(u64::try_from(RETRY.as_nanos()).unwrap_or(u64::MAX));
        while clock::mono() < retry {
            if updates.is_closed() {
                return Closed;
            }
            thread::sleep(TICK);
        }
    }
}

/// Everything that the thread owns.
struct Watcher {
    programs: Programs,
    hooks: Hooks,
    counts: Counts,
    names: Names,
    probes: Arc<HashMap<MapData, ProbeKey, Windows>>,
    /// The same map once more, for removing from it.
    prunable: HashMap<MapData, ProbeKey, Windows>,
    settings: Settings,
    current: KernelCounts,
    /// Streams at the last pruning.
    pruned: BTreeMap<ProbeKey, Windows>,
}

/// The maps that tell programs what to look for, and what they hold.
struct Settings {
    devices: HashMap<MapData, u32, u32>,
    ports: Array<MapData, [u64; 1024]>,
    peers: LpmTrie<MapData, Address, Address>,
    told: HookPlan,
    /// Since when each port is told; zero for those of the first plan, which an
    /// earlier run may have told already.
    ports_since: BTreeMap<u16, Mono>,
    /// Since when encapsulations that had a tunnel device have none.
    gone_since: BTreeMap<Encapsulation, Mono>,
}

impl Watcher {
    fn start(options: &Options) -> Result<Self, SourceError> {
        let netns = pins::netns()?;
        let folder = pins::prepare(&options.pin, netns)?;
        let mut programs = programs::load(&folder, netns, options.probe_port)?;
        let ebpf = &mut programs.ebpf;
        let counts = Counts::open(ebpf)?;
        let probes = Arc::new(counts::take(ebpf, "PROBES")?);
        let prunable = counts::pinned(&folder, "PROBES")?;
        let settings = Settings {
            devices: counts::take(ebpf, "DEVICES")?,
            ports: counts::take(ebpf, "PORTS")?,
            peers: counts::take(ebpf, "PEERS")?,
            told: HookPlan::default(),
            ports_since: BTreeMap::new(),
            gone_since: BTreeMap::new(),
        };
        let hooks = Hooks::new(&folder, options.attach);
        if programs.lacks.is_none() {
            hooks.watch_drops(ebpf)?;
        }
        let names = Names::new(std::mem::take(&mut programs.reasons));
        Ok(Self {
            programs,
            hooks,
            counts,
            names,
            probes,
            prunable,
            settings,
            current: KernelCounts::default(),
            pruned: BTreeMap::new(),
        })
    }

    /// Works until nobody listens, or until something fails.
    fn watch(
        mut self,
        plan: &watch::Receiver<Arc<HookPlan>>,
        updates: &mpsc::Sender<Update>,
        publish: &watch::Sender<Option<Arc<Counted>>>,
    ) -> Result<SourceError, Closed> {
        let mut tick = 0_u32;
        let mut followed = Arc::default();
        loop {
            let began = clock::mono();
            let wanted = Arc::clone(&plan.borrow());
            if !Arc::ptr_eq(&wanted, &followed) {
                let is_first_plan = self.settings.told.devices.is_empty();
                if let Err(error) = self.settings.tell(&wanted) {
                    return Ok(error);
                }
                if is_first_plan && !wanted.devices.is_empty() {
                    self.hooks.follow(&mut self.programs.ebpf, &wanted.devices);
                    self.hooks.sweep();
                }
                followed = Arc::clone(&wanted);
            }
            // Each time: what could not be attached may be attached now.
            self.hooks.follow(&mut self.programs.ebpf, &wanted.devices);
            if tick.is_multiple_of(INSPECT_EVERY) {
                self.hooks.inspect(&mut self.programs.ebpf);
            }
            if tick.is_multiple_of(PRUNE_EVERY) && tick > 0 {
                self.prune();
            }
            if tick.is_multiple_of(DROPS_EVERY) {
                self.read(began, tick);
                publish.send_replace(Some(Arc::new(self.counted())));
                send(updates, Update::Kernel(Box::new(self.current.clone())))?;
                let duration_ns = clock::mono().since(began);
                let source = SourceId::Kernel;
                let report = SourceReport { source, gap: None, detail: String::new(), duration_ns };
                send(updates, Update::Source(report))?;
            }
            tick = tick.wrapping_add(1);
            thread::sleep(TICK);
            if updates.is_closed() {
                return Err(Closed);
            }
        }
    }

    fn read(&mut self, at: Mono, tick: u32) {
        self.current.drops = self.counts.drops(at, &mut self.names);
        self.current.icmp = self.counts.icmp(at);
        let rounds = 1 + self.settings.told.peers.len() / TRAFFIC_ADDRESSES;
        let every = TRAFFIC_EVERY.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
        if tick.is_multiple_of(every) {
            self.current.traffic = self.counts.traffic(at);
        }
        self.current.devices = self.hooks.watched().map(|(device, _)| device.index).collect();
        self.current.problems = self
            .programs
            .lacks
            .iter()
            .chain(self.hooks.problems())
            .cloned()
            .chain(self.counts.missed())
            .collect();
    }

    fn counted(&self) -> Counted {
        let wanted: BTreeSet<_> =
            self.settings.told.devices.iter().filter(|d| d.tunnel.is_none()).collect();
        let nics: Vec<Mono> = self
            .hooks
            .watched()
            .filter(|(device, _)| device.tunnel.is_none())
            .map(|(_, since)| since)
            .collect();
        Counted {
            probes: Arc::clone(&self.probes),
            underlay: nics.iter().max().copied().filter(|_| nics.len() == wanted.len()),
            tunnels: self
                .settings
                .told
                .devices
                .iter()
                .filter_map(|device| {
                    let mut watched = self.hooks.watched();
                    let since = watched.find(|(known, _)| *known == device).map(|(_, at)| at);
                    Some((device.tunnel?, since))
                })
                .collect(),
            ports: self.settings.ports_since.clone(),
            gone: self.settings.gone_since.clone(),
            drops: Arc::new(self.current.drops.clone()),
        }
    }

    /// Forgets streams in which nothing passed since the last pruning but one.
    fn prune(&mut self) {
        let now: BTreeMap<ProbeKey, Windows> = self.probes.iter().map_while(Result::ok).collect();
        let idle = now.iter().filter(|(key, windows)| self.pruned.get(key) == Some(*windows));
        let idle: Vec<ProbeKey> = idle.map(|(key, _)| *key).collect();
        for key in &idle {
            // It may have gone already.
            let _ = self.prunable.remove(key);
        }
        self.pruned = now;
        for key in idle {
            self.pruned.remove(&key);
        }
    }
}

impl Settings {
    /// Tells the programs what changed in the plan.
    fn tell(&mut self, plan: &HookPlan) -> Result<(), SourceError> {
        let failed = |what: &str| {
            let what = format!("telling the programs of {what}");
            move |error: aya::maps::MapError| SourceError::kernel(what, &error)
        };
        if self.told == *plan {
            return Ok(());
        }
        if self.told == HookPlan::default() {
            self.forget_earlier_run();
        }
        for device in self.told.devices.iter().filter(|device| !plan.devices.contains(device)) {
            let _ = self.devices.remove(&device.index.0);
            if let Some(encapsulation) = device.tunnel {
                self.gone_since.insert(encapsulation, clock::mono());
            }
        }
        let has_device = |one: &Encapsulation| plan.devices.iter().any(|d| d.tunnel == Some(*one));
        self.gone_since.retain(|encapsulation, _| !has_device(encapsulation));
        for device in &plan.devices {
            let role = if device.tunnel.is_some() { role::TUNNEL } else { role::UNDERLAY };
            self.devices.insert(device.index.0, role, 0).map_err(failed("devices"))?;
        }
        if self.told.ports != plan.ports {
            let mut bits = [0_u64; 1024];
            for &port in &plan.ports {
                bits[usize::from(port >> 6)] |= 1 << (port & 63);
            }
            self.ports.set(0, bits, 0).map_err(failed("ports"))?;
            let now = if self.told.ports.is_empty() { Mono(0) } else { clock::mono() };
            self.ports_since.retain(|port, _| plan.ports.contains(port));
            for &port in &plan.ports {
                self.ports_since.entry(port).or_insert(now);
            }
        }
        for network in self.told.peers.keys().filter(|net| !plan.peers.contains_key(net)) {
            let _ = self.peers.remove(&key_of(network));
        }
        for (network, peer) in &plan.peers {
            if self.told.peers.get(network) != Some(peer) {
                let address = counts::address_of(peer.0);
                self.peers.insert(&key_of(network), address, 0).map_err(failed("peers"))?;
            }
        }
        self.told = plan.clone();
        Ok(())
    }
}

impl Settings {
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

/// A network as the trie has it: IPv4 mapped into IPv6.
fn key_of(network: &IpNet) -> Key<Address> {
    let bits = match network.network() {
        IpAddr::V4(_) => 96,
        IpAddr::V6(_) => 0,
    };
    let length = bits + u32::from(network.prefix_len());
    Key::new(length, counts::address_of(network.network()))
}

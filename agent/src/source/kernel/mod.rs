//! What the kernel counts at this node's hops: loads the eBPF programs, keeps
//! them where the plan wants them, and reads what they counted.
//!
//! The only part that knows aya. A thread of its own: it keeps the network
//! namespace in which it was started, and blocks in system calls.

pub mod btf;
mod clsact;
mod counts;
mod foreign;
mod hooks;
mod names;
mod netns;
pub mod nic;
mod pins;
mod programs;
mod settings;
mod side;
pub mod symbols;
mod tcx;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::maps::{HashMap, MapData};
use overlaywatch_core::assembly::{SourceId, SourceReport, Update};
use overlaywatch_core::kernel::{Attach, HookPlan, KernelCounts, PacketDrop};
use overlaywatch_core::ladder::{Climb, HopWindows, Window};
use overlaywatch_core::model::{Encapsulation, PeerId};
use overlaywatch_core::probing::{ProbeDrop, Stream};
use overlaywatch_core::time::{MILLISECOND, Mono, SECOND};
use overlaywatch_ebpf as layout;
use overlaywatch_ebpf::{ProbeKey, Windows, hop};
use tokio::sync::{mpsc, watch};

use self::counts::Counts;
use self::foreign::Foreign;
use self::hooks::Hooks;
use self::names::Names;
use self::nic::Nics;
use self::pins::Pins;
pub use self::pins::detach;
use self::programs::Programs;
use self::settings::Settings;
use super::SourceError;
use super::meter::{Closed, send};
use crate::{clock, memory};

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
/// Drop reasons of programs on our hooks (include/net/dropreason-core.h).
const BY_PROGRAMS: [&str; 2] = ["TC_INGRESS", "TC_EGRESS"];
/// Ticks between two prunings of streams that nobody uses any more.
const PRUNE_EVERY: u32 = 2_400;
/// A tunnel device that is gone from the plan may be there again, and not yet
/// known, for this long.
const GONE_NS: u64 = 3 * SECOND;
/// After a failed start it is tried again: the remedy may need no restart.
const RETRY: Duration = Duration::from_secs(60);

/// Where kernels that have type information of their own show it.
pub const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to pin.
    pub pin: PathBuf,
    /// How to attach.
    pub attach: Attach,
    /// UDP port of probes.
    pub probe_port: u16,
    /// The kernel's type information, [`TYPES`].
    pub types: PathBuf,
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

/// Starts the thread in the calling thread's network namespace. It ends when
/// nobody listens to its updates any more, and leaves all in the kernel as it is.
///
/// # Errors
/// When the system refuses a thread.
pub fn spawn(
    options: Options,
    plan: watch::Receiver<Arc<HookPlan>>,
    updates: mpsc::Sender<Update>,
) -> io::Result<(HopReader, JoinHandle<()>)> {
    let (publish, reader) = watch::channel(None);
    let work = move || {
        let Closed = run(&options, &plan, &updates, &publish);
        tracing::debug!("nobody listens any more");
    };
    let thread = thread::Builder::new().name("ebpf".to_owned()).spawn(work)?;
    Ok((HopReader(reader), thread))
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
            Ok(watcher) => return watcher.watch(plan, updates, publish),
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
    pins: Pins,
    programs: Programs,
    hooks: Hooks,
    counts: Counts,
    foreign: Foreign,
    nics: Nics,
    names: Names,
    probes: Arc<HashMap<MapData, ProbeKey, Windows>>,
    /// The same map once more, for removing from it.
    prunable: HashMap<MapData, ProbeKey, Windows>,
    settings: Settings,
    current: KernelCounts,
    /// Streams at the last pruning.
    pruned: BTreeMap<ProbeKey, Windows>,
}

impl Watcher {
    fn start(options: &Options) -> Result<Self, SourceError> {
        let netns = netns::own()?;
        let pins = Pins::open(&options.pin, netns)?;
        let folder = pins.folder();
        let mut programs = programs::load(folder, &options.types, netns, options.probe_port)?;
        let ebpf = &mut programs.ebpf;
        let counts = Counts::open(ebpf)?;
        let probes = Arc::new(counts::take(ebpf, "PROBES")?);
        let prunable = counts::pinned(folder, "PROBES")?;
        let settings = Settings::open(ebpf)?;
        let hooks = Hooks::new(options.attach);
        if programs.lacks.is_none()
            && let Err(error) = hooks::watch_drops(&pins, ebpf)
        {
            programs.lacks = Some(format!("drops are not counted: {error}"));
        }
        let names = Names::new(std::mem::take(&mut programs.reasons));
        // The kernel's type information was read, some 18 MB of it.
        memory::give_back();
        Ok(Self {
            pins,
            programs,
            hooks,
            counts,
            foreign: Foreign::default(),
            nics: Nics::default(),
            names,
            probes,
            prunable,
            settings,
            current: KernelCounts::default(),
            pruned: BTreeMap::new(),
        })
    }

    /// Works until nobody listens.
    fn watch(
        mut self,
        plan: &watch::Receiver<Arc<HookPlan>>,
        updates: &mpsc::Sender<Update>,
        publish: &watch::Sender<Option<Arc<Counted>>>,
    ) -> Closed {
        let mut tick = 0_u32;
        let mut followed = Arc::default();
        let mut is_swept = false;
        loop {
            let began = clock::mono();
            let wanted = Arc::clone(&plan.borrow());
            if !Arc::ptr_eq(&wanted, &followed) {
                self.settings.tell(&wanted);
                followed = Arc::clone(&wanted);
            }
            // Each time: what could not be attached may be attached now.
            self.hooks.follow(&self.pins, &mut self.programs.ebpf, &wanted.devices);
            if !is_swept && !wanted.devices.is_empty() {
                self.hooks.sweep(&self.pins);
                is_swept = true;
            }
            if tick.is_multiple_of(INSPECT_EVERY) {
                self.hooks.inspect(&self.pins, &mut self.programs.ebpf);
            }
            if tick.is_multiple_of(PRUNE_EVERY) && tick > 0 {
                self.prune();
            }
            if tick.is_multiple_of(DROPS_EVERY) {
                self.read(began, tick);
                publish.send_replace(Some(Arc::new(self.counted())));
                let counts = Update::Kernel(Box::new(self.current.clone()));
                let duration_ns = clock::mono().since(began);
                let source = SourceId::Kernel;
                let report = SourceReport { source, gap: None, detail: String::new(), duration_ns };
                let told =
                    send(updates, counts).and_then(|()| send(updates, Update::Source(report)));
                if let Err(closed) = told {
                    return closed;
                }
            }
            tick = tick.wrapping_add(1);
            thread::sleep(TICK);
            if updates.is_closed() {
                return Closed;
            }
        }
    }

    fn read(&mut self, at: Mono, tick: u32) {
        let devices = self.settings.told().devices.iter();
        let ipip = devices.filter(|device| device.tunnel == Some(Encapsulation::Ipip));
        let ipip = ipip.map(|device| device.index).collect();
        self.current.drops = self.counts.drops(at, &mut self.names, &ipip);
        self.current.icmp = self.counts.icmp(at);
        // At once where one of them drops: its name is to come with the loss.
        let is_dropped = self.current.drops.iter().any(|drop| {
            let reason = drop.site.reason.as_deref();
            let is_of_hook = reason.is_some_and(|reason| BY_PROGRAMS.contains(&reason));
            drop.lately > 0 && (is_of_hook || drop.site.is_of_xdp())
        });
        if is_dropped || tick.is_multiple_of(INSPECT_EVERY) {
            let devices = self.hooks.watched().map(|(device, _)| device);
            let is_tcx = self.hooks.is_tcx();
            self.current.foreign = self.foreign.list(&mut self.programs.ebpf, is_tcx, devices);
            self.current.nics = self.nics.of(self.hooks.watched().map(|(device, _)| device));
        }
        let rounds = 1 + self.settings.told().peers.len() / TRAFFIC_ADDRESSES;
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
            .chain(self.settings.problems())
            .chain(self.counts.missed(at))
            .collect();
    }

    fn counted(&self) -> Counted {
        let wanted: BTreeSet<_> =
            self.settings.told().devices.iter().filter(|d| d.tunnel.is_none()).collect();
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
                .told()
                .devices
                .iter()
                .filter_map(|device| {
                    let mut watched = self.hooks.watched();
                    let since = watched.find(|(known, _)| *known == device).map(|(_, at)| at);
                    Some((device.tunnel?, since))
                })
                .collect(),
            ports: self.settings.ports().clone(),
            gone: self.settings.gone().clone(),
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

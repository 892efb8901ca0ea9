//! Two nodes, the loader on them, and probes forged between them.

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use overlaywatch::source::kernel::{self, HopReader, Options, TYPES};
use overlaywatch_core::assembly::{SourceReport, Update};
use overlaywatch_core::kernel::{Attach, HookPlan, HookedDevice, KernelCounts};
use overlaywatch_core::ladder::Climb;
use overlaywatch_core::model::{Encapsulation, IfIndex, PeerId};
use overlaywatch_core::probing::Stream;
use tokio::sync::{mpsc, watch};

pub(crate) use crate::namespace::Namespace;

pub(crate) const VXLAN: Encapsulation = Encapsulation::Vxlan(8472);
pub(crate) const SMALL: Stream = Stream::Small(VXLAN);
pub(crate) const PROBE_PORT: u16 = 9977;
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is there.
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A place for pins of one test's own, emptied at its end however it ends.
pub(crate) struct Pins(PathBuf);

impl Pins {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("overlaywatch-test-{}-{number}", std::process::id());
        Self(Path::new("/sys/fs/bpf").join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether nothing is left.
    pub(crate) fn is_gone(&self) -> bool {
        !self.0.exists()
    }

    /// The pins of a namespace.
    pub(crate) fn of(&self, namespace: &Namespace) -> PathBuf {
        self.0.join(inode(namespace).to_string())
    }

    /// Names of what is pinned for devices of a namespace, sorted.
    pub(crate) fn links(&self, namespace: &Namespace) -> Vec<String> {
        let home = self.of(namespace);
        let names = |folder: &Path| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let versions = names(&home).into_iter().filter(|name| name.starts_with('v'));
        let links = versions.flat_map(|version| names(&home.join(version)));
        let mut all: Vec<String> = links
            .filter(|name| name.starts_with("link-") && name != "link-drops")
            .chain(names(&home).into_iter().filter(|name| name.starts_with("clsact-")))
            .collect();
        all.sort();
        all
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        fn remove(folder: &Path) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { remove(&path) } else { std::fs::remove_file(path).unwrap() }
            }
            std::fs::remove_dir(folder).unwrap();
        }
        if !self.is_gone() {
            remove(&self.0);
        }
    }
}

fn inode(namespace: &Namespace) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let read = || std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    namespace.inside(read).join().unwrap()
}

/// Index of a device; none when it is not there.
pub(crate) fn index(namespace: &Namespace, device: &str) -> Option<IfIndex> {
    let device = device.to_owned();
    let look = move || nix::net::if_::if_nametoindex(device.as_str()).ok().map(IfIndex);
    namespace.inside(look).join().unwrap()
}

/// A device for a plan.
pub(crate) fn device(
    namespace: &Namespace,
    name: &str,
    tunnel: Option<Encapsulation>,
) -> HookedDevice {
    let index = index(namespace, name).unwrap();
    HookedDevice { index, name: name.to_owned(), tunnel, is_ethernet: true }
}

/// Node 1 and node 2: a veth pair and a VXLAN shaped as flannel makes it. No
/// IPv6 but where a test adds it: its own packets would be counted too.
pub(crate) fn pair() -> [Namespace; 2] {
    let nodes = [Namespace::new(), Namespace::new()];
    nodes[0].sh("ip link add eth0 type veth peer name eth1");
    nodes[0].give("eth1", &nodes[1]);
    nodes[1].sh("ip link set eth1 name eth0");
    for (n, node) in [1, 2].into_iter().zip(&nodes) {
        node.sh(&format!(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
             ip addr add 10.0.0.{n}/24 dev eth0
             ip link set eth0 up"
        ));
        make_tunnel(node, n);
    }
    nodes
}

pub(crate) fn make_tunnel(node: &Namespace, n: u8) {
    let other = 3 - n;
    node.sh(&format!(
        "ip link add flannel.1 address 02:00:00:00:00:0{n} type vxlan \
             id 1 dev eth0 local 10.0.0.{n} dstport 8472 nolearning
         ip link set flannel.1 up
         ip addr add 10.244.{n}.0/32 dev flannel.1
         ip neigh add 10.244.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent
         bridge fdb add 02:00:00:00:00:0{other} dev flannel.1 dst 10.0.0.{other}
         ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"
    ));
}

pub(crate) fn underlay(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

pub(crate) fn overlay(n: u8) -> IpAddr {
    IpAddr::from([10, 244, n, 0])
}

/// The plan for node `n` of the pair.
pub(crate) fn plan(node: &Namespace, n: u8) -> HookPlan {
    let other = 3 - n;
    let mut devices = vec![device(node, "eth0", None), device(node, "flannel.1", Some(VXLAN))];
    devices.sort();
    let networks = [format!("10.0.0.{other}/32"), format!("10.244.{other}.0/24")];
    let peer = PeerId(underlay(other));
    HookPlan {
        devices,
        ports: [8472].into(),
        peers: networks.iter().map(|network| (network.parse().unwrap(), peer)).collect(),
    }
}

/// How tests run the loader.
pub(crate) fn options(pins: &Pins, attach: Attach) -> Options {
    Options { pin: pins.path().to_owned(), attach, probe_port: PROBE_PORT, types: TYPES.into() }
}

/// The loader, running in a node.
pub(crate) struct Loader {
    plan: watch::Sender<Arc<HookPlan>>,
    updates: mpsc::Receiver<Update>,
    pub(crate) reader: HopReader,
    thread: Option<JoinHandle<()>>,
    pub(crate) counts: KernelCounts,
    pub(crate) report: Option<SourceReport>,
    /// Readings that came.
    readings: usize,
}

impl Loader {
    pub(crate) fn start(node: &Namespace, options: Options, plan: HookPlan) -> Self {
        let (plan, inbox) = watch::channel(Arc::new(plan));
        let (sender, updates) = mpsc::channel(64);
        let spawn = move || kernel::spawn(options, inbox, sender).unwrap();
        let (reader, thread) = node.inside(spawn).join().unwrap();
        let counts = KernelCounts::default();
        Self { plan, updates, reader, thread: Some(thread), counts, report: None, readings: 0 }
    }

    /// A loader that watches all devices of its plan.
    pub(crate) fn watching(node: &Namespace, options: Options, plan: HookPlan) -> Self {
        let devices: Vec<IfIndex> = plan.devices.iter().map(|device| device.index).collect();
        let mut loader = Self::start(node, options, plan);
        loader
            .wait("all devices to be watched", |counts| (counts.devices == devices).then_some(()));
        assert_eq!(loader.counts.problems, Vec::<String>::new());
        loader
    }

    pub(crate) fn replan(&self, plan: HookPlan) {
        self.plan.send_replace(Arc::new(plan));
    }

    fn fold(&mut self) {
        while let Ok(update) = self.updates.try_recv() {
            match update {
                Update::Kernel(counts) => {
                    self.counts = *counts;
                    self.readings += 1;
                }
                Update::Source(report) => self.report = Some(report),
                _ => {}
            }
        }
    }

    /// Waits until the counts are as they should be.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&KernelCounts) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        loop {
            self.fold();
            if let Some(found) = look(&self.counts) {
                return found;
            }
            let (counts, report) = (&self.counts, &self.report);
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain for {what}: {counts:#?} {report:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until everything was looked at again that is looked at at times.
    pub(crate) fn settle(&mut self) {
        let until = self.readings + 10;
        let began = Instant::now();
        while self.readings < until {
            assert!(began.elapsed() < PATIENCE, "the loader says nothing any more");
            self.fold();
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The windows of a stream, once they are as they should be.
    pub(crate) fn climb(
        &self,
        what: &str,
        stream: Stream,
        epoch: u64,
        is_it: impl Fn(&Climb) -> bool,
    ) -> Climb {
        let mut last = None;
        let began = Instant::now();
        loop {
            last = self.reader.climb(epoch, stream).or(last);
            if let Some(found) = last.filter(&is_it) {
                return found;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}: {last:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Traffic one way over an encapsulation: packets in all, and live ones of late.
    pub(crate) fn traffic(&self, encapsulation: Encapsulation, outbound: bool) -> (u64, u64) {
        let is_it = |t: &&overlaywatch_core::kernel::Traffic| {
            t.encapsulation == encapsulation && t.outbound == outbound
        };
        let found = self.counts.traffic.iter().filter(is_it);
        found.fold((0, 0), |(all, live), t| (all + t.packets, live + t.lately))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Nobody listens any more.
        self.updates.close();
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

/// A probe's bytes (`probe::wire`), `kind` 1 for a request and 2 for a reply.
pub(crate) fn probe(kind: u8, stream: Stream, epoch: u64, seq: u32) -> Vec<u8> {
    let mut bytes = b"OWPB".to_vec();
    bytes.extend([1, kind, 0, 0]);
    bytes.extend(match stream {
        Stream::Underlay => [0; 4],
        Stream::Small(Encapsulation::Vxlan(port)) => {
            let [high, low] = port.to_be_bytes();
            [1, 17, high, low]
        }
        Stream::Small(Encapsulation::Ipip) => [1, 4, 0, 0],
        other => panic!("no test forges {other:?}"),
    });
    bytes.extend(seq.to_be_bytes());
    bytes.extend(epoch.to_be_bytes());
    bytes.resize(100, 0);
    bytes
}

/// Sends messages from one address of a node to the port of probes at another.
pub(crate) fn send(node: &Namespace, from: IpAddr, to: IpAddr, messages: Vec<Vec<u8>>) {
    let work = move || {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        for message in messages {
            // A peer's ICMP errors and a filter's refusal come out here.
            let _ = socket.send_to(&message, (to, PROBE_PORT));
        }
    };
    node.inside(work).join().unwrap();
}

/// Sends a stream's requests from node `from` of the pair to the other.
pub(crate) fn requests(
    node: &Namespace,
    from: u8,
    stream: Stream,
    epoch: u64,
    numbers: std::ops::Range<u32>,
) {
    let (source, target) = match stream {
        Stream::Underlay => (underlay(from), underlay(3 - from)),
        _ => (overlay(from), overlay(3 - from)),
    };
    send(node, source, target, numbers.map(|seq| probe(1, stream, epoch, seq)).collect());
}

/// Takes what is sent to the port of probes.
pub(crate) fn sink(node: &Namespace) -> UdpSocket {
    node.inside(|| UdpSocket::bind(("0.0.0.0", PROBE_PORT)).unwrap()).join().unwrap()
}

//! Live traffic of the lab's own: a packet every 20 ms, counted where it ought
//! to arrive. It says what a fault really breaks, and since when, without
//! asking any agent.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use anyhow::{Context, Result, anyhow};

use crate::netns::{Handle, Netns};
use crate::patience;
use crate::topology::Cluster;

/// Time between two packets.
pub const GAP: Duration = Duration::from_millis(20);
/// A packet that has not arrived after this time will not.
pub const ARRIVES_WITHIN: Duration = Duration::from_millis(500);
/// UDP payload of a small packet, bytes.
const SMALL: usize = 64;
/// IPv4 and UDP headers, bytes.
const HEADERS: usize = 28;
/// IPv6 and UDP headers, bytes.
const HEADERS_V6: usize = 48;

/// An end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A node itself, on the underlay.
    Node(usize),
    /// Its pod, through the overlay.
    Pod(usize),
    /// The same by its address in the pool that pods move to.
    MovedPod(usize),
    /// Its pod, through the overlay of IPv6, where it has IPv4 as well.
    PodV6(usize),
}

/// A path that packets take, one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// From where.
    pub from: End,
    /// To where.
    pub to: End,
    /// Packets fill the tunnel's MTU, instead of being small.
    pub full: bool,
}

/// Small packets between the pods of two nodes.
#[must_use]
pub const fn pods(from: usize, to: usize) -> Path {
    Path { from: End::Pod(from), to: End::Pod(to), full: false }
}

/// Small packets between the pods of two nodes, in the pool that pods move to.
#[must_use]
pub const fn moved_pods(from: usize, to: usize) -> Path {
    Path { from: End::MovedPod(from), to: End::MovedPod(to), full: false }
}

/// Small packets between the pods of two nodes over IPv6, where both have IPv4 as well.
#[must_use]
pub const fn pods_v6(from: usize, to: usize) -> Path {
    Path { from: End::PodV6(from), to: End::PodV6(to), full: false }
}

/// Packets as large as a pod can send, between the pods of two nodes.
#[must_use]
pub const fn full_pods(from: usize, to: usize) -> Path {
    Path { from: End::Pod(from), to: End::Pod(to), full: true }
}

/// Small packets between two nodes, without a tunnel.
#[must_use]
pub const fn nodes(from: usize, to: usize) -> Path {
    Path { from: End::Node(from), to: End::Node(to), full: false }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |end: End| match end {
            End::Node(index) => format!("node-{}", index + 1),
            End::Pod(index) => format!("pod-{}", index + 1),
            End::MovedPod(index) => format!("moved pod-{}", index + 1),
            End::PodV6(index) => format!("pod-{} (IPv6)", index + 1),
        };
        let size = if self.full { " (full-sized)" } else { "" };
        write!(f, "{} to {}{size}", end(self.from), end(self.to))
    }
}

/// What became of one packet.
#[derive(Clone, Copy, Debug)]
struct Packet {
    sent: Instant,
    arrived: bool,
}

/// Packets on their way along one path, until this is dropped.
#[derive(Debug)]
pub struct Flow {
    /// Where they go.
    pub path: Path,
    packets: Arc<Mutex<Vec<Packet>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    /// Starts sending.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn start(cluster: &Cluster, path: Path) -> Result<Self> {
        // Every flow of the process has a port of its own, so that flows of
        // one cluster do not meet.
        static PORTS: AtomicU16 = AtomicU16::new(0);
        let port = 20_000 + PORTS.fetch_add(1, Ordering::Relaxed) % 10_000;
        let (from, source) = place(cluster, path.from)?;
        let (to, target) = place(cluster, path.to)?;
        let packets = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let receiver = socket(to, target, port)?;
        let sender = socket(from, source, port)?;
        let headers = if target.is_ipv6() { HEADERS_V6 } else { HEADERS };
        let bytes = if path.full { usize::from(cluster.shape.mtu()) - headers } else { SMALL };
        let receive = {
            let (packets, stop) = (Arc::clone(&packets), Arc::clone(&stop));
            thread::spawn(move || receive(&receiver, &packets, &stop))
        };
        let send = {
            let (packets, stop) = (Arc::clone(&packets), Arc::clone(&stop));
            thread::spawn(move || send(&sender, (target, port), bytes, &packets, &stop))
        };
        Ok(Self { path, packets, stop, threads: vec![receive, send] })
    }

    /// When the first packet was sent, at or after `since`, that got lost.
    #[must_use]
    pub fn first_lost(&self, since: Instant) -> Option<Instant> {
        self.decided(since).into_iter().find(|packet| !packet.arrived).map(|packet| packet.sent)
    }

    /// How many packets that were sent at or after `since` got lost, and of how many.
    #[must_use]
    pub fn lost(&self, since: Instant) -> (usize, usize) {
        let decided = self.decided(since);
        (decided.iter().filter(|packet| !packet.arrived).count(), decided.len())
    }

    /// Packets that had the time to arrive.
    fn decided(&self, since: Instant) -> Vec<Packet> {
        let packets = lock(&self.packets);
        let first = packets.partition_point(|packet| packet.sent < since);
        let limit = patience::stretched(ARRIVES_WITHIN);
        let old = packets.partition_point(|packet| packet.sent.elapsed() > limit);
        packets.get(first..old.max(first)).unwrap_or_default().to_vec()
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said why.
            let _ = thread.join();
        }
    }
}

/// A lock that a panicked thread held is as good as any: packets are whole.
fn lock(packets: &Mutex<Vec<Packet>>) -> MutexGuard<'_, Vec<Packet>> {
    packets.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(cluster: &Cluster, end: End) -> Result<(&Netns, IpAddr)> {
    Ok(match end {
        End::Node(index) => {
            let node = cluster.node(index)?;
            (&node.netns, node.address(cluster.shape))
        }
        End::Pod(index) => {
            let node = cluster.node(index)?;
            if cluster.shape.has_ipv4() {
                (&node.pod, node.pod_address().into())
            } else {
                (&node.pod, node.pod_address_v6().into())
            }
        }
        End::MovedPod(index) => {
            let node = cluster.node(index)?;
            (&node.pod, node.moved_pod_address().into())
        }
        End::PodV6(index) => {
            let node = cluster.node(index)?;
            (&node.pod, node.pod_address_v6().into())
        }
    })
}

/// A socket stays in the namespace that it was made in.
fn socket(netns: &Netns, address: IpAddr, port: u16) -> Result<UdpSocket> {
    let netns: Handle = netns.handle()?;
    let made = thread::spawn(move || -> Result<UdpSocket> {
        netns.join()?;
        let socket = UdpSocket::bind((address, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(socket)
    });
    made.join()
        .map_err(|_| anyhow!("a thread that opens a socket panicked"))?
        .with_context(|| format!("cannot open UDP {address}:{port}"))
}

fn send(
    socket: &UdpSocket,
    target: (IpAddr, u16),
    bytes: usize,
    packets: &Mutex<Vec<Packet>>,
    stop: &AtomicBool,
) {
    let mut payload = vec![0; bytes];
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = {
            let mut packets = lock(packets);
            packets.push(Packet { sent: Instant::now(), arrived: false });
            packets.len() as u64 - 1
        };
        if let Some(place) = payload.first_chunk_mut::<8>() {
            *place = number.to_be_bytes();
        }
        // What the kernel refuses to send is lost as well.
        let _ = socket.send_to(&payload, target);
        next += patience::stretched(GAP);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, packets: &Mutex<Vec<Packet>>, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        // The timeout lets the thread look at `stop`; ICMP errors are not its business.
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let number = buffer.get(..length).and_then(|data| data.first_chunk::<8>());
        let Some(number) = number.map(|bytes| u64::from_be_bytes(*bytes)) else { continue };
        let position = usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(packet) = lock(packets).get_mut(position) {
            packet.arrived = true;
        }
    }
}

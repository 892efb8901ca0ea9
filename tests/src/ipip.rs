//! IPIP packets without a tunnel device: what a node sends whose peer's kernel
//! has no IPIP. Made by hand, since a kernel that could make them could also
//! take them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::topology::Cluster;

/// IPPROTO_IPIP.
const IPIP: i32 = 4;
/// IPPROTO_UDP.
const UDP: u8 = 17;
/// Time between two packets.
const GAP: Duration = Duration::from_millis(200);
/// The discard service (RFC 863).
const DISCARD: u16 = 9;
/// Time to live.
const LIFE: u8 = 64;
/// Bytes of a UDP header.
const UDP_HEADER: u8 = 8;
/// Bytes of a packet: an IPv4 header without options and a UDP header.
const LENGTH: u8 = 20 + UDP_HEADER;

/// Sends IPIP packets from node to node, pod to pod inside, until it is dropped.
#[derive(Debug)]
pub struct IpipSender {
    refused: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IpipSender {
    /// Starts to send.
    ///
    /// # Errors
    /// Without CAP_NET_RAW in the namespace.
    pub fn start(cluster: &Cluster, from: usize, to: usize) -> Result<Self> {
        let (from, to) = (cluster.node(from)?, cluster.node(to)?);
        let inner = packet(from.pod_address(), to.pod_address());
        let (source, target) = (from.underlay(), to.underlay());
        let socket = from.netns.enter(|| open(source, target).context("cannot send IPIP"))?;
        let refused = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (refused, stop) = (Arc::clone(&refused), Arc::clone(&stop));
            thread::spawn(move || send(&socket, &inner, &refused, &stop))
        };
        Ok(Self { refused, stop, thread: Some(thread) })
    }

    /// Whether the peer's kernel has said that it knows no such protocol (ICMP
    /// type 3, code 2).
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for IpipSender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that panicked has already said why.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A raw socket that is connected is told of ICMP errors (raw(7)), by SO_ERROR
/// alone: sending does not look.
fn open(source: Ipv4Addr, target: Ipv4Addr) -> Result<Socket> {
    let address = |address| SockAddr::from(SocketAddrV4::new(address, 0));
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPIP)))?;
    socket.bind(&address(source))?;
    socket.connect(&address(target))?;
    Ok(socket)
}

fn send(socket: &Socket, inner: &[u8], refused: &AtomicBool, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // An error does not stop it: a node whose packets are refused sends on.
        let _ = socket.send(inner);
        if let Ok(Some(error)) = socket.take_error()
            && error.raw_os_error() == Some(libc::ENOPROTOOPT)
        {
            refused.store(true, Ordering::Relaxed);
        }
        thread::sleep(GAP);
    }
}

/// An IPv4 packet (RFC 791) with an empty UDP datagram (RFC 768) that has no checksum.
fn packet(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let addresses = [from.octets(), to.octets()].concat();
    let header = |checksum: u16| {
        let [high, low] = checksum.to_be_bytes();
        let fixed = [0x45, 0, 0, LENGTH, 0, 0, 0x40, 0, LIFE, UDP, high, low];
        [fixed.as_slice(), &addresses].concat()
    };
    let mut sum: u32 = header(0)
        .chunks_exact(2)
        .map(|pair| pair.iter().fold(0, |word, &b| word << 8 | u32::from(b)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // What is left fits: the loop has seen to it.
    let checksum = !u16::try_from(sum).unwrap_or(u16::MAX);
    let port = DISCARD.to_be_bytes();
    [header(checksum).as_slice(), &port, &port, &[0, UDP_HEADER, 0, 0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_is_whole() {
        let packet = packet(Ipv4Addr::new(10, 42, 1, 2), Ipv4Addr::new(10, 42, 2, 2));
        assert_eq!(packet.len(), usize::from(LENGTH));
        let words = packet[..20].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let sum: u32 = words.sum();
        // A header with its checksum adds up to nothing but ones (RFC 1071).
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}

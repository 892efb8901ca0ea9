//! Small packets, as many as possible.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;

use crate::Nodes;
use crate::netns::within;

/// To where: discard (RFC 863).
pub(crate) const PORT: u16 = 9;
/// Packets to one system call.
const BATCH: u32 = 64;
/// As small as useful packets are: an inner IP packet of 46 bytes.
const PAYLOAD_BYTES: usize = 18;
/// Packets that are neither dropped nor delivered for so long are lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was done.
#[derive(Serialize)]
pub(crate) struct Done {
    packets: u64,
    seconds: f64,
    /// Of the processors, for the senders and for all that the kernel did in their name.
    cpu_seconds: f64,
}

/// A sender on one node and a receiver on the other, in turns on one thread of
/// one processor: the kernel takes each packet the whole way within the
/// sender's system call, so no queue can overflow, nothing waits for another
/// processor, and all that packets cost is paid by this thread.
pub(crate) struct Flood {
    sender: UdpSocket,
    receiver: UdpSocket,
    outgoing: Batch,
    incoming: Batch,
}

impl Flood {
    pub(crate) fn open(nodes: &Nodes, server: SocketAddrV4) -> Result<Self> {
        stay_on(0)?;
        let receiver = within(&nodes.to, || {
            UdpSocket::bind(server).with_context(|| format!("listening on {server}"))
        })?;
        let sender = within(&nodes.from, || connect(server))?;
        Ok(Self { sender, receiver, outgoing: Batch::new(), incoming: Batch::new() })
    }

    /// Sends for so long; all of it was received.
    pub(crate) fn run(&mut self, duration: Duration) -> Result<Done> {
        let (start, cpu) = (Instant::now(), cpu_time()?);
        let mut packets = 0;
        while start.elapsed() < duration {
            let sent = self.outgoing.send(&self.sender)?;
            self.receive(sent)?;
            packets += sent as u64;
        }
        let cpu_seconds = cpu_time()?.saturating_sub(cpu).as_secs_f64();
        Ok(Done { packets, seconds: start.elapsed().as_secs_f64(), cpu_seconds })
    }

    fn receive(&mut self, mut missing: usize) -> Result<()> {
        let mut since = None;
        while missing > 0 {
            let received = self.incoming.receive(&self.receiver)?;
            missing = missing.saturating_sub(received);
            if received == 0 {
                let since = *since.get_or_insert_with(Instant::now);
                ensure!(since.elapsed() < PATIENCE, "{missing} packets were lost on the way");
            }
        }
        Ok(())
    }
}

/// Sends with several threads what the sender's own kernel drops.
pub(crate) fn burst(
    from: &Path,
    server: SocketAddrV4,
    duration: Duration,
    threads: u32,
) -> Result<Done> {
    let send = |thread: u32| {
        stay_on(thread)?;
        let socket = connect(server)?;
        let mut batch = Batch::new();
        let (start, cpu) = (Instant::now(), cpu_time()?);
        let mut packets = 0;
        while start.elapsed() < duration {
            packets += batch.send(&socket)? as u64;
        }
        let cpu_seconds = cpu_time()?.saturating_sub(cpu).as_secs_f64();
        anyhow::Ok(Done { packets, seconds: start.elapsed().as_secs_f64(), cpu_seconds })
    };
    let work = || {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || send(thread))).collect();
            let done = threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a sender panicked"))?);
            done.collect::<Result<Vec<_>>>()
        })
    };
    let done = within(from, work)?;
    Ok(Done {
        packets: done.iter().map(|done| done.packets).sum(),
        seconds: done.iter().map(|done| done.seconds).fold(0.0, f64::max),
        cpu_seconds: done.iter().map(|done| done.cpu_seconds).sum(),
    })
}

fn connect(server: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server).with_context(|| format!("no route to {server}"))?;
    Ok(socket)
}

/// Keeps the calling thread on one of the processors that it may use.
fn stay_on(number: u32) -> Result<()> {
    let may = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    let all: Vec<usize> =
        (0..CpuSet::count()).filter(|&cpu| may.is_set(cpu).unwrap_or(false)).collect();
    let index = usize::try_from(number)? % all.len().max(1);
    let mut one = CpuSet::new();
    one.set(*all.get(index).context("no processor")?)?;
    sched_setaffinity(Pid::from_raw(0), &one).context("choosing a processor")
}

/// Processor time of the calling thread so far.
fn cpu_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

/// Packets of one system call. All of them share one buffer: nobody reads what
/// is in them.
struct Batch {
    // The headers point here, and vectors stay where they are.
    _buffer: Vec<u8>,
    _vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Batch {
    fn new() -> Self {
        let mut buffer = vec![0_u8; PAYLOAD_BYTES];
        let mut vectors =
            vec![libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }];
        // SAFETY: plain data of C, for which zeroes mean: no address, no control message.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_iov = vectors.as_mut_ptr();
        header.msg_hdr.msg_iovlen = vectors.len();
        Self { _buffer: buffer, _vectors: vectors, headers: vec![header; BATCH as usize] }
    }

    /// How many were sent.
    fn send(&mut self, socket: &UdpSocket) -> Result<usize> {
        // SAFETY: the headers and what they point to live as long as the batch.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), BATCH, 0) };
        Ok(usize::try_from(Errno::result(sent).context("sending")?)?)
    }

    /// How many had arrived.
    fn receive(&mut self, socket: &UdpSocket) -> Result<usize> {
        // SAFETY: as above; no timeout is given.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match Errno::result(received) {
            Err(Errno::EAGAIN) => Ok(0),
            received => Ok(usize::try_from(received.context("receiving")?)?),
        }
    }
}

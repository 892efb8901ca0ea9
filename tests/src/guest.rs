//! What a fault keeps running on a node until it is dropped: daemons, servers
//! and senders.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::interrupt::wait_until;
use crate::netns::Netns;

/// The longest that a thread does not look whether it is to end.
const ATTENTION: Duration = Duration::from_millis(50);
/// The discard service (RFC 863).
const DISCARD: u16 = 9;
/// For how long a listener may outlive its end.
const CLOSES_WITHIN: Duration = Duration::from_secs(2);
/// Packets that a sender sends without a pause.
const BURST: u16 = 50;
/// And the pause.
const PAUSE: Duration = Duration::from_millis(4);

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it, silently. It dies with the calling thread.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        Ok(Self(child))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A process that already ended is already where it should be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A thread that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Does `work` again and again, each time for no longer than a moment.
    fn start(mut work: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                work();
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// A service on the loopback of a namespace that answers each request with
    /// `status`.
    pub(crate) fn answer(netns: &Netns, port: u16, status: u16) -> Result<Self> {
        let listener = netns.enter(|| {
            // A process that another thread starts has the last listener, too, until
            // it becomes its own program.
            let mut listener = None;
            wait_until(CLOSES_WITHIN, || {
                listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
                    bound => Some(bound?),
                };
                Ok(listener.is_some())
            })?;
            let listener = listener.with_context(|| format!("port {port} stays in use"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        Ok(Self::start(move || match listener.accept() {
            // One who asks and goes away is no matter.
            Ok((stream, _)) => drop(reply(stream, status)),
            Err(_) => thread::sleep(ATTENTION),
        }))
    }

    /// Takes in whatever is sent to a namespace's discard port.
    pub(crate) fn discard(netns: &Netns) -> Result<Self> {
        let socket = netns.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DISCARD))?))?;
        socket.set_read_timeout(Some(ATTENTION))?;
        let mut buffer = [0; 64];
        // It comes back without a packet, too, to be asked whether it is to end.
        Ok(Self::start(move || drop(socket.recv(&mut buffer))))
    }

    /// Sends packets of so many bytes from a namespace to the discard ports of all of
    /// `to`, over and over.
    pub(crate) fn send(netns: &Netns, to: Vec<Ipv4Addr>, bytes: usize) -> Result<Self> {
        let socket = netns.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        let packet = vec![0; bytes];
        Ok(Self::start(move || {
            for &to in &to {
                // An answer that the port is closed is told of the next packet.
                let _ = socket.send_to(&packet, (to, DISCARD));
            }
            thread::sleep(PAUSE);
        }))
    }

    /// Sends packets from a namespace to the discard port of `to`, each from another
    /// port, as look-ups of names are.
    pub(crate) fn send_anew(netns: &Netns, to: Ipv4Addr) -> Result<Self> {
        let handle = netns.handle()?;
        let mut has_joined = false;
        Ok(Self::start(move || {
            if !has_joined {
                // Without the namespace nothing arrives, and the fault is not seen.
                has_joined = handle.join().is_ok();
            }
            if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
                let _ = socket.send_to(&[0; 16], (to, DISCARD));
            }
            thread::sleep(25 * PAUSE);
        }))
    }

    /// Sends packets from a namespace to the discard port of `to`, each from the
    /// next of `ports`, over and over: as many flows as ports.
    pub(crate) fn send_from_ports(
        netns: &Netns,
        to: Ipv4Addr,
        ports: std::ops::Range<u16>,
    ) -> Result<Self> {
        let handle = netns.handle()?;
        let (first, mut next) = (ports.start, ports.start);
        let mut has_joined = false;
        Ok(Self::start(move || {
            if !has_joined {
                // Without the namespace nothing arrives, and the fault is not seen.
                has_joined = handle.join().is_ok();
            }
            for _ in 0..BURST {
                // A port that is taken is passed over.
                if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, next)) {
                    let _ = socket.send_to(&[0; 16], (to, DISCARD));
                }
                next = if next + 1 < ports.end { next + 1 } else { first };
            }
            thread::sleep(PAUSE);
        }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that panicked has already said why.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Reads a request to its end and answers it.
fn reply(mut stream: TcpStream, status: u16) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ATTENTION))?;
    let (mut request, mut part) = (Vec::<u8>::new(), [0; 512]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 4_096 {
        let count = stream.read(&mut part)?;
        if count == 0 {
            break;
        }
        request.extend(part.iter().take(count));
    }
    write!(stream, "HTTP/1.1 {status} Said\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

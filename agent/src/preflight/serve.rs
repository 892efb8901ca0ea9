//! Who answers: `preflight --serve` for a while, an agent as long as it runs.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlaywatch_core::preflight::frame::Refusal;
use overlaywatch_core::preflight::report::Report;
use overlaywatch_core::time::{MILLISECOND, Mono, SECOND};
use socket2::{Domain, Socket, Type};

use super::session::{self, PATIENCE, later};
use super::{PreflightError, socket};
use crate::cli::{PodPair, PreflightArgs};
use crate::clock;

/// Connections that wait for their turn.
const WAITING: i32 = 64;
/// An agent serves a peer so seldom.
const APART: Duration = Duration::from_secs(5);
/// An agent waits so long for a frame: a peer that falls silent keeps the others waiting.
const AGENTS_PATIENCE: Duration = Duration::from_secs(3);
/// An agent's pause between two connections, so that strangers cost it little.
const PAUSE: Duration = Duration::from_millis(50);
/// After this time an agent tries again to have its port.
const RETRY: Duration = Duration::from_secs(60);

/// Serves the peers of a command line, one run at a time.
pub(super) struct Server<'a> {
    args: &'a PreflightArgs,
    listener: TcpListener,
    until: Mono,
    /// Peers that are still to come, with `--once`.
    waiting: Vec<IpAddr>,
}

impl<'a> Server<'a> {
    pub(super) fn open(args: &'a PreflightArgs) -> Result<Self, PreflightError> {
        let port = args.port;
        // What a run will need is tried now, while somebody looks.
        for peer in &args.peers {
            drop(socket::open(*peer)?);
        }
        let listener = listen(port)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| PreflightError::Listen { port, source })?;
        let until = Mono(clock::mono().0.saturating_add(args.seconds.saturating_mul(SECOND)));
        Ok(Self { args, listener, until, waiting: args.peers.clone() })
    }

    /// The next peer that asks, and what passes; none when the time is over,
    /// or with `--once` when all came.
    pub(super) fn serve_next(&mut self) -> Option<Result<Report, PreflightError>> {
        while !(self.args.once && self.waiting.is_empty()) {
            let left = self.until.0.checked_sub(clock::mono().0)? / MILLISECOND;
            let waiting = &mut [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            // A signal only makes it shorter.
            let _ = poll(waiting, PollTimeout::try_from(left + 1).unwrap_or(PollTimeout::MAX));
            let Ok((stream, from)) = accept(&self.listener) else { continue };
            // Strangers get no answer.
            if !self.args.peers.contains(&from) {
                continue;
            }
            let served = session::serve(stream, from, &|_| self.args.pods, PATIENCE);
            if served.is_ok() {
                self.waiting.retain(|peer| *peer != from);
            }
            return Some(served);
        }
        None
    }
}

/// What an agent knows of those who ask.
pub trait Acquaintance: Send + 'static {
    /// Whether the address is a peer's.
    fn is_peer(&self, address: IpAddr) -> bool;

    /// Whether `pods.own` is an address of this node's pods, and `pods.peer` one of
    /// that peer's.
    fn has_pods(&self, peer: IpAddr, pods: PodPair) -> bool;
}

/// Answers peers on a thread of its own, in the caller's network namespace, as
/// long as the process lives. Where another process has the port, as a
/// `preflight --serve`, it waits until that is free.
///
/// # Errors
/// The system refuses a thread.
pub fn attend(port: u16, known: impl Acquaintance) -> io::Result<()> {
    let attend = move || {
        let listener = loop {
            match listen(port) {
                Ok(listener) => break listener,
                Err(error) => {
                    tracing::warn!(%error, port, "no preflight is answered: no such TCP port");
                    std::thread::sleep(RETRY);
                }
            }
        };
        let mut visits = Visits::default();
        loop {
            let Ok((stream, peer)) = accept(&listener) else {
                std::thread::sleep(PAUSE);
                continue;
            };
            if known.is_peer(peer) {
                answer(stream, peer, &known, &mut visits);
            } else {
                // Strangers get no answer.
                drop(stream);
            }
            std::thread::sleep(PAUSE);
        }
    };
    std::thread::Builder::new().name("preflight".to_owned()).spawn(attend).map(drop)
}

fn answer(mut stream: TcpStream, peer: IpAddr, known: &impl Acquaintance, visits: &mut Visits) {
    if !visits.may_come(peer, clock::mono()) {
        return session::refuse(&mut stream, Refusal::TooOften);
    }
    let pods = |told: Option<PodPair>| told.filter(|&pods| known.has_pods(peer, pods));
    match session::serve(stream, peer, &pods, AGENTS_PATIENCE) {
        Ok(report) => {
            tracing::info!(%peer, passes = report.passes(), "answered a preflight");
        }
        Err(error) => tracing::info!(%peer, %error, "a preflight came to nothing"),
    }
    visits.note(peer, clock::mono());
}

/// When each peer's last run ended, of those of the last moments.
#[derive(Debug, Default)]
struct Visits(BTreeMap<IpAddr, Mono>);

impl Visits {
    fn may_come(&mut self, peer: IpAddr, now: Mono) -> bool {
        // As many remain as there can be runs in that time.
        self.0.retain(|_, last| later(*last, APART) > now);
        !self.0.contains_key(&peer)
    }

    fn note(&mut self, peer: IpAddr, now: Mono) {
        self.0.insert(peer, now);
    }
}

/// A connection, and who is at its other end.
fn accept(listener: &TcpListener) -> io::Result<(TcpStream, IpAddr)> {
    let (stream, from) = listener.accept()?;
    Ok((stream, from.ip().to_canonical()))
}

/// Listens on both families, or on IPv4 where the kernel has no other.
fn listen(port: u16) -> io::Result<TcpListener> {
    match listen_on(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            listen_on(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        listening => listening,
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Past runs' connections that linger do no harm.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(WAITING)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_comes_once_in_a_while_and_is_forgotten_then() {
        let [a, b] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let at = |seconds| Mono(seconds * SECOND);
        let mut visits = Visits::default();
        assert!(visits.may_come(a, at(1)));
        visits.note(a, at(2));
        assert!(!visits.may_come(a, at(6)));
        assert!(visits.may_come(b, at(6)), "others may");
        assert!(visits.may_come(a, at(7)));
        assert!(visits.0.is_empty());
    }
}

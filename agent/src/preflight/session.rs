//! A run, at either end.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlaywatch_core::preflight::frame::{FRAME_BYTES, Frame, Kind};
use overlaywatch_core::preflight::packet::{self, Ends, Mark, SMALL_BYTES};
use overlaywatch_core::preflight::report::Report;
use overlaywatch_core::preflight::{Cell, Cells, Method, ROUNDS, Size};
use overlaywatch_core::time::{MILLISECOND, Mono, SECOND};

use super::PreflightError;
use super::socket::{Ear, Mouth, Place, mtu_of};
use crate::cli::{PodPair, PreflightArgs};
use crate::clock;

/// How long a connection may take to come about, and an answer to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// From one round to the next, milliseconds: a policer's burst is no verdict.
const ROUND_MS: u64 = 100;
/// How long what was sent last may take, milliseconds.
const SETTLE_MS: u64 = 700;

/// One end of a run.
struct End {
    stream: TcpStream,
    own: Ipv4Addr,
    peer: Ipv4Addr,
    mtu: u16,
    /// Whether this end serves.
    serves: bool,
    pods: Option<PodPair>,
    ear: Ear,
    mouth: Mouth,
    cells: Cells,
}

/// Asks a peer for a run, and says what passes.
///
/// # Errors
/// What keeps it from being said.
pub(super) fn ask(
    args: &PreflightArgs,
    peer: Ipv4Addr,
    nonce: u64,
) -> Result<Report, PreflightError> {
    let port = args.port;
    // First, since without these nothing is to be asked.
    let (ear, mouth) = (Ear::open()?, Mouth::open()?);
    let stream =
        TcpStream::connect_timeout(&SocketAddr::from(SocketAddrV4::new(peer, port)), PATIENCE)
            .map_err(|source| PreflightError::Connect { peer, port, source })?;
    let mut end = End::new(stream, peer, false, args.pods, ear, mouth)?;
    let wanted = mask(&args.only);
    end.say(Kind::Ask, wanted, nonce)?;
    let accepted = end.hear(Kind::Accept)?;
    end.check(&accepted, wanted, nonce)?;
    if let Some(own) = args.pods {
        let other = accepted.pods.map(|(own, peer)| PodPair { own, peer });
        if other != Some(PodPair { own: own.peer, peer: own.own }) {
            return Err(PreflightError::Pods { peer, own, other });
        }
    }
    end.exchange(wanted, nonce);
    end.say(Kind::Finish, wanted, nonce)?;
    let result = end.hear(Kind::Result)?;
    end.check(&result, wanted, nonce)?;
    end.listen(nonce, clock::mono());
    end.say(Kind::Result, wanted, nonce)?;
    Ok(end.report(&result, wanted))
}

/// Serves peers, one run at a time.
pub(super) struct Server<'a> {
    args: &'a PreflightArgs,
    listener: TcpListener,
    until: Mono,
    /// Peers that are still to come, with `--once`.
    waiting: Vec<Ipv4Addr>,
}

impl<'a> Server<'a> {
    pub(super) fn open(args: &'a PreflightArgs) -> Result<Self, PreflightError> {
        let port = args.port;
        // What a run will need is tried now, while somebody looks.
        drop((Ear::open()?, Mouth::open()?));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
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
            let Ok((stream, from)) = self.listener.accept() else { continue };
            let IpAddr::V4(from) = from.ip() else { continue };
            // Strangers get no answer.
            if !self.args.peers.contains(&from) {
                continue;
            }
            let served = self.serve(stream, from);
            if served.is_ok() {
                self.waiting.retain(|peer| *peer != from);
            }
            return Some(served);
        }
        None
    }

    fn serve(&self, stream: TcpStream, peer: Ipv4Addr) -> Result<Report, PreflightError> {
        let (ear, mouth) = (Ear::open()?, Mouth::open()?);
        let mut end = End::new(stream, peer, true, self.args.pods, ear, mouth)?;
        let asked = end.hear(Kind::Ask)?;
        let (mut wanted, nonce) = (asked.wanted, asked.nonce);
        let told = end.pods.map(|pods| (pods.peer, pods.own));
        end.say(Kind::Accept, wanted, nonce)?;
        if told != asked.pods {
            // The other end complains where it was told of pods.
            wanted &= !Method::Plain.bit();
        }
        end.exchange(wanted, nonce);
        let finished = end.hear(Kind::Finish)?;
        end.check(&finished, asked.wanted, nonce)?;
        end.listen(nonce, clock::mono());
        end.say(Kind::Result, asked.wanted, nonce)?;
        let result = end.hear(Kind::Result)?;
        end.check(&result, asked.wanted, nonce)?;
        Ok(end.report(&result, asked.wanted))
    }
}

impl End {
    fn new(
        stream: TcpStream,
        peer: Ipv4Addr,
        serves: bool,
        pods: Option<PodPair>,
        ear: Ear,
        mouth: Mouth,
    ) -> Result<Self, PreflightError> {
        let own = stream.local_addr().map_err(|source| PreflightError::Talk {
            peer,
            own: Ipv4Addr::UNSPECIFIED,
            source,
        })?;
        let IpAddr::V4(own) = own.ip() else { return Err(PreflightError::NoNode(peer)) };
        if own == peer {
            return Err(PreflightError::Own(peer));
        }
        let set = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_nodelay(true));
        set.map_err(|source| PreflightError::Talk { peer, own, source })?;
        let (mtu, cells) = (mtu_of(own)?, Cells::default());
        Ok(Self { stream, own, peer, mtu, serves, pods, ear, mouth, cells })
    }

    fn say(&mut self, kind: Kind, wanted: u8, nonce: u64) -> Result<(), PreflightError> {
        let pods = self.pods.map(|pods| (pods.own, pods.peer));
        let frame = Frame { kind, wanted, nonce, pods, mtu: self.mtu, cells: self.cells };
        let said = self.stream.write_all(&frame.encode());
        said.map_err(|source| self.silent(source))
    }

    fn hear(&mut self, kind: Kind) -> Result<Frame, PreflightError> {
        let mut bytes = [0; FRAME_BYTES];
        let heard = self.stream.read_exact(&mut bytes);
        heard.map_err(|source| self.silent(source))?;
        let frame = Frame::decode(&bytes)
            .map_err(|source| PreflightError::Frame { peer: self.peer, source })?;
        let fits = frame.kind == kind;
        fits.then_some(frame).ok_or(PreflightError::Astray { peer: self.peer })
    }

    fn silent(&self, source: io::Error) -> PreflightError {
        PreflightError::Talk { peer: self.peer, own: self.own, source }
    }

    fn check(&self, frame: &Frame, wanted: u8, nonce: u64) -> Result<(), PreflightError> {
        let fits = (frame.wanted, frame.nonce) == (wanted, nonce);
        fits.then_some(()).ok_or(PreflightError::Astray { peer: self.peer })
    }

    /// Sends all rounds and listens meanwhile.
    fn exchange(&mut self, wanted: u8, nonce: u64) {
        let start = clock::mono();
        for round in 0..ROUNDS {
            for method in Method::ALL.into_iter().filter(|method| method.bit() & wanted != 0) {
                for size in Size::ALL {
                    self.send(Mark { nonce, method, size, round, back: self.serves });
                }
            }
            let next = (u64::from(round) + 1) * ROUND_MS * MILLISECOND;
            self.listen(nonce, Mono(start.0 + next));
        }
        let settled = Mono(clock::mono().0 + SETTLE_MS * MILLISECOND);
        self.listen(nonce, settled);
    }

    fn send(&mut self, mark: Mark) {
        let ends = Ends {
            from: self.own,
            to: self.peer,
            pods: self.pods.map(|pods| (pods.own, pods.peer)),
        };
        let bytes = match mark.size {
            Size::Small => SMALL_BYTES,
            Size::Full => self.mtu,
        };
        let Some(packet) = packet::build(&ends, mark, bytes) else { return };
        let sent = self.mouth.send(&packet, self.peer);
        let cell = cell_of(&mut self.cells, mark);
        match sent {
            Ok(()) => cell.sent |= 1 << mark.round,
            Err(error) => {
                let errno = error.raw_os_error().and_then(|errno| u8::try_from(errno).ok());
                cell.error = errno.unwrap_or(u8::MAX);
            }
        }
    }

    /// Notes what comes until then, and what is there in any case.
    fn listen(&mut self, nonce: u64, until: Mono) {
        loop {
            let (cells, serves) = (&mut self.cells, self.serves);
            self.ear.drain(|place, mark| {
                if mark.nonce != nonce || mark.back == serves {
                    return;
                }
                let cell = cell_of(cells, mark);
                match place {
                    Place::Nic => cell.reached |= 1 << mark.round,
                    Place::Delivered => cell.delivered |= 1 << mark.round,
                }
            });
            let left = until.0.saturating_sub(clock::mono().0);
            if left == 0 {
                break;
            }
            self.ear.wait(left.div_ceil(MILLISECOND));
        }
    }

    fn report(&self, other: &Frame, wanted: u8) -> Report {
        Report::new((self.own, self.mtu, &self.cells), (self.peer, other.mtu, &other.cells), wanted)
    }
}

fn cell_of(cells: &mut Cells, mark: Mark) -> &mut Cell {
    &mut cells[mark.method.index()][mark.size.index()]
}

/// The methods that are asked for: all, unless some are named.
fn mask(only: &[Method]) -> u8 {
    let named = if only.is_empty() { &Method::ALL[..] } else { only };
    named.iter().fold(0, |mask, method| mask | method.bit())
}

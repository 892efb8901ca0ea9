//! A run, at either end.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use overlaywatch_core::preflight::frame::{FRAME_BYTES, Frame, Kind, Refusal};
use overlaywatch_core::preflight::packet::{self, Ends, Mark, SMALL_BYTES};
use overlaywatch_core::preflight::report::Report;
use overlaywatch_core::preflight::{Cell, Cells, Method, ROUNDS, Size};
use overlaywatch_core::time::{MILLISECOND, Mono};

use super::PreflightError;
use super::socket::{self, Ear, Mouth, Place, mtu_of};
use crate::cli::{PodPair, PreflightArgs};
use crate::clock;

/// How long a connection may take to come about, and a frame to come.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a run waits for its turn: the other end has one at a time.
const TURN: Duration = Duration::from_secs(30);
/// From a refusal for asking too often to the next try.
const AGAIN: Duration = Duration::from_secs(2);
/// From one round to the next, milliseconds: a policer's burst is no verdict.
const ROUND_MS: u64 = 100;
/// How long what was sent last may take, milliseconds.
const SETTLE_MS: u64 = 700;

/// What this end knows of pods: which pair the plain packets go between, by
/// what the other end asked for.
pub(super) type PodsOf<'a> = dyn Fn(Option<PodPair>) -> Option<PodPair> + 'a;

/// One end of a run.
struct End {
    stream: TcpStream,
    own: IpAddr,
    peer: IpAddr,
    mtu: u16,
    /// Whether this end serves.
    serves: bool,
    pods: Option<PodPair>,
    patience: Duration,
    ear: Ear,
    mouth: Mouth,
    cells: Cells,
}

/// Asks a peer for a run, and says what passes. Where it had one with this node
/// a moment ago, it is asked again for a while.
///
/// # Errors
/// What keeps it from being said.
pub(super) fn ask(
    args: &PreflightArgs,
    peer: IpAddr,
    nonce: u64,
) -> Result<Report, PreflightError> {
    let until = later(clock::mono(), TURN);
    loop {
        match ask_once(args, peer, nonce) {
            Err(PreflightError::Refused { refusal: Refusal::TooOften, .. })
                if clock::mono() < until =>
            {
                std::thread::sleep(AGAIN);
            }
            answer => return answer,
        }
    }
}

fn ask_once(args: &PreflightArgs, peer: IpAddr, nonce: u64) -> Result<Report, PreflightError> {
    let port = args.port;
    // First, since without these nothing is to be asked.
    let sockets = socket::open(peer)?;
    let stream = TcpStream::connect_timeout(&SocketAddr::new(peer, port), PATIENCE)
        .map_err(|source| PreflightError::Connect { peer, port, source })?;
    let mut end = End::new(stream, peer, sockets, false, TURN)?;
    end.pods = args.pods;
    let wanted = mask(&args.only);
    end.say(Kind::Ask, wanted, nonce)?;
    let accepted = end.hear(Kind::Accept)?;
    end.patience = PATIENCE;
    end.check(&accepted, wanted, nonce)?;
    if let Some(own) = args.pods {
        let other = pods_in(&accepted);
        if other != Some(own.mirrored()) {
            return Err(PreflightError::Pods { peer, own, other });
        }
    }
    end.exchange(wanted, nonce)?;
    end.say(Kind::Finish, wanted, nonce)?;
    let result = end.hear(Kind::Result)?;
    end.check(&result, wanted, nonce)?;
    end.listen(nonce, clock::mono());
    end.say(Kind::Result, wanted, nonce)?;
    Ok(end.report(&result, wanted))
}

/// Serves a run to the peer at the other end of a connection. Each frame must
/// have come within `patience`.
///
/// # Errors
/// What keeps it from coming to its end.
pub(super) fn serve(
    mut stream: TcpStream,
    peer: IpAddr,
    pods_of: &PodsOf<'_>,
    patience: Duration,
) -> Result<Report, PreflightError> {
    let sockets = socket::open(peer).inspect_err(|_| refuse(&mut stream, Refusal::NoSockets))?;
    let mut end = End::new(stream, peer, sockets, true, patience)?;
    let asked = end.hear(Kind::Ask)?;
    let (mut wanted, nonce) = (asked.wanted, asked.nonce);
    let told = pods_in(&asked).map(PodPair::mirrored);
    end.pods = pods_of(told);
    end.say(Kind::Accept, wanted, nonce)?;
    if told != end.pods {
        // The other end complains where it was told of pods.
        wanted &= !Method::Plain.bit();
    }
    end.exchange(wanted, nonce)?;
    let finished = end.hear(Kind::Finish)?;
    end.check(&finished, asked.wanted, nonce)?;
    end.listen(nonce, clock::mono());
    end.say(Kind::Result, asked.wanted, nonce)?;
    let result = end.hear(Kind::Result)?;
    end.check(&result, asked.wanted, nonce)?;
    Ok(end.report(&result, asked.wanted))
}

/// Tells the other end that there will be no run.
pub(super) fn refuse(stream: &mut TcpStream, refusal: Refusal) {
    let frame = Frame {
        kind: Kind::Refuse(refusal),
        wanted: 0,
        nonce: 0,
        pods: None,
        mtu: 0,
        cells: Cells::default(),
    };
    // It fits into any socket's buffer; whoever went away needs no answer. What it
    // asked is read, since closing before that resets the connection (RFC 1122, 4.2.2.13).
    let _ = stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .and_then(|()| stream.read(&mut [0; FRAME_BYTES]))
        .and_then(|_| stream.write_all(&frame.encode()));
}

impl End {
    fn new(
        stream: TcpStream,
        peer: IpAddr,
        (ear, mouth): (Ear, Mouth),
        serves: bool,
        patience: Duration,
    ) -> Result<Self, PreflightError> {
        let talk = |own, source| PreflightError::Talk { peer, own, source };
        let nobody = Ipv4Addr::UNSPECIFIED.into();
        let own = stream.local_addr().map_err(|source| talk(nobody, source))?;
        let own = own.ip().to_canonical();
        if own == peer {
            return Err(PreflightError::Own(peer));
        }
        stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_nodelay(true))
            .map_err(|source| talk(own, source))?;
        let (mtu, cells) = (mtu_of(own)?, Cells::default());
        Ok(Self { stream, own, peer, mtu, serves, pods: None, patience, ear, mouth, cells })
    }

    fn say(&mut self, kind: Kind, wanted: u8, nonce: u64) -> Result<(), PreflightError> {
        let pods = self.pods.map(|pods| (pods.own, pods.peer));
        let frame = Frame { kind, wanted, nonce, pods, mtu: self.mtu, cells: self.cells };
        let said = self.stream.write_all(&frame.encode());
        said.map_err(|source| self.silent(source))
    }

    /// The next frame, whole within this end's patience, however it drips.
    fn hear(&mut self, kind: Kind) -> Result<Frame, PreflightError> {
        let bytes = self.frame().map_err(|source| self.silent(source))?;
        let frame = Frame::decode(&bytes)
            .map_err(|source| PreflightError::Frame { peer: self.peer, source })?;
        if let Kind::Refuse(refusal) = frame.kind {
            return Err(PreflightError::Refused { peer: self.peer, refusal });
        }
        let fits = frame.kind == kind;
        fits.then_some(frame).ok_or(PreflightError::Astray { peer: self.peer })
    }

    fn frame(&mut self) -> io::Result<[u8; FRAME_BYTES]> {
        let mut bytes = [0; FRAME_BYTES];
        let mut rest = &mut bytes[..];
        let until = later(clock::mono(), self.patience);
        while !rest.is_empty() {
            let left = Duration::from_nanos(until.0.saturating_sub(clock::mono().0));
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => rest = rest.split_at_mut(read).1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    fn silent(&self, source: io::Error) -> PreflightError {
        PreflightError::Talk { peer: self.peer, own: self.own, source }
    }

    fn check(&self, frame: &Frame, wanted: u8, nonce: u64) -> Result<(), PreflightError> {
        let fits = (frame.wanted, frame.nonce) == (wanted, nonce);
        fits.then_some(()).ok_or(PreflightError::Astray { peer: self.peer })
    }

    /// Sends all rounds and listens meanwhile. Ends early when the other end went
    /// away: nobody takes the packets any more, and its kernel would refuse them.
    fn exchange(&mut self, wanted: u8, nonce: u64) -> Result<(), PreflightError> {
        let start = clock::mono();
        for round in 0..ROUNDS {
            self.ensure_attended()?;
            for method in Method::ALL.into_iter().filter(|method| method.bit() & wanted != 0) {
                for size in Size::ALL {
                    self.send(Mark { nonce, method, size, round, back: self.serves });
                }
            }
            let next = (u64::from(round) + 1) * ROUND_MS * MILLISECOND;
            self.listen(nonce, Mono(start.0 + next));
        }
        self.listen(nonce, later(clock::mono(), Duration::from_millis(SETTLE_MS)));
        Ok(())
    }

    /// Fails once the connection is closed.
    fn ensure_attended(&self) -> Result<(), PreflightError> {
        let peeked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        let blocks = self.stream.set_nonblocking(false);
        match peeked {
            Ok(0) => Err(self.silent(io::ErrorKind::UnexpectedEof.into())),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(self.silent(error)),
            _ => blocks.map_err(|source| self.silent(source)),
        }
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

/// The pods that the writer of a frame speaks of, as it sees them.
fn pods_in(frame: &Frame) -> Option<PodPair> {
    frame.pods.map(|(own, peer)| PodPair { own, peer })
}

fn cell_of(cells: &mut Cells, mark: Mark) -> &mut Cell {
    &mut cells[mark.method.index()][mark.size.index()]
}

/// The methods that are asked for: all, unless some are named.
fn mask(only: &[Method]) -> u8 {
    let named = if only.is_empty() { &Method::ALL[..] } else { only };
    named.iter().fold(0, |mask, method| mask | method.bit())
}

/// A moment so much later.
pub(super) fn later(moment: Mono, by: Duration) -> Mono {
    let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    Mono(moment.0.saturating_add(by))
}

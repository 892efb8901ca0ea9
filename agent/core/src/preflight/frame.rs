//! What the two ends tell each other, over TCP: frames of one length, so that
//! no frame is answered by a longer one.
//!
//! Integers are in network byte order, addresses of IPv4 are mapped into IPv6
//! (RFC 4291, 2.5.5.2).
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `OWPF` |
//! | 4 | 1 | version, 2 |
//! | 5 | 1 | kind: 1 ask, 2 accept, 3 finish, 4 result, 5 refuse |
//! | 6 | 1 | methods that are to be tried, a bit each |
//! | 7 | 1 | why it is refused: 1 too often, 2 no sockets; else zero |
//! | 8 | 8 | nonce, which the end that asks makes up |
//! | 16 | 16 | address of the writer's pod network, zero for none |
//! | 32 | 16 | address of the reader's pod network, zero for none |
//! | 48 | 2 | the writer's underlay MTU |
//! | 50 | 2 | zero |
//! | 52 | 4 each | cells: by method and size, rounds sent, errno, rounds at the NIC, rounds delivered |
//!
//! What was sent is of the writer's direction, what came of the other one.

use std::net::{IpAddr, Ipv6Addr};

use super::packet::MAGIC;
use super::{Cell, Cells, Method, ROUNDS};

/// Bytes of every frame.
pub const FRAME_BYTES: usize = 100;
const HEAD_BYTES: usize = 52;
const VERSION: u8 = 2;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Asks for a run.
    Ask,
    /// The other end listens from now on, and starts to send.
    Accept,
    /// The end that asked has sent everything.
    Finish,
    /// What the writer sent and received in the end.
    Result,
    /// There will be no run.
    Refuse(Refusal),
}

/// Why there will be no run, where the one who asks may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The last run with the same node was a moment ago.
    TooOften,
    /// The end that serves gets no sockets to send and listen with.
    NoSockets,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Ask,
        Self::Accept,
        Self::Finish,
        Self::Result,
        Self::Refuse(Refusal::TooOften),
        Self::Refuse(Refusal::NoSockets),
    ];

    /// Its bytes in a frame: the kind, and why it is refused.
    const fn bytes(self) -> (u8, u8) {
        match self {
            Self::Ask => (1, 0),
            Self::Accept => (2, 0),
            Self::Finish => (3, 0),
            Self::Result => (4, 0),
            Self::Refuse(Refusal::TooOften) => (5, 1),
            Self::Refuse(Refusal::NoSockets) => (5, 2),
        }
    }
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: Kind,
    /// Methods to try, by [`Method::bit`].
    pub wanted: u8,
    /// The run's random number.
    pub nonce: u64,
    /// An address of the writer's pod network and of the reader's.
    pub pods: Option<(IpAddr, IpAddr)>,
    /// The writer's underlay MTU.
    pub mtu: u16,
    /// What the writer sent and received.
    pub cells: Cells,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another protocol.
    #[error("what answers there is no overlaywatch preflight")]
    Foreign,
    /// Another version of this one.
    #[error(
        "the other end speaks version {0} of the protocol, this one version {VERSION}: use the same overlaywatch on both"
    )]
    Version(u8),
    /// A field has a value that it cannot have.
    #[error("the other end sent a frame whose {0} cannot be")]
    Value(&'static str),
}

impl Frame {
    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        (out[5], out[7]) = self.kind.bytes();
        out[6] = self.wanted;
        out[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        if let Some((own, other)) = self.pods {
            out[16..32].copy_from_slice(&mapped(own).octets());
            out[32..48].copy_from_slice(&mapped(other).octets());
        }
        out[48..50].copy_from_slice(&self.mtu.to_be_bytes());
        for (place, cell) in out[HEAD_BYTES..].chunks_exact_mut(4).zip(self.cells.as_flattened()) {
            place.copy_from_slice(&[cell.sent, cell.error, cell.reached, cell.delivered]);
        }
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// Bytes that no end of this version writes.
    pub fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Self, FrameError> {
        if bytes[..4] != MAGIC {
            return Err(FrameError::Foreign);
        }
        if bytes[4] != VERSION {
            return Err(FrameError::Version(bytes[4]));
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.bytes() == (bytes[5], bytes[7]));
        let all = Method::ALL.into_iter().fold(0, |mask, method| mask | method.bit());
        let wanted = bytes[6];
        if wanted & !all != 0 {
            return Err(FrameError::Value("mask of methods"));
        }
        if bytes[50..52] != [0, 0] {
            return Err(FrameError::Value("padding"));
        }
        let [own, other] = [16, 32]
            .map(|at| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|byte| bytes[at + byte])));
        let pods = match (own.is_unspecified(), other.is_unspecified()) {
            (false, false) => Some((own.to_canonical(), other.to_canonical())),
            (true, true) => None,
            _ => return Err(FrameError::Value("pair of pod addresses")),
        };
        let mut cells = Cells::default();
        let places = bytes[HEAD_BYTES..].chunks_exact(4);
        for (cell, place) in cells.as_flattened_mut().iter_mut().zip(places) {
            *cell =
                Cell { sent: place[0], error: place[1], reached: place[2], delivered: place[3] };
            if (cell.sent | cell.reached | cell.delivered) >> ROUNDS != 0 {
                return Err(FrameError::Value("mask of rounds"));
            }
        }
        Ok(Self {
            kind: kind.ok_or(FrameError::Value("kind"))?,
            wanted,
            nonce: u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte| bytes[8 + byte])),
            pods,
            mtu: u16::from_be_bytes([bytes[48], bytes[49]]),
            cells,
        })
    }
}

const fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        let mut cells = Cells::default();
        cells[4][1] = Cell { sent: 0x1f, error: 90, reached: 3, delivered: 1 };
        cells[5][1] = Cell { sent: 1, error: 0, reached: 0x10, delivered: 0x10 };
        Frame {
            kind: Kind::Result,
            wanted: 0x3f,
            nonce: 0x0102_0304_0506_0708,
            pods: Some(([10, 244, 1, 0].into(), [10, 244, 2, 0].into())),
            mtu: 1_500,
            cells,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Frame::decode(&frame().encode()), Ok(frame()));
        let pods = Some(("fd00:1::".parse().unwrap(), "fd00:2::".parse().unwrap()));
        for kind in Kind::ALL {
            let other = Frame { pods, cells: Cells::default(), kind, ..frame() };
            assert_eq!(Frame::decode(&other.encode()), Ok(other));
        }
        let bare = Frame { pods: None, kind: Kind::Ask, ..frame() };
        assert_eq!(Frame::decode(&bare.encode()), Ok(bare));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let changed = |at: usize, to: u8| {
            let mut bytes = frame().encode();
            bytes[at] = to;
            Frame::decode(&bytes).unwrap_err()
        };
        assert_eq!(changed(0, b'H'), FrameError::Foreign);
        assert_eq!(changed(4, 1), FrameError::Version(1));
        for (at, to) in [(5, 0), (5, 5), (5, 6), (6, 0x40), (7, 1), (51, 1), (99, 0x20)] {
            assert!(matches!(changed(at, to), FrameError::Value(_)), "{at}");
        }
        let mut bytes = frame().encode();
        bytes[16..32].fill(0);
        assert!(matches!(Frame::decode(&bytes), Err(FrameError::Value(_))));
    }
}

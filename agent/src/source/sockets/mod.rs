//! TCP sockets over sock_diag(7): BGP sessions, and which services of this
//! node listen where their health can be asked for.
//!
//! The kernel picks the sockets: of those that are connected, the ones with
//! BGP's port at either end. Going through all connections of a busy node
//! costs it some milliseconds, so that is done often only where BGP is spoken.

mod health;
mod sessions;
pub mod translate;

use std::time::Duration;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{SessionState, Sockets};
use overlaywatch_core::time::{Mono, SECOND};
use tokio::sync::mpsc::Sender;

use super::ask::{Question, ask, attribute};
use super::meter::{Closed, disabled, metered, pause};
use super::{Options, SourceError, wire};
use crate::clock;
use health::Health;
use sessions::Sessions;
use translate::TcpSocket;

/// How often it is looked what there is to do.
const EVERY: Duration = Duration::from_secs(2);
/// How often listeners are looked at.
const LISTENERS_NS: u64 = 4 * SECOND;
/// How often connections are looked at where no BGP daemon listens: one may
/// open sessions all the same.
const QUIET_NS: u64 = 30 * SECOND;
/// Sockets that are taken of one answer, of those that are established and of the
/// others each: however many strangers begin to connect, no session is hidden.
const MOST: usize = 8_192;

/// `TCPDIAG_GETSOCK` (linux/inet_diag.h): the older question, which knows no family
/// and so takes one walk for what the newer one takes two for (inet_diag_dump_compat,
/// net/ipv4/inet_diag.c).
const BOTH_FAMILIES: u16 = 18;
/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// `INET_DIAG_REQ_BYTECODE` (linux/inet_diag.h).
const BYTECODE: u16 = 1;
/// TCP's port for BGP (RFC 4271).
const BGP: u16 = 179;
/// States of the kernel (net/tcp_states.h), as a mask.
const LISTENING: u32 = 1 << translate::LISTEN;
/// Established, SYN-SENT and both kinds of SYN-RECEIVED.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 12;

/// Reads until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, updates: &Sender<Update>) -> Result<(), Closed> {
    let is_on = |source| options.enabled.contains(&source);
    let (bgp, services) = (is_on(SourceId::Sockets), is_on(SourceId::Services));
    if !bgp {
        disabled(updates, SourceId::Sockets)?;
    }
    if !services {
        disabled(updates, SourceId::Services)?;
    }
    if !bgp && !services {
        return Ok(());
    }
    let (mut reader, mut health) = (Reader::default(), Health::default());
    let mut due = Mono::default();
    loop {
        if bgp {
            metered(updates, SourceId::Sockets, || {
                Ok(Update::Sockets(Box::new(reader.read(clock::mono())?)))
            })?;
        }
        if services && clock::mono() >= due {
            due = clock::mono().plus(LISTENERS_NS);
            metered(updates, SourceId::Services, || {
                health.ask(&listeners(&mut wire::buffer())?);
                Ok(Update::Services(health.answers()))
            })?;
        }
        pause(EVERY, updates)?;
    }
}

/// Reads BGP's sockets and remembers earlier sessions.
#[derive(Debug, Default)]
struct Reader {
    sessions: Sessions,
    listens: bool,
    listeners_due: Mono,
    connections_due: Mono,
}

impl Reader {
    fn read(&mut self, at: Mono) -> Result<Sockets, SourceError> {
        // Of which nothing is kept while it is not in use.
        let is_due = at >= self.listeners_due;
        if is_due {
            self.listeners_due = at.plus(LISTENERS_NS);
            let listeners = listeners(&mut wire::buffer())?;
            self.listens = listeners.iter().any(|socket| socket.local.port() == BGP);
        }
        if self.listens || self.sessions.has_any() || at >= self.connections_due {
            self.connections_due = at.plus(QUIET_NS);
            let connections = sockets(CONNECTED, &bgp_only(), &mut wire::buffer())?;
            self.sessions.take(at, &connections);
        }
        Ok(Sockets { bgp_listens: self.listens, sessions: self.sessions.told() })
    }
}

fn listeners(buffer: &mut [u8]) -> Result<Vec<TcpSocket>, SourceError> {
    sockets(LISTENING, &[], buffer)
}

/// TCP sockets, of both families, in the states of a mask that pass a filter.
fn sockets(states: u32, bytecode: &[u8], buffer: &mut [u8]) -> Result<Vec<TcpSocket>, SourceError> {
    let mut all = Vec::new();
    match dump(BOTH_FAMILIES, &request_of_old(states, bytecode), buffer, &mut all) {
        // A kernel that has done away with it. Whatever else is wrong is so with
        // the newer question, too.
        Err(SourceError::Io { .. }) => {}
        told => return told.map(|()| all),
    }
    all.clear();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(BY_FAMILY, &request(family, states, bytecode), buffer, &mut all)?;
    }
    Ok(all)
}

/// Asks one question, and adds what is answered.
fn dump(
    kind: u16,
    body: &[u8],
    buffer: &mut [u8],
    all: &mut Vec<TcpSocket>,
) -> Result<(), SourceError> {
    let what = "asking for TCP sockets";
    let question = Question { what, protocol: NETLINK_SOCK_DIAG, kind, is_dump: true, body };
    let mut room = Room::default();
    ask(question, buffer, |message| {
        let socket = translate::socket(message.payload)?;
        all.extend(socket.filter(|socket| room.takes(socket)));
        Ok::<_, translate::Malformed>(())
    })?;
    Ok(())
}

/// How many sockets were taken of one answer.
#[derive(Debug, Default)]
struct Room {
    established: usize,
    others: usize,
}

impl Room {
    /// Whether there is room for one more of its kind, which it then takes.
    fn takes(&mut self, socket: &TcpSocket) -> bool {
        let is_established = socket.session() == SessionState::Established;
        let taken = if is_established { &mut self.established } else { &mut self.others };
        *taken += 1;
        *taken <= MOST
    }
}

/// `struct inet_diag_req` (linux/inet_diag.h) and a filter.
fn request_of_old(states: u32, bytecode: &[u8]) -> Vec<u8> {
    // No family, no prefixes, nothing beyond the sockets, none in particular.
    let mut body = vec![0; 4 + translate::SOCKET_ID_BYTES];
    body.extend(states.to_ne_bytes());
    body.extend([0; 4]);
    with_filter(body, bytecode)
}

fn with_filter(mut body: Vec<u8>, bytecode: &[u8]) -> Vec<u8> {
    if !bytecode.is_empty() {
        attribute(&mut body, BYTECODE, bytecode);
    }
    body
}

/// `struct inet_diag_req_v2` (linux/inet_diag.h) and a filter.
fn request(family: i32, states: u32, bytecode: &[u8]) -> Vec<u8> {
    // Both fit by their definition.
    let small = |number: i32| u8::try_from(number).unwrap_or_default();
    let mut body = vec![small(family), small(libc::IPPROTO_TCP), 0, 0];
    body.extend(states.to_ne_bytes());
    // No socket in particular: a whole `struct inet_diag_sockid`.
    body.resize(body.len() + translate::SOCKET_ID_BYTES, 0);
    with_filter(body, bytecode)
}

/// Passes sockets with BGP's port at either end (inet_diag_bc_run,
/// net/ipv4/inet_diag.c): each step says how far to go on yes and on no; the
/// end is a pass, and four bytes beyond it a refusal.
fn bgp_only() -> Vec<u8> {
    let step = |code: u8, yes: u8, no: u16| {
        let [low, high] = no.to_ne_bytes();
        [code, yes, low, high]
    };
    // The port is in the `no` of a step of its own.
    let port = step(0, 0, BGP);
    [step(SOURCE_PORT, 8, 12), port, step(JUMP, 4, 12), step(DESTINATION_PORT, 8, 12), port]
        .concat()
}

/// `INET_DIAG_BC_JMP`, `_S_EQ` and `_D_EQ` (linux/inet_diag.h).
const JUMP: u8 = 1;
const SOURCE_PORT: u8 = 11;
const DESTINATION_PORT: u8 = 12;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn listeners_of_this_namespace_are_seen() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::]:0").unwrap();
        let seen = listeners(&mut wire::buffer()).unwrap();
        for listener in [four, six] {
            let address = listener.local_addr().unwrap();
            assert!(seen.iter().any(|socket| socket.local == address), "{address} in {seen:?}");
        }
    }

    #[test]
    fn strangers_that_begin_to_connect_hide_no_session() {
        let socket = |state| {
            let [local, remote] = ["10.0.0.1:179", "10.0.0.2:50000"].map(|it| it.parse().unwrap());
            TcpSocket { local, remote, state }
        };
        let mut room = Room::default();
        let half_open = (0..10_000).filter(|_| room.takes(&socket(3))).count();
        assert_eq!(half_open, MOST);
        assert!(room.takes(&socket(1)));
        let established = (0..10_000).filter(|_| room.takes(&socket(1))).count();
        assert_eq!(established, MOST - 1, "bounded all the same");
    }

    #[test]
    fn both_questions_are_answered_alike() {
        let _four = TcpListener::bind("127.0.0.1:0").unwrap();
        let _six = TcpListener::bind("[::1]:0").unwrap();
        // Other tests open and close sockets meanwhile.
        let is_alike = (0..200).any(|_| {
            let mut buffer = wire::buffer();
            let (mut old, mut new) = (Vec::new(), Vec::new());
            let question = request_of_old(LISTENING, &[]);
            dump(BOTH_FAMILIES, &question, &mut buffer, &mut old).unwrap();
            for family in [libc::AF_INET, libc::AF_INET6] {
                let question = request(family, LISTENING, &[]);
                dump(BY_FAMILY, &question, &mut buffer, &mut new).unwrap();
            }
            old.sort_by_key(|socket| (socket.local, socket.remote));
            new.sort_by_key(|socket| (socket.local, socket.remote));
            old == new && old.len() >= 2
        });
        assert!(is_alike);
    }

    #[test]
    fn the_kernel_takes_the_filter_and_keeps_others_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let own = stream.local_addr().unwrap();
        let here = |bytecode: &[u8]| {
            let seen = sockets(CONNECTED, bytecode, &mut wire::buffer()).unwrap();
            seen.iter().any(|socket| socket.local == own)
        };
        assert!(here(&[]));
        assert!(!here(&bgp_only()));
    }
}

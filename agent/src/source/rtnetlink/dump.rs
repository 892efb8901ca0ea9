//! Asking the kernel for all there is.

use std::fmt::Display;
use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::source::SourceError;
use crate::source::wire::{self, HEADER_BYTES, messages};

/// How often a dump that the kernel marks as inconsistent is begun again.
const ATTEMPTS: u32 = 5;
/// How long to wait for the next part of a dump, seconds.
const PATIENCE_SECONDS: i64 = 5;

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// For messages to people.
    pub(super) what: &'static str,
    /// `RTM_GET...`.
    pub(super) kind: u16,
    /// The address family, first byte of the request's header.
    pub(super) family: u8,
    /// Bytes of the request's header (`struct rtmsg` and its like), which is
    /// zero but for the family: a dump of everything.
    pub(super) header_bytes: usize,
}

/// Dumps a table: gives each message of type `wanted` to `translate` and
/// collects what that makes of it.
///
/// The dump has a socket of its own, so that nothing of an abandoned one can
/// be mistaken for part of it, and events cannot come in between.
pub(super) fn dump<T, E: Display>(
    request: Request,
    buffer: &mut [u8],
    translate: impl Fn(&[u8]) -> Result<Option<T>, E>,
) -> Result<Vec<T>, SourceError> {
    for _ in 0..ATTEMPTS {
        if let Some(all) = attempt(request, buffer, &translate)? {
            return Ok(all);
        }
    }
    Err(SourceError::Unsteady { what: request.what, attempts: ATTEMPTS })
}

/// One attempt; none when the table changed so that the dump may have gaps.
fn attempt<T, E: Display>(
    request: Request,
    buffer: &mut [u8],
    translate: &impl Fn(&[u8]) -> Result<Option<T>, E>,
) -> Result<Option<Vec<T>>, SourceError> {
    let failed = |source| SourceError::io(request.what, source);
    let socket = open(request).map_err(failed)?;
    let mut collected = Collected::new();
    loop {
        let datagram = wire::receive(&socket, buffer, 0).map_err(failed)?;
        if collected.digest(request, datagram, translate)? {
            return Ok((!collected.interrupted).then_some(collected.all));
        }
    }
}

/// What a dump has given so far.
#[derive(Debug)]
pub(super) struct Collected<T> {
    pub(super) all: Vec<T>,
    /// The kernel saw the table change meanwhile.
    interrupted: bool,
}

impl<T> Collected<T> {
    /// Nothing yet.
    pub(super) const fn new() -> Self {
        Self { all: Vec::new(), interrupted: false }
    }

    /// Takes in one datagram; whether it was the last.
    pub(super) fn digest<E: Display>(
        &mut self,
        request: Request,
        datagram: &[u8],
        translate: &impl Fn(&[u8]) -> Result<Option<T>, E>,
    ) -> Result<bool, SourceError> {
        let failed = |source| SourceError::io(request.what, source);
        let malformed = |error: &dyn Display| SourceError::Malformed {
            what: request.what.to_owned(),
            reason: error.to_string(),
        };
        for message in messages(datagram) {
            let message = message.map_err(|error| malformed(&error))?;
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                // An error in the middle of a dump rides in its last message
                // (netlink_dump_done, net/netlink/af_netlink.c).
                NLMSG_DONE | NLMSG_ERROR => {
                    let code = message.payload.first_chunk().copied().map(i32::from_ne_bytes);
                    refused(code.unwrap_or(0)).map_err(failed)?;
                    return Ok(true);
                }
                // A dump answers RTM_GET... with RTM_NEW..., two numbers below.
                kind if request.kind.checked_sub(2) == Some(kind) => {
                    match translate(message.payload) {
                        Ok(item) => self.all.extend(item),
                        Err(error) => return Err(malformed(&error)),
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

/// A negative error number as the error that it is.
fn refused(code: i32) -> io::Result<()> {
    if code < 0 { Err(io::Error::from_raw_os_error(code.saturating_neg())) } else { Ok(()) }
}

fn open(request: Request) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
    // Spares the cached routes, which nobody here wants. Kernels before 4.20
    // do not know it and send them; they are told apart by their flag.
    let _ = socket.set_netlink_get_strict_chk(true);
    socket.send_to(&encode(request), &SocketAddr::new(0, 0), 0)?;
    Ok(socket)
}

/// `struct nlmsghdr` and the request's own header.
fn encode(request: Request) -> Vec<u8> {
    let length = HEADER_BYTES + request.header_bytes;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(request.kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence number and port: nothing else is ever asked on this socket,
    // and the kernel fills in the port.
    bytes.extend([0; 8]);
    bytes.push(request.family);
    bytes.resize(length, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never(_: &[u8]) -> Result<Option<()>, String> {
        Ok(None)
    }

    #[test]
    fn an_unknown_request_is_refused_by_the_kernel_and_said_so() {
        // Far beyond the last message type (RTM_MAX).
        let request = Request { what: "dumping nonsense", kind: 250, family: 0, header_bytes: 4 };
        let error = dump(request, &mut wire::buffer(), never).unwrap_err();
        assert!(
            matches!(&error, SourceError::Io { source, .. }
            if source.raw_os_error() == Some(libc::EOPNOTSUPP)),
            "{error}"
        );
        assert_eq!(error.gap(), overlaywatch_core::fact::Gap::Unsupported);
    }

    const LINKS: Request =
        Request { what: "dumping links", kind: libc::RTM_GETLINK, family: 0, header_bytes: 16 };

    #[test]
    fn what_the_translation_refuses_fails_the_dump() {
        let refuse = |_: &[u8]| Err::<Option<()>, _>("odd");
        let error = dump(LINKS, &mut wire::buffer(), refuse).unwrap_err();
        assert!(error.to_string().starts_with("dumping links: odd"), "{error}");
    }

    fn message(kind: u16, flags: u16, code: i32) -> Vec<u8> {
        let mut bytes = 20_u32.to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([0; 8]);
        bytes.extend(code.to_ne_bytes());
        bytes
    }

    fn digest(messages: &[Vec<u8>]) -> Result<(bool, bool, usize), SourceError> {
        let mut collected = Collected::new();
        let take = |payload: &[u8]| Ok::<_, String>(Some(payload.len()));
        let done = collected.digest(LINKS, &messages.concat(), &take)?;
        Ok((done, collected.interrupted, collected.all.len()))
    }

    #[test]
    fn an_error_in_the_last_message_fails_the_dump() {
        let link = message(libc::RTM_NEWLINK, 0, 0);
        assert_eq!(digest(&[link.clone(), link.clone()]).unwrap(), (false, false, 2));
        let done = message(NLMSG_DONE, 0, 0);
        assert_eq!(digest(&[link.clone(), done]).unwrap(), (true, false, 1));
        for last in [NLMSG_DONE, NLMSG_ERROR] {
            let error = digest(&[link.clone(), message(last, 0, -libc::EACCES)]).unwrap_err();
            assert_eq!(error.gap(), overlaywatch_core::fact::Gap::Denied, "{error}");
        }
    }

    #[test]
    fn messages_of_other_types_are_passed_over_to_the_last_type() {
        let link = message(libc::RTM_NEWLINK, 0, 0);
        let others = [message(libc::RTM_NEWADDR, 0, 0), message(u16::MAX, 0, 0)];
        assert_eq!(digest(&[&others[..], &[link]].concat()).unwrap(), (false, false, 1));
    }

    #[test]
    fn any_message_may_say_that_the_table_changed() {
        let done = message(NLMSG_DONE, 0, 0);
        let link = message(libc::RTM_NEWLINK, NLM_F_DUMP_INTR, 0);
        assert_eq!(digest(&[link, done]).unwrap(), (true, true, 1));
        assert_eq!(digest(&[message(NLMSG_DONE, NLM_F_DUMP_INTR, 0)]).unwrap(), (true, true, 0));
    }
}

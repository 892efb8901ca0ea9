//! Asking the kernel over netlink (netlink(7)): one question and its answers.

use std::fmt::Display;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use super::SourceError;
use super::wire::{self, HEADER_BYTES, Message, messages};

/// How long to wait for the next part of an answer, seconds.
const PATIENCE_SECONDS: i64 = 5;

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    /// For messages to people: "dumping routes".
    pub(super) what: &'static str,
    /// `NETLINK_...`.
    pub(super) protocol: isize,
    /// The type of the request's message.
    pub(super) kind: u16,
    /// A whole table is asked for, not one thing.
    pub(super) is_dump: bool,
    /// What follows the message's header: the family's own header and attributes.
    pub(super) body: &'a [u8],
}

/// Asks, and gives each message of the answer to `take`. Whether the answer is
/// of one moment: a table that changes while it is dumped may have gaps.
///
/// The question has a socket of its own, so that events cannot come in between.
/// Who asks many at once has a [`Line`].
///
/// # Errors
/// When the kernel refuses, does not answer in time, or `take` cannot read it.
pub(super) fn ask<E: Display>(
    question: Question<'_>,
    buffer: &mut [u8],
    take: impl FnMut(Message<'_>) -> Result<(), E>,
) -> Result<bool, SourceError> {
    Line::default().ask(question, buffer, take)
}

/// A socket that questions are asked on, one after the other.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// None before the first question, and after one whose answer was not read to
    /// its end: nothing of it can then be mistaken for part of the next.
    socket: Option<(isize, Socket)>,
}

impl Line {
    /// As [`ask`].
    pub(super) fn ask<E: Display>(
        &mut self,
        question: Question<'_>,
        buffer: &mut [u8],
        mut take: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<bool, SourceError> {
        let failed = |source| SourceError::io(question.what, source);
        let kept = self.socket.take().filter(|(protocol, _)| *protocol == question.protocol);
        let socket = match kept {
            Some((_, socket)) => socket,
            None => open(question.protocol).map_err(failed)?,
        };
        socket.send_to(&encode(question), &SocketAddr::new(0, 0), 0).map_err(failed)?;
        let mut answer = Answer::default();
        loop {
            let datagram = wire::receive(&socket, buffer, 0).map_err(failed)?;
            let outcome = answer.digest(question.what, datagram, &mut take);
            if answer.ended {
                self.socket = Some((question.protocol, socket));
                return outcome.map(|_| !answer.interrupted);
            }
            outcome?;
        }
    }
}

/// What has come of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The kernel saw the table change meanwhile.
    pub(super) interrupted: bool,
    /// Its last message was read.
    ended: bool,
}

impl Answer {
    /// Takes in one datagram; whether it was the last.
    pub(super) fn digest<E: Display>(
        &mut self,
        what: &'static str,
        datagram: &[u8],
        take: &mut impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<bool, SourceError> {
        for message in messages(datagram) {
            let message = message.map_err(|error| malformed(what, &error))?;
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                // An error in the middle of a dump rides in its last message
                // (netlink_dump_done, net/netlink/af_netlink.c).
                NLMSG_DONE | NLMSG_ERROR => {
                    self.ended = true;
                    let code = message.payload.first_chunk().copied().map(i32::from_ne_bytes);
                    refused(code.unwrap_or(0)).map_err(|source| SourceError::io(what, source))?;
                    return Ok(true);
                }
                _ => take(message).map_err(|error| malformed(what, &error))?,
            }
        }
        Ok(false)
    }
}

fn malformed(what: &str, reason: &dyn Display) -> SourceError {
    SourceError::Malformed { what: what.to_owned(), reason: reason.to_string() }
}

/// A negative error number as the error that it is.
fn refused(code: i32) -> io::Result<()> {
    if code < 0 { Err(io::Error::from_raw_os_error(code.saturating_neg())) } else { Ok(()) }
}

fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
    // Spares the cached routes, which nobody here wants. Kernels before 4.20
    // do not know it and send them; they are told apart by their flag.
    let _ = socket.set_netlink_get_strict_chk(true);
    Ok(socket)
}

/// `struct nlmsghdr` and the body. What is no dump ends with an acknowledgement.
fn encode(question: Question<'_>) -> Vec<u8> {
    let length = HEADER_BYTES + question.body.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(question.kind.to_ne_bytes());
    let mode = if question.is_dump { NLM_F_DUMP } else { NLM_F_ACK };
    bytes.extend((NLM_F_REQUEST | mode).to_ne_bytes());
    // Sequence number and port: nothing else is ever asked on this socket,
    // and the kernel fills in the port.
    bytes.extend([0; 8]);
    bytes.extend(question.body);
    bytes
}

/// Appends an attribute (`struct nlattr`, padded to four bytes) to a body.
pub(super) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use netlink_sys::protocols::NETLINK_ROUTE;
    use overlaywatch_core::fact::Gap;

    use super::*;

    const LINKS: Question<'_> = Question {
        what: "dumping links",
        protocol: NETLINK_ROUTE,
        kind: libc::RTM_GETLINK,
        is_dump: true,
        body: &[0; 16],
    };

    fn never(_: Message<'_>) -> Result<(), String> {
        Ok(())
    }

    #[test]
    fn an_unknown_request_is_refused_by_the_kernel_and_said_so() {
        // Far beyond the last message type (RTM_MAX).
        let nonsense = Question { what: "dumping nonsense", kind: 250, body: &[0; 4], ..LINKS };
        let error = ask(nonsense, &mut wire::buffer(), never).unwrap_err();
        assert!(
            matches!(&error, SourceError::Io { source, .. }
            if source.raw_os_error() == Some(libc::EOPNOTSUPP)),
            "{error}"
        );
        assert_eq!(error.gap(), Gap::Unsupported);
    }

    #[test]
    fn what_cannot_be_read_fails_the_answer() {
        let error = ask(LINKS, &mut wire::buffer(), |_| Err("odd")).unwrap_err();
        assert!(error.to_string().starts_with("dumping links: odd"), "{error}");
    }

    #[test]
    fn one_thing_ends_with_an_acknowledgement() {
        let mut body = vec![0; 16];
        // struct ifinfomsg: the index is its second word; lo is the first device.
        body[4] = 1;
        let one = Question { is_dump: false, body: &body, ..LINKS };
        let mut count = 0;
        let is_whole = ask(one, &mut wire::buffer(), |message| {
            count += u32::from(message.kind == libc::RTM_NEWLINK);
            Ok::<_, String>(())
        });
        assert_eq!((is_whole.unwrap(), count), (true, 1));
    }

    #[test]
    fn a_line_is_kept_while_its_answers_are_read_to_the_end() {
        let mut line = Line::default();
        let mut buffer = wire::buffer();
        let descriptor = |line: &Line| line.socket.as_ref().map(|(_, s)| s.as_raw_fd());
        let count = |line: &mut Line, buffer: &mut [u8]| {
            let mut links = 0;
            let is_whole = line.ask(LINKS, buffer, |_| {
                links += 1;
                Ok::<_, String>(())
            });
            (is_whole.unwrap(), links)
        };
        let first = count(&mut line, &mut buffer);
        let kept = descriptor(&line);
        assert!(first.0 && first.1 > 0 && kept.is_some());
        // A refusal is a whole answer.
        let nonsense = Question { what: "dumping nonsense", kind: 250, body: &[0; 4], ..LINKS };
        line.ask(nonsense, &mut buffer, never).unwrap_err();
        assert_eq!(descriptor(&line), kept);
        assert_eq!(count(&mut line, &mut buffer), first);
        assert_eq!(descriptor(&line), kept);
        // What is left of an answer is nobody's.
        line.ask(LINKS, &mut buffer, |_| Err("odd")).unwrap_err();
        assert_eq!(descriptor(&line), None);
        assert_eq!(count(&mut line, &mut buffer), first);
    }

    fn message(kind: u16, flags: u16, code: i32) -> Vec<u8> {
        let mut bytes = 20_u32.to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([0; 8]);
        bytes.extend(code.to_ne_bytes());
        bytes
    }

    fn digest(messages: &[Vec<u8>]) -> Result<(bool, bool, usize), SourceError> {
        let (mut answer, mut count) = (Answer::default(), 0);
        let done = answer.digest(LINKS.what, &messages.concat(), &mut |_| {
            count += 1;
            Ok::<_, String>(())
        })?;
        Ok((done, answer.interrupted, count))
    }

    #[test]
    fn an_error_in_the_last_message_fails_the_dump() {
        let link = message(libc::RTM_NEWLINK, 0, 0);
        assert_eq!(digest(&[link.clone(), link.clone()]).unwrap(), (false, false, 2));
        let done = message(NLMSG_DONE, 0, 0);
        assert_eq!(digest(&[link.clone(), done]).unwrap(), (true, false, 1));
        for last in [NLMSG_DONE, NLMSG_ERROR] {
            let error = digest(&[link.clone(), message(last, 0, -libc::EACCES)]).unwrap_err();
            assert_eq!(error.gap(), Gap::Denied, "{error}");
        }
    }

    #[test]
    fn any_message_may_say_that_the_table_changed() {
        let done = message(NLMSG_DONE, 0, 0);
        let link = message(libc::RTM_NEWLINK, NLM_F_DUMP_INTR, 0);
        assert_eq!(digest(&[link, done]).unwrap(), (true, true, 1));
        assert_eq!(digest(&[message(NLMSG_DONE, NLM_F_DUMP_INTR, 0)]).unwrap(), (true, true, 0));
    }

    #[test]
    fn attributes_are_padded() {
        let mut body = Vec::new();
        attribute(&mut body, 2, b"set\0\0");
        attribute(&mut body, 3, &[]);
        let expected = [9_u16, 2].map(u16::to_ne_bytes).concat();
        assert_eq!(body[..4], expected);
        assert_eq!(body.len(), 12 + 4);
    }
}

//! Asking the kernel for all there is.

use std::fmt::Display;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::source::SourceError;
use crate::source::ask::{Answer, Question, ask};
use crate::source::wire::Message;

/// How often a dump that the kernel marks as inconsistent is begun again.
const ATTEMPTS: u32 = 5;

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
pub(super) fn dump<T, E: Display>(
    request: Request,
    buffer: &mut [u8],
    translate: impl Fn(&[u8]) -> Result<Option<T>, E>,
) -> Result<Vec<T>, SourceError> {
    let mut body = vec![0; request.header_bytes];
    if let Some(family) = body.first_mut() {
        *family = request.family;
    }
    let question = Question {
        what: request.what,
        protocol: NETLINK_ROUTE,
        kind: request.kind,
        is_dump: true,
        body: &body,
    };
    for _ in 0..ATTEMPTS {
        let mut all = Vec::new();
        if ask(question, buffer, |message| collect(&mut all, request, message, &translate))? {
            return Ok(all);
        }
    }
    Err(SourceError::Unsteady { what: request.what, attempts: ATTEMPTS })
}

/// What one datagram of a dump gives: for fuzzing.
pub(super) fn digest<T, E: Display>(
    request: Request,
    datagram: &[u8],
    translate: impl Fn(&[u8]) -> Result<Option<T>, E>,
) -> Result<Vec<T>, SourceError> {
    let mut all = Vec::new();
    Answer::default().digest(request.what, datagram, &mut |message| {
        collect(&mut all, request, message, &translate)
    })?;
    Ok(all)
}

fn collect<T, E>(
    all: &mut Vec<T>,
    request: Request,
    message: Message<'_>,
    translate: &impl Fn(&[u8]) -> Result<Option<T>, E>,
) -> Result<(), E> {
    // A dump answers RTM_GET... with RTM_NEW..., two numbers below.
    if request.kind.checked_sub(2) == Some(message.kind) {
        all.extend(translate(message.payload)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_other_types_are_passed_over() {
        let request =
            Request { what: "dumping links", kind: libc::RTM_GETLINK, family: 0, header_bytes: 16 };
        let mut all = Vec::new();
        for kind in [libc::RTM_NEWADDR, u16::MAX, libc::RTM_NEWLINK] {
            let message = Message { kind, flags: 0, payload: &[0; 4] };
            let take = |payload: &[u8]| Ok::<_, String>(Some(payload.len()));
            collect(&mut all, request, message, &take).unwrap();
        }
        assert_eq!(all, [4]);
    }
}

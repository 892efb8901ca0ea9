//! Netlink messages in the bytes of a datagram (netlink(7)).

use std::io;

use netlink_packet_core::{DecodeError, NetlinkBuffer};
use netlink_sys::Socket;

/// Bytes of `struct nlmsghdr`.
pub(super) const HEADER_BYTES: usize = 16;
/// The kernel fills at most 32 KiB at once, of whatever larger buffer
/// (netlink_recvmsg, net/netlink/af_netlink.c), but for one link that alone
/// needs more: its length is a 16-bit number.
const BUFFER_BYTES: usize = 64 << 10;

/// A buffer that every datagram fits into.
pub(super) fn buffer() -> Box<[u8]> {
    vec![0; BUFFER_BYTES].into_boxed_slice()
}

/// Receives one datagram.
pub(super) fn receive<'a>(
    socket: &Socket,
    buffer: &'a mut [u8],
    flags: libc::c_int,
) -> io::Result<&'a [u8]> {
    let length = loop {
        // With MSG_TRUNC the length is the datagram's, whatever the buffer's.
        match socket.recv(&mut &mut *buffer, flags | libc::MSG_TRUNC) {
            // A signal interrupts a receive with a timeout even where the
            // handler asks for system calls to be restarted (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received?,
        }
    };
    buffer.get(..length).ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// `RTM_...` or `NLMSG_...`.
    pub(super) kind: u16,
    /// `NLM_F_...`.
    pub(super) flags: u16,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

/// The messages of a datagram; an error where its lengths make no sense, and
/// nothing after it.
pub(super) fn messages(
    mut datagram: &[u8],
) -> impl Iterator<Item = Result<Message<'_>, DecodeError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut datagram);
        Some(NetlinkBuffer::new_checked(rest).map(|header| {
            let length = usize::try_from(header.length()).unwrap_or(usize::MAX);
            // Messages are aligned to four bytes (NLMSG_ALIGN).
            datagram = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Message {
                kind: header.message_type(),
                flags: header.flags(),
                payload: rest.get(HEADER_BYTES..length).unwrap_or_default(),
            }
        }))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_found_one_after_the_other() {
        let datagram = [message(24, &[1, 2, 3]), message(3, &[])].concat();
        let found: Vec<_> =
            messages(&datagram).map(|m| m.map(|m| (m.kind, m.payload.to_vec())).unwrap()).collect();
        assert_eq!(found, [(24, vec![1, 2, 3]), (3, vec![])]);
    }

    #[test]
    fn a_truncated_message_ends_the_datagram_with_an_error() {
        let datagram = [message(24, &[0; 8]), message(24, &[0; 8])].concat();
        let outcomes: Vec<bool> =
            messages(&datagram[..datagram.len() - 4]).map(|m| m.is_ok()).collect();
        assert_eq!(outcomes, [true, false]);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER_BYTES + 1);
        }
    }
}

//! Being told of every change.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use rtnetlink::MulticastGroup;

use crate::source::SourceError;
use crate::source::wire::{self, Message, messages};

/// Datagrams read in one go: more wait for the next round, so that a storm of
/// events cannot keep the thread from its other sources.
const ROUND: usize = 65_536;

/// A subscription to groups of events.
#[derive(Debug)]
pub(super) struct Events(Socket);

/// How reading a subscription ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// Every event up to now was read.
    Complete,
    /// Events were lost: what was known is no longer true, and so is the subscription.
    Lost,
}

impl Events {
    /// Subscribes to `groups`.
    pub(super) fn subscribe(
        groups: &[MulticastGroup],
        buffer_bytes: usize,
    ) -> Result<Self, SourceError> {
        Self::open(groups, buffer_bytes)
            .map_err(|source| SourceError::io("subscribing to network events", source))
    }

    fn open(groups: &[MulticastGroup], buffer_bytes: usize) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // A socket without an address joins groups and hears nothing.
        socket.bind_auto()?;
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN; without it, as much as one gets.
        if setsockopt(&socket, RcvBufForce, &buffer_bytes).is_err() {
            setsockopt(&socket, RcvBuf, &buffer_bytes)?;
        }
        for &group in groups {
            match socket.add_membership(group as u32) {
                // Kernels before 5.3 have no next-hop objects and no group for them.
                Err(error)
                    if group == MulticastGroup::Nexthop
                        && error.raw_os_error() == Some(libc::EINVAL) => {}
                joined => joined?,
            }
        }
        Ok(Self(socket))
    }

    /// Hands every waiting message to `take`.
    pub(super) fn drain(
        &self,
        buffer: &mut [u8],
        mut take: impl FnMut(Message<'_>),
    ) -> Result<Drained, SourceError> {
        for _ in 0..ROUND {
            let datagram = match wire::receive(&self.0, buffer, libc::MSG_DONTWAIT) {
                Ok(datagram) => datagram,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::ENOBUFS | libc::EMSGSIZE) => return Ok(Drained::Lost),
                    _ => return Err(SourceError::io("reading network events", error)),
                },
            };
            for message in messages(datagram) {
                match message {
                    Ok(message) => take(message),
                    Err(_) => return Ok(Drained::Lost),
                }
            }
        }
        Ok(Drained::Complete)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

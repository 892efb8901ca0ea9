//! Links, addresses, routes, rules, neighbours and forwarding entries, from
//! the kernel's own mouth (rtnetlink(7)).
//!
//! Each subject is subscribed to, then dumped, then followed: what changes
//! during the dump waits in the subscription and is replayed after it, so
//! nothing is lost. Dumps and events are read by one thread in turn, so what it
//! sends is in order.
//!
//! Why not `rtnetlink`'s handle for all of it: its dumps lose the error that
//! rides in the last message and do not look at `NLM_F_DUMP_INTR`, its event
//! stream needs a task that must never fall behind, and it makes an object of
//! every attribute of half a million routes. From that family of crates
//! come the groups (`rtnetlink`), the sockets (`netlink-sys`), the framing
//! (`netlink-packet-core`) and what addresses, rules, neighbours and tunnel
//! attributes mean (`netlink-packet-route`).

pub mod datagram;
mod dump;
mod events;
mod feed;
mod feeds;
mod follow;
pub mod translate;

use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::time::MILLISECOND;
use tokio::sync::mpsc::Sender;

use super::meter::{Closed, disabled};
use super::{ATTENTION, Options};
use crate::clock;
use crate::source::wire;
use feed::Common;
use feeds::{Addresses, Fdb, Links, Neighbours, Routes, Rules};
use follow::{Context, Follow, Follower};

/// How long events gather before they are read: of a storm only the last word
/// on each item counts, and the thread wakes at most fifty times a second.
const GATHER: Duration = Duration::from_millis(20);

/// Follows what `options` enable until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; with nothing enabled it returns at once.
pub fn run(options: &Options, updates: &Sender<Update>) -> Result<(), Closed> {
    let mut followers: Vec<Box<dyn Follow>> = Vec::new();
    for source in Options::ALL {
        match follower(source, options) {
            Some(follower) if options.enabled.contains(&source) => followers.push(follower),
            Some(_) => disabled(updates, source)?,
            None => {}
        }
    }
    let mut context = Context {
        updates,
        buffer: wire::buffer(),
        common: Common::default(),
        event_buffer_bytes: options.event_buffer_bytes,
    };
    while !followers.is_empty() {
        for follower in &mut followers {
            follower.round(&mut context)?;
        }
        for follower in &mut followers {
            if context.common.doubts.remove(&follower.source()) {
                follower.doubt();
            }
        }
        if updates.is_closed() {
            return Err(Closed);
        }
        wait(&followers);
    }
    Ok(())
}

fn follower(source: SourceId, options: &Options) -> Option<Box<dyn Follow>> {
    let (poll, refresh) = (nanoseconds(options.poll), nanoseconds(options.refresh));
    Some(match source {
        // No event tells that a counter moved.
        SourceId::Links => Box::new(Follower::<Links>::new(poll)),
        SourceId::Addresses => Box::new(Follower::<Addresses>::new(refresh)),
        SourceId::Routes => Box::new(Follower::<Routes>::new(refresh)),
        SourceId::Rules => Box::new(Follower::<Rules>::new(refresh)),
        SourceId::Neighbours => Box::new(Follower::<Neighbours>::new(refresh)),
        SourceId::Fdb => Box::new(Follower::<Fdb>::new(refresh)),
        SourceId::Procfs
        | SourceId::Probe
        | SourceId::Peers
        | SourceId::Configuration
        | SourceId::Kernel
        | SourceId::Lookups
        | SourceId::Machine
        | SourceId::Cni
        | SourceId::Traffic
        | SourceId::Conntrack
        | SourceId::Sockets
        | SourceId::Services => return None,
        SourceId::Ipset | SourceId::Tools | SourceId::Nftables => return None,
    })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Waits until an event came and had company, or a dump is due, or it is time
/// to see whether anybody listens.
fn wait(followers: &[Box<dyn Follow>]) {
    let due = followers.iter().map(|follower| follower.due()).min().unwrap_or_default();
    // Rounded up: a wait that ends just before its time is a turn for nothing.
    let left = Duration::from_millis(due.since(clock::mono()).div_ceil(MILLISECOND));
    let timeout = PollTimeout::try_from(left.min(ATTENTION)).unwrap_or(PollTimeout::ZERO);
    let mut fds: Vec<PollFd<'_>> = followers
        .iter()
        .filter_map(|follower| Some(PollFd::new(follower.readable()?, PollFlags::POLLIN)))
        .collect();
    match poll(&mut fds, timeout) {
        Ok(0) | Err(Errno::EINTR) => {}
        // Neither an event nor an impossible error of poll may make this a busy loop.
        Ok(_) | Err(_) => thread::sleep(GATHER),
    }
}

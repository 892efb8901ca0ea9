//! Queues of this namespace's devices (RTM_GETQDISC), looked at every few
//! seconds: no event tells that something was dropped.

pub mod translate;

use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::TrafficControl;
use tokio::sync::mpsc::Sender;

use super::ask::{Question, ask};
use super::meter::{Closed, disabled, metered, pause};
use super::{Options, SourceError, wire};

/// How often.
const EVERY: Duration = Duration::from_secs(5);
/// Devices with a queue of their own; pods' ends have none. More are not told.
const MOST_QDISCS: usize = 256;
/// `struct tcmsg`, bytes.
const TCMSG_BYTES: usize = 20;

/// Looks every few seconds until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, updates: &Sender<Update>) -> Result<(), Closed> {
    if !options.enabled.contains(&SourceId::Traffic) {
        return disabled(updates, SourceId::Traffic);
    }
    loop {
        metered(updates, SourceId::Traffic, || Ok(Update::Traffic(Box::new(read()?))))?;
        pause(EVERY, updates)?;
    }
}

fn read() -> Result<TrafficControl, SourceError> {
    let question = Question {
        what: "dumping queueing disciplines",
        protocol: NETLINK_ROUTE,
        kind: libc::RTM_GETQDISC,
        is_dump: true,
        body: &[0; TCMSG_BYTES],
    };
    let mut qdiscs = Vec::new();
    ask(question, &mut wire::buffer(), |message| {
        if message.kind == libc::RTM_NEWQDISC && qdiscs.len() < MOST_QDISCS {
            qdiscs.extend(translate::qdisc(message.payload)?);
        }
        Ok::<_, netlink_packet_core::DecodeError>(())
    })?;
    qdiscs.sort_by_key(|qdisc| qdisc.index);
    Ok(TrafficControl { qdiscs })
}

//! Programs attached as filters on the clsact queueing discipline, for kernels
//! before 6.6. A filter stays when the agent ends but cannot be pinned, so
//! folders among the pins remember it: `clsact-IFINDEX-in`, `clsact-IFINDEX-out`,
//! and `clsact-IFINDEX-made` where the discipline itself was not there before.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::net::if_::if_indextoname;
use overlaywatch_core::kernel::{ForeignProgram, HookedDevice};
use overlaywatch_core::model::IfIndex;

use super::pins::CLSACT;
use super::side::{self, Place, Side};
use crate::source::SourceError;
use crate::source::ask::{Question, ask};
use crate::source::wire::{self, Message};

/// By which our filters are known, with the name.
const HANDLE: TcHandle = TcHandle::new(0, 0x4f57);
/// What our programs' names begin with.
const NAME_PREFIX: &[u8] = b"ow_";
/// Filters with the lowest number run first.
const FIRST_PRIORITY: u16 = 1;
const LAST_PRIORITY: u16 = 0xfff0;
/// What remembers that the discipline is ours too.
const MADE: &str = "made";

/// `struct tcmsg`, bytes.
const TCMSG_BYTES: usize = 20;
/// `TC_H_CLSACT` with the numbers of the discipline and its two sides
/// (include/uapi/linux/pkt_sched.h).
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff2;
const EGRESS_PARENT: u32 = 0xffff_fff3;
/// `TCA_KIND`, and `TCA_OPTIONS` with `TCA_BPF_NAME` and `TCA_BPF_ID` in it
/// (include/uapi/linux/rtnetlink.h, pkt_cls.h).
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_NAME: u16 = 7;
const BPF_ID: u16 = 11;
/// Names of classifiers are shown by their first bytes (`CLS_BPF_NAME_LEN`).
const MOST_NAME_BYTES: usize = 256;

/// A filter, by what tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    priority: u16,
    handle: u32,
    is_ours: bool,
}

const fn options(side: Side) -> NlOptions {
    let priority = match side {
        Side::In => FIRST_PRIORITY,
        Side::Out => LAST_PRIORITY,
    };
    NlOptions { priority, handle: HANDLE, classid: None }
}

fn ours(side: Side) -> Filter {
    Filter { priority: options(side).priority, handle: HANDLE.into(), is_ours: true }
}

/// Where our filter is on one side of a device.
pub(super) fn place(device: &HookedDevice, side: Side) -> Result<Place<Filter>, SourceError> {
    Ok(side.place(&filters(device.index, side)?, &ours(side)))
}

/// Attaches one program; whether it took over from an earlier run without a gap.
pub(super) fn attach(
    folder: &Path,
    ebpf: &mut Ebpf,
    device: &HookedDevice,
    side: Side,
) -> Result<bool, SourceError> {
    let what = || format!("attaching to {} ({})", device.name, side.slug());
    let failed = |error: &(dyn std::error::Error + 'static)| SourceError::kernel(what(), error);
    let remembered =
        |slug: &str| remember(folder, device.index, slug).map_err(|e| SourceError::io(what(), e));
    match tc::qdisc_add_clsact(&device.name) {
        Ok(()) => remembered(MADE)?,
        // Others may use it too.
        Err(error) if is_there_already(&error) => {}
        Err(error) => return Err(failed(&error)),
    }
    let program = side::program(ebpf, device, side)?;
    let is_there = place(device, side)? != Place::Gone;
    // Before the filter: what is remembered in vain does no harm.
    remembered(side.slug())?;
    let NlOptions { priority, handle, classid } = options(side);
    let link = if is_there {
        // The same handle: the kernel replaces the program at once.
        let known = SchedClassifierLink::attached(
            &device.name,
            side.attach_type(),
            priority,
            handle,
            classid,
        );
        program.attach_to_link(known.map_err(|e| failed(&e))?)
    } else {
        let options = TcAttachOptions::Netlink(options(side));
        program.attach_with_options(&device.name, side.attach_type(), options)
    };
    let link = program.take_link(link.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    // Dropping the link would take the filter away.
    std::mem::forget(link);
    Ok(is_there)
}

fn is_there_already(error: &TcError) -> bool {
    matches!(error, TcError::AlreadyAttached)
        || matches!(error, TcError::NetlinkError(error) if error.raw_os_error() == Some(libc::EEXIST))
}

fn remember(folder: &Path, index: IfIndex, slug: &str) -> io::Result<()> {
    match fs::create_dir(folder.join(format!("{CLSACT}{}-{slug}", index.0))) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Takes our filters off a device, and the discipline if an agent made it and
/// nobody else uses it. How many things that were.
pub(super) fn release(folder: &Path, index: IfIndex) -> usize {
    let was = |slug: &str| fs::remove_dir(folder.join(format!("{CLSACT}{}-{slug}", index.0)));
    let mut removed = 0;
    for side in Side::BOTH {
        if was(side.slug()).is_ok() {
            removed += usize::from(remove_filter(index, side));
        }
    }
    if was(MADE).is_ok() && is_unused(index) {
        removed += usize::from(remove_clsact(index).is_ok());
    }
    removed
}

fn remove_filter(index: IfIndex, side: Side) -> bool {
    let is_there = filters(index, side).is_ok_and(|all| all.contains(&ours(side)));
    let name = if_indextoname(index.0).ok().and_then(|name| name.into_string().ok());
    let (true, Some(name)) = (is_there, name) else { return false };
    let NlOptions { priority, handle, classid } = options(side);
    let link = SchedClassifierLink::attached(&name, side.attach_type(), priority, handle, classid);
    // Dropping the link takes the filter away.
    link.is_ok()
}

fn is_unused(index: IfIndex) -> bool {
    Side::BOTH.iter().all(|&side| filters(index, side).is_ok_and(|all| all.is_empty()))
}

/// Filters on one side of a device that are not ours, in the order in which they run.
pub(super) fn others(
    device: &HookedDevice,
    side: Side,
) -> Result<Vec<ForeignProgram>, SourceError> {
    let mut all = Vec::new();
    let parent = parent(side);
    talk(libc::RTM_GETTFILTER, true, device.index, 0, parent, |message| {
        if message.kind == libc::RTM_NEWTFILTER {
            all.extend(other(message.payload, device, side));
        }
    })?;
    Ok(all)
}

/// What a filter of somebody else is.
fn other(payload: &[u8], device: &HookedDevice, side: Side) -> Option<ForeignProgram> {
    let filter = filter(payload, parent(side)).filter(|filter| !filter.is_ours)?;
    let mut told = ForeignProgram {
        device: device.name.clone(),
        is_ingress: side == Side::In,
        preference: Some(filter.priority),
        handle: Some(filter.handle),
        ..ForeignProgram::default()
    };
    for attribute in NlasIterator::new(payload.get(TCMSG_BYTES..)?).flatten() {
        match attribute.kind() {
            KIND => told.kind = text(attribute.value()),
            OPTIONS if told.kind == "bpf" => {
                for option in NlasIterator::new(attribute.value()).flatten() {
                    match option.kind() {
                        BPF_NAME => told.name = Some(text(option.value())),
                        BPF_ID => {
                            told.id = option.value().first_chunk().copied().map(u32::from_ne_bytes);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(told)
}

/// Text up to the byte that ends it, no longer than names of programs get.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end.min(MOST_NAME_BYTES)]).into_owned()
}

const fn parent(side: Side) -> u32 {
    match side {
        Side::In => INGRESS_PARENT,
        Side::Out => EGRESS_PARENT,
    }
}

/// The filters on one side of a device, in the order in which they run.
fn filters(index: IfIndex, side: Side) -> Result<Vec<Filter>, SourceError> {
    let parent = parent(side);
    let mut all = Vec::new();
    talk(libc::RTM_GETTFILTER, true, index, 0, parent, |message| {
        if message.kind == libc::RTM_NEWTFILTER {
            all.extend(filter(message.payload, parent));
        }
    })?;
    Ok(all)
}

/// A filter of one side; none for the heads of lists, whose handle is zero, and
/// for what a kernel that filters no dump shows of the other side.
fn filter(payload: &[u8], side: u32) -> Option<Filter> {
    let word = |at: usize| {
        let four = payload.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*four))
    };
    let (handle, parent, info) = (word(8)?, word(12)?, word(16)?);
    if handle == 0 || parent != side {
        return None;
    }
    let attributes = NlasIterator::new(payload.get(TCMSG_BYTES..)?);
    let options = attributes.flatten().find(|attribute| attribute.kind() == OPTIONS);
    let is_ours = handle == u32::from(HANDLE)
        && options.is_some_and(|options| {
            let options = options.value();
            NlasIterator::new(options)
                .flatten()
                .any(|option| option.kind() == BPF_NAME && option.value().starts_with(NAME_PREFIX))
        });
    let priority = u16::try_from(info >> 16).ok()?;
    Some(Filter { priority, handle, is_ours })
}

fn remove_clsact(index: IfIndex) -> Result<(), SourceError> {
    talk(libc::RTM_DELQDISC, false, index, CLSACT_HANDLE, CLSACT_PARENT, |_| {})
}

/// Asks something of traffic control and takes in the answer.
fn talk(
    kind: u16,
    is_dump: bool,
    index: IfIndex,
    handle: u32,
    parent: u32,
    mut answer: impl FnMut(Message<'_>),
) -> Result<(), SourceError> {
    // struct tcmsg: family, padding, device, handle, parent, info.
    let mut body = vec![0; 4];
    for word in [index.0, handle, parent, 0] {
        body.extend(word.to_ne_bytes());
    }
    let what = "asking traffic control for filters";
    let question = Question { what, protocol: NETLINK_ROUTE, kind, is_dump, body: &body };
    ask(question, &mut wire::buffer(), |message| {
        answer(message);
        Ok::<_, Infallible>(())
    })
    .map(drop)
}

//! Programs on devices: attached where the plan says, kept over restarts,
//! followed when a device goes or another program takes our place.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, Program, RawTracePoint, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use nix::net::if_::if_indextoname;
use overlaywatch_core::kernel::HookedDevice;
use overlaywatch_core::model::IfIndex;
use overlaywatch_core::time::Mono;

use crate::clock;
use crate::source::SourceError;

/// tcx came with 6.6 (kernel/bpf/tcx.c); before, clsact filters do.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);
/// By which our filters are known.
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 0x4f57);
/// Filters on the way in go first, so that whatever others drop was seen.
const FIRST_PRIORITY: u16 = 1;
/// Filters on the way out go last, so that what was seen did leave.
const LAST_PRIORITY: u16 = 0xfff0;

/// What the names of folders that remember a filter begin with.
pub(super) const FILTER_MARKER: &str = "clsact-";

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// As the kernel can.
    #[default]
    Auto,
    /// Links of the multi-program interface, Linux 6.6 and later.
    Tcx,
    /// Filters on the clsact queueing discipline.
    Clsact,
}

impl Attach {
    fn is_tcx(self) -> bool {
        match self {
            Self::Auto => KernelVersion::current().is_ok_and(|now| now >= TCX_SINCE),
            Self::Tcx => true,
            Self::Clsact => false,
        }
    }
}

/// Which way a program looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    In,
    Out,
}

impl Side {
    const BOTH: [Self; 2] = [Self::In, Self::Out];

    const fn slug(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::In => TcAttachType::Ingress,
            Self::Out => TcAttachType::Egress,
        }
    }

    const fn order(self) -> LinkOrder {
        match self {
            Self::In => LinkOrder::first(),
            Self::Out => LinkOrder::last(),
        }
    }

    const fn filter(self) -> NlOptions {
        let priority = match self {
            Self::In => FIRST_PRIORITY,
            Self::Out => LAST_PRIORITY,
        };
        NlOptions { priority, handle: FILTER_HANDLE, classid: None }
    }
}

/// A device that both programs are attached to.
#[derive(Debug)]
struct Hooked {
    device: HookedDevice,
    /// Since when it is counted; zero when an earlier run began it.
    since: Mono,
}

/// All attached programs.
#[derive(Debug)]
pub(super) struct Hooks {
    folder: PathBuf,
    is_tcx: bool,
    hooked: BTreeMap<IfIndex, Hooked>,
    /// What went wrong lately, by device.
    problems: BTreeMap<IfIndex, String>,
}

impl Hooks {
    pub(super) fn new(folder: &Path, attach: Attach) -> Self {
        Self {
            folder: folder.to_owned(),
            is_tcx: attach.is_tcx(),
            hooked: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    /// What is not watched although it should be.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.values()
    }

    /// Devices that are watched, and since when.
    pub(super) fn watched(&self) -> impl Iterator<Item = (&HookedDevice, Mono)> {
        self.hooked.values().map(|hooked| (&hooked.device, hooked.since))
    }

    /// Attaches the tracepoint's program: the new one before the old one goes,
    /// so that no drop is missed.
    pub(super) fn watch_drops(&self, ebpf: &mut Ebpf) -> Result<(), SourceError> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            SourceError::kernel("attaching to the tracepoint skb:kfree_skb", error)
        };
        let program = program_mut(ebpf, "ow_kfree_skb")?;
        let program: &mut RawTracePoint = program.try_into().map_err(|e| failed(&e))?;
        program.load().map_err(|e| failed(&e))?;
        let link = program.attach("kfree_skb").map_err(|e| failed(&e))?;
        let link = program.take_link(link).map_err(|e| failed(&e))?;
        let path = self.folder.join("link-drops");
        remove(&path)?;
        FdLink::from(link).pin(&path).map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Makes what is attached fit the plan.
    pub(super) fn follow(&mut self, ebpf: &mut Ebpf, wanted: &[HookedDevice]) {
        let gone: Vec<IfIndex> = self
            .hooked
            .iter()
            .filter(|(_, hooked)| !wanted.contains(&hooked.device))
            .map(|(&index, _)| index)
            .collect();
        for index in gone {
            self.hooked.remove(&index);
            self.release(index);
        }
        self.problems.retain(|index, _| wanted.iter().any(|device| device.index == *index));
        for device in wanted {
            if !self.hooked.contains_key(&device.index) {
                self.hook(ebpf, device);
            }
        }
    }

    /// Attaches again where somebody detached us, and says so.
    pub(super) fn inspect(&mut self, ebpf: &mut Ebpf) {
        if !self.is_tcx {
            return;
        }
        let lost: Vec<HookedDevice> = self
            .hooked
            .values()
            .filter(|hooked| !Side::BOTH.iter().all(|&side| is_attached(&hooked.device, side)))
            .map(|hooked| hooked.device.clone())
            .collect();
        for device in lost {
            self.hooked.remove(&device.index);
            self.release(device.index);
            self.hook(ebpf, &device);
            // A device that is gone is no problem: the next plan knows.
            if self.hooked.contains_key(&device.index) {
                tracing::warn!(device = %device.name, "another program detached ours; attached again");
                let problem = format!(
                    "something detached this agent's programs from {}; they are attached again, \
                     and what passed meanwhile is not counted: see `bpftool net show dev {}` for \
                     who else is there",
                    device.name, device.name
                );
                self.problems.insert(device.index, problem);
            }
        }
    }

    /// Unpins links of devices that no plan names any more: those of an earlier run.
    pub(super) fn sweep(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let index =
                name.to_str().and_then(|name| name.strip_prefix("link-")).and_then(|rest| {
                    rest.split_once('-').and_then(|(index, _)| index.parse::<u32>().ok())
                });
            if index.is_some_and(|index| !self.hooked.contains_key(&IfIndex(index))) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn hook(&mut self, ebpf: &mut Ebpf, device: &HookedDevice) {
        let mut since = Mono(0);
        for side in Side::BOTH {
            match self.attach(ebpf, device, side) {
                Ok(true) => {}
                Ok(false) => since = clock::mono(),
                Err(error) => {
                    self.release(device.index);
                    self.problems.insert(device.index, error.to_string());
                    return;
                }
            }
        }
        self.problems.remove(&device.index);
        self.hooked.insert(device.index, Hooked { device: device.clone(), since });
    }

    /// Attaches one program; whether it took over from an earlier run without a gap.
    fn attach(
        &self,
        ebpf: &mut Ebpf,
        device: &HookedDevice,
        side: Side,
    ) -> Result<bool, SourceError> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            SourceError::kernel(format!("attaching to {} ({})", device.name, side.slug()), error)
        };
        let program = program_mut(ebpf, name_of(device, side))?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e| failed(&e))?;
        if program.fd().is_err() {
            program.load().map_err(|e| failed(&e))?;
        }
        if !self.is_tcx {
            return attach_filter(&self.folder, program, device, side).map_err(|e| failed(&*e));
        }
        let path = self.path(device.index, side);
        if let Ok(pinned) = PinnedLink::from_pin(&path) {
            // Whoever holds the device now: a link to one that is gone fails here.
            let updated = SchedClassifierLink::try_from(FdLink::from(pinned))
                .ok()
                .and_then(|link| program.attach_to_link(link).ok());
            if let Some(link) = updated {
                let _ = program.take_link(link);
                if is_attached(device, side) {
                    return Ok(true);
                }
            }
        }
        remove(&path)?;
        let link = program
            .attach_with_options(
                &device.name,
                side.attach_type(),
                TcAttachOptions::TcxOrder(side.order()),
            )
            .map_err(|e| failed(&e))?;
        let link = program.take_link(link).map_err(|e| failed(&e))?;
        FdLink::try_from(link).map_err(|e| failed(&e))?.pin(&path).map_err(|e| failed(&e))?;
        Ok(false)
    }

    /// Takes our programs off a device.
    fn release(&self, index: IfIndex) {
        for side in Side::BOTH {
            let _ = fs::remove_file(self.path(index, side));
            let marker = format!("{FILTER_MARKER}{}-{}", index.0, side.slug());
            if fs::remove_dir(self.folder.join(&marker)).is_ok() {
                detach_filter(&marker);
            }
        }
    }

    fn path(&self, index: IfIndex, side: Side) -> PathBuf {
        self.folder.join(format!("link-{}-{}", index.0, side.slug()))
    }
}

/// Attaches a filter to clsact. It stays when the agent ends, and a folder among
/// the pins remembers it, since a filter itself cannot be pinned.
fn attach_filter(
    folder: &Path,
    program: &mut SchedClassifier,
    device: &HookedDevice,
    side: Side,
) -> Result<bool, Box<dyn std::error::Error>> {
    // Where it is there already, others may use it too. Where it cannot be
    // there, attaching fails and says why.
    let _ = tc::qdisc_add_clsact(&device.name);
    let marker = folder.join(format!("{FILTER_MARKER}{}-{}", device.index.0, side.slug()));
    let is_ours = marker.is_dir();
    let attach_type = side.attach_type();
    let NlOptions { priority, handle, classid } = side.filter();
    let link = if is_ours {
        // The same handle: the kernel replaces the program at once.
        let known =
            SchedClassifierLink::attached(&device.name, attach_type, priority, handle, classid)?;
        program.attach_to_link(known)
    } else {
        program.attach_with_options(
            &device.name,
            attach_type,
            TcAttachOptions::Netlink(side.filter()),
        )
    };
    // Dropping the link would take the filter away.
    std::mem::forget(program.take_link(link?)?);
    if !is_ours {
        fs::create_dir(marker)?;
    }
    Ok(is_ours)
}

/// Takes the filter that a marker stands for off its device, if that is still there.
pub(super) fn detach_filter(marker: &str) {
    let Some((index, side)) =
        marker.strip_prefix(FILTER_MARKER).and_then(|rest| rest.split_once('-'))
    else {
        return;
    };
    let Some(name) = index.parse().ok().and_then(|index| if_indextoname(index).ok()) else {
        return;
    };
    let Ok(name) = name.into_string() else { return };
    let side = if side == Side::In.slug() { Side::In } else { Side::Out };
    let NlOptions { priority, handle, classid } = side.filter();
    // Dropping the link takes the filter away.
    drop(SchedClassifierLink::attached(&name, side.attach_type(), priority, handle, classid));
}

/// Whether one of our programs is on a device.
fn is_attached(device: &HookedDevice, side: Side) -> bool {
    let name = name_of(device, side);
    SchedClassifier::query_tcx(&device.name, side.attach_type()).is_ok_and(|(_, programs)| {
        programs.iter().any(|p| p.name_as_str().is_some_and(|known| name.starts_with(known)))
    })
}

/// The program for one side of a device.
const fn name_of(device: &HookedDevice, side: Side) -> &'static str {
    match (device.tunnel.is_some(), side, device.is_ethernet) {
        (true, Side::In, true) => "ow_tunnel_in",
        (true, Side::Out, true) => "ow_tunnel_out",
        (true, Side::In, false) => "ow_tunnel_in_l3",
        (true, Side::Out, false) => "ow_tunnel_out_l3",
        (false, Side::In, true) => "ow_underlay_in",
        (false, Side::Out, true) => "ow_underlay_out",
        (false, Side::In, false) => "ow_underlay_in_l3",
        (false, Side::Out, false) => "ow_underlay_out_l3",
    }
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, SourceError> {
    ebpf.program_mut(name).ok_or_else(|| SourceError::Malformed {
        what: "the eBPF object".to_owned(),
        reason: format!("it has no program {name}"),
    })
}

fn remove(path: &Path) -> Result<(), SourceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SourceError::io(format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

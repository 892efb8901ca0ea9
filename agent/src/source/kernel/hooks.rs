//! Programs on devices: attached where the plan says, kept over restarts,
//! followed when a device goes or another program takes our place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use aya::Ebpf;
use aya::programs::RawTracePoint;
use aya::programs::links::FdLink;
use aya::util::KernelVersion;
use nix::net::if_::if_indextoname;
use overlaywatch_core::kernel::{Attach, HookedDevice};
use overlaywatch_core::model::IfIndex;
use overlaywatch_core::time::{Mono, SECOND};

use super::pins::{self, Pins};
use super::side::{Place, Side, program_mut};
use super::{clsact, tcx};
use crate::clock;
use crate::source::SourceError;

/// tcx came with 6.6 (kernel/bpf/tcx.c); before, clsact filters do.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);
/// For how long it is told that something detached us.
const TOLD_NS: u64 = 600 * SECOND;

/// Whether the programs are attached by tcx links.
fn is_tcx(attach: Attach) -> bool {
    match attach {
        Attach::Auto => KernelVersion::current().is_ok_and(|now| now >= TCX_SINCE),
        Attach::Tcx => true,
        Attach::Clsact => false,
    }
}

/// A device that both programs are attached to.
#[derive(Debug)]
struct Hooked {
    device: HookedDevice,
    /// Since when it is counted; zero when an earlier run began it.
    since: Mono,
    /// Programs between ours and the wire that ours went around once: it does
    /// not argue with them.
    passed: BTreeSet<String>,
}

/// What went wrong with a device.
#[derive(Debug)]
struct Problem {
    text: String,
    /// Told until then; none while it lasts.
    until: Option<Mono>,
}

/// All attached programs.
#[derive(Debug)]
pub(super) struct Hooks {
    is_tcx: bool,
    hooked: BTreeMap<IfIndex, Hooked>,
    problems: BTreeMap<IfIndex, Problem>,
}

impl Hooks {
    pub(super) fn new(attach: Attach) -> Self {
        Self { is_tcx: is_tcx(attach), hooked: BTreeMap::new(), problems: BTreeMap::new() }
    }

    /// What is not watched although it should be.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.values().map(|problem| &problem.text)
    }

    /// Whether programs are attached by tcx links.
    pub(super) const fn is_tcx(&self) -> bool {
        self.is_tcx
    }

    /// Devices that are watched, and since when.
    pub(super) fn watched(&self) -> impl Iterator<Item = (&HookedDevice, Mono)> {
        self.hooked.values().map(|hooked| (&hooked.device, hooked.since))
    }

    /// Makes what is attached fit the plan.
    pub(super) fn follow(&mut self, pins: &Pins, ebpf: &mut Ebpf, wanted: &[HookedDevice]) {
        let mut gone = Vec::new();
        for (&index, hooked) in &mut self.hooked {
            match wanted.iter().find(|device| is_same(device, &hooked.device)) {
                // It may have another name now.
                Some(device) => hooked.device.clone_from(device),
                None => gone.push(index),
            }
        }
        for index in gone {
            self.hooked.remove(&index);
            release(pins, index);
        }
        let now = clock::mono();
        self.problems.retain(|index, problem| {
            problem.until.is_none_or(|until| now < until)
                && wanted.iter().any(|device| device.index == *index)
        });
        for device in wanted {
            if !self.hooked.contains_key(&device.index) {
                self.hook(pins, ebpf, device);
            }
        }
    }

    /// Attaches again where somebody detached us or got between us and the
    /// wire, and says so.
    pub(super) fn inspect(&mut self, pins: &Pins, ebpf: &mut Ebpf) {
        let indexes: Vec<IfIndex> = self.hooked.keys().copied().collect();
        for index in indexes {
            let Some(hooked) = self.hooked.get(&index) else { continue };
            let device = hooked.device.clone();
            let others = Side::BOTH.iter().try_fold(BTreeSet::new(), |mut others, &side| {
                others.extend(self.others(ebpf, &device, side)?);
                Some(others)
            });
            // A device that is gone is no problem: the next plan knows.
            if !is_there(&device) {
                continue;
            }
            match others {
                None => self.attach_again(pins, ebpf, &device),
                Some(others) => self.make_way(pins, ebpf, &device, others),
            }
        }
    }

    /// Who is between one of our programs and the wire; none when ours is not
    /// there at all.
    fn others(
        &self,
        ebpf: &mut Ebpf,
        device: &HookedDevice,
        side: Side,
    ) -> Option<BTreeSet<String>> {
        if self.is_tcx {
            others(tcx::place(ebpf, device, side))
        } else {
            others(clsact::place(device, side))
        }
    }

    fn attach_again(&mut self, pins: &Pins, ebpf: &mut Ebpf, device: &HookedDevice) {
        self.hooked.remove(&device.index);
        // A side that is still there is taken over as it is.
        self.hook(pins, ebpf, device);
        if !self.hooked.contains_key(&device.index) {
            return;
        }
        tracing::warn!(device = %device.name, "another program detached ours; attached again");
        let text = format!(
            "something detached this agent's programs from {name}; they are attached again, and \
             what passed meanwhile is not counted: see `bpftool net show dev {name}` for who else \
             is there",
            name = device.name
        );
        let until = Some(clock::mono().plus(TOLD_NS));
        self.problems.insert(device.index, Problem { text, until });
    }

    /// Goes around programs that came between ours and the wire: once for each,
    /// since they may have their reasons too.
    fn make_way(
        &mut self,
        pins: &Pins,
        ebpf: &mut Ebpf,
        device: &HookedDevice,
        others: BTreeSet<String>,
    ) {
        let Some(hooked) = self.hooked.get(&device.index) else { return };
        let mut passed = hooked.passed.clone();
        if others.is_empty() {
            self.clear_lasting(device.index);
            return;
        }
        if others.is_subset(&passed) {
            let text = format!(
                "other programs insist on standing between this agent's and the wire on {name}: \
                 what they drop is not counted there; see `bpftool net show dev {name}`",
                name = device.name
            );
            self.problems.insert(device.index, Problem { text, until: None });
            return;
        }
        passed.extend(others);
        self.hooked.remove(&device.index);
        release(pins, device.index);
        self.hook(pins, ebpf, device);
        if let Some(hooked) = self.hooked.get_mut(&device.index) {
            tracing::info!(device = %device.name, "went around programs that came later");
            hooked.passed = passed;
        }
    }

    /// Removes what earlier runs left: on devices that no plan names any more,
    /// of other versions, and attached in another way.
    pub(super) fn sweep(&self, pins: &Pins) {
        for index in pins.indexes() {
            if !self.hooked.contains_key(&index) {
                release(pins, index);
            } else if self.is_tcx {
                clsact::release(pins.home(), index);
            } else {
                tcx::release(pins.folder(), index);
            }
        }
        pins.forget_other_versions();
    }

    /// What lasted until now is over.
    fn clear_lasting(&mut self, index: IfIndex) {
        if self.problems.get(&index).is_some_and(|problem| problem.until.is_none()) {
            self.problems.remove(&index);
        }
    }

    fn hook(&mut self, pins: &Pins, ebpf: &mut Ebpf, device: &HookedDevice) {
        if !is_there(device) {
            return;
        }
        let mut since = Mono(0);
        for side in Side::BOTH {
            let attached = if self.is_tcx {
                tcx::attach(pins.folder(), ebpf, device, side)
            } else {
                clsact::attach(pins.home(), ebpf, device, side)
            };
            match attached {
                Ok(true) => {}
                Ok(false) => since = clock::mono(),
                Err(error) => {
                    release(pins, device.index);
                    let problem = Problem { text: error.to_string(), until: None };
                    self.problems.insert(device.index, problem);
                    return;
                }
            }
        }
        self.clear_lasting(device.index);
        let passed = BTreeSet::new();
        self.hooked.insert(device.index, Hooked { device: device.clone(), since, passed });
    }
}

/// Attaches the tracepoint's program: the new one before the old one goes, so
/// that no drop is missed.
pub(super) fn watch_drops(pins: &Pins, ebpf: &mut Ebpf) -> Result<(), SourceError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        SourceError::kernel("attaching to the tracepoint skb:kfree_skb", error)
    };
    let program = program_mut(ebpf, "ow_kfree_skb")?;
    let program: &mut RawTracePoint = program.try_into().map_err(|e| failed(&e))?;
    program.load().map_err(|e| failed(&e))?;
    let link = program.attach("kfree_skb").map_err(|e| failed(&e))?;
    let link = program.take_link(link).map_err(|e| failed(&e))?;
    let path = pins.folder().join("link-drops");
    pins::remove(&path)?;
    FdLink::from(link).pin(&path).map_err(|e| failed(&e))?;
    Ok(())
}

/// Who is between us and the wire; none when we are not there. What cannot be
/// asked counts as being where it should be.
fn others<T: Debug>(place: Result<Place<T>, SourceError>) -> Option<BTreeSet<String>> {
    match place {
        Ok(Place::Outermost) | Err(_) => Some(BTreeSet::new()),
        Ok(Place::Behind(others)) => {
            Some(others.iter().map(|other| format!("{other:?}")).collect())
        }
        Ok(Place::Gone) => None,
    }
}

/// The same programs are right for both, whatever the device is called.
fn is_same(one: &HookedDevice, other: &HookedDevice) -> bool {
    one.index == other.index
        && one.tunnel.is_some() == other.tunnel.is_some()
        && one.is_ethernet == other.is_ethernet
}

/// Whether the device still has this index and this name: programs are attached
/// by name, and the name may be another device's by now.
fn is_there(device: &HookedDevice) -> bool {
    if_indextoname(device.index.0).is_ok_and(|name| name.to_bytes() == device.name.as_bytes())
}

/// Takes our programs off a device.
fn release(pins: &Pins, index: IfIndex) {
    tcx::release(pins.folder(), index);
    clsact::release(pins.home(), index);
}

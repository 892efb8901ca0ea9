//! Programs of others on the devices that ours are on, so that what they drop
//! has a name.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::programs::loaded_programs;
use overlaywatch_core::kernel::{ForeignProgram, HookedDevice};

use super::side::Side;
use super::{clsact, nic, tcx};

/// Programs that are told.
const MOST_PROGRAMS: usize = 64;

/// Looks for others' programs.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// Names of programs by number; none where the kernel tells nobody but an
    /// administrator (CAP_SYS_ADMIN, bpf_prog_get_fd_by_id in kernel/bpf/syscall.c).
    names: BTreeMap<u32, Option<String>>,
}

impl Foreign {
    /// Others' programs on these devices, in the order in which they run. What
    /// cannot be asked has none: who needs to know why is told by [`super::hooks`].
    pub(super) fn list<'a>(
        &mut self,
        ebpf: &mut Ebpf,
        is_tcx: bool,
        devices: impl Iterator<Item = &'a HookedDevice>,
    ) -> Vec<ForeignProgram> {
        let mut found = Vec::new();
        for device in devices {
            found.extend(nic::xdp(device).unwrap_or_default());
            for side in Side::BOTH {
                if is_tcx {
                    let others = tcx::others(ebpf, device, side).unwrap_or_default();
                    found.extend(others.into_iter().map(|id| of_link(device, side, id)));
                }
                found.extend(clsact::others(device, side).unwrap_or_default());
            }
        }
        found.truncate(MOST_PROGRAMS);
        self.name(&mut found);
        found
    }

    fn name(&mut self, found: &mut [ForeignProgram]) {
        let ids: Vec<u32> =
            found.iter().filter(|it| it.name.is_none()).filter_map(|it| it.id).collect();
        self.names.retain(|id, _| ids.contains(id));
        if ids.iter().any(|id| !self.names.contains_key(id)) {
            self.names = ids.iter().map(|&id| (id, None)).collect();
            for program in loaded_programs().map_while(Result::ok) {
                let name = program.name_as_str().filter(|name| !name.is_empty());
                if let Some(known) = self.names.get_mut(&program.id()) {
                    *known = name.map(str::to_owned);
                }
            }
        }
        for program in found.iter_mut().filter(|it| it.name.is_none()) {
            program.name = program.id.and_then(|id| self.names.get(&id).cloned().flatten());
        }
    }
}

fn of_link(device: &HookedDevice, side: Side, id: u32) -> ForeignProgram {
    ForeignProgram {
        device: device.name.clone(),
        is_ingress: side == Side::In,
        kind: "tcx".to_owned(),
        name: None,
        id: Some(id),
        preference: None,
        handle: None,
    }
}

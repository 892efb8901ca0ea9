//! The two sides of a device, and which program looks at which.

use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, programs::Program};
use overlaywatch_core::kernel::HookedDevice;

use crate::source::SourceError;

/// Which way a program looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    In,
    Out,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::In, Self::Out];

    pub(super) const fn slug(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }

    pub(super) const fn attach_type(self) -> TcAttachType {
        match self {
            Self::In => TcAttachType::Ingress,
            Self::Out => TcAttachType::Egress,
        }
    }

    /// Where `ours` stands among programs in the order in which they run. Ours
    /// is to be the outermost: the first on the way in, so that whatever others
    /// drop was seen, and the last on the way out, so that what was seen did leave.
    pub(super) fn place<T: PartialEq + Copy>(self, programs: &[T], ours: &T) -> Place<T> {
        let Some(at) = programs.iter().position(|program| program == ours) else {
            return Place::Gone;
        };
        let beyond = match self {
            Self::In => programs.get(..at),
            Self::Out => programs.get(at + 1..),
        };
        match beyond.unwrap_or_default() {
            [] => Place::Outermost,
            others => Place::Behind(others.to_vec()),
        }
    }
}

/// Where a program of ours is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place<T> {
    /// Where it is to be.
    Outermost,
    /// These are between it and the wire.
    Behind(Vec<T>),
    /// Not on this device.
    Gone,
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

/// The program for one side of a device, in the kernel's hands.
pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    device: &HookedDevice,
    side: Side,
) -> Result<&'a mut SchedClassifier, SourceError> {
    let name = name_of(device, side);
    let failed = |error: &(dyn std::error::Error + 'static)| {
        SourceError::kernel(format!("loading the program {name}"), error)
    };
    let program = program_mut(ebpf, name)?;
    let program: &mut SchedClassifier = program.try_into().map_err(|e| failed(&e))?;
    if program.fd().is_err() {
        program.load().map_err(|e| failed(&e))?;
    }
    Ok(program)
}

/// A program of the object by its name.
pub(super) fn program_mut<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut Program, SourceError> {
    ebpf.program_mut(name).ok_or_else(|| SourceError::Malformed {
        what: "the eBPF object".to_owned(),
        reason: format!("it has no program {name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outermost_is_first_on_the_way_in_and_last_on_the_way_out() {
        assert_eq!(Side::In.place(&[7, 1, 2], &7), Place::Outermost);
        assert_eq!(Side::Out.place(&[1, 2, 7], &7), Place::Outermost);
        assert_eq!(Side::In.place(&[1, 2, 7, 3], &7), Place::Behind(vec![1, 2]));
        assert_eq!(Side::Out.place(&[1, 7, 2, 3], &7), Place::Behind(vec![2, 3]));
        assert_eq!(Side::In.place(&[1, 2], &7), Place::Gone);
        assert_eq!(Side::Out.place(&[], &7), Place::Gone);
    }
}

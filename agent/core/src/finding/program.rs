//! What remedies are told of somebody else's program.

use crate::kernel::ForeignProgram;

/// Words for the remedy against it.
pub(super) fn placeholders(program: &ForeignProgram) -> Vec<(&'static str, String)> {
    let ForeignProgram { device, preference, kind, .. } = program;
    let side = program.side();
    let show = if program.is_xdp() {
        format!("`ip -d link show dev {device}` and `bpftool net show dev {device}`")
    } else {
        format!("`tc -s filter show dev {device} {side}` and `bpftool net show dev {device}`")
    };
    let detach = match preference {
        _ if program.is_xdp() => {
            let mode = if kind == "xdp" { "xdpdrv" } else { kind };
            format!(
                "`ip link set dev {device} {mode} off`, or where a link holds it `bpftool link`"
            )
        }
        Some(preference) => format!("`tc filter del dev {device} {side} pref {preference}`"),
        None => format!(
            "`bpftool net detach tcx_{side} dev {device}`, or where a link holds it `bpftool link`"
        ),
    };
    vec![("{show}", show), ("{detach}", detach)]
}

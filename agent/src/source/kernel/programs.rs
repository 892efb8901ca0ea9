//! Loads the programs: what they need to know of the running kernel, and their maps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aya::{Ebpf, EbpfLoader};
use overlaywatch_ebpf::{Kernel, NO_OFFSET, OBJECT};

use super::btf::Btf;
use crate::source::SourceError;

/// The kernel's type information.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// What names of drop reasons begin with.
const REASON_PREFIX: &str = "SKB_DROP_REASON_";
/// The argument of skb:kfree_skb that is the reason, counted from one.
const REASON_ARGUMENT: usize = 3;

/// Programs in the kernel's hands, and what was learnt of the kernel.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) ebpf: Ebpf,
    /// Names of drop reasons by number.
    pub(super) reasons: BTreeMap<u32, String>,
    /// What this kernel lacks.
    pub(super) lacks: Option<String>,
}

/// Loads the object; maps that are pinned in `folder` already are taken over.
pub(super) fn load(folder: &Path, netns: u32, probe_port: u16) -> Result<Programs, SourceError> {
    let mut kernel = Kernel { netns, probe_port, ..Kernel::UNKNOWN };
    let (reasons, lacks) = match fs::read(VMLINUX) {
        Ok(bytes) => learn(&bytes, &mut kernel)?,
        Err(error) => (
            BTreeMap::new(),
            Some(format!(
                "drops are not counted: this kernel has no type information ({VMLINUX}: {error}); \
                 a kernel with CONFIG_DEBUG_INFO_BTF has"
            )),
        ),
    };
    let ebpf = EbpfLoader::new()
        // No program needs relocation, and reading the kernel's types once is enough.
        .btf(None)
        .default_map_pin_directory(folder)
        .override_global("KERNEL", &kernel, true)
        .load(OBJECT)
        .map_err(|error| SourceError::kernel("loading the eBPF object", &error))?;
    Ok(Programs { ebpf, reasons, lacks })
}

/// Fills in what the kernel's types say; names of drop reasons, and what is missing.
fn learn(
    bytes: &[u8],
    kernel: &mut Kernel,
) -> Result<(BTreeMap<u32, String>, Option<String>), SourceError> {
    let btf = Btf::parse(bytes).map_err(|error| SourceError::Malformed {
        what: VMLINUX.to_owned(),
        reason: error.to_string(),
    })?;
    let mut lacks = Vec::new();
    let mut offset = |structure: &str, path: &[&str]| {
        btf.offset(structure, path).unwrap_or_else(|| {
            lacks.push(format!("{structure}.{}", path.join(".")));
            NO_OFFSET
        })
    };
    kernel.skb_dev = offset("sk_buff", &["dev"]);
    kernel.skb_refdst = offset("sk_buff", &["_skb_refdst"]);
    kernel.skb_head = offset("sk_buff", &["head"]);
    kernel.skb_network_header = offset("sk_buff", &["network_header"]);
    kernel.skb_protocol = offset("sk_buff", &["protocol"]);
    kernel.dst_dev = offset("dst_entry", &["dev"]);
    kernel.dev_ifindex = offset("net_device", &["ifindex"]);
    kernel.dev_net = offset("net_device", &["nd_net", "net"]);
    kernel.net_inum = offset("net", &["ns", "inum"]);
    let arguments = btf.tracepoint_arguments("kfree_skb").unwrap_or(0);
    kernel.has_reason = u16::from(arguments >= REASON_ARGUMENT);
    let reasons = btf
        .enumerators("skb_drop_reason")
        .into_iter()
        .map(|(number, name)| {
            (number, name.strip_prefix(REASON_PREFIX).map_or(name.clone(), str::to_owned))
        })
        .collect();
    let lacks = (!lacks.is_empty())
        .then(|| format!("drops are counted in part: this kernel has no {}", lacks.join(", ")));
    Ok((reasons, lacks))
}

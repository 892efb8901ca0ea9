//! Loads the programs: what they need to know of the running kernel, and their maps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aya::{Ebpf, EbpfLoader};
use overlaywatch_ebpf::{Kernel, NO_OFFSET, OBJECT};

use super::btf::Btf;
use crate::source::SourceError;

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
/// `types` is the kernel's type information.
pub(super) fn load(
    folder: &Path,
    types: &Path,
    netns: u32,
    probe_port: u16,
) -> Result<Programs, SourceError> {
    let mut kernel = Kernel { netns, probe_port, ..Kernel::UNKNOWN };
    let learnt = fs::read(types).map_err(|error| error.to_string());
    let learnt = learnt.and_then(|bytes| {
        let btf = Btf::parse(&bytes).map_err(|error| error.to_string())?;
        Ok(learn(&btf, &mut kernel))
    });
    let (reasons, lacks) = learnt.unwrap_or_else(|error| {
        let lacks = format!(
            "drops are not counted: this kernel has no type information ({}: {error}); a kernel \
             with CONFIG_DEBUG_INFO_BTF has",
            types.display()
        );
        (BTreeMap::new(), Some(lacks))
    });
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
fn learn(btf: &Btf<'_>, kernel: &mut Kernel) -> (BTreeMap<u32, String>, Option<String>) {
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
    (reasons, lacks)
}

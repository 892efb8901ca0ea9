//! Filters of clsact, as tc(8) makes and shows them: for kernels before 6.6,
//! where programs are not attached by links.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use aya::programs::TcAttachType;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// Its place among the filters of a hook: after everybody else's.
const PREFERENCE: &str = "49000";

/// A filter that runs a program; it goes when this is dropped.
pub(crate) struct Filter {
    netns: File,
    device: String,
    side: &'static str,
}

impl Filter {
    /// Lets a pinned program see what passes a device of the calling thread's
    /// namespace.
    pub(crate) fn add(device: &str, side: TcAttachType, program: &Path) -> Result<Self> {
        let side = word(side);
        // It is there already where an agent is.
        let _ = tc(&["qdisc", "add", "dev", device, "clsact"]);
        let program = program.to_str().context("a pin that is no text")?;
        let filter = ["filter", "add", "dev", device, side, "pref", PREFERENCE, "bpf"];
        tc(&[&filter[..], &["direct-action", "object-pinned", program]].concat())?;
        let netns = File::open("/proc/thread-self/ns/net")?;
        Ok(Self { netns, device: device.to_owned(), side })
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        let Self { netns, device, side } = self;
        std::thread::scope(|scope| {
            let undone = scope.spawn(|| {
                setns(&*netns, CloneFlags::CLONE_NEWNET)?;
                tc(&["filter", "del", "dev", device, side, "pref", PREFERENCE])
            });
            if !matches!(undone.join(), Ok(Ok(_))) {
                eprintln!("the empty program stays on {device}");
            }
        });
    }
}

/// Identifiers of the programs that filters of a hook run, in the calling
/// thread's namespace.
pub(crate) fn programs(device: &str, side: TcAttachType) -> Result<Vec<u32>> {
    let shown = tc(&["-j", "filter", "show", "dev", device, word(side)])?;
    let filters: Vec<Value> = serde_json::from_str(&shown).context("what tc printed")?;
    let program = |filter: &Value| filter["options"]["prog"]["id"].as_u64();
    filters.iter().filter_map(program).map(|id| Ok(u32::try_from(id)?)).collect()
}

fn word(side: TcAttachType) -> &'static str {
    if side == TcAttachType::Ingress { "ingress" } else { "egress" }
}

fn tc(words: &[&str]) -> Result<String> {
    let output =
        Command::new("tc").args(words).stdin(Stdio::null()).output().context("cannot run tc")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc {}: {}", words.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

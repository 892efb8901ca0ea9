//! Agents of CNI plugins among the processes of this network namespace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use overlaywatch_core::model::{AgentKind, CniAgent};

use crate::clock;
use crate::source::SourceError;

/// The longest name of a process, with the line's end (proc_pid_comm(5)).
const NAME_BYTES: u64 = 64;
/// The processor's time is asked for after so many processes.
const CLOCK_EVERY: u32 = 64;

/// What came of a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// These run.
    Agents(Vec<CniAgent>),
    /// Processes of others are hidden.
    Hidden,
    /// It took too long.
    GaveUp,
}

impl Looked {
    /// Those that run; none where that is not known.
    pub(super) fn agents(self) -> Option<Vec<CniAgent>> {
        match self {
            Self::Agents(agents) => Some(agents),
            Self::Hidden | Self::GaveUp => None,
        }
    }
}

/// Agents that run in the calling thread's network namespace. Processes of others
/// may be hidden (`hidepid`, proc(5)), or an agent's namespace may not be seen
/// (PTRACE_MODE_READ, ptrace(2)). It is given up when this thread has had so much
/// of the processor, nanoseconds.
///
/// # Errors
/// When there is no /proc.
pub(super) fn running(proc: &Path, until_cpu_ns: u64) -> Result<Looked, SourceError> {
    let failed = |error| SourceError::io(format!("reading {}", proc.display()), error);
    let own = fs::metadata(proc.join("thread-self/ns/net")).map_err(failed)?;
    // Where the first process is hidden, others are.
    if fs::metadata(proc.join("1/comm")).is_err() {
        return Ok(Looked::Hidden);
    }
    let (mut found, mut looked_at) = (BTreeMap::new(), 0_u32);
    for entry in fs::read_dir(proc).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        looked_at += 1;
        if looked_at % CLOCK_EVERY == 0 && clock::thread_cpu_ns() > until_cpu_ns {
            return Ok(Looked::GaveUp);
        }
        let folder = proc.join(&name);
        let Some((kind, comm)) = agent(&folder) else { continue };
        let net = match fs::metadata(folder.join("ns/net")) {
            Ok(net) => net,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(Looked::Hidden);
            }
            // It ended meanwhile.
            Err(_) => continue,
        };
        if (net.dev(), net.ino()) == (own.dev(), own.ino()) {
            let lowest = found.entry((kind, comm)).or_insert(pid);
            *lowest = pid.min(*lowest);
        }
    }
    let agents = found.into_iter().map(|((kind, name), pid)| CniAgent { kind, name, pid });
    Ok(Looked::Agents(agents.collect()))
}

/// What a process is, if it is an agent; one that ended meanwhile is none.
fn agent(folder: &Path) -> Option<(AgentKind, String)> {
    let mut bytes = Vec::new();
    let read = |bytes: &mut Vec<u8>| -> io::Result<usize> {
        File::open(folder.join("comm"))?.take(NAME_BYTES).read_to_end(bytes)
    };
    read(&mut bytes).ok()?;
    let name = std::str::from_utf8(&bytes).ok()?.trim_end_matches('\n');
    Some((AgentKind::of_process(name)?, name.to_owned()))
}

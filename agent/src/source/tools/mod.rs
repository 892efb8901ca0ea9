//! Which ipset, iptables and nft the host and the containers on its network
//! have, and which version: told from their files, never by running them.
//!
//! Only processes of the agent's own network namespace count, since nobody else
//! can touch this node's sets and rules. Their file systems are reached through
//! /proc/PID/root, which takes CAP_SYS_PTRACE (proc_pid_root(5)).

mod places;
mod root;
pub mod translate;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{ToolProcess, ToolSpace, Tools};
use overlaywatch_core::time::{Mono, SECOND};
use tokio::sync::mpsc::Sender;

use super::meter::{Closed, disabled, metered, pause};
use super::{Options, SourceError};
use crate::clock;
use places::{Bundle, Carried};
use root::{Root, Versions};

/// Least time between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Most time between two looks, however long one takes.
const LONGEST: Duration = Duration::from_secs(60);
/// A look may take this share of a core: one in 500.
const SHARE: u32 = 500;
/// A look that takes longer than this is given up.
const PATIENCE_NS: u64 = 2 * SECOND;
/// Processes that are looked at; `kernel.pid_max` is higher on large machines,
/// and no node runs that many.
const MOST_PROCESSES: usize = 65_536;
/// Mount namespaces that are looked into.
const MOST_SPACES: usize = 256;
/// Processes of one mount namespace that are named.
const MOST_NAMED: usize = 8;
/// Bytes that are read of a process's list of mounts.
const MOUNTS_BYTES: u64 = 1 << 20;

/// The capability that opens other processes' file systems (capabilities(7)).
const CAP_SYS_PTRACE: u32 = 19;

/// A K3s that has only what there is beside it.
const NOTHING: Bundle = Bundle { ipset: Carried::Not, iptables: Carried::Not };

/// Programs that work on sets or rules, those first that matter most.
const USERS: [&str; 13] = [
    "calico-node",
    "k3s",
    "k3s-server",
    "k3s-agent",
    "kube-router",
    "kube-proxy",
    "cilium-agent",
    "flanneld",
    "weave-npc",
    "antrea-agent",
    "kubelet",
    "firewalld",
    "dockerd",
];

/// Where to look.
#[derive(Clone, Debug)]
pub struct Place {
    /// /proc, unless a test has its own.
    pub proc: PathBuf,
}

impl Default for Place {
    fn default() -> Self {
        Self { proc: "/proc".into() }
    }
}

/// Looks until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, place: &Place, updates: &Sender<Update>) -> Result<(), Closed> {
    if !options.enabled.contains(&SourceId::Tools) {
        return disabled(updates, SourceId::Tools);
    }
    let mut finder = Finder::new(place.clone());
    let mut before_ns = 0;
    loop {
        let run =
            metered(updates, SourceId::Tools, || Ok(Update::Tools(Box::new(finder.look()?))))?;
        // New files are read once: only looks that are dear each time are taken seldom.
        pause(rest(run.cpu_ns.min(before_ns)), updates)?;
        before_ns = run.cpu_ns;
    }
}

/// How long to rest after looks that take this processor time.
fn rest(cpu_ns: u64) -> Duration {
    Duration::from_nanos(cpu_ns).saturating_mul(SHARE).clamp(INTERVAL, LONGEST)
}

/// What is being done where other processes are out of reach.
const FOLLOWING: &str = "following /proc/PID/root to containers' tools";

/// A link or a directory of another process cannot be followed.
fn unreachable(source: io::Error) -> SourceError {
    SourceError::io(FOLLOWING, source)
}

/// The kernel cannot keep to a root, or may not.
fn unbounded(source: io::Error) -> SourceError {
    SourceError::io("looking for tools below /proc/PID/root (openat2, Linux 5.6)", source)
}

/// The processes of one mount namespace.
#[derive(Debug, Default)]
struct Inhabitants {
    /// A few, those first that matter most.
    processes: Vec<(usize, ToolProcess)>,
}

/// Looks for tools, and remembers the versions of files.
#[derive(Debug)]
pub struct Finder {
    place: Place,
    versions: Versions,
}

impl Finder {
    /// Nothing found yet.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, versions: Versions::default() }
    }

    /// One look.
    ///
    /// # Errors
    /// When processes or their file systems cannot be reached, or it takes too long.
    pub fn look(&mut self) -> Result<Tools, SourceError> {
        let until = Mono(clock::mono().0.saturating_add(PATIENCE_NS));
        // Where the first process is out of reach for all, as in a sandbox, the
        // agent's own file system stands for the host's.
        let first = match self.link("1", "mnt") {
            Err(error) if is_denied(&error) => {
                if !self.may_reach()? {
                    return Err(SourceError::Lacking {
                        what: FOLLOWING.to_owned(),
                        source: error,
                        capability: "CAP_SYS_PTRACE",
                    });
                }
                "thread-self"
            }
            first => first.map(|_| "1").map_err(unreachable)?,
        };
        let host = self.link(first, "mnt").map_err(unreachable)?;
        let mut inhabitants = self.inhabitants(until)?;
        let of_host = inhabitants.remove(&host).unwrap_or_default();
        let mut spaces = self.host(first, host, of_host)?;
        for (mount_namespace, inhabitants) in inhabitants {
            in_time(until)?;
            spaces.extend(self.container(mount_namespace, inhabitants)?);
        }
        self.versions.forget_unused();
        Ok(Tools { spaces })
    }

    /// The number of a process's namespace.
    fn link(&self, process: &str, namespace: &str) -> io::Result<u64> {
        let link = fs::read_link(self.place.proc.join(process).join("ns").join(namespace))?;
        let number = link.to_str().and_then(translate::namespace);
        number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// Whether this thread may reach other processes' file systems: then one that
    /// is out of reach is so for all, as a security module wants it.
    fn may_reach(&self) -> Result<bool, SourceError> {
        let path = self.place.proc.join("thread-self/status");
        let status = fs::read_to_string(path).map_err(unreachable)?;
        Ok(translate::has_capability(&status, CAP_SYS_PTRACE))
    }

    /// Who shares the agent's network, by mount namespace.
    fn inhabitants(&self, until: Mono) -> Result<BTreeMap<u64, Inhabitants>, SourceError> {
        let own = self.link("thread-self", "net").map_err(unreachable)?;
        let mut found = BTreeMap::<u64, Inhabitants>::new();
        let processes = fs::read_dir(&self.place.proc).map_err(unreachable)?;
        for entry in processes.flatten().take(MOST_PROCESSES) {
            let name = entry.file_name();
            let Some((process, pid)) = name.to_str().and_then(|n| Some((n, n.parse().ok()?)))
            else {
                continue;
            };
            in_time(until)?;
            let at = match self.link(process, "net") {
                Ok(net) if net != own => continue,
                Ok(_) => self.link(process, "mnt"),
                Err(error) => Err(error),
            };
            let mount_namespace = match at {
                Ok(number) => number,
                Err(error) if is_denied(&error) && !self.may_reach()? => {
                    return Err(unreachable(error));
                }
                // It has ended meanwhile, or nobody may look at it.
                Err(_) => continue,
            };
            let is_known = found.contains_key(&mount_namespace);
            if is_known || found.len() < MOST_SPACES {
                let name = self.name(process);
                found.entry(mount_namespace).or_default().take(ToolProcess { pid, name });
            }
        }
        Ok(found)
    }

    /// A process's name, without what would draw on a terminal.
    fn name(&self, process: &str) -> String {
        let name = fs::read(self.place.proc.join(process).join("comm")).unwrap_or_default();
        String::from_utf8_lossy(&name).trim_end().escape_debug().to_string()
    }

    /// The host's tools, and those that K3s brings.
    fn host(
        &mut self,
        first: &str,
        number: u64,
        found: Inhabitants,
    ) -> Result<Vec<ToolSpace>, SourceError> {
        let path = self.place.proc.join(first).join("root");
        // What mounts there are is no secret; where nobody says so, none is avoided.
        let mounts = mounts(&self.place.proc.join(first)).unwrap_or_default();
        let avoided = translate::served(&mounts).map(str::to_owned).collect();
        let root = Root::open(&path).map_err(unreachable)?.crossing(avoided);
        // What else runs on a host is no container's and says nothing.
        let users = found.processes.into_iter().filter(|(rank, _)| *rank < USERS.len());
        let processes = users.map(|(_, process)| process).collect();
        let host = ToolSpace {
            mount_namespace: number,
            is_host: true,
            processes,
            ..places::tools(&root, &mut self.versions).map_err(unbounded)?
        };
        self.with_k3s(&root, host)
    }

    /// A space, and that of a K3s in it which brings tools of its own.
    fn with_k3s(
        &mut self,
        root: &Root,
        mut space: ToolSpace,
    ) -> Result<Vec<ToolSpace>, SourceError> {
        let carried: Vec<_> =
            space.processes.extract_if(.., |process| process.name.starts_with("k3s")).collect();
        let Some(first) = carried.first() else { return Ok(vec![space]) };
        let link = fs::read_link(self.place.proc.join(first.pid.to_string()).join("exe"));
        // Who may not be looked at, or has ended, may use any tool.
        let link = link.ok().and_then(|link| link.into_os_string().into_string().ok());
        let bundle =
            places::bundle(root, link.as_deref(), &mut self.versions).map_err(unbounded)?;
        if bundle == NOTHING {
            space.processes.splice(..0, carried);
            return Ok(vec![space]);
        }
        let own = ToolSpace {
            processes: carried,
            ipset: bundle.ipset.before(space.ipset),
            // K3s takes the host's where there is one.
            iptables: bundle.iptables.after(space.iptables),
            ..space.clone()
        };
        // A space of a container is there for its processes.
        let is_empty = !space.is_host && space.processes.is_empty();
        Ok(if is_empty { vec![own] } else { vec![space, own] })
    }

    /// A container's tools; none where nobody of it is left, or where its files
    /// cannot be read without asking somebody for them.
    fn container(
        &mut self,
        number: u64,
        inhabitants: Inhabitants,
    ) -> Result<Vec<ToolSpace>, SourceError> {
        for (_, process) in &inhabitants.processes {
            let pid = process.pid.to_string();
            let folder = self.place.proc.join(&pid);
            let root = match Root::open(&folder.join("root")) {
                Ok(root) => root,
                Err(error) if is_denied(&error) && !self.may_reach()? => {
                    return Err(unreachable(error));
                }
                Err(_) => continue,
            };
            // The number may have gone to another process meanwhile.
            if self.link(&pid, "mnt").ok() != Some(number) {
                continue;
            }
            if !is_local(&root, &folder) {
                return Ok(Vec::new());
            }
            let tools = places::tools(&root, &mut self.versions).map_err(unbounded)?;
            let processes = inhabitants.processes.into_iter().map(|(_, process)| process);
            let space =
                ToolSpace { mount_namespace: number, processes: processes.collect(), ..tools };
            return self.with_k3s(&root, space);
        }
        Ok(Vec::new())
    }
}

impl Inhabitants {
    /// Keeps a process, if it matters more than those that are kept.
    fn take(&mut self, process: ToolProcess) {
        let rank = USERS.iter().position(|user| *user == process.name).unwrap_or(USERS.len());
        let key = (rank, process.pid);
        let position = self.processes.partition_point(|(rank, other)| (*rank, other.pid) < key);
        self.processes.insert(position, (rank, process));
        self.processes.truncate(MOST_NAMED);
    }
}

/// Whether a root is on a file system that the kernel serves itself: the very one
/// that was opened, whatever the process has mounted there since. (What overlayfs
/// has below it, as of images that are fetched when they are read, is not known.)
fn is_local(root: &Root, process: &Path) -> bool {
    let (Ok(number), Ok(mounts)) = (root.mount(), mounts(process)) else { return false };
    translate::file_system(&mounts, number).is_some_and(|kind| !translate::is_served(kind))
}

/// A process's list of mounts, or its beginning.
fn mounts(process: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(process.join("mountinfo"))?.take(MOUNTS_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

fn in_time(until: Mono) -> Result<(), SourceError> {
    if clock::mono() > until {
        return Err(unreachable(io::Error::from_raw_os_error(libc::ETIMEDOUT)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

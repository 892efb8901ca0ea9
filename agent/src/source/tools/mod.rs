//! Which ipset, iptables and nft the host and the containers on its network
//! have, and which version: told from their files, never by running them.
//!
//! Only processes of the agent's own network namespace count, since nobody else
//! can touch this node's sets and rules. Their file systems are reached through
//! /proc/PID/root, which takes CAP_SYS_PTRACE (proc_pid_root(5)).

mod inhabitants;
mod places;
mod root;
pub mod translate;

use std::collections::{BTreeMap, BTreeSet};
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
use inhabitants::{Inhabitants, in_order};
use places::{Bundle, Carried, Programs};
use root::{Root, Versions};

/// Least time between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Most time between two looks, however long one takes.
const LONGEST: Duration = Duration::from_secs(60);
/// A look may take this share of a core: one in 500.
const SHARE: u32 = 500;
/// A look at processes that takes longer than this is given up; a look into their
/// mount namespaces ends then with what was read.
const PATIENCE_NS: u64 = 2 * SECOND;
/// Processes that are looked at; `kernel.pid_max` is higher on large machines,
/// and no node runs that many.
const MOST_PROCESSES: usize = 65_536;
/// Mount namespaces that are looked into.
const MOST_SPACES: usize = 256;
/// Bytes that are read of a process's list of mounts.
const MOUNTS_BYTES: u64 = 1 << 20;

/// The capability that opens other processes' file systems (capabilities(7)).
const CAP_SYS_PTRACE: u32 = 19;

/// A K3s that has only what there is beside it.
const NOTHING: Bundle = Bundle { ipset: Carried::Not, iptables: Carried::Not };

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

/// What a look into a mount namespace found.
#[derive(Clone, Debug)]
enum Looked {
    /// Its programs are the host's files.
    OfHost,
    /// A space, and one for what K3s carries; none where nothing may be read.
    Apart(Vec<ToolSpace>),
}

/// Looks for tools, and remembers the versions of files.
#[derive(Debug)]
pub struct Finder {
    place: Place,
    versions: Versions,
    patience_ns: u64,
    /// What was found in each mount namespace but the host's, and by whose root.
    before: BTreeMap<u64, (u32, Looked)>,
    /// Mount namespaces that the last look did not come to.
    left: BTreeSet<u64>,
}

impl Finder {
    /// Nothing found yet.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self {
            place,
            versions: Versions::default(),
            patience_ns: PATIENCE_NS,
            before: BTreeMap::new(),
            left: BTreeSet::new(),
        }
    }

    /// One look.
    ///
    /// # Errors
    /// When processes or their file systems cannot be reached, or to list them
    /// takes too long.
    pub fn look(&mut self) -> Result<Tools, SourceError> {
        let until = clock::mono().plus(PATIENCE_NS);
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
        let mut inhabitants = self.inhabitants(host, until)?;
        let mut of_host = inhabitants.remove(&host).unwrap_or_default();
        let (root, tools, programs) = self.host(first)?;
        let mut others = self.others(inhabitants, &programs, &mut of_host)?;
        others.sort_by_key(|space| space.mount_namespace);
        // What else runs on a host is no container's and says nothing.
        let processes = of_host.users();
        let space = ToolSpace { mount_namespace: host, is_host: true, processes, ..tools };
        let mut spaces = self.with_k3s(&root, space)?;
        spaces.append(&mut others);
        self.versions.forget_unused();
        Ok(Tools { spaces })
    }

    /// The spaces beside the host's. Whoever may be hostile can keep a look busy
    /// with files that change: so agents come first, of these those that the last
    /// look did not come to, and what it did not come to now is as it was before.
    fn others(
        &mut self,
        inhabitants: BTreeMap<u64, Inhabitants>,
        of_host: &Programs,
        host: &mut Inhabitants,
    ) -> Result<Vec<ToolSpace>, SourceError> {
        let until = clock::mono().plus(self.patience_ns);
        let left = std::mem::take(&mut self.left);
        let mut before = std::mem::take(&mut self.before);
        let mut spaces = Vec::new();
        for (number, them) in in_order(inhabitants, &left) {
            let Some(pid) = them.first() else { continue };
            let looked = if clock::mono() < until {
                self.container(number, &them, of_host)?
            } else {
                self.left.insert(number);
                // The number may have gone to another one meanwhile.
                let known = before.remove(&number).filter(|(known, _)| *known == pid);
                known.map_or_else(|| Looked::unread(number, &them), |(_, looked)| looked)
            };
            match &looked {
                Looked::OfHost => host.take_all(&them),
                Looked::Apart(found) => spaces.extend_from_slice(found),
            }
            self.before.insert(number, (pid, looked));
        }
        Ok(spaces)
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

    /// Who shares the agent's network, by mount namespace. Of too many those of
    /// programs that matter stay, and the host's.
    fn inhabitants(
        &self,
        host: u64,
        until: Mono,
    ) -> Result<BTreeMap<u64, Inhabitants>, SourceError> {
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
            // One that has ended meanwhile is nobody any more.
            let Some((name, started)) = self.who(process) else { continue };
            found.entry(mount_namespace).or_default().take(ToolProcess { pid, name }, started);
            if found.len() > MOST_SPACES {
                let others = found.iter().filter(|(number, _)| **number != host);
                let least = others.max_by_key(|(_, them)| them.rank()).map(|(number, _)| *number);
                least.map(|number| found.remove(&number));
            }
        }
        Ok(found)
    }

    /// A process's name, without what would draw on a terminal, and when it was
    /// started.
    fn who(&self, process: &str) -> Option<(String, u64)> {
        let status = fs::read(self.place.proc.join(process).join("stat")).ok()?;
        let status = String::from_utf8_lossy(&status);
        let (name, started) = translate::process(&status)?;
        Some((name.escape_debug().to_string(), started))
    }

    /// The host's root, its tools and their files.
    fn host(&mut self, first: &str) -> Result<(Root, ToolSpace, Programs), SourceError> {
        let path = self.place.proc.join(first).join("root");
        // What mounts there are is no secret; where nobody says so, none is avoided.
        let mounts = mounts(&self.place.proc.join(first)).unwrap_or_default();
        let avoided = translate::served(&mounts).map(str::to_owned).collect();
        let root = Root::open(&path).map_err(unreachable)?.crossing(avoided);
        let (tools, programs) = places::tools(&root, &mut self.versions).map_err(unbounded)?;
        Ok((root, tools, programs))
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
        inhabitants: &Inhabitants,
        of_host: &Programs,
    ) -> Result<Looked, SourceError> {
        for process in inhabitants.named() {
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
                break;
            }
            let (tools, programs) = places::tools(&root, &mut self.versions).map_err(unbounded)?;
            if places::are_of_host(&programs, of_host) {
                return Ok(Looked::OfHost);
            }
            let processes = inhabitants.named();
            let space = ToolSpace { mount_namespace: number, processes, ..tools };
            return Ok(Looked::Apart(self.with_k3s(&root, space)?));
        }
        Ok(Looked::Apart(Vec::new()))
    }
}

impl Looked {
    fn unread(mount_namespace: u64, inhabitants: &Inhabitants) -> Self {
        let processes = inhabitants.named();
        let space =
            ToolSpace { mount_namespace, is_unread: true, processes, ..ToolSpace::default() };
        Self::Apart(vec![space])
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

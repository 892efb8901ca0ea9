//! What the kernel says of the network: read, never changed.
//!
//! Plain threads feed the assembly's channel, one for each kind of question.
//! Threads rather than tasks, because they spend their time in system calls that
//! no runtime can suspend, and because a thread keeps the network namespace it
//! was started in: [`spawn`] reads the namespace of the thread that calls it.
//!
//! Each source is run by one wrapper that measures it and reports how it fared, so
//! a source that fails shows as a gap of its own and takes no other along.

mod ask;
pub mod cni;
pub mod conntrack;
mod error;
pub mod ipset;
pub mod kernel;
pub mod lookups;
pub mod machine;
mod meter;
pub mod nftables;
pub mod procfs;
pub mod rtnetlink;
pub mod sockets;
pub mod tools;
pub mod traffic;
mod wire;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::kernel::HookPlan;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;

pub use error::SourceError;
pub use meter::{Closed, switched_off};

/// How often a thread that waits for events looks whether anybody still listens:
/// the longest that [`Handle::join`] waits for an idle one.
const ATTENTION: Duration = Duration::from_millis(500);

/// What to read and how often.
#[derive(Clone, Debug)]
pub struct Options {
    /// The sources to run, of those in [`Options::ALL`]; the others report
    /// themselves as disabled.
    pub enabled: BTreeSet<SourceId>,
    /// How often link counters and /proc are read: no event tells of them.
    pub poll: Duration,
    /// How often everything else is dumped again although events are followed.
    pub refresh: Duration,
    /// Receive buffer of each event socket, bytes. The kernel's default holds
    /// a few hundred route events.
    pub event_buffer_bytes: usize,
    /// Where the host's files are.
    pub host_root: PathBuf,
    /// Which tunnels this node has, as they are told to the eBPF programs.
    pub watched: watch::Receiver<Arc<HookPlan>>,
    /// Probes are being lost: what may tell why is to be looked at more often.
    pub losing: watch::Receiver<bool>,
}

impl Options {
    /// The sources of this module.
    pub const ALL: [SourceId; 16] = [
        SourceId::Links,
        SourceId::Addresses,
        SourceId::Routes,
        SourceId::Rules,
        SourceId::Neighbours,
        SourceId::Fdb,
        SourceId::Procfs,
        SourceId::Machine,
        SourceId::Cni,
        SourceId::Traffic,
        SourceId::Conntrack,
        SourceId::Sockets,
        SourceId::Services,
        SourceId::Ipset,
        SourceId::Tools,
        SourceId::Nftables,
    ];
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: Self::ALL.into(),
            poll: Duration::from_millis(500),
            refresh: Duration::from_secs(30),
            event_buffer_bytes: 16 << 20,
            host_root: "/".into(),
            // Nobody tells.
            watched: watch::channel(Arc::default()).1,
            losing: watch::channel(false).1,
        }
    }
}

/// The running sources. They end when the receiving end of their channel is
/// closed; dropping the handle leaves them running.
#[derive(Debug)]
pub struct Handle {
    threads: Vec<JoinHandle<()>>,
}

impl Handle {
    /// Waits for the threads to end, which takes half a second and whatever
    /// dump is under way once the receiver is closed.
    pub fn join(self) {
        for thread in self.threads {
            // A thread that panicked has ended too; its message is on stderr.
            let _ = thread.join();
        }
    }
}

/// What a thread does until nobody listens any more.
type Run = fn(&Options, &Sender<Update>) -> Result<(), Closed>;

/// The threads, by name.
const THREADS: &[(&str, Run)] = &[
    ("rtnetlink", rtnetlink::run),
    ("procfs", |options, updates| procfs::run(options, &procfs::Roots::default(), updates)),
    ("machine", machine::run),
    ("cni", |options, updates| cni::run(options, &cni::Roots::at(&options.host_root), updates)),
    ("traffic", traffic::run),
    ("conntrack", conntrack::run),
    ("sockets", sockets::run),
    ("ipset", ipset::run),
    ("tools", |options, updates| tools::run(options, &tools::Place::default(), updates)),
    ("nftables", nftables::run),
];

/// Starts the sources in the calling thread's network namespace.
///
/// # Errors
/// When the system refuses a thread.
pub fn spawn(options: &Options, updates: &Sender<Update>) -> io::Result<Handle> {
    let start = |&(name, run): &(&str, Run)| {
        let (options, updates) = (options.clone(), updates.clone());
        thread::Builder::new().name(name.to_owned()).spawn(move || ended(run(&options, &updates)))
    };
    Ok(Handle { threads: THREADS.iter().map(start).collect::<io::Result<_>>()? })
}

fn ended(why: Result<(), Closed>) {
    match why {
        Ok(()) => tracing::debug!("nothing to do for this thread: its sources are disabled"),
        Err(Closed) => tracing::debug!("nobody listens any more"),
    }
}

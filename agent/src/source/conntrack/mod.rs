//! Connection tracking over CTNETLINK: how full the table is, what it dropped,
//! and how much of it this node's own tunnels take.
//!
//! The table's size and counters cost microseconds and are read often. Entries
//! are counted only where there are enough to matter, picked out by the kernel,
//! while they pass by: nothing is kept of them but two numbers, whatever the
//! table's size, in one buffer of 64 KiB. No event is subscribed to, since that
//! costs the host something for each connection.
//!
//! A kernel that has not loaded what answers such questions is made to load nothing:
//! size and counters are then read from /proc, and entries are not counted.

pub mod translate;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::kernel::HookPlan;
use overlaywatch_core::model::{Conntrack, Encapsulation, TunnelFlows};
use overlaywatch_core::time::{Mono, SECOND};
use tokio::sync::mpsc::Sender;

use super::ask::{Question, ask, attribute};
use super::meter::{Closed, disabled, metered, pause};
use super::{Options, SourceError, wire};
use crate::clock;

/// How often the table's size is read.
const EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether connections are tracked at all.
const IDLE: Duration = Duration::from_secs(30);
/// Entries are not looked at while there are fewer: whatever they are of, the
/// table is not full of them.
const WORTH_COUNTING: u32 = 4_096;
/// The least time between two counts of entries.
const COUNT_NS: u64 = 10 * SECOND;
/// A count may take one part in so many of the processor's time, unless the
/// table has grown by a quarter since: an old count says little of such a table,
/// and no table grows so often.
const COUNT_SHARE: u64 = 500;

/// How often it is looked whether the kernel can be asked meanwhile.
const LOOK_NS: u64 = 30 * SECOND;
/// Switches of connection tracking (Documentation/networking/nf_conntrack-sysctl).
const SWITCHES: &str = "/proc/sys/net/netfilter";
/// Its counters (ct_cpu_seq_show, net/netfilter/nf_conntrack_standalone.c).
const COUNTERS: &str = "/proc/thread-self/net/stat/nf_conntrack";
/// What lets the kernel be asked.
const LETS_ANSWER: &str = "modprobe nf_conntrack_netlink";

/// `NFNL_SUBSYS_CTNETLINK` (linux/netfilter/nfnetlink.h), as the upper byte of
/// a message's type.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`, `_GET_STATS_CPU` and `_GET_STATS`
/// (linux/netfilter/nfnetlink_conntrack.h).
const GET: u16 = SUBSYSTEM | 1;
const GET_STATS_CPU: u16 = SUBSYSTEM | 4;
const GET_STATS: u16 = SUBSYSTEM | 5;
/// `struct nfgenmsg`: any family, version 0.
const HEADER: [u8; 4] = [0; 4];

/// Reads until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, updates: &Sender<Update>) -> Result<(), Closed> {
    if !options.enabled.contains(&SourceId::Conntrack) {
        return disabled(updates, SourceId::Conntrack);
    }
    let mut reader = Reader::default();
    loop {
        let encapsulations = encapsulations(&options.watched.borrow().clone());
        let mut is_idle = false;
        let run = metered(updates, SourceId::Conntrack, || {
            let table = reader.read(encapsulations.as_ref())?;
            is_idle = table.is_none();
            Ok(Update::Conntrack(table.map(Box::new)))
        })?;
        pause(if is_idle || !run.succeeded { IDLE } else { EVERY }, updates)?;
    }
}

/// What this node's tunnels speak; none while nobody knows.
fn encapsulations(plan: &HookPlan) -> Option<BTreeSet<Encapsulation>> {
    // A plan always has the usual ports.
    (!plan.ports.is_empty()).then(|| plan.devices.iter().filter_map(|it| it.tunnel).collect())
}

/// Everything there is to read of connection tracking, at once.
///
/// # Errors
/// When the kernel refuses, as without CAP_NET_ADMIN.
pub fn read(encapsulations: &BTreeSet<Encapsulation>) -> Result<Conntrack, SourceError> {
    let mut buffer = wire::buffer();
    let mut table = read_table(&mut buffer)?;
    table.tunnels = count_tunnels(encapsulations, &mut buffer)?;
    Ok(table)
}

/// Reads, and remembers what is dear.
#[derive(Debug, Default)]
struct Reader {
    /// Connections are tracked, and CTNETLINK is there to ask.
    is_there: bool,
    /// When it is looked for again.
    look_due: Mono,
    /// What was counted last, of which encapsulations, and when the next count is due.
    tunnels: Option<Vec<TunnelFlows>>,
    counted: BTreeSet<Encapsulation>,
    due: Mono,
    /// When the last count began, and how many entries there were.
    last: (Mono, u32),
}

impl Reader {
    /// One reading; none where nothing is tracked.
    fn read(
        &mut self,
        encapsulations: Option<&BTreeSet<Encapsulation>>,
    ) -> Result<Option<Conntrack>, SourceError> {
        if !self.is_there {
            if !is_tracking() {
                return Ok(None);
            }
            if clock::mono() >= self.look_due {
                self.look_due = clock::mono().plus(LOOK_NS);
                self.is_there = can_be_asked();
            }
        }
        if !self.is_there {
            self.tunnels = None;
            return files(Path::new(SWITCHES), Path::new(COUNTERS)).map(Some);
        }
        let mut buffer = wire::buffer();
        let table = read_table(&mut buffer).inspect_err(|_| self.is_there = false)?;
        match encapsulations {
            Some(wanted) if table.count >= WORTH_COUNTING => {
                self.count(wanted, table.count, &mut buffer)?;
            }
            _ => self.tunnels = None,
        }
        Ok(Some(Conntrack { tunnels: self.tunnels.clone(), ..table }))
    }

    fn count(
        &mut self,
        wanted: &BTreeSet<Encapsulation>,
        size: u32,
        buffer: &mut [u8],
    ) -> Result<(), SourceError> {
        let now = clock::mono();
        let (began, size_then) = self.last;
        let has_grown = size - size / 5 >= size_then && now.since(began) >= COUNT_NS;
        if now < self.due && !has_grown && self.tunnels.is_some() && self.counted == *wanted {
            return Ok(());
        }
        let before = clock::thread_cpu_ns();
        // Also when it fails: what is dear is not tried all the time.
        self.tunnels = None;
        self.last = (now, size);
        self.due = now.plus(COUNT_NS);
        let counted = count_tunnels(wanted, buffer);
        let cost = clock::thread_cpu_ns().saturating_sub(before);
        self.due = now.plus(COUNT_NS.max(cost.saturating_mul(COUNT_SHARE)));
        self.counted.clone_from(wanted);
        self.tunnels = counted?;
        Ok(())
    }
}

/// Whether connection tracking is there. Its switches are of the namespace of
/// the thread that looks.
fn is_tracking() -> bool {
    Path::new(SWITCHES).join("nf_conntrack_count").exists()
}

/// Size, limit and counters, from files of the namespace of the thread that looks.
fn files(switches: &Path, counters: &Path) -> Result<Conntrack, SourceError> {
    let read = |path: &Path| {
        // What else there is to do.
        let what = || format!("reading {} (`{LETS_ANSWER}` does without it)", path.display());
        fs::read_to_string(path).map_err(|error| SourceError::io(what(), error))
    };
    let number = |name: &str| {
        let path = switches.join(name);
        read(&path)?.trim().parse::<u32>().map_err(|error| SourceError::Malformed {
            what: format!("reading {}", path.display()),
            reason: error.to_string(),
        })
    };
    Ok(Conntrack {
        count: number("nf_conntrack_count")?,
        max: number("nf_conntrack_max")?,
        counters: translate::counters(&read(counters)?).map_err(|error| {
            let what = format!("reading {}", counters.display());
            SourceError::Malformed { what, reason: error.to_string() }
        })?,
        tunnels: None,
    })
}

/// The kernel loads the module behind CTNETLINK for whoever asks (nfnetlink_rcv_msg,
/// net/netfilter/nfnetlink.c): nobody is asked who is not there already.
fn can_be_asked() -> bool {
    // A kernel without modules has no such file, and everything built in.
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let is_loaded =
        |name: &str| modules.lines().any(|line| line.split_ascii_whitespace().next() == Some(name));
    !is_loaded("nf_conntrack") || is_loaded("nf_conntrack_netlink")
}

/// The table's size, limit and counters.
fn read_table(buffer: &mut [u8]) -> Result<Conntrack, SourceError> {
    let mut table = Conntrack::default();
    let size = Question {
        what: "asking connection tracking for its size (which takes CAP_NET_ADMIN)",
        protocol: NETLINK_NETFILTER,
        kind: GET_STATS,
        is_dump: false,
        body: &HEADER,
    };
    ask(size, buffer, |message| {
        if message.kind == GET_STATS {
            (table.count, table.max) = translate::size(message.payload)?;
        }
        Ok::<_, translate::Malformed>(())
    })?;
    let counters = Question {
        what: "asking connection tracking for its counters",
        kind: GET_STATS_CPU,
        is_dump: true,
        ..size
    };
    ask(counters, buffer, |message| translate::count(message.payload, &mut table.counters))?;
    Ok(table)
}

/// Counts the entries of each encapsulation; none where the kernel cannot pick
/// them out (before Linux 5.8).
fn count_tunnels(
    encapsulations: &BTreeSet<Encapsulation>,
    buffer: &mut [u8],
) -> Result<Option<Vec<TunnelFlows>>, SourceError> {
    let mut all = Vec::with_capacity(encapsulations.len());
    for &encapsulation in encapsulations {
        let mut flows = TunnelFlows { encapsulation, entries: 0, unreplied: 0 };
        for &family in families(encapsulation) {
            if !add_flows(family, &mut flows, buffer)? {
                return Ok(None);
            }
        }
        all.push(flows);
    }
    Ok(Some(all))
}

/// Adds the entries of one family; false where the kernel does not pick them out.
fn add_flows(family: i32, flows: &mut TunnelFlows, buffer: &mut [u8]) -> Result<bool, SourceError> {
    let body = filter(family, flows.encapsulation);
    let question = Question {
        what: "counting tracked tunnels",
        protocol: NETLINK_NETFILTER,
        kind: GET,
        is_dump: true,
        body: &body,
    };
    let mut is_filtered = true;
    let asked = ask(question, buffer, |message| {
        let entry = translate::entry(message.payload).map_err(|error| error.to_string())?;
        if !entry.is_of(flows.encapsulation) {
            // A kernel that does not know the filter gives everything: no more of it.
            is_filtered = false;
            return Err("an entry that was not asked for".to_owned());
        }
        flows.entries = flows.entries.saturating_add(1);
        flows.unreplied = flows.unreplied.saturating_add(u32::from(!entry.replied));
        Ok(())
    });
    if is_filtered {
        asked?;
    }
    Ok(is_filtered)
}

/// The families that an encapsulation's outer packets may be of: IPIP in IPv6
/// is another protocol.
const fn families(encapsulation: Encapsulation) -> &'static [i32] {
    match encapsulation {
        Encapsulation::Ipip => &[libc::AF_INET],
        Encapsulation::Vxlan(_) => &[libc::AF_INET, libc::AF_INET6],
    }
}

/// The request for the entries whose first packet was of this encapsulation. A
/// filter is taken for one family only (ctnetlink_parse_tuple_filter,
/// net/netfilter/nf_conntrack_netlink.c).
fn filter(family: i32, encapsulation: Encapsulation) -> Vec<u8> {
    use translate::{attributes as a, filter as f};
    let mut protocol = Vec::new();
    let flags = match encapsulation {
        Encapsulation::Ipip => {
            attribute(&mut protocol, a::PROTO_NUM, &[translate::IPIP]);
            f::PROTO_NUM
        }
        Encapsulation::Vxlan(port) => {
            attribute(&mut protocol, a::PROTO_NUM, &[translate::UDP]);
            attribute(&mut protocol, a::PROTO_DST_PORT, &port.to_be_bytes());
            f::PROTO_NUM | f::DST_PORT
        }
    };
    let nested = |kind: u16, value: &[u8]| {
        let mut bytes = Vec::new();
        attribute(&mut bytes, kind | a::NESTED, value);
        bytes
    };
    let tuple = nested(a::TUPLE_PROTO, &protocol);
    let mut directions = Vec::new();
    attribute(&mut directions, f::ORIG_FLAGS, &flags.to_ne_bytes());
    attribute(&mut directions, f::REPLY_FLAGS, &0_u32.to_ne_bytes());
    // Both families fit.
    let [_, version, id @ ..] = HEADER;
    let header = [&[u8::try_from(family).unwrap_or_default(), version], &id[..]].concat();
    [header, nested(a::TUPLE_ORIG, &tuple), nested(a::FILTER, &directions)].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use overlaywatch_core::kernel::HookedDevice;
    use overlaywatch_core::model::IfIndex;

    use super::*;

    #[test]
    fn only_tunnels_that_are_here_are_counted() {
        assert_eq!(encapsulations(&HookPlan::default()), None, "nobody knows yet");
        let device = |index, tunnel| HookedDevice {
            index: IfIndex(index),
            name: String::new(),
            tunnel,
            is_ethernet: true,
        };
        let odd = Encapsulation::Vxlan(4799);
        let plan = HookPlan {
            devices: vec![device(1, None), device(2, Some(odd))],
            ports: [4789, 4799, 8472].into(),
            ..HookPlan::default()
        };
        assert_eq!(encapsulations(&Arc::new(plan)), Some([odd].into()));
    }

    #[test]
    fn what_cannot_be_asked_is_read_from_files() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
        put("nf_conntrack_count", "95\n");
        put("nf_conntrack_max", "100\n");
        let counters = root.path().join("stat");
        let error = files(root.path(), &counters).unwrap_err();
        assert!(error.to_string().contains("`modprobe nf_conntrack_netlink`"), "{error}");
        put("stat", "entries drop\n0000005f 00000010\n0000005f 00000001\n");
        let table = files(root.path(), &counters).unwrap();
        assert_eq!((table.count, table.max, table.counters.drop), (95, 100, 17));
        assert_eq!(table.tunnels, None, "nobody counted them");
        put("nf_conntrack_max", "many\n");
        assert!(matches!(files(root.path(), &counters), Err(SourceError::Malformed { .. })));
    }

    #[test]
    fn a_filter_names_protocol_and_port() {
        let bytes = filter(libc::AF_INET, Encapsulation::Vxlan(8472));
        let words = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(words(&8472_u16.to_be_bytes()));
        assert!(words(&(1_u32 << 3 | 1 << 5).to_ne_bytes()));
        assert_eq!(bytes.len() % 4, 0);
        assert!(filter(libc::AF_INET, Encapsulation::Ipip).len() < bytes.len());
    }
}

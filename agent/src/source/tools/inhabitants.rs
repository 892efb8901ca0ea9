//! Who lives in a mount namespace, and who of them matters.

use std::collections::{BTreeMap, BTreeSet};

use overlaywatch_core::model::ToolProcess;

/// Processes of one mount namespace that are named.
const MOST_NAMED: usize = 8;
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

/// The processes of one mount namespace.
#[derive(Debug, Default)]
pub(super) struct Inhabitants {
    /// A few, those first that matter most, and of those that matter alike the
    /// oldest: numbers of processes begin anew.
    processes: Vec<(usize, u64, ToolProcess)>,
}

impl Inhabitants {
    /// The place among those that matter of the one who matters most.
    pub(super) fn rank(&self) -> usize {
        self.processes.first().map_or(USERS.len(), |(rank, ..)| *rank)
    }

    /// Whether one of them is known to work on sets or rules.
    fn has_user(&self) -> bool {
        self.rank() < USERS.len()
    }

    /// The number of the one who matters most.
    pub(super) fn first(&self) -> Option<u32> {
        self.processes.first().map(|(.., process)| process.pid)
    }

    /// Those that are known to work on sets or rules.
    pub(super) fn users(self) -> Vec<ToolProcess> {
        let users = self.processes.into_iter().filter(|(rank, ..)| *rank < USERS.len());
        users.map(|(.., process)| process).collect()
    }

    /// Those that are kept.
    pub(super) fn named(&self) -> Vec<ToolProcess> {
        self.processes.iter().map(|(.., process)| process.clone()).collect()
    }

    /// Keeps a process that was started at this time, in any unit, if it matters
    /// more than those that are kept.
    pub(super) fn take(&mut self, process: ToolProcess, started: u64) {
        let rank = USERS.iter().position(|user| *user == process.name).unwrap_or(USERS.len());
        let key = (rank, started, process.pid);
        let position = self
            .processes
            .partition_point(|(rank, started, other)| (*rank, *started, other.pid) < key);
        self.processes.insert(position, (rank, started, process));
        self.processes.truncate(MOST_NAMED);
    }

    /// Keeps those of another namespace as well.
    pub(super) fn take_all(&mut self, others: &Self) {
        for (_, started, process) in &others.processes {
            self.take(process.clone(), *started);
        }
    }
}

/// Agents first, and before others of their kind those that were left the last time.
pub(super) fn in_order(
    inhabitants: BTreeMap<u64, Inhabitants>,
    left: &BTreeSet<u64>,
) -> Vec<(u64, Inhabitants)> {
    let mut inhabitants: Vec<_> = inhabitants.into_iter().collect();
    inhabitants.sort_by_key(|(number, them)| {
        (!them.has_user(), !left.contains(number), them.rank(), *number)
    });
    inhabitants
}

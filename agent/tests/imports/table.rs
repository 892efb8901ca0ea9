//! Who may import whom. A module without a row fails the test: a new one has to
//! say where it belongs.

/// One module's rights.
pub(crate) struct Row {
    /// The module, as `CRATE::MODULE`.
    pub(crate) module: &'static str,
    /// What it may import beside itself; `core` is all of the core.
    pub(crate) may: &'static [&'static str],
    /// Whether its submodules may know each other.
    pub(crate) siblings: Siblings,
    /// Why it is so.
    pub(crate) reason: &'static str,
}

/// Whether a module's submodules may know each other.
pub(crate) enum Siblings {
    /// They may.
    Free,
    /// They may not, except for these, which are common ground.
    Strangers(&'static [&'static str]),
}

use Siblings::{Free, Strangers};

const fn row(module: &'static str, may: &'static [&'static str], reason: &'static str) -> Row {
    Row { module, may, siblings: Free, reason }
}

/// Everything, for the composition root.
pub(crate) const EVERYTHING: &str = "everything";

/// What findings and judgements are spoken in. It carries no judgement itself,
/// so whatever judges may use all of it.
pub(crate) const VOCABULARY: &str = "vocabulary";

/// What [`VOCABULARY`] stands for.
pub(crate) const WORDS: &[&str] = &[
    "core::catalog",
    "core::fact",
    "core::finding",
    "core::kernel",
    "core::ladder",
    "core::model",
    "core::pairs",
    "core::policy",
    "core::probing",
    "core::statistics",
    "core::time",
];

/// The rows of both crates.
pub(crate) const ROWS: &[Row] = &[
    // The vocabulary.
    row("core::time", &[], "the words for time stand on nothing"),
    row("core::preflight", &[], "what passes between two nodes is apart from what is watched"),
    row("core::statistics", &[], "statistics are about numbers, not about networks"),
    row(
        "core::ladder",
        &["core::time"],
        "the ladder is vocabulary, and needs but the words for time",
    ),
    row("core::catalog", &[], "the catalog describes verdicts; it does not reach them"),
    row(
        "core::model",
        &["core::time"],
        "the model is what all others speak in, so it knows nothing but time",
    ),
    row("core::fact", &["core::time"], "a fact is a value and a time, whatever the value"),
    row(
        "core::policy",
        &["core::catalog", "core::model"],
        "expectations are stated in the words of the model and the catalog, nothing else",
    ),
    row(
        "core::kernel",
        &["core::model", "core::probing"],
        "what the kernel counts carries no judgement",
    ),
    row(
        "core::probing",
        &["core::kernel", "core::ladder", "core::model", "core::pairs", "core::plan", "core::time"],
        "what prober and core tell each other carries no judgement",
    ),
    row(
        "core::pairs",
        &["core::ladder", "core::probing", "core::record", "core::time"],
        "what is known of a pair carries no judgement",
    ),
    row(
        "core::finding",
        &["core::catalog", "core::kernel", "core::ladder", "core::model", "core::probing"],
        "a finding is enums and numbers; how it came about is its rule's matter",
    ),
    // From updates to the immutable observation.
    row(
        "core::outcomes",
        &[
            "core::ladder",
            "core::model",
            "core::pairs",
            "core::probing",
            "core::statistics",
            "core::time",
        ],
        "counting outcomes is apart from judging them",
    ),
    row(
        "core::peers",
        &["core::model", "core::probing", "core::time"],
        "who is a peer is known before anything is judged",
    ),
    row(
        "core::snapshot",
        &[
            "core::assembly",
            "core::fact",
            "core::kernel",
            "core::model",
            "core::pairs",
            "core::probing",
            "core::record",
            "core::time",
        ],
        "an observation must not depend on what is made of it",
    ),
    row(
        "core::assembly",
        &[
            "core::fact",
            "core::kernel",
            "core::model",
            "core::outcomes",
            "core::peers",
            "core::policy",
            "core::probing",
            "core::snapshot",
            "core::time",
            "core::vanished",
        ],
        "assembling an observation must not depend on what is made of it",
    ),
    row(
        "core::delta",
        &["core::model", "core::snapshot", "core::time"],
        "a difference needs two observations and no more",
    ),
    row(
        "core::record",
        &["core::fact", "core::model", "core::snapshot"],
        "a recording is of observations, so that a diagnosis can be made anew from it",
    ),
    // What is made of it.
    Row {
        module: "core::rules",
        may: &[VOCABULARY, "core::delta", "core::outcomes", "core::peers", "core::snapshot"],
        siblings: Strangers(&["live"]),
        reason: "a rule judges by the observation alone and knows no other rule; \
                 what is whose consequence is said in the catalog",
    },
    row(
        "core::ledger",
        &[VOCABULARY, "core::diagnose", "core::rules"],
        "the ledger keeps findings; it never looks at the network",
    ),
    row(
        "core::diagnose",
        &[
            VOCABULARY,
            "core::assembly",
            "core::delta",
            "core::ledger",
            "core::rules",
            "core::snapshot",
        ],
        "a diagnosis is made from observations, not from reports or plans",
    ),
    row(
        "core::hooks",
        &["core::kernel", "core::model", "core::snapshot"],
        "what the programs watch follows from what was observed, not from what is made of it",
    ),
    row(
        "core::lookups",
        &["core::model", "core::snapshot", "core::time"],
        "what the kernel is asked follows from what was observed, not from what is made of it",
    ),
    row("core::vanished", &["core::model", "core::time"], "a memory of what went judges nothing"),
    row(
        "core::plan",
        &[VOCABULARY, "core::diagnose", "core::snapshot"],
        "the plan follows from what is known; it is the only arrow back",
    ),
    row(
        "core::report",
        &[VOCABULARY, "core::diagnose", "core::snapshot"],
        "the wire contract tells what was diagnosed and adds nothing",
    ),
    // The agent.
    row("agent::clock", &["core::time"], "reading a clock needs no more than the words for time"),
    row("agent::memory", &[], "the allocator knows nothing of what the memory is for"),
    row("agent::published", &["core"], "what is published is the core's, unchanged"),
    row("agent::cli", &["core"], "the command line can be read before anything is built"),
    row(
        "agent::config",
        &["core", "agent::cli", "agent::clock"],
        "a configuration can be read and refused without binding or starting anything",
    ),
    row("agent::notify", &["core"], "systemd is told a verdict, and needs no more than that"),
    row(
        "agent::telemetry",
        &["core", "agent::config"],
        "logging is set up as configured and stands below everything that logs",
    ),
    Row {
        module: "agent::source",
        may: &[
            "core::model",
            "core::fact",
            "core::assembly",
            "core::kernel",
            "core::ladder",
            "core::probing",
            "core::time",
            "agent::clock",
            "agent::memory",
        ],
        siblings: Strangers(&["ask", "error", "meter", "wire"]),
        reason: "a source turns the kernel's bytes into the model and can fail alone: \
                 it knows no rule, no interface and no other source",
    },
    row(
        "agent::probe",
        &[
            "core::plan",
            "core::kernel",
            "core::ladder",
            "core::model",
            "core::fact",
            "core::assembly",
            "core::probing",
            "core::time",
            "agent::clock",
        ],
        "the prober does what the plan says and reports what came back; it judges nothing",
    ),
    row(
        "agent::serve",
        &["core", "agent::published"],
        "a request is answered from the published value: it does no I/O and knows no source or probe",
    ),
    row(
        "agent::oneshot",
        &["core", "agent::serve", "agent::config", "agent::cli"],
        "one-shot commands speak as the daemon does; what has to be run is handed to them",
    ),
    row(
        "agent::preflight",
        &["core::preflight", "core::time", "agent::cli", "agent::clock", "agent::serve"],
        "it runs in an agent, beside one, or without any: what an agent knows it must be told",
    ),
    // The composition root, which alone knows everything.
    row("agent::assemble", &[EVERYTHING], ""),
    row("agent::run", &[EVERYTHING], ""),
    row("agent::lib", &[EVERYTHING], ""),
    row("agent::main", &[EVERYTHING], ""),
    row("core::lib", &[EVERYTHING], ""),
];

/// Words of other crates that only some of our modules may use.
pub(crate) struct Foreign {
    /// The path's beginning.
    pub(crate) path: &'static str,
    /// Who may name it.
    pub(crate) only: &'static [&'static str],
    /// Why.
    pub(crate) reason: &'static str,
}

const fn foreign(
    path: &'static str,
    only: &'static [&'static str],
    reason: &'static str,
) -> Foreign {
    Foreign { path, only, reason }
}

const EBPF: &str = "eBPF never leaves its source; others speak the model's";
const NETLINK: &str = "netlink's vocabulary never leaves the sources; others speak the model's";
const CLOCK: &str = "time is an input; agent::clock is the only reader of clocks";

/// The foreign words that are confined.
pub(crate) const FOREIGN: &[Foreign] = &[
    foreign("rtnetlink", &["agent::source"], NETLINK),
    foreign("netlink_sys", &["agent::source"], NETLINK),
    foreign("netlink_packet_core", &["agent::source"], NETLINK),
    foreign("netlink_packet_route", &["agent::source"], NETLINK),
    foreign("aya", &["agent::source"], EBPF),
    foreign("overlaywatch_ebpf", &["agent::source"], EBPF),
    foreign("std::time::Instant", &["agent::clock"], CLOCK),
    foreign("std::time::SystemTime", &["agent::clock"], CLOCK),
    foreign("nix::time", &["agent::clock"], CLOCK),
];

//! Every metric that this agent exports, described once: alerts, dashboards
//! and documents are checked against this list.

use prometheus::proto::MetricType;

/// The description of one metric.
#[derive(Debug)]
pub struct Family {
    /// Its name without the product's prefix.
    pub name: &'static str,
    /// What it counts or measures.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: MetricType,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

impl Family {
    /// Its name as Prometheus stores it.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("overlaywatch_{}", self.name)
    }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, help, kind: MetricType::GAUGE, labels }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family { name, help, kind: MetricType::COUNTER, labels }
}

macro_rules! families {
    ($($constant:ident = $family:expr;)*) => {
        $(pub(super) static $constant: Family = $family;)*
        /// All metrics.
        pub static ALL: [&Family; [$(stringify!($constant)),*].len()] = [$(&$constant),*];
    };
}

families! {
    BUILD_INFO = gauge("build_info", &["version"],
        "Always 1; the version of this agent.");
    NODE_INFO = gauge("node_info", &["source_node", "kernel"],
        "Always 1; this node's name and its kernel's release.");
    TICKS = counter("ticks_total", &[],
        "Observations that were judged since the agent started.");
    OBSERVED_AT = gauge("observed_timestamp_seconds", &[],
        "When the latest observation was made, seconds since the Unix epoch.");
    STATUS = gauge("status", &["status"],
        "1 for the node's verdict, 0 for the other ones.");
    STATUS_SINCE = gauge("status_since_timestamp_seconds", &[],
        "Since when the verdict is what it is, seconds since the Unix epoch.");
    FINDINGS = gauge("findings", &["code", "severity"],
        "Causes in force; absent where there are none.");
    CONSEQUENCES = gauge("consequences", &["code", "severity"],
        "Findings in force that another one explains; absent where there are none.");
    TUNNELS = gauge("tunnels", &["encapsulation", "owner", "state"],
        "Tunnel devices of this node.");
    PEERS = gauge("peers", &["state"],
        "Peers by verdict.");
    PEERS_DEPARTED = gauge("peers_departed", &[],
        "Peers that the kernel no longer knows and that are not yet forgotten.");
    MESH_LOSS = gauge("mesh_loss_ratio", &["encapsulation", "direction"],
        "Probes lost in the last minute among those decided, over all peers.");
    MESH_ROUND_TRIP = gauge("mesh_round_trip_seconds", &["encapsulation", "statistic"],
        "Round-trip times of the last minute over all peers, the responder's dwell time taken off.");
    PEER_STATE = gauge("peer_state", &["source_node", "destination_node", "state"],
        "Always 1; the verdict on the way to a peer. Only failing peers where there are many.");
    PAIR_LOSS = gauge("pair_loss_ratio",
        &["source_node", "destination_node", "encapsulation", "direction"],
        "Probes lost in the last minute among those decided. Only failing peers where there are many.");
    PAIR_ROUND_TRIP = gauge("pair_round_trip_seconds",
        &["source_node", "destination_node", "encapsulation"],
        "Mean round-trip time of the last minute. Only failing peers where there are many.");
    PAIR_SENT = counter("pair_probes_sent_total",
        &["source_node", "destination_node", "encapsulation"],
        "Probes sent since the agent started. Only failing peers where there are many.");
    PAIR_LOST = counter("pair_probes_lost_total",
        &["source_node", "destination_node", "encapsulation"],
        "Probes lost since the agent started. Only failing peers where there are many.");
    PROBES_SENT = counter("probes_sent_total", &[],
        "Probes handed to the kernel.");
    PROBES_SENT_BYTES = counter("probes_sent_bytes_total", &[],
        "Bytes of probes and replies handed to the kernel, as whole IP packets.");
    REPLIES_RECEIVED = counter("probe_replies_received_total", &[],
        "Replies that answer a probe of this node.");
    REQUESTS_ANSWERED = counter("probe_requests_answered_total", &[],
        "Probes of peers that this node answered.");
    PACKETS_IGNORED = counter("probe_packets_ignored_total", &["reason"],
        "Packets at the probes' port that were ignored.");
    PROBER_LAG = gauge("prober_worst_lag_seconds", &[],
        "The longest delay of a wake-up of the prober in the last minute.");
    PROBER_STARVED = gauge("prober_starved", &[],
        "1 while outcomes are not counted because the prober got too little CPU.");
    KERNEL_DROPS = counter("kernel_drops_total", &["form", "reason", "function"],
        "Encapsulated packets, inner packets and probes that this node's kernel dropped. The places that dropped most.");
    KERNEL_ICMP = counter("outer_icmp_errors_total", &["encapsulation", "type", "code"],
        "ICMP errors that quote encapsulated packets of this node.");
    TRAFFIC_PACKETS = counter("encapsulated_packets_total", &["encapsulation", "direction"],
        "Encapsulated packets that crossed the underlay NICs, over all peers.");
    TRAFFIC_BYTES = counter("encapsulated_bytes_total", &["encapsulation", "direction"],
        "Their bytes, link headers included.");
    TRAFFIC_FRAGMENTS = counter("encapsulated_first_fragments_total", &["encapsulation", "direction"],
        "Encapsulated packets that were sent or came in fragments.");
    HOOKED_DEVICES = gauge("hooked_devices", &[],
        "Devices on which eBPF programs count.");
    SOURCE_SUCCESS = gauge("source_success", &["source"],
        "1 when the source's latest run succeeded.");
    SOURCE_DURATION = gauge("source_duration_seconds", &["source"],
        "How long the source's latest run took.");
    SOURCE_FAILURES = counter("source_failures_total", &["source"],
        "Failed runs of the source since the agent started.");
    SOURCE_GAP = gauge("source_gap", &["source", "gap"],
        "Always 1; why the source's facts are missing. Absent when they are not.");
}

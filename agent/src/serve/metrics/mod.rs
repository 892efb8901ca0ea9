//! `/metrics`: the published value as Prometheus text.
//!
//! The number of series has a ceiling whatever the number of peers: monitors
//! that export a series per pair stop being usable somewhere between 200 and
//! 5,000 nodes. Totals over the mesh are always there; each peer's own series
//! as far as [`PEER_SERIES`] goes; `/v1/report` has everything.

mod families;
mod kernel;
mod peers;

use std::collections::{BTreeMap, HashMap};

use overlaywatch_core::catalog::Severity;
use overlaywatch_core::diagnose::Status;
use overlaywatch_core::model::Tunnel;
use overlaywatch_core::probing::Ignored;
use overlaywatch_core::snapshot::Snapshot;
use overlaywatch_core::time::SECOND;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};

pub use families::{ALL, Family};
pub use peers::{PEER_SERIES, PEERS};

use crate::published::Published;

/// The content type of the text format.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What is published as Prometheus text; only the build before the first tick.
///
/// # Errors
/// When a family is described in a way that Prometheus refuses.
pub fn render(published: Option<&Published>) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    registry.register(Box::new(Sheet::new(published)?))?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// Everything that one published value has to say, as Prometheus collects it.
struct Sheet {
    descriptions: Vec<Desc>,
    families: BTreeMap<&'static str, (&'static Family, Vec<Metric>)>,
}

impl Sheet {
    fn new(published: Option<&Published>) -> Result<Self, prometheus::Error> {
        let mut sheet = Self {
            descriptions: ALL.iter().map(|family| describe(family)).collect::<Result<_, _>>()?,
            families: BTreeMap::new(),
        };
        sheet.add(&families::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
        if let Some(published) = published {
            sheet.fill(published);
        }
        Ok(sheet)
    }

    /// Adds one series; `values` are those of the family's labels, in order.
    fn add(&mut self, family: &'static Family, values: &[&str], value: f64) {
        let labels = family.labels.iter().zip(values).map(|(name, value)| {
            let mut label = LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value((*value).to_owned());
            label
        });
        let mut metric = Metric::from_label(labels.collect());
        if family.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.families.entry(family.name).or_insert((family, Vec::new())).1.push(metric);
    }

    fn fill(&mut self, published: &Published) {
        let (snapshot, diagnosis) = (&*published.snapshot, &*published.diagnosis);
        if let Some(host) = snapshot.host.seen() {
            let node = super::words::node(snapshot);
            self.add(&families::NODE_INFO, &[&node, &host.kernel_release], 1.0);
        }
        self.add(&families::TICKS, &[], float(published.tick));
        self.add(&families::OBSERVED_AT, &[], seconds_of_ms(snapshot.now.wall.0));
        for status in [Status::Pass, Status::Warn, Status::Fail, Status::Unknown] {
            let is_it = f64::from(u8::from(diagnosis.status == status));
            self.add(&families::STATUS, &[status.slug()], is_it);
        }
        self.add(&families::STATUS_SINCE, &[], seconds_of_ms(diagnosis.since.0));
        self.findings(published);
        self.tunnels(snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice()));
        self.prober(snapshot);
        self.sources(snapshot);
        if let Some(counts) = snapshot.kernel.seen() {
            kernel::fill(self, counts);
        }
        peers::fill(self, snapshot, diagnosis);
    }

    fn findings(&mut self, published: &Published) {
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        for active in &published.diagnosis.findings {
            *counts.entry((active.finding.code, active.parent.is_some())).or_default() += 1;
        }
        for ((code, is_consequence), count) in counts {
            let family = if is_consequence { &families::CONSEQUENCES } else { &families::FINDINGS };
            let severity: Severity = code.entry().severity;
            self.add(family, &[code.slug(), severity.slug()], float(count));
        }
    }

    fn tunnels(&mut self, tunnels: &[Tunnel]) {
        // Counted, not listed: some CNIs make one device for each peer.
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        for tunnel in tunnels {
            let state = if tunnel.up { "up" } else { "down" };
            let key = (tunnel.encapsulation, tunnel.owner.name(), state);
            *counts.entry(key).or_default() += 1;
        }
        for ((encapsulation, owner, state), count) in counts {
            let labels = [encapsulation.to_string(), owner.to_owned(), state.to_owned()];
            self.add(&families::TUNNELS, &labels.each_ref().map(String::as_str), float(count));
        }
    }

    fn prober(&mut self, snapshot: &Snapshot) {
        let counters = &snapshot.prober.counters;
        self.add(&families::PROBES_SENT, &[], float(counters.sent));
        self.add(&families::PROBES_SENT_BYTES, &[], float(counters.sent_bytes));
        self.add(&families::REPLIES_RECEIVED, &[], float(counters.received));
        self.add(&families::REQUESTS_ANSWERED, &[], float(counters.answered));
        for reason in Ignored::ALL {
            let count = counters.ignored.get(&reason).copied().unwrap_or(0);
            self.add(&families::PACKETS_IGNORED, &[reason.slug()], float(count));
        }
        let lag = seconds_of_ns(snapshot.prober.worst_lag_ns);
        self.add(&families::PROBER_LAG, &[], lag);
        let starved = snapshot.prober.discounted_until.is_some();
        self.add(&families::PROBER_STARVED, &[], f64::from(u8::from(starved)));
    }

    fn sources(&mut self, snapshot: &Snapshot) {
        for (source, state) in &snapshot.sources {
            let source = source.slug();
            let succeeded = f64::from(u8::from(state.gap.is_none()));
            self.add(&families::SOURCE_SUCCESS, &[source], succeeded);
            let duration = seconds_of_ns(state.duration_ns);
            self.add(&families::SOURCE_DURATION, &[source], duration);
            self.add(&families::SOURCE_FAILURES, &[source], float(state.failures));
            if let Some(gap) = state.gap {
                self.add(&families::SOURCE_GAP, &[source, gap.slug()], 1.0);
            }
        }
    }
}

impl Collector for Sheet {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.families
            .values()
            .map(|(family, metrics)| {
                let mut collected = MetricFamily::default();
                collected.set_name(family.full_name());
                collected.set_help(family.help.to_owned());
                collected.set_field_type(family.kind);
                collected.set_metric(metrics.clone());
                collected
            })
            .collect()
    }
}

fn describe(family: &Family) -> Result<Desc, prometheus::Error> {
    let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
    Desc::new(family.full_name(), family.help.to_owned(), labels, HashMap::new())
}

/// Prometheus has floating-point numbers only; whole ones are exact up to 2^53,
/// which no counter here reaches.
#[expect(clippy::cast_precision_loss, reason = "the format has no integers")]
const fn float(number: u64) -> f64 {
    number as f64
}

fn seconds_of_ns(nanoseconds: u64) -> f64 {
    float(nanoseconds) / float(SECOND)
}

fn seconds_of_ms(milliseconds: u64) -> f64 {
    float(milliseconds) / 1e3
}

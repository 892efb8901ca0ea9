//! The first complete view of a large route table beside `ip route show`.
//!
//! In a fresh network namespace with `--routes` IPv4 routes, runs both
//! alternately `--runs` times: the sources from start to a `RouteTable` (as the
//! assembly builds it), and the usual tool printing to /dev/null. Prints one
//! JSON document. Needs root and iproute2; build it with `--release`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use overlaywatch::source::{self, Options};
use overlaywatch_core::assembly::{Change, SourceId, Update};
use overlaywatch_core::model::RouteTable;
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    /// How often each side runs.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// How many routes the table holds.
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    routes: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace: run this as root")?;
    fill(arguments.routes)?;
    let (mut ours_ms, mut usual_ms) = (Vec::new(), Vec::new());
    for run in 0..=arguments.runs {
        let (ours, usual) = (ours(arguments.routes)?, usual()?);
        // The first pair warms the caches of both.
        if run > 0 {
            ours_ms.push(ours);
            usual_ms.push(usual);
        }
    }
    let ratios = ours_ms.iter().zip(&usual_ms).map(|(ours, usual)| ours / usual);
    let ratio = Spread::of(ratios.collect());
    let document = json!({
        "routes": arguments.routes,
        "runs": arguments.runs,
        "ours_ms": ours_ms,
        "usual_ms": usual_ms,
        "usual_tool": "ip route show table all",
        "ratio": { "median": ratio.median, "min": ratio.min, "max": ratio.max },
        "rss_bytes": peak_resident_bytes()?,
    });
    println!("{document:#}");
    Ok(())
}

/// Routes to /32s beyond one gateway, as a node that speaks BGP may hold them.
fn fill(routes: u32) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("running `ip`: is iproute2 installed?")?;
    let mut text = String::from(
        "link add va type veth peer name vb\n\
         link set va up\n\
         link set vb up\n\
         addr add 192.0.2.1/24 dev va\n",
    );
    for number in 0..routes {
        let [_, a, b, c] = number.to_be_bytes();
        text += &format!("route add 10.{a}.{b}.{c} via 192.0.2.2\n");
    }
    ip.stdin.take().context("`ip` took no input")?.write_all(text.as_bytes())?;
    ensure!(ip.wait()?.success(), "`ip -batch` could not add the routes");
    Ok(())
}

fn ours(routes: u32) -> Result<f64> {
    let options = Options { enabled: [SourceId::Routes].into(), ..Options::default() };
    let (sender, mut updates) = tokio::sync::mpsc::channel(16);
    let began = Instant::now();
    let handle = source::spawn(&options, &sender)?;
    let all = loop {
        match updates.blocking_recv() {
            Some(Update::Routes(Change::Replace(all))) => break all,
            Some(Update::Source(report)) if report.source == SourceId::Routes => {
                bail!("the dump failed: {}", report.detail)
            }
            Some(_) => {}
            None => bail!("the sources ended"),
        }
    };
    let table = RouteTable(all.into_iter().map(|route| (route.key, route)).collect());
    let took = began.elapsed();
    let found = table.0.len();
    ensure!(found >= usize::try_from(routes)?, "only {found} of {routes} routes");
    drop(updates);
    handle.join();
    Ok(took.as_secs_f64() * 1e3)
}

fn usual() -> Result<f64> {
    let began = Instant::now();
    let status = Command::new("ip")
        .args(["route", "show", "table", "all"])
        .stdout(Stdio::null())
        .status()
        .context("running `ip`: is iproute2 installed?")?;
    let took = began.elapsed();
    ensure!(status.success(), "`ip route show table all` failed");
    Ok(took.as_secs_f64() * 1e3)
}

struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |position: usize| values.get(position).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        let median = f64::midpoint(at(last / 2), at(last.div_ceil(2)));
        Self { min: at(0), median, max: at(last) }
    }
}

/// The most memory that this process ever held (`VmHWM`, proc_pid_status(5)).
fn peak_resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kibibytes: u64 = kibibytes.context("/proc/self/status without VmHWM")?.parse()?;
    Ok(kibibytes * 1024)
}

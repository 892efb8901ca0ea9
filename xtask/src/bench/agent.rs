//! One agent against 1,000 simulated peers: what it costs its node.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::json;

use super::netns::{Netns, Running};
use super::table::{Line, Samples, draw};
use super::{http, megabytes, netns, process};
use crate::interrupt::sleep_until;
use crate::output::Output;
use crate::shell::{self, build_release, target};

const PEERS: u64 = 1_000;
/// How long all peers may take to be proved healthy: the plan comes round to
/// each within 16 s.
const PATIENCE: Duration = Duration::from_secs(90);
/// From then to the first window: windows of the last minute have filled.
const WARM_UP: Duration = Duration::from_secs(60);
const WINDOWS: usize = 6;
const WINDOW: Duration = Duration::from_secs(10);
const REQUESTS: usize = 200;
/// A scrape every 50 ms: far more than any Prometheus, yet no queue.
const REQUEST_EVERY: Duration = Duration::from_millis(50);

const AGENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9977);

// The simulator's peers have 10.100.0.0/18 below and 10.128.0.0/10 above.
const AGENT_UNDERLAY: &str = "10.99.0.1";
const PEERS_UNDERLAY: &str = "10.99.0.2";
const AGENT_OVERLAY: &str = "10.127.0.0";
const AGENT_MAC: &str = "02:00:00:00:00:01";

const BUDGET_CPU_PERCENT: f64 = 0.5;
const BUDGET_RESIDENT_MB: f64 = 24.0;
const BUDGET_HTTP_MS: f64 = 5.0;

/// Builds the agent and the simulator, as they are shipped.
pub(super) fn build() -> Result<()> {
    let what =
        ["-p", "overlaywatch", "--bin", "overlaywatch", "--example", "bench_agent_simulator"];
    build_release("the agent and its simulator", &what)
}

/// Measures and prints.
pub(super) fn bench(output: Output) -> Result<()> {
    let release = target()?.join("release");
    let stage = Stage::build(&release)?;
    eprintln!("waiting until {PEERS} peers are proved healthy");
    let took = stage.wait_until_healthy()?;
    eprintln!(
        "all healthy after {:.0} s; settling for {} s",
        took.as_secs_f64(),
        WARM_UP.as_secs()
    );
    sleep_until(Instant::now() + WARM_UP)?;
    eprintln!("measuring {WINDOWS} windows of {} s", WINDOW.as_secs());
    let mut lines = stage.measure_cost()?;
    eprintln!("asking for /metrics and /health {REQUESTS} times each");
    lines.extend(stage.measure_http("/metrics", ["/metrics, p50, ms", "/metrics, p99, ms"])?);
    lines.extend(stage.measure_http("/health", ["/health, p50, ms", "/health, p99, ms"])?);
    // What an agent costs that lost its peers on the way would be no result.
    let health = stage.health()?;
    ensure!(health.is_fine(), "the mesh is healthy, yet the agent says: {}", health.summary);
    match output {
        Output::Text => print!("one agent, {PEERS} peers, 64 probes/s\n\n{}", draw(&lines)),
        Output::Json => {
            println!("{:#}", json!({ "bench": "agent", "peers": PEERS, "lines": lines }));
        }
    }
    Ok(())
}

/// The namespaces and what runs in them. Fields drop in this order: processes
/// before the namespaces they are in.
struct Stage {
    agent: Running,
    _simulator: Running,
    here: Netns,
    _peers: Netns,
}

impl Stage {
    /// A node as flannel sets it up and, across a veth pair, all of its peers.
    fn build(release: &Path) -> Result<Self> {
        netns::clean()?;
        let here = Netns::new("agent")?;
        let peers = Netns::new("peers")?;
        here.ip(&format!("link add eth0 type veth peer name eth0 netns {}", peers.name()))?;
        here.ip(&format!("addr add {AGENT_UNDERLAY}/30 dev eth0"))?;
        here.ip("link set eth0 up")?;
        peers.ip(&format!("addr add {PEERS_UNDERLAY}/30 dev eth0"))?;
        peers.ip("link set eth0 up")?;

        let simulator = release.join("examples/bench_agent_simulator");
        let told = |netns: &Netns| {
            let mut command = netns.command(&simulator);
            command
                .args(["--device", "eth0"])
                .args(["--agent-underlay", AGENT_UNDERLAY, "--agent-overlay", AGENT_OVERLAY])
                .args(["--agent-mac", AGENT_MAC, "--peers", &PEERS.to_string()]);
            command
        };
        let setup = shell::output(told(&here).args([
            "--print-agent-setup",
            "--simulator-underlay",
            PEERS_UNDERLAY,
        ]))?;
        here.script(&setup)?;
        // As on every node of a cluster; without it the agent would rightly complain.
        here.script("echo 1 > /proc/sys/net/ipv4/ip_forward")?;

        let mut simulator = Running(told(&peers).stdout(Stdio::piped()).spawn()?);
        let said = simulator.0.stdout.take().context("a piped child has a stdout")?;
        let mut ready = String::new();
        BufReader::new(said).read_line(&mut ready)?;
        ensure!(ready.starts_with("ready"), "the simulator of the peers ended at once");

        let mut agent = here.command(&release.join("overlaywatch"));
        agent.args(["agent", "--node", "bench", "--listen", &AGENT.to_string()]);
        agent.env("OVERLAYWATCH_LOG", "warn").stdout(Stdio::null());
        let agent = Running(agent.spawn()?);
        Ok(Self { agent, _simulator: simulator, here, _peers: peers })
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.agent.0.id())?))
    }

    /// What the agent says of itself and its peers.
    fn health(&self) -> Result<Health> {
        let answer = self.here.within(|| http::get(AGENT, "/health"))?;
        serde_json::from_slice(&answer.body)
            .with_context(|| format!("/health answered {} without peers", answer.status))
    }

    fn wait_until_healthy(&self) -> Result<Duration> {
        let start = Instant::now();
        let mut last = String::new();
        while start.elapsed() < PATIENCE {
            // Until it listens and has observed, asking fails: that is no failure yet.
            match self.health() {
                Ok(health) if health.is_fine() => return Ok(start.elapsed()),
                Ok(health) => last = health.summary,
                Err(error) => last = format!("{error:#}"),
            }
            process::cpu_time(self.pid()?)?;
            sleep_until(Instant::now() + Duration::from_millis(500))?;
        }
        bail!("not all of {PEERS} peers were healthy within {} s: {last}", PATIENCE.as_secs())
    }

    fn measure_cost(&self) -> Result<Vec<Line>> {
        let pid = self.pid()?;
        let (mut cpu, mut resident, mut sent, mut received) = (vec![], vec![], vec![], vec![]);
        for _ in 0..WINDOWS {
            let start = Instant::now();
            let (cpu_before, before) = (process::cpu_time(pid)?, self.underlay()?);
            sleep_until(start + WINDOW)?;
            let seconds = start.elapsed().as_secs_f64();
            let (cpu_after, after) = (process::cpu_time(pid)?, self.underlay()?);
            cpu.push(100.0 * cpu_after.saturating_sub(cpu_before).as_secs_f64() / seconds);
            sent.push(rate(before.tx.bytes, after.tx.bytes, seconds));
            received.push(rate(before.rx.bytes, after.rx.bytes, seconds));
            resident.push(megabytes(process::resident_bytes(pid)?.0));
        }
        let highest = Samples::new(vec![megabytes(process::resident_bytes(pid)?.1)]);
        let cpu = Samples::new(cpu);
        let resident = Samples::new(resident);
        Ok(vec![
            Line::median("CPU, % of a core", &cpu, Some(BUDGET_CPU_PERCENT)),
            Line::median("resident memory, MB", &resident, Some(BUDGET_RESIDENT_MB)),
            Line::median("resident memory at its highest, MB", &highest, Some(BUDGET_RESIDENT_MB)),
            Line::median("sent on the underlay, B/s", &Samples::new(sent), None),
            Line::median("received on the underlay, B/s", &Samples::new(received), None),
        ])
    }

    /// The median and the 99th percentile of what one page takes.
    fn measure_http(&self, path: &'static str, names: [&'static str; 2]) -> Result<[Line; 2]> {
        let took = self.here.within(|| {
            let mut took = Vec::with_capacity(REQUESTS);
            let start = Instant::now();
            for due in (0..).map(|turn| start + REQUEST_EVERY * turn).take(REQUESTS) {
                sleep_until(due)?;
                took.push(http::get(AGENT, path)?.took.as_secs_f64() * 1e3);
            }
            Ok(Samples::new(took))
        })?;
        let [median, slowest] = names;
        Ok([
            Line::median(median, &took, None),
            Line {
                what: slowest,
                value: took.percentile(99),
                spread: took.spread(),
                budget: Some(BUDGET_HTTP_MS),
            },
        ])
    }

    /// What the underlay's device has counted so far.
    fn underlay(&self) -> Result<Traffic> {
        let text = self.here.ip("-json -stats link show dev eth0")?;
        let [device]: [Device; 1] =
            serde_json::from_str(&text).context("reading `ip -json -stats link`")?;
        Ok(device.stats64)
    }
}

/// How much a counter grew, a second.
fn rate(before: u64, after: u64, seconds: f64) -> f64 {
    after.saturating_sub(before) as f64 / seconds
}

/// The part of /health that is asked for here.
#[derive(Deserialize)]
struct Health {
    status: String,
    summary: String,
    peers: Peers,
}

impl Health {
    /// Every peer is proved healthy and nothing was found.
    fn is_fine(&self) -> bool {
        self.status == "pass" && self.peers.healthy == PEERS
    }
}

#[derive(Deserialize)]
struct Peers {
    healthy: u64,
}

/// A device as `ip -json -stats link` shows it.
#[derive(Deserialize)]
struct Device {
    stats64: Traffic,
}

#[derive(Deserialize)]
struct Traffic {
    rx: Counter,
    tx: Counter,
}

#[derive(Deserialize)]
struct Counter {
    bytes: u64,
}

//! `overlaywatch preflight` from the first node to the second, beside agents, one
//! of which is its other end: each cell of its table must be right, and the agents
//! must say nothing of it. What the network filters is filtered in the switch.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use overlaywatch_core::catalog::Code;
use serde_json::Value;

use super::expected::{BOTH, WIRE, says};
use super::quiet::watch;
use super::underlay::{middle_passes, narrow};
use super::{A, B, C, Fault, PLAIN, Shapes, addresses};
use crate::filter::{self, Drops, Place};
use crate::interrupt::wait_until;
use crate::topology::Cluster;
use crate::traffic::{full_pods, nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "preflight-all-pass",
        about: "a preflight between two nodes with agents; one with `--serve` beside the agent; one \
                that is killed; one more with strict reverse path filters",
        inject: all_pass,
        heal: |cluster| reverse_path_filters(cluster, "0"),
        spares: &[pods(A, B), pods(B, A), nodes(A, B), pods(A, C)],
        ..QUIET
    },
    Fault {
        name: "preflight-others-filtered",
        about: "a preflight while a firewall between the nodes drops what their overlay does not \
                use: protocol 4 or UDP 8472, Geneve one way, WireGuard the other",
        inject: others_filtered,
        heal: middle_passes,
        spares: &[pods(A, B), pods(B, A), nodes(A, B), pods(A, C)],
        ..QUIET
    },
    Fault {
        name: "preflight-own-filtered",
        about: "a preflight while a firewall between the nodes drops the overlay's own encapsulation",
        inject: own_filtered,
        heal: middle_passes,
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[nodes(A, B), pods(A, C)],
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE),
        ],
        shapes: Shapes::Each,
        ..PLAIN
    },
    Fault {
        name: "preflight-narrow-path",
        about: "a preflight while the path silently drops packets over 1450 bytes",
        inject: |cluster| {
            narrow(cluster, true)?;
            // The filter is for what the nodes send each other, not for pods.
            let cells = ["passes", "lost", "passes", "lost"];
            ensure_table(cluster, &[], cells, &[("plain", PASSES)])
        },
        heal: middle_passes,
        breaks: &[full_pods(A, B), full_pods(B, A)],
        spares: &[pods(A, B), pods(B, A), full_pods(A, C)],
        expected: &[
            says(A, Code::MtuBlackhole, B, BOTH, WIRE),
            says(B, Code::MtuBlackhole, A, BOTH, WIRE),
        ],
        shapes: Shapes::Each,
        ..PLAIN
    },
];

/// Of which the agents say nothing.
const QUIET: Fault = Fault {
    shapes: Shapes::Each,
    unlike: &[
        Code::EncapsulationRefused,
        Code::EncapsulationLost,
        Code::ModuleMissing,
        Code::RpFilterStrict,
        Code::UnexplainedLoss,
        Code::ChecksumErrors,
    ],
    // As far back as "lately" reaches, and a bit.
    limits: watch(8),
    ..PLAIN
};

/// Where a preflight without an agent at its other end talks.
const OTHER_PORT: &str = "9979";
/// An agent serves a node again after 5 s, and sockets that are closed are gone at once.
const SOON: Duration = Duration::from_secs(10);

/// Small and full out, small and full in.
type Cells = [&'static str; 4];

const PASSES: Cells = ["passes"; 4];
const LOST: Cells = ["lost"; 4];

fn all_pass(cluster: &mut Cluster) -> Result<()> {
    let before = both_states(cluster)?;
    ensure_table(cluster, &[], PASSES, &[])?;
    ensure_same(cluster, &before, "a preflight")?;
    served(cluster)?;
    ensure_same(cluster, &before, "a preflight that was served")?;
    killed(cluster)?;
    ensure_same(cluster, &before, "a preflight that was killed")?;
    reverse_path_filters(cluster, "1")?;
    ensure_table(cluster, &[], PASSES, &[])
}

fn others_filtered(cluster: &mut Cluster) -> Result<()> {
    let (a, b) = addresses(cluster, A, B)?;
    let other = if cluster.shape.is_vxlan() { "ipip" } else { "vxlan-8472" };
    let between = |from, to, what: Drops| Drops { from: Some(from), to: Some(to), ..what };
    let geneve = Drops { udp_to: Some(6081), ..Drops::default() };
    let wireguard = Drops { udp_to: Some(51820), ..Drops::default() };
    let drops = [
        between(a, b, drops(other)),
        between(b, a, drops(other)),
        between(a, b, geneve),
        between(b, a, wireguard),
    ];
    filter::drop(&cluster.switch, Place::Middle, &drops)?;
    let lost = [
        (other, LOST),
        ("geneve-6081", ["lost", "lost", "passes", "passes"]),
        ("wireguard-51820", ["passes", "passes", "lost", "lost"]),
    ];
    ensure_table(cluster, &[], PASSES, &lost)
}

fn own_filtered(cluster: &mut Cluster) -> Result<()> {
    let (a, b) = addresses(cluster, A, B)?;
    let own = match (cluster.shape.is_vxlan(), cluster.shape.port()) {
        (false, _) => "ipip",
        (true, 8472) => "vxlan-8472",
        (true, 4789) => "vxlan-4789",
        (true, port) => bail!("no preflight tries UDP {port}"),
    };
    let between = |from, to| Drops { from: Some(from), to: Some(to), ..drops(own) };
    filter::drop(&cluster.switch, Place::Middle, &[between(a, b), between(b, a)])?;
    ensure_table(cluster, &[], PASSES, &[(own, LOST)])
}

/// Packets of an encapsulation, by its name in the table.
fn drops(encapsulation: &str) -> Drops {
    match encapsulation {
        "vxlan-8472" => Drops { udp_to: Some(8472), ..Drops::default() },
        "vxlan-4789" => Drops { udp_to: Some(4789), ..Drops::default() },
        _ => Drops { protocol: Some(4), ..Drops::default() },
    }
}

/// Fails unless a preflight tells these cells, and `usual` of all others. On nodes
/// without agents nobody asks: there live traffic alone is looked at.
fn ensure_table(
    cluster: &Cluster,
    arguments: &[&str],
    usual: Cells,
    others: &[(&str, Cells)],
) -> Result<()> {
    if cluster.agents.is_none() {
        return Ok(());
    }
    let table = table(cluster, arguments)?;
    ensure!(table.len() == 6, "a preflight tells of {} encapsulations", table.len());
    for (name, cells) in &table {
        let other = others.iter().find(|(other, _)| other == name);
        let wanted = other.map_or(usual, |(_, cells)| *cells);
        ensure!(*cells == wanted, "the preflight says {cells:?} of {name}, and it is {wanted:?}");
    }
    Ok(())
}

/// The command on a node, in the agent's own binary.
fn command(cluster: &Cluster, node: usize) -> Result<Command> {
    let launch = cluster.agents.as_ref().context("a preflight needs agents")?;
    let mut command = cluster.node(node)?.netns.command(&launch.binary);
    command.arg("preflight").stdin(Stdio::null());
    Ok(command)
}

/// Asks the second node from the first: by encapsulation the words of each cell.
fn table(cluster: &Cluster, arguments: &[&str]) -> Result<BTreeMap<String, Vec<String>>> {
    let (a, b) = (cluster.node(A)?, cluster.node(B)?);
    let pods = format!("{},{}", a.overlay(), b.overlay());
    let mut command = command(cluster, A)?;
    command.args([&b.underlay().to_string(), "--pods", &pods, "-o", "json"]).args(arguments);
    let output = command.output().context("cannot run a preflight")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let json: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("the preflight ended with {}: {errors}", output.status))?;
    let rows = json["pairs"][0]["encapsulations"].as_array().context("no pair in the JSON")?;
    let passes = json["passes"] == true;
    ensure!(
        output.status.code() == Some(if passes { 0 } else { 2 }),
        "ended with {}",
        output.status
    );
    let word = |cell: &Value| cell["outcome"].as_str().unwrap_or_default().to_owned();
    let cells = |row: &Value| -> Vec<String> {
        let of = |way: &str| ["small", "full"].map(|size| word(&row[way][size]));
        [of("outbound"), of("inbound")].concat()
    };
    Ok(rows
        .iter()
        .map(|row| (row["encapsulation"].as_str().unwrap_or_default().to_owned(), cells(row)))
        .collect())
}

/// With `--serve` at the other end, on a port beside the agent's.
fn served(cluster: &Cluster) -> Result<()> {
    let (a, b) = (cluster.node(A)?, cluster.node(B)?);
    let pods = format!("{},{}", b.overlay(), a.overlay());
    let mut server = command(cluster, B)?;
    server.args(["--serve", &a.underlay().to_string(), "--once", "--for", "120"]);
    let server = server.args(["--port", OTHER_PORT, "--pods", &pods]).stdout(Stdio::piped());
    let mut server = Running(server.spawn().context("cannot serve a preflight")?);
    let mut said = BufReader::new(server.0.stdout.take().context("no output to read")?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    ensure!(line.starts_with("serving "), "`preflight --serve` says {line:?}");
    ensure_table(cluster, &["--port", OTHER_PORT], PASSES, &[])?;
    let ended = server.0.wait()?;
    ensure!(ended.success(), "`preflight --serve` ended with {ended}");
    Ok(())
}

/// A preflight that is killed while packets go both ways.
fn killed(cluster: &Cluster) -> Result<()> {
    let b = cluster.node(B)?;
    let listening = || b.netns.enter(packet_sockets);
    let before = listening()?;
    let mut asker = command(cluster, A)?;
    let asker = asker.arg(b.underlay().to_string()).stdout(Stdio::null());
    let asker = Running(asker.spawn().context("cannot run a preflight")?);
    let begins = wait_until(SOON, || Ok(listening()? > before))?;
    ensure!(begins, "the agent of the second node takes part in no preflight");
    // Dropping it kills it.
    drop(asker);
    let ends = wait_until(SOON, || Ok(listening()? == before))?;
    ensure!(ends, "the agent of the second node still waits for one that was killed");
    Ok(())
}

/// A process that is killed when this is dropped, if it still runs.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended by itself is where it should be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Packet sockets of the calling thread's namespace.
fn packet_sockets() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/thread-self/net/packet")?;
    Ok(text.lines().count())
}

/// What nodes have that a preflight could leave behind.
fn both_states(cluster: &Cluster) -> Result<[String; 2]> {
    let state = |index: usize| -> Result<String> {
        let node = cluster.node(index)?;
        // Of TCP what is open: TIME_WAIT (06) of a closed connection is the kernel's. 26FA
        // and 26FB are the ports of preflights.
        let script = format!(
            "ip -o link | sed 's/state.*//'; ip -o addr; ip rule; ip route show table all
             ip tunnel; bridge fdb show dev {}; nft list ruleset; cd /proc/self/net
             for of in raw raw6 packet; do sed 1d $of | grep -c .; done
             cat tcp tcp6 | grep ':26F[AB] ' | cut -c 1-90 | grep -v ' 06 '",
            cluster.shape.device()
        );
        let mut command = node.netns.command("sh");
        let output = command.args(["-c", &format!("{script}\ntrue")]).output()?;
        ensure!(output.status.success(), "sh ended with {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    };
    Ok([state(A)?, state(B)?])
}

/// Fails unless both nodes are again as they were.
fn ensure_same(cluster: &Cluster, before: &[String; 2], after: &str) -> Result<()> {
    let mut left = String::new();
    let is_same = wait_until(SOON, || {
        let now = both_states(cluster)?;
        let mut differs = before.iter().zip(&now).filter(|(before, now)| before != now);
        let first = differs.next();
        left = first.map(|(before, now)| format!("{before}\nnow:\n{now}")).unwrap_or_default();
        Ok(left.is_empty())
    })?;
    ensure!(is_same, "{after} left something behind, before:\n{left}");
    Ok(())
}

/// Strict ones (1) or none (0) on the two nodes.
fn reverse_path_filters(cluster: &mut Cluster, value: &str) -> Result<()> {
    [A, B]
        .into_iter()
        .try_for_each(|node| cluster.node(node)?.netns.set("ipv4/conf/all/rp_filter", value))
}

//! Two nodes as flannel sets them up, a veth pair between them, and the agents on them.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::netns::{self, Netns, Running};
use super::super::{http, process};
use crate::interrupt::sleep_until;
use crate::shell;

/// Where an agent answers, on its own node.
const AGENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9977);
/// Where agents attach.
const DEVICES: [&str; 2] = ["flannel.1", "eth0"];
/// How long agents may take to be attached and content, or to be gone.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Hooks that an encapsulated packet passes.
const HOOKS: usize = 4;

/// Of one run.
const SECONDS: &str = "2";
const BURST_SECONDS: &str = "1";
/// Of one measurement of programs, and into how many slices it is cut.
const PROGRAM_SECONDS: &str = "0.5";
const SLICES: &str = "5";

const OVERLAY: [&str; 2] = ["10.42.1.0", "10.42.2.0"];
const UNDERLAY: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
const MAC: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
/// A node that the tunnel knows no way to: what is sent there is dropped.
const NOWHERE: &str = "10.42.3.0";
const NOBODY: &str = "02:00:00:00:00:03";

/// A program beside an empty one, nanoseconds a run, by slices.
#[derive(Deserialize, Serialize)]
pub(super) struct Cost {
    pub(super) program: String,
    pub(super) packets: u64,
    pub(super) ours_ns: Vec<f64>,
    pub(super) empty_ns: Vec<f64>,
}

impl Cost {
    /// Joins measurements of the same program.
    pub(super) fn join(&mut self, more: Self) {
        self.packets += more.packets;
        self.ours_ns.extend(more.ours_ns);
        self.empty_ns.extend(more.empty_ns);
    }
}

/// One run of packets.
#[derive(Deserialize, Serialize)]
pub(super) struct Done {
    pub(super) packets: u64,
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
}

/// One burst of drops, and what the sender's agent made of it, if there was any.
#[derive(Serialize)]
pub(super) struct Burst {
    pub(super) sent: Done,
    /// Drops that its programs counted.
    pub(super) counted: Option<u64>,
    /// Kinds of drops in the map, and how many it may hold.
    pub(super) kinds: Option<[u64; 2]>,
    /// What did not fit into maps.
    pub(super) missed: Option<u64>,
    /// Of one processor.
    pub(super) agent_cpu_percent: Option<f64>,
    pub(super) agent_resident_bytes: Option<u64>,
}

/// Fields drop in this order: processes before the namespaces they are in.
pub(super) struct Stage {
    agents: Vec<Running>,
    _server: Running,
    nodes: [Netns; 2],
    agent: PathBuf,
    tool: PathBuf,
}

impl Stage {
    pub(super) fn build(release: &Path) -> Result<Self> {
        netns::clean()?;
        let nodes = [Netns::new("a")?, Netns::new("b")?];
        let [a, b] = &nodes;
        a.ip(&format!("link add eth0 type veth peer name eth0 netns {}", b.name()))?;
        for (index, node) in nodes.iter().enumerate() {
            node.script(&setup(index))?;
        }
        // It is there from the start, so that no address is missing when it is needed.
        let mut server = b.command(Path::new("iperf3"));
        server.args(["--server", "--forceflush"]).stdout(Stdio::piped());
        let mut server = Running(server.spawn().context("running iperf3")?);
        let said = server.0.stdout.take().context("a piped child has a stdout")?;
        let is_listening = |line: &std::io::Result<String>| {
            line.as_ref().is_ok_and(|line| line.contains("listening"))
        };
        let mut said = BufReader::new(said).lines();
        ensure!(said.any(|line| is_listening(&line)), "iperf3's server ended at once");
        // Whatever else it says has to be read, or it waits.
        std::thread::spawn(move || said.for_each(drop));
        let agent = release.join("overlaywatch");
        let tool = release.join("examples/bench_ebpf");
        Ok(Self { agents: vec![], _server: server, nodes, agent, tool })
    }

    /// Starts both agents, unless they run; they are attached and find nothing wrong.
    pub(super) fn start_agents(&mut self) -> Result<()> {
        if !self.agents.is_empty() {
            return Ok(());
        }
        for node in &self.nodes {
            let mut agent = node.command(&self.agent);
            agent.args(["agent", "--node", node.name(), "--listen", &AGENT.to_string()]);
            agent.env("OVERLAYWATCH_LOG", "error").stdout(Stdio::null());
            self.agents.push(Running(agent.spawn()?));
        }
        self.wait("the agents are attached and find nothing wrong", || {
            Ok(self.attached()?.len() == HOOKS && self.nodes.iter().all(is_content))
        })
    }

    /// Stops both agents. Their pins are in a mount namespace of their own (`ip
    /// netns exec` makes one), so that no link is left attached; filters of clsact,
    /// before Linux 6.6, stay by themselves, and on these nodes they are nobody else's.
    pub(super) fn stop_agents(&mut self) -> Result<()> {
        for agent in self.agents.drain(..) {
            kill(Pid::from_raw(i32::try_from(agent.0.id())?), Signal::SIGTERM)?;
            let mut agent = agent;
            agent.0.wait()?;
        }
        for (node, device) in self.nodes.iter().flat_map(|node| DEVICES.map(|it| (node, it))) {
            let words = ["qdisc", "del", "dev", device, "clsact"];
            // There is none where programs are attached by links.
            let _ = shell::output(node.command(Path::new("tc")).args(words));
        }
        self.wait("nothing is attached any more", || Ok(self.attached()?.is_empty()))
    }

    /// Waits until something is so.
    fn wait(&self, what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !is_so()? {
            ensure!(start.elapsed() < PATIENCE, "waited in vain until {what}");
            sleep_until(Instant::now() + LOOK_EVERY)?;
        }
        Ok(())
    }

    /// Names of the agents' programs on the way of a packet.
    fn attached(&self) -> Result<Vec<String>> {
        Ok(self.measure::<Attached>(&["attached"])?.programs)
    }

    /// Says so when other agents' programs, running or left behind, see each drop too.
    pub(super) fn warn_of_others(&self) -> Result<()> {
        let watching = self.measure::<Attached>(&["attached"])?.watching_drops;
        let others = watching.saturating_sub(self.agents.len());
        if others > 0 {
            eprintln!(
                "{others} programs of other agents on this host see each drop too and slow the \
                 bursts down; `overlaywatch agent --detach` removes what agents left behind"
            );
        }
        Ok(())
    }

    /// Each program on the way of a packet.
    pub(super) fn hooks(&self) -> Result<Vec<Cost>> {
        let [_, to] = OVERLAY;
        let arguments =
            ["hooks", "--address", to, "--seconds", PROGRAM_SECONDS, "--slices", SLICES];
        self.costs(&arguments)
    }

    /// The program on the tracepoint of drops.
    pub(super) fn drop_program(&self) -> Result<Vec<Cost>> {
        self.nowhere("replace")?;
        let arguments = [
            "drop-program",
            "--address",
            NOWHERE,
            "--seconds",
            PROGRAM_SECONDS,
            "--slices",
            SLICES,
        ];
        let costs = self.costs(&arguments);
        self.nowhere("del")?;
        costs
    }

    fn costs(&self, arguments: &[&str]) -> Result<Vec<Cost>> {
        #[derive(Deserialize)]
        struct Costs {
            costs: Vec<Cost>,
        }
        Ok(self.measure::<Costs>(arguments)?.costs)
    }

    /// Small packets from one node to the other.
    pub(super) fn udp(&self) -> Result<Done> {
        let [_, to] = OVERLAY;
        self.measure(&["flood", "--address", to, "--seconds", SECONDS])
    }

    /// The same with an empty program on each hook.
    pub(super) fn udp_empty(&self) -> Result<Done> {
        let [_, to] = OVERLAY;
        self.measure(&["flood", "--empty", "--address", to, "--seconds", SECONDS])
    }

    /// Bits that a TCP connection brought through the tunnel, a second.
    pub(super) fn tcp(&self) -> Result<f64> {
        #[derive(Deserialize)]
        struct Document {
            end: End,
        }
        #[derive(Deserialize)]
        struct End {
            sum_received: Sum,
        }
        #[derive(Deserialize)]
        struct Sum {
            bits_per_second: f64,
        }
        let ([from, _], [_, to]) = (&self.nodes, OVERLAY);
        let mut client = from.command(Path::new("iperf3"));
        client.args(["--client", to, "--time", SECONDS, "--json"]);
        let document: Document =
            serde_json::from_str(&shell::output(&mut client)?).context("what iperf3 printed")?;
        Ok(document.end.sum_received.bits_per_second)
    }

    /// Packets that the sender's tunnel drops.
    pub(super) fn burst(&self) -> Result<Burst> {
        let agent = self.agents.first().map(|agent| i32::try_from(agent.0.id())).transpose()?;
        let agent = agent.map(Pid::from_raw);
        self.nowhere("replace")?;
        let start = Instant::now();
        let before = agent.map(|pid| anyhow::Ok((process::cpu_time(pid)?, drops(self, pid)?)));
        let before = before.transpose()?;
        let sent = self.measure(&["burst", "--address", NOWHERE, "--seconds", BURST_SECONDS]);
        let took = start.elapsed().as_secs_f64();
        self.nowhere("del")?;
        let mut burst = Burst {
            sent: sent?,
            counted: None,
            kinds: None,
            missed: None,
            agent_cpu_percent: None,
            agent_resident_bytes: None,
        };
        if let (Some(pid), Some((cpu, drops_before))) = (agent, before) {
            let cpu = process::cpu_time(pid)?.saturating_sub(cpu);
            let after = drops(self, pid)?;
            burst.counted = Some(after.packets.saturating_sub(drops_before.packets));
            burst.kinds = Some([after.kinds, after.most_kinds]);
            burst.missed = Some(after.missed);
            burst.agent_cpu_percent = Some(100.0 * cpu.as_secs_f64() / took);
            burst.agent_resident_bytes = Some(process::resident_bytes(pid)?.0);
        }
        Ok(burst)
    }

    /// Makes the way to the node that the tunnel cannot reach, or takes it away.
    fn nowhere(&self, verb: &str) -> Result<()> {
        let [node, _] = &self.nodes;
        node.ip(&format!("neigh {verb} {NOWHERE} lladdr {NOBODY} dev flannel.1 nud permanent"))?;
        node.ip(&format!("route {verb} {NOWHERE}/24 via {NOWHERE} dev flannel.1 onlink"))?;
        Ok(())
    }

    /// Runs the example on both nodes and reads what it printed.
    fn measure<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let [from, to] = &self.nodes;
        let mut tool = Command::new(&self.tool);
        tool.args(arguments).arg("--from").arg(from.path()).arg("--to").arg(to.path());
        let text = shell::output(&mut tool)?;
        serde_json::from_str(&text).with_context(|| format!("what {} printed", arguments[0]))
    }
}

/// What is attached.
#[derive(Deserialize)]
struct Attached {
    programs: Vec<String>,
    watching_drops: usize,
}

/// What an agent's programs counted.
#[derive(Deserialize)]
struct Drops {
    packets: u64,
    kinds: u64,
    most_kinds: u64,
    missed: u64,
}

/// Reads the maps where the agent sees them.
fn drops(stage: &Stage, agent: Pid) -> Result<Drops> {
    let pins = PathBuf::from(format!("/proc/{agent}/root/sys/fs/bpf/overlaywatch"));
    // One folder of a namespace, and in it one of a layout, beside those in which
    // filters of clsact are remembered.
    let only = |folder: &Path| -> Result<PathBuf> {
        for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b"clsact-") {
                return Ok(entry.path());
            }
        }
        bail!("an agent that pinned nothing")
    };
    let mut tool = Command::new(&stage.tool);
    tool.args(["drops", "--folder"]).arg(only(&only(&pins)?)?);
    serde_json::from_str(&shell::output(&mut tool)?).context("what drops printed")
}

/// Whether the node's agent finds nothing wrong.
fn is_content(node: &Netns) -> bool {
    // Until it listens, asking fails: that is no failure yet.
    node.within(|| http::get(AGENT, "/health")).is_ok_and(|answer| answer.status == 200)
}

/// Shell commands that make a node.
fn setup(index: usize) -> String {
    let peer = 1 - index;
    let (own_overlay, own_underlay, own_mac) = (OVERLAY[index], UNDERLAY[index], MAC[index]);
    let (overlay, underlay, mac) = (OVERLAY[peer], UNDERLAY[peer], MAC[peer]);
    format!(
        "set -e\n\
         ip addr add {own_underlay}/30 dev eth0\n\
         ip link set eth0 up\n\
         ip link add flannel.1 address {own_mac} mtu 1450 type vxlan id 1 \
         local {own_underlay} dev eth0 dstport 8472 nolearning\n\
         ip addr add {own_overlay}/32 dev flannel.1\n\
         ip link set flannel.1 up\n\
         ip neigh replace {overlay} lladdr {mac} dev flannel.1 nud permanent\n\
         ip route replace {overlay}/24 via {overlay} dev flannel.1 onlink\n\
         bridge fdb replace {mac} dev flannel.1 dst {underlay} self permanent\n\
         echo 1 > /proc/sys/net/ipv4/ip_forward\n"
    )
}

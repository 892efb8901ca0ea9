//! The agents under test: one process per node, in its namespace.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::mode::Mode;
use crate::patience;
use crate::topology::{Cluster, Node};

/// The agent's port, for HTTP over TCP and for probes over UDP.
pub const PORT: u16 = 9977;
/// SIGTERM stops an agent within a second; twice that is a failure.
const STOPS_WITHIN: Duration = Duration::from_secs(2);

/// How to run agents.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The agent's binary.
    pub binary: PathBuf,
    /// Agents are given a list of peers; without one they learn them from the kernel.
    pub listed: bool,
    /// Agents load their eBPF programs.
    pub ebpf: bool,
    /// With or without the rules that name causes.
    pub mode: Mode,
}

/// A running agent; it is killed when this is dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
}

impl Agent {
    /// Starts the agent of `node`. It dies with the calling thread.
    ///
    /// # Errors
    /// When the binary cannot be run, or the files cannot be written.
    pub fn start(node: &Node, directory: &Path, launch: &Launch) -> Result<Self> {
        let file = configuration_path(directory, node);
        fs::write(&file, configuration(node, directory, launch))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path(directory, node))
            .context("cannot open the agent's log")?;
        let mut command = veiled(node, directory, &launch.binary);
        command.args(["agent", "--node", &node.name, "--listen", &format!("0.0.0.0:{PORT}")]);
        if launch.listed {
            command.arg("--peers").arg(peers_path(directory, node));
        }
        if launch.mode == Mode::NoRules {
            command.arg("--no-rules");
        }
        let child = command
            .arg("--config")
            .arg(file)
            .env_remove("NOTIFY_SOCKET")
            // Ctrl-C is for the lab, which ends its agents itself.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", launch.binary.display()))?;
        Ok(Self { child })
    }

    /// Its process.
    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid()?, signal).with_context(|| format!("cannot send {signal} to an agent"))
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let end = Instant::now() + patience::stretched(STOPS_WITHIN);
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                bail!("an agent did not end within {STOPS_WITHIN:?} of SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// How it ended, if it did by itself.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn ended(&mut self) -> Result<Option<String>> {
        Ok(self.child.try_wait()?.map(|status| status.to_string()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // An agent that already ended is already where it should be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a node's agent is configured with beside the command line; nothing but
/// what keeps the agents of one host apart.
fn configuration(node: &Node, directory: &Path, launch: &Launch) -> String {
    let root = host_root(directory, node);
    format!(
        "[ebpf]\npin = \"{}\"\n[host]\nroot = \"{}\"\n[sources]\nkernel = {}\n",
        node.pins.path().display(),
        root.display(),
        launch.ebpf
    )
}

/// The root of a node's files, which its agent takes for the host's.
pub(crate) fn host_root(directory: &Path, node: &Node) -> PathBuf {
    directory.join(format!("{}.root", node.name))
}

/// Where a node's agent logs to.
#[must_use]
pub fn log_path(directory: &Path, node: &Node) -> PathBuf {
    directory.join(format!("{}.log", node.name))
}

fn configuration_path(directory: &Path, node: &Node) -> PathBuf {
    directory.join(format!("{}.toml", node.name))
}

fn peers_path(directory: &Path, node: &Node) -> PathBuf {
    directory.join(format!("{}.peers.json", node.name))
}

/// The files of the whole machine that a node may have its own version of.
const VEILED: [&str; 2] = ["/proc/sys/kernel/random/boot_id", "/proc/modules"];

/// Where a node has its own version of one of [`VEILED`].
fn veil_path(directory: &Path, node: &Node, file: &str) -> PathBuf {
    directory.join(format!("{}{}", node.name, file.replace('/', ".")))
}

/// Runs a program on a node, with the node's own versions of files mounted over the
/// machine's, for this process alone.
fn veiled(node: &Node, directory: &Path, program: &Path) -> Command {
    let veils = VEILED.map(|file| (veil_path(directory, node, file), file));
    let mounts: Vec<String> = veils
        .iter()
        .filter(|(veil, _)| veil.exists())
        .map(|(veil, file)| format!("mount --bind '{}' {file} && ", veil.display()))
        .collect();
    if mounts.is_empty() {
        return node.netns.command(program);
    }
    let mut command = node.netns.command("unshare");
    // The same process all along, so that signals reach the program.
    let script = format!("{}exec \"$0\" \"$@\"", mounts.concat());
    command.args(["--mount", "sh", "-c", &script]).arg(program);
    command
}

impl Cluster {
    /// Gives a node its own version of a file of the whole machine, which its agent
    /// reads from its next start on.
    ///
    /// # Errors
    /// When it cannot be written, or nobody looks for it.
    pub fn veil(&self, node: usize, file: &str, text: &str) -> Result<()> {
        ensure!(VEILED.contains(&file), "{file} is the same for all nodes");
        let path = veil_path(self.directory(), self.node(node)?, file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Undoes [`Self::veil`] for all files of a node.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn unveil(&self, node: usize) -> Result<()> {
        for file in VEILED {
            let path = veil_path(self.directory(), self.node(node)?, file);
            if path.exists() {
                fs::remove_file(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Writes every node's peers file: all nodes but `without`, the node itself
    /// included, as one file for all nodes would have it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn list_peers(&self, without: Option<usize>) -> Result<()> {
        let listed: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| Some(node.index) != without)
            .map(|node| {
                let mut labels = json!({"node": node.name});
                if let Some(overlay) = self.shape.listed_overlay(node) {
                    labels["overlay"] = json!(overlay);
                }
                let target = SocketAddr::new(node.address(self.shape), PORT);
                json!({"targets": [target.to_string()], "labels": labels})
            })
            .collect();
        let text = serde_json::to_string_pretty(&listed)?;
        for node in &self.nodes {
            let path = peers_path(self.directory(), node);
            let draft = path.with_extension("draft");
            // Renamed into place: a reader sees the old list or the new one.
            fs::write(&draft, &text)
                .and_then(|()| fs::rename(&draft, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Starts an agent on every node.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_agents(&mut self, launch: Launch) -> Result<()> {
        self.list_peers(None)?;
        self.agents = Some(launch);
        (0..self.nodes.len()).try_for_each(|node| self.start_agent(node))
    }

    /// Starts the agent of one node; none where the cluster runs without agents.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        let Some(launch) = self.agents.clone() else { return Ok(()) };
        let directory = self.directory().to_owned();
        let node = self.node_mut(node)?;
        node.agent = Some(Agent::start(node, &directory, &launch)?);
        Ok(())
    }

    /// Runs the one-shot check on one node to its end; it must find nothing. In
    /// a cluster without agents there is nobody to ask.
    ///
    /// # Errors
    /// When it finds something, or cannot tell.
    pub fn check(&self, node: usize) -> Result<()> {
        let Some(launch) = &self.agents else { return Ok(()) };
        let node = self.node(node)?;
        let mut command = node.netns.command(&launch.binary);
        command.args(["check", "--for", "5", "--node", &node.name]);
        command.arg("--config").arg(configuration_path(self.directory(), node));
        if launch.listed {
            command.arg("--peers").arg(peers_path(self.directory(), node));
        }
        let output = command.output().context("cannot run the check")?;
        ensure!(
            output.status.success(),
            "the check beside the agent: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Kills the agent of one node, if one runs.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn kill_agent(&mut self, node: usize) -> Result<()> {
        // Dropping it kills it.
        self.node_mut(node)?.agent = None;
        Ok(())
    }

    /// Stops the agent of one node as systemd does, if one runs.
    ///
    /// # Errors
    /// When it does not stop in time.
    pub fn stop_agent(&mut self, node: usize) -> Result<()> {
        self.node_mut(node)?.agent.take().map_or(Ok(()), Agent::stop)
    }
}

//! The command line: what can be asked of the binary, as typed arguments.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use overlaywatch_core::diagnose::Status;
use overlaywatch_core::model::NodeName;
use overlaywatch_core::preflight::Method;

/// Where the agent of this node listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9977";

#[derive(Debug, Parser)]
#[command(
    name = "overlaywatch",
    version,
    max_term_width = 100,
    about = "Says which pair of nodes, which direction, at which hop, why, and what to do \
             when an overlay network (VXLAN, IPIP) breaks",
    after_help = "Exit codes: 0 all is well, 1 the command failed or could not tell, \
                  2 a problem was found.\n\n\
                  Start with:\n  \
                  overlaywatch check              diagnose this node once\n  \
                  overlaywatch agent              watch it for good (systemd does this)\n  \
                  overlaywatch preflight PEER     which encapsulations pass to that node\n  \
                  overlaywatch status             ask the running agent\n  \
                  overlaywatch explain CODE       what a verdict means and what to do"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What is asked of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch this node and its peers, and serve the verdict over HTTP
    #[command(after_help = "Needs no configuration on a node that flannel or Calico set up.\n\n\
                            Examples:\n  \
                            overlaywatch agent\n  \
                            overlaywatch agent --node node-a --peers /etc/overlaywatch/peers.json\n  \
                            OVERLAYWATCH_LOG=debug overlaywatch agent --listen 127.0.0.1:9977")]
    Agent(AgentArgs),
    /// Diagnose this node once, without a running agent
    #[command(after_help = "Examples:\n  \
                            overlaywatch check\n  \
                            overlaywatch check -o json | jq .summary")]
    Check(CheckArgs),
    /// Say which encapsulations pass between this node and others, before anything uses them
    #[command(
        after_help = "The other end is an agent that has this node as a peer, or `preflight \
                            --serve`. Both ends take root\n\
                            (CAP_NET_RAW), and TCP port 9978 between them. Packets of each \
                            encapsulation go both ways, small\n\
                            and of the underlay's MTU; no device is needed.\n\n\
                            Examples, 10.0.0.1 and 10.0.0.2 being the nodes:\n  \
                            overlaywatch preflight 10.0.0.2            on 10.0.0.1\n  \
                            overlaywatch preflight --serve 10.0.0.1    on 10.0.0.2, where no agent runs\n  \
                            overlaywatch preflight 10.0.0.2 --only ipip,vxlan-4789 -o json\n  \
                            overlaywatch preflight 10.0.0.2 --pods 10.244.1.0,10.244.2.0"
    )]
    Preflight(PreflightArgs),
    /// Ask a running agent for its verdict and its peers
    #[command(after_help = "Examples:\n  \
                            overlaywatch status\n  \
                            overlaywatch status 10.0.0.2\n  \
                            overlaywatch status http://node-b:9977 -o json")]
    Status(StatusArgs),
    /// Save what a running agent sees, for a bug report or for replay
    #[command(after_help = "Examples:\n  \
                            overlaywatch snapshot --output node-a.json\n  \
                            overlaywatch snapshot http://node-b:9977 > node-b.json")]
    Snapshot(SnapshotArgs),
    /// Diagnose saved snapshots
    #[command(after_help = "Examples:\n  \
                            overlaywatch replay node-a.json node-b.json\n  \
                            overlaywatch snapshot | overlaywatch replay -")]
    Replay(ReplayArgs),
    /// Say what a verdict means and what to do; lists all without CODE
    #[command(after_help = "Examples:\n  \
                            overlaywatch explain\n  \
                            overlaywatch explain encapsulation-lost")]
    Explain(ExplainArgs),
    /// Print shell completions
    #[command(after_help = "Example:\n  \
                            overlaywatch completions bash \
                            > /usr/share/bash-completion/completions/overlaywatch")]
    Completions(CompletionsArgs),
}

/// What the command line says of this node; it outranks the configuration file.
#[derive(Args, Clone, Debug, Default)]
pub struct NodeArgs {
    /// Configuration file [default: /etc/overlaywatch/overlaywatch.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's name [default: as a peer list says, else the host's name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// Where to serve HTTP [default: 0.0.0.0:9977]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Peers as a Prometheus file_sd JSON file, read again whenever it changes
    /// [default: peers are learnt from the kernel's routes and forwarding entries]
    #[arg(long, value_name = "FILE")]
    pub peers: Option<PathBuf>,
}

/// Arguments of `agent`.
#[derive(Args, Clone, Debug, Default)]
pub struct AgentArgs {
    /// This node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Say only what is counted at the hops, without the rules that name causes: a debugging aid
    #[arg(long)]
    pub no_rules: bool,
    /// Remove all eBPF programs, links and maps that agents left pinned, and end
    #[arg(long, conflicts_with = "no_rules")]
    pub detach: bool,
}

/// Arguments of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// This node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// How long to probe before the verdict, seconds
    #[arg(long = "for", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(3..=600))]
    pub seconds: u64,
    /// How to print the diagnosis.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `preflight`.
#[derive(Args, Clone, Debug)]
pub struct PreflightArgs {
    /// Underlay addresses of the other nodes
    #[arg(required = true, value_name = "PEER")]
    pub peers: Vec<IpAddr>,
    /// Wait for these peers to ask, and answer nobody else
    #[arg(long)]
    pub serve: bool,
    /// Serve for so long, seconds
    #[arg(long = "for", default_value_t = 600, value_name = "SECONDS", requires = "serve",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Serve each peer once, and end
    #[arg(long, requires = "serve")]
    pub once: bool,
    /// An address of this node's pod network and one of the peer's, for plain routed packets;
    /// `--serve` needs the same two the other way round, an agent must know them
    #[arg(long, value_name = "OWN,PEER")]
    pub pods: Option<PodPair>,
    /// Try these only: vxlan-8472, vxlan-4789, geneve-6081, wireguard-51820, ipip, plain
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "serve")]
    pub only: Vec<Method>,
    /// TCP port on which the two ends talk
    #[arg(long, default_value_t = 9978, value_name = "PORT",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// How to print it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// An address of this node's pod network and one of the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodPair {
    /// This node's.
    pub own: IpAddr,
    /// The peer's.
    pub peer: IpAddr,
}

impl PodPair {
    /// The same as the other node sees it.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        Self { own: self.peer, peer: self.own }
    }
}

impl FromStr for PodPair {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A network's own address will do, so its length may stand there.
        let address = |text: &str| {
            let text = text.split_once('/').map_or(text, |(address, _)| address);
            let address: Option<IpAddr> = text.parse().ok();
            address.filter(|address| {
                !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
            })
        };
        let (own, peer) =
            text.split_once(',').ok_or("two addresses with a comma between them are wanted")?;
        let pair = address(own).zip(address(peer));
        let (own, peer) = pair.ok_or("not the addresses of two pod networks")?;
        if own == peer {
            return Err("both ends have the same pod network");
        }
        if own.is_ipv4() != peer.is_ipv4() {
            return Err("the two addresses are of different families");
        }
        Ok(Self { own, peer })
    }
}

impl fmt::Display for PodPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.own, self.peer)
    }
}

/// Arguments of `status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// The agent: a URL, or an address with or without a port
    #[arg(default_value = DEFAULT_URL)]
    pub url: String,
    /// How to print it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `snapshot`.
#[derive(Args, Clone, Debug)]
pub struct SnapshotArgs {
    /// The agent: a URL, or an address with or without a port
    #[arg(default_value = DEFAULT_URL)]
    pub url: String,
    /// Write to this file instead of the standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Arguments of `replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Files that `overlaywatch snapshot` wrote; `-` is the standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Judge by this configuration's expectations instead of the defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to print it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The verdict's code, as /health and the metrics name it
    pub code: Option<String>,
    /// How to print it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// The `-o` option.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OutputArgs {
    /// Print text for people or JSON for programs
    #[arg(short = 'o', long = "format", value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Output,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

/// How a command ended. The order is of severity: of several results the largest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Nothing wrong was found.
    Fine = 0,
    /// The command itself failed.
    ToolFailed = 1,
    /// A problem was found.
    Problem = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Status> for Exit {
    /// A problem is what was found, not what could not be seen; and what could
    /// not be seen is not fine either.
    fn from(status: Status) -> Self {
        match status {
            Status::Pass => Self::Fine,
            Status::Unknown => Self::ToolFailed,
            Status::Warn | Status::Fail => Self::Problem,
        }
    }
}

/// Reads the process's command line.
///
/// # Errors
/// The exit to end with, after help, the version or the mistake was printed.
/// A mistake is [`Exit::ToolFailed`], since 2, clap's own choice, means a
/// problem in the network.
pub fn parse() -> Result<Command, Exit> {
    parse_from(std::env::args_os()).map_err(|error| {
        // Nothing is left to be done when the terminal is gone.
        let _ = error.print();
        if error.use_stderr() { Exit::ToolFailed } else { Exit::Fine }
    })
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// What is wrong with it, or the help that it asks for.
pub fn parse_from<T: Into<std::ffi::OsString> + Clone>(
    arguments: impl IntoIterator<Item = T>,
) -> Result<Command, clap::Error> {
    Cli::try_parse_from(arguments).map(|cli| cli.command)
}

/// The whole command line as clap describes it, for completions and documents.
#[must_use]
pub fn description() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_consistent() {
        description().debug_assert();
    }

    #[test]
    fn agent_arguments_are_typed() {
        let line = ["overlaywatch", "agent", "--node", "a", "--listen", "[::1]:1", "--peers", "p"];
        let Ok(Command::Agent(args)) = parse_from(line) else { panic!("not an agent") };
        assert_eq!(args.node.node.unwrap().as_str(), "a");
        assert_eq!(args.node.listen.unwrap().port(), 1);
        assert_eq!(args.node.peers.unwrap().to_str(), Some("p"));
        assert!(parse_from(["overlaywatch", "agent", "--listen", "9977"]).is_err());
    }

    #[test]
    fn preflight_says_what_is_wrong_with_its_arguments() {
        let line = |rest: &[&'static str]| {
            parse_from([&["overlaywatch", "preflight"], rest].concat())
                .map(|command| format!("{command:?}"))
                .map_err(|error| error.to_string())
        };
        line(&["10.0.0.2", "--only", "ipip,geneve-6081", "--pods", "10.1.1.0/24,10.1.2.0/24"])
            .unwrap();
        line(&["--serve", "10.0.0.1", "fd00::3", "--once", "--for", "5"]).unwrap();
        for (rest, words) in [
            (&[][..], "<PEER>"),
            (&["node-b"], "invalid IP address"),
            (&["10.0.0.2", "--only", "gre"], "no encapsulation is called `gre`"),
            (&["10.0.0.2", "--pods", "10.1.1.0"], "a comma between them"),
            (&["10.0.0.2", "--pods", "10.1.1.0,0.0.0.0"], "two pod networks"),
            (&["10.0.0.2", "--pods", "10.1.1.0,10.1.1.0"], "the same pod network"),
            (&["10.0.0.2", "--pods", "10.1.1.0,fd00::"], "different families"),
            (&["10.0.0.2", "--once"], "--serve"),
            (&["10.0.0.2", "--port", "0"], "0 is not in"),
        ] {
            let error = line(rest).unwrap_err();
            assert!(error.contains(words), "{rest:?}: {error}");
        }
    }

    #[test]
    fn defaults_ask_the_local_agent_for_text() {
        let Ok(Command::Status(args)) = parse_from(["overlaywatch", "status"]) else {
            panic!("not a status")
        };
        assert_eq!(args.url, DEFAULT_URL);
        assert_eq!(args.output.format, Output::Text);
    }
}
